"""The package without what macOS and Windows lack, and without the extension and Triton: other_system.py hides them."""

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import stm_fast
from command_line import COMMANDS
from small_inputs import one_object, write_davis, write_video
from stm_fast import system
from stm_fast.video import write_mask

ROOT = Path(__file__).resolve().parents[1]
pytest.importorskip("av")


def run_on(name, folder, *command_lines):
    """What each command line gives, as an exit code and two texts."""
    program = [sys.executable, str(ROOT / "tests" / "other_system.py"), name]
    paths = os.pathsep.join([str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])])
    given = json.dumps([[str(word) for word in words] for words in command_lines])
    done = subprocess.run(
        program,
        input=given,
        capture_output=True,
        text=True,
        cwd=folder,
        env=os.environ | {"PYTHONPATH": paths},
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout.splitlines()[-1])


@pytest.mark.slow
@pytest.mark.parametrize("name", ["darwin", "win32"])
def test_videos_are_segmented_scored_and_opened(tmp_path, name):
    video = write_video(tmp_path / "clip.mp4", 4)
    write_mask(tmp_path / "first.png", one_object())
    write_davis(tmp_path / "davis", frames=3)
    small = ("--min-size", 1)
    helped = [(*command.split(), "--help") for command in COMMANDS]
    on_disk = ("--memory-place", "disk", "--memory-folder", ".")
    info, segmented, opened, scored, *helps = run_on(
        name,
        tmp_path,
        ("info",),
        ("segment", "clip.mp4", "--masks", "first.png", "--output", "out", *small, *on_disk),
        ("open", "clip.mp4", "--output", "project", "--port", 0, *small),
        ("evaluate", "davis17", "--data", "davis", "--sequence", "blob", "--output", "scores", *small),
        *helped,
    )
    assert "triton       Triton is not installed\n" in info[1]
    assert "cpp          stm_fast._C does not load" in info[1]
    for code, printed, errors in (info, segmented, opened, scored, *helps):
        assert code == 0, (printed, errors)
        assert "Traceback" not in errors
    assert "answer 200: <!DOCTYPE html>" in opened[1]
    expected = list(stm_fast.segment(video, tmp_path / "first.png", model=stm_fast.load(dtype="float32"), min_size=1))
    assert len(expected) == 4
    for result in expected:  # by the engine of this machine
        with Image.open(tmp_path / f"out/masks/{result.frame_index:05d}.png") as mask:
            assert np.mean(np.asarray(mask) != result.mask.numpy()) < 0.02


def test_space_on_disk_is_taken_without_posix_fallocate(tmp_path, monkeypatch):
    monkeypatch.delattr(os, "posix_fallocate")
    monkeypatch.setattr(sys, "platform", "darwin")
    monkeypatch.setattr(os, "posix_fadvise", None)
    with (tmp_path / "pages").open("w+b") as file:
        size = 2**20 + 7  # more than one block
        system.allocate(file.fileno(), 5, size)
        system.announce_read(file.fileno(), 0, 5)
        assert os.fstat(file.fileno()).st_size == 5 + size
        assert os.fstat(file.fileno()).st_blocks * 512 >= size
