"""Fuzzes every reader for some minutes: `make fuzz MINUTES=10`.

Prints a line for each reader. For a case that fails it saves the files, and in `finding.txt` what happened. To rerun
one case: `--only mask --seed 7 --number 123`. Exits with 1 if there are findings.
"""

import argparse
import itertools
import os
import sys
import threading
import time
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

# this file is called by its path
sys.path[:0] = [str(Path(__file__).resolve().parents[1]), str(Path(__file__).resolve().parents[2])]

from fuzz.targets import TARGETS, case  # noqa: E402
from fuzz.worker import Finding, missing, run_cases  # noqa: E402

MOST_OF_A_KIND = 3  # this many findings of a kind are saved
MOST = 100  # after this many findings of a reader, the next one is fuzzed


def main() -> int:
    arguments = _arguments()
    names = arguments.only or list(TARGETS)
    waiting, lock, kinds = list(names), threading.Lock(), Counter[str]()
    workers = min(arguments.workers, len(names))
    seconds = arguments.minutes * 60 * workers / len(names)

    def work() -> None:
        while True:
            with lock:
                if not waiting:
                    return
                name = waiting.pop(0)
            _fuzz(name, seconds, arguments, kinds, lock)

    with ThreadPoolExecutor(workers) as pool:
        for done in [pool.submit(work) for _ in range(workers)]:
            done.result()
    if kinds:
        print(f"{sum(kinds.values())} findings of {len(kinds)} kinds in {arguments.output}")
    return 1 if kinds else 0


def _fuzz(name: str, seconds: float, arguments: argparse.Namespace, kinds: Counter[str], lock: threading.Lock) -> None:
    target = TARGETS[name]
    absent = missing(target)
    if absent:
        print(f"{name:14} skipped: {', '.join(absent)} not installed", flush=True)
        return
    counts = Counter[str]()

    def found(finding: Finding) -> None:
        counts["findings"] += 1
        with lock:
            kinds[finding.kind] += 1
            if kinds[finding.kind] <= MOST_OF_A_KIND:
                _keep(finding, arguments.output)

    def numbers() -> Iterator[int]:
        if arguments.number is not None:
            yield arguments.number
            return
        start = time.monotonic()
        for number in itertools.count():
            spent = time.monotonic() - start
            if spent > seconds or counts["findings"] >= MOST:
                break
            yield number
        rate = number / max(spent, 1e-9)
        print(f"{name:14} {number:7} cases {rate:7.1f} a second {counts['findings']:5} findings", flush=True)

    run_cases(target, arguments.seed, numbers(), found)


def _keep(finding: Finding, output: Path) -> None:
    folder = output / f"{finding.target}-{finding.seed}-{finding.number}"
    for name, content in case(TARGETS[finding.target], finding.seed, finding.number).items():
        (folder / "files" / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / "files" / name).write_bytes(content)
    again = f"--only {finding.target} --seed {finding.seed} --number {finding.number}"
    (folder / "finding.txt").write_text(f"{finding.what}\n{again}\n\n{finding.details}\n", "utf-8", "backslashreplace")


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--minutes", type=float, default=10.0, help="for all readers together")
    parser.add_argument("--seed", type=int, default=int(time.time()), help="a new one each time by default")
    parser.add_argument("--number", type=int, help="run only this case")
    parser.add_argument("--only", action="append", choices=list(TARGETS), help="one reader; may be given several times")
    parser.add_argument("--workers", type=int, default=os.cpu_count() or 1, help="number of processes")
    parser.add_argument("--output", type=Path, default=Path("fuzz-findings"), help="the folder for findings")
    return parser.parse_args()


if __name__ == "__main__":
    sys.exit(main())
