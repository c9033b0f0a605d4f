"""Smoke test of an installed stm_fast: .ci/smoke.py FOLDER, run by the Python that has it.

Compares forward and backward reads of the C++ engine with the reference, segments ten frames from the command line
(with every result) and from Python, draws, tracks and exports in the page if it is installed with its extra, and runs
`stm-fast info`. FOLDER, which must not exist yet, is for the clip and its masks.
"""

import json
import signal
import subprocess
import sys
from collections.abc import Callable
from fractions import Fraction
from http.cookiejar import CookieJar
from importlib.util import find_spec
from pathlib import Path
from urllib.request import HTTPCookieProcessor, Request, build_opener

import numpy as np
import torch

import stm_fast
import stm_fast.kernels  # checks that it is installed
from stm_fast.choices import RESULTS
from stm_fast.data.synthetic import SyntheticClip
from stm_fast.ops.backends import BACKENDS
from stm_fast.testing import ReadCase, check_case
from stm_fast.video import OverlayVideoWriter, read_written_mask, write_mask

FRAMES = 10
VIDEOS = {"overlay.mp4", "matte.mp4", "alpha.mov", "alpha.webm"}
WRITTEN = sorted(VIDEOS | {"masks", "overlay", "cutout", "soft", "objects.csv", "coco.json", "rle.json", "run.json"})
STM_FAST = Path(sys.executable).with_name("stm-fast")


def check_reads() -> None:
    """Exits if the C++ engine is absent, or its errors exceed the float64 criterion."""
    absent = {backend.name: backend.absent_reasons() for backend in BACKENDS}
    if absent["cpp"]:
        sys.exit(f"cpp: found {absent['cpp']}, expected it to be built")
    for dtype in (torch.float32, torch.bfloat16):
        for case in (ReadCase(), ReadCase(similarity="l2", shrinkage=True, selection=True), ReadCase(top_k=7)):
            check_case(case, dtype, "cpp", "cpu", gradients=True)


def check_segmentation(folder: Path) -> None:
    """Exits if ten frames of a video file do not give every result, or in Python not the same masks."""
    folder.mkdir()
    clip = SyntheticClip(0, frames=FRAMES, objects=2)
    with OverlayVideoWriter(folder / "clip.mp4", clip.width, clip.height, Fraction(24)) as writer:
        for index, frame in enumerate(clip):
            writer.write(frame.image, index / 24)
    write_mask(folder / "first.png", clip[0].ids)
    command = [STM_FAST, "segment", folder / "clip.mp4", "--masks", folder / "first.png", "--output", folder / "out"]
    subprocess.run([*command, "--min-size", "1", "--write", ",".join(RESULTS)], check=True)
    found = sorted(path.name for path in (folder / "out").iterdir())
    if found != WRITTEN:
        sys.exit(f"{folder / 'out'}: found {found}, expected {WRITTEN}")
    model = stm_fast.load(dtype="float32")
    for result in stm_fast.segment(folder / "clip.mp4", folder / "first.png", model=model, min_size=1):
        written = read_written_mask(folder / f"out/masks/{result.frame_index:05d}.png").ids
        if not np.array_equal(result.mask.numpy(), written):
            sys.exit(f"frame {result.frame_index}: found another mask in Python than from the command")
    if result.frame_index != FRAMES - 1:
        sys.exit(f"found {result.frame_index + 1} frames, expected {FRAMES}")


def check_page(folder: Path) -> None:
    """Exits if the page of the clip cannot be opened, drawn on, tracked, exported and ended."""
    command = [STM_FAST, "open", folder / "clip.mp4", "--output", folder / "project", "--min-size", "1"]
    with subprocess.Popen([*command, "--port", "0", "--no-browser"], stdout=subprocess.PIPE, text=True) as server:
        assert server.stdout is not None
        try:
            use_page(server.stdout.readline().strip(), folder / "project/results")
        finally:
            server.send_signal(signal.SIGINT)
    if server.returncode != 0:
        sys.exit(f"stm-fast open: found exit code {server.returncode}, expected 0")


def use_page(url: str, results: Path) -> None:
    """A box around an object, tracked and exported, as the page does it."""
    browser = build_opener(HTTPCookieProcessor(CookieJar()))
    page = browser.open(url).read().decode()
    place = url.partition("?")[0]
    for file in (Path(stm_fast.__file__).parent / "page/static").iterdir():
        browser.open(f"{place}static/{file.name}").read()
    if "page.css" not in page:
        sys.exit(f"{url}: found {page[:100]!r}, expected the page")

    def post(path: str, **body: object) -> bytes:
        sent = Request(f"{place}api/{path}", json.dumps(body).encode(), {"Content-Type": "application/json"})
        return browser.open(sent).read()

    def wait(start: Callable[[], object]) -> None:
        with browser.open(f"{place}api/events") as events:
            events.readline()
            start()
            done = next(line for line in events if b'"kind": "done"' in line)
        if b'"error": null' not in done:
            sys.exit(f"stm-fast open: {done.decode()}")

    clip = SyntheticClip(0, frames=FRAMES, objects=2)
    rows, columns = np.nonzero(clip[0].ids == 1)
    left, top = int(columns.min()), int(rows.min())
    post("objects")
    box = [left, top, int(columns.max()) + 1 - left, int(rows.max()) + 1 - top]
    post("prompt", frame=0, object=1, tool="box", box=box)
    wait(lambda: post("track", frame=0))
    wait(lambda: post("export", write=["masks", "csv"]))
    masks = sorted((results / "masks").iterdir())
    if len(masks) != FRAMES or not read_written_mask(masks[-1]).ids.any():
        sys.exit(f"{results}: found {len(masks)} masks, expected {FRAMES} with an object")


def main() -> None:
    """Ends with an error at the first thing that is wrong."""
    check_reads()
    check_segmentation(Path(sys.argv[1]))
    if find_spec("fastapi") is not None:  # the extra page
        check_page(Path(sys.argv[1]))
    subprocess.run([STM_FAST, "info"], check=True)


if __name__ == "__main__":
    main()
