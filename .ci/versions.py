#!/usr/bin/env python3
"""Runs a wheel with several versions of Python and PyTorch: .ci/versions.py [WHEEL PYTHON [ARGUMENT...]]

Makes an environment of PYTHON, in a temporary folder, installs WHEEL into it by uv with the arguments, such as
torch==2.12.1 or `-c .ci/oldest.txt`, and runs .ci/smoke.py there. If that succeeds, the versions are added to
docs/versions.json. Then, and without arguments only, writes the table of docs/install.md from that file.
"""

import json
import os
import re
import subprocess
import sys
import tempfile
import tomllib
from datetime import UTC, datetime
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
RECORD = ROOT / "docs" / "versions.json"
DOCUMENT = ROOT / "docs" / "install.md"
BEGIN, END = "<!-- versions: written by .ci/versions.py -->", "<!-- end of versions -->"
# runs in the environment
FOUND = """
import json, platform
from importlib.metadata import version
from importlib.util import find_spec
import torch
found = {name: version(name) for name in ("stm_fast", "torchvision", "triton", "numpy", "pillow", "av")}
found["page"] = "run" if find_spec("uvicorn") else "not installed"
print(json.dumps({"python": platform.python_version(), "torch": torch.__version__, **found}))
"""
_CLASSIFIER = "Programming Language :: Python :: "


def main() -> None:
    if len(sys.argv) == 2:
        sys.exit((__doc__ or "").splitlines()[0])
    new = [run(Path(sys.argv[1]).resolve(), sys.argv[2], sys.argv[3:])] if len(sys.argv) > 1 else []
    rows: list[dict[str, str]] = json.loads(RECORD.read_text())
    for row in new:
        rows = sorted([row, *(other for other in rows if order(other) != order(row))], key=order)
        RECORD.write_text(json.dumps(rows, indent=1) + "\n")
    DOCUMENT.write_text(with_table(DOCUMENT.read_text(), table(rows, declared_pythons())))


def order(row: dict[str, str]) -> list[list[int]]:
    """The numbers of its versions of Python and PyTorch."""
    return [[int(number) for number in re.findall(r"\d+", row[name])] for name in ("python", "torch")]


def run(wheel: Path, python: str, arguments: list[str]) -> dict[str, str]:
    """Installs the wheel and runs the smoke test. Raises CalledProcessError if either fails."""
    with tempfile.TemporaryDirectory(prefix="stm_fast_versions_") as name:
        environment = Path(name, "environment")
        there = environment / "bin" / "python"
        subprocess.run([python, "-m", "venv", "--without-pip", environment], check=True)
        subprocess.run(["uv", "pip", "install", "--quiet", "--python", there, *arguments, wheel], cwd=ROOT, check=True)
        subprocess.run([there, ROOT / ".ci" / "smoke.py", Path(name, "smoke")], check=True)
        found = subprocess.run([there, "-c", FOUND], capture_output=True, text=True, check=True)
    with open("/etc/os-release") as release:
        system = next(line for line in release if line.startswith("PRETTY_NAME=")).split("=")[1].strip().strip('"')
    date = datetime.now(UTC).date().isoformat()
    return {**json.loads(found.stdout), "system": system, "machine": os.uname().machine, "date": date}


def declared_pythons() -> list[str]:
    """The versions of Python that the package's metadata names."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    names = [text.removeprefix(_CLASSIFIER) for text in project["classifiers"] if text.startswith(_CLASSIFIER)]
    return [name for name in names if "." in name]


def table(rows: list[dict[str, str]], pythons: list[str]) -> str:
    """What was run, in Markdown; "not run" for each Python without a row."""
    columns = ("python", "torch", "torchvision", "triton", "numpy", "av", "page", "system", "date")
    cells = [[row[name] for name in columns] for row in rows]
    missing = [name for name in pythons if not any(row["python"].startswith(f"{name}.") for row in rows)]
    cells += [[name, "not run", *[""] * (len(columns) - 2)] for name in missing]
    lines = [columns, ["---"] * len(columns), *cells]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def with_table(text: str, body: str) -> str:
    """The document with another table between its marks."""
    before, rest = text.split(BEGIN)
    return f"{before}{BEGIN}\n{body}\n{END}{rest.split(END)[1]}"


if __name__ == "__main__":
    main()
