"""What the assembler made of a compiled kernel, read without a GPU: its main loop, instruction by instruction."""

import os
import re
import subprocess
import tempfile
from collections import Counter
from collections.abc import Mapping, Sequence

from triton.backends import nvidia

# wgmma, mma.sync and tcgen05.mma, of floats and of integers
_PRODUCTS = ("HGMMA", "QGMMA", "IGMMA", "HMMA", "QMMA", "OMMA", "IMMA", "UTCHMMA", "UTCQMMA", "UTCIMMA")

_WAITS = ("DEPBAR", "WARPGROUP.DEPBAR", "BAR.", "SYNCS.PHASECHK")


def disassemble(cubin: bytes) -> list[str]:
    """The lines of a cubin's listing: labels `.L_x_1:` and instructions, without their addresses."""
    listing = run_tool("nvdisasm", "--print-code", file=cubin)
    lines = (re.sub(r"/\*.*?\*/", "", line).strip() for line in listing.splitlines())
    return [line.removesuffix(";").strip() for line in lines if line and not line.startswith("//")]


def main_loop(listing: Sequence[str]) -> list[str]:
    """The instructions of the innermost loop with the most matrix products; empty where no loop has any."""
    loops = [loop for loop in _loops(listing) if products([listing[line] for line in loop])]
    innermost = [loop for loop in loops if not any(other < loop for other in loops)]
    bodies = [[listing[line] for line in sorted(loop) if not listing[line].endswith(":")] for loop in innermost]
    return max(bodies, key=products, default=[])


def in_loops(listing: Sequence[str]) -> list[str]:
    """The instructions of all loops."""
    lines = sorted(frozenset().union(*_loops(listing)))
    return [listing[line] for line in lines if not listing[line].endswith(":")]


def _loops(listing: Sequence[str]) -> list[frozenset[int]]:
    """The lines of every natural loop: a branch back to a label that every way from the start leads through."""
    successors = _successors(listing)
    predecessors: dict[int, list[int]] = {}
    for line, following in successors.items():
        for other in following:
            predecessors.setdefault(other, []).append(line)
    loops = []
    for tail, following in successors.items():
        for head in following:
            # code that is seldom run lies at the end and branches back, too
            if head <= tail and tail not in _reached(0, successors, without=head):
                loops.append(frozenset(_reached(tail, predecessors, without=head) | {head}))
    return loops


def _successors(listing: Sequence[str]) -> dict[int, list[int]]:
    """The lines that may be run after each line."""
    labels = {line.removesuffix(":"): index for index, line in enumerate(listing) if line.endswith(":")}
    successors = {}
    for index, line in enumerate(listing):
        target = re.search(r"\bBRA\b.*`\((\.L_x_\d+)\)", line)
        # with a predicate in front or behind, the next line may follow too
        ends = re.match(r"(BRA `|EXIT|RET)", line) is not None
        following = [labels[target[1]]] if target else []
        successors[index] = following + ([] if ends or index + 1 == len(listing) else [index + 1])
    return successors


def _reached(start: int, edges: Mapping[int, Sequence[int]], without: int) -> set[int]:
    """Every line that the edges lead to from `start`, itself included, past one line."""
    found, waiting = {start}, [start]
    while waiting:
        for other in edges.get(waiting.pop(), ()):
            if other != without and other not in found:
                found.add(other)
                waiting.append(other)
    return found - {without}


def opcodes(body: Sequence[str]) -> Counter[str]:
    """How often each opcode, with its modifiers, is in a piece of a listing."""
    names = (re.sub(r"^@!?U?P\d+\s+", "", line).split(maxsplit=1)[0] for line in body)
    return Counter(name for name in names if name != "NOP")


def waits(body: Sequence[str]) -> int:
    """How many of the instructions wait: for copies, for products, for other warps."""
    return sum(count for name, count in opcodes(body).items() if name.startswith(_WAITS))


def narrow_loads(body: Sequence[str]) -> int:
    """How many of the instructions load a number of one or two bytes by itself."""
    return matching(body, r"LDG.*\.[US](8|16)\b")


def matching(body: Sequence[str], pattern: str) -> int:
    """How many of the instructions have an opcode that begins with the pattern."""
    return sum(count for name, count in opcodes(body).items() if re.match(pattern, name))


def products(body: Sequence[str]) -> int:
    """How many of the instructions multiply matrices."""
    return sum(count for name, count in opcodes(body).items() if name.split(".")[0] in _PRODUCTS)


def run_tool(name: str, *options: str, file: bytes) -> str:
    """All that one of the tools that Triton brings along prints about a file of these contents."""
    tool = os.path.join(os.path.dirname(nvidia.__file__), "bin", name)
    with tempfile.NamedTemporaryFile() as given:
        given.write(file)
        given.flush()
        done = subprocess.run([tool, *options, given.name], capture_output=True, text=True, check=True)
    return done.stdout + done.stderr
