"""What the assembler made of a compiled kernel, read without a GPU: its main loop, instruction by instruction."""

import os
import re
import subprocess
import tempfile
from collections import Counter
from collections.abc import Sequence

from triton.backends import nvidia

# wgmma, mma.sync and tcgen05.mma, of floats and of integers
_PRODUCTS = ("HGMMA", "QGMMA", "IGMMA", "HMMA", "QMMA", "OMMA", "IMMA", "UTCHMMA", "UTCQMMA", "UTCIMMA")
# what lies outside of the instruction stream, and what stands for nothing
_PADDING = ("NOP",)


def disassemble(cubin: bytes) -> list[str]:
    """The lines of a cubin's listing: labels `.L_x_1:` and instructions, without their addresses."""
    listing = run_tool("nvdisasm", "--print-code", cubin=cubin)
    lines = (re.sub(r"/\*.*?\*/", "", line).strip() for line in listing.splitlines())
    return [line.removesuffix(";").strip() for line in lines if line and not line.startswith("//")]


def main_loop(listing: Sequence[str]) -> list[str]:
    """The instructions of the smallest loop that holds as many matrix products as any; empty where there is none."""
    labels = {line.removesuffix(":"): index for index, line in enumerate(listing) if re.fullmatch(r"\.L_x_\d+:", line)}
    best: list[str] = []
    for end, line in enumerate(listing):
        found = re.search(r"\bBRA\b.*`\((\.L_x_\d+)\)", line)
        if found is None or labels.get(found[1], end) >= end:
            continue
        body = [line for line in listing[labels[found[1]] : end + 1] if not line.startswith(".")]
        if (products(body), -len(body)) > (products(best), -len(best)):
            best = body
    return best if products(best) else []


def opcodes(body: Sequence[str]) -> Counter[str]:
    """How often each opcode, with its modifiers, is in a piece of a listing."""
    names = (re.sub(r"^@!?U?P\d+\s+", "", line).split(maxsplit=1)[0] for line in body)
    return Counter(name for name in names if name not in _PADDING)


def products(body: Sequence[str]) -> int:
    """How many of the instructions multiply matrices."""
    return sum(count for name, count in opcodes(body).items() if name.split(".")[0] in _PRODUCTS)


def run_tool(name: str, *options: str, cubin: bytes) -> str:
    """What one of the tools that Triton brings prints of a cubin."""
    tool = os.path.join(os.path.dirname(nvidia.__file__), "bin", name)
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(cubin)
        file.flush()
        return subprocess.run([tool, *options, file.name], capture_output=True, text=True, check=True).stdout
