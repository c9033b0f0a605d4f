"""The same command gives the same bytes, in every process."""

import json
import os
import subprocess
import sys

import pytest

from small_inputs import draw, write_davis, write_sequence, write_weights, write_youtube
from video_files import write_sound_video

# these differ between runs: times, and checksums of records that hold times
TIMES = {"speed", "sequences", "network_seconds", "seconds", "stage_seconds", "sha256"}
# of hashes, and of the bytes that glibc fills allocated memory with
SEEDS = ("85", "170")
# in one process, because importing PyTorch takes longest
SCRIPT = """
import os, sys, torch
from typer.testing import CliRunner
from stm_fast.__main__ import app
torch.set_num_threads(1)
inputs, out = sys.argv[1:]
os.mkdir(out)
os.chdir(out)
network = ["--weights", f"{inputs}/weights.safetensors", "--min-size", "32"]
truth = f"{inputs}/davis/Annotations/480p"
for arguments in (
    ["convert", f"{inputs}/weights.safetensors", "converted.safetensors"],
    ["segment", f"{inputs}/clip", "--masks", f"{inputs}/masks", "-o", "segmented", *network],
    ["segment", f"{inputs}/clip", "--masks", f"{inputs}/masks", "-o", "pictures", "--write=pictures,masks", *network],
    ["evaluate", "davis17", "--data", f"{inputs}/davis", "-o", "davis", "--workers=1", *network],
    ["evaluate", "davis17", "--only-score", "davis/Annotations", truth, "-o", "scored", "--workers=1", "--report"],
    ["evaluate", "youtube-vos", "--data", f"{inputs}/youtube", "-o", "youtube", *network],
):
    ended = CliRunner().invoke(app, arguments)
    assert ended.exit_code == 0, ended.output
"""


def contents(folder):
    """The bytes of every file; for JSON, the content without times."""
    found = {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}
    for name, data in found.items():
        if name.endswith("results.json") or "timings/" in name:
            found[name] = {key: value for key, value in json.loads(data).items() if key not in TIMES}
    return found


@pytest.mark.slow
def test_two_processes_write_the_same_bytes(tmp_path):
    write_weights(tmp_path / "weights.safetensors")
    write_davis(tmp_path / "davis", names=("blob",))
    write_youtube(tmp_path / "youtube")
    pictures, ids = draw(0, frames=4)
    write_sequence(tmp_path / "clip", tmp_path / "masks", pictures, {0: ids[0]})
    command = [sys.executable, "-c", SCRIPT, str(tmp_path)]
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    processes = [
        subprocess.Popen(
            [*command, str(tmp_path / f"out{seed}")],
            env=environment | {"PYTHONHASHSEED": seed, "MALLOC_PERTURB_": seed},
        )
        for seed in SEEDS
    ]
    assert [process.wait() for process in processes] == [0, 0]
    one, other = (contents(tmp_path / f"out{seed}") for seed in SEEDS)
    written = {"converted.safetensors", "segmented/overlay.mp4", "segmented/objects.csv", "segmented/masks/00003.png"}
    written |= {"pictures/overlay/00003.jpg", "davis/run.json", "davis/results.json", "davis/timings/blob.json"}
    written |= {"davis/global_results-val.csv", "scored/report.html", "youtube/submission.zip"}
    assert written <= one.keys()
    assert [name for name in {**one, **other} if one.get(name) != other.get(name)] == []


ENCODE = """
import sys
from fractions import Fraction
import numpy as np
from stm_fast.data.synthetic import SyntheticClip
from stm_fast.video import VIDEO_WRITERS, open_frames
folder, sound = sys.argv[1:]
for kind in VIDEO_WRITERS:
    with kind(f"{folder}/{kind.result}", 432, 240, Fraction(24), open_frames(sound).sound()) as video:
        for index, shot in enumerate(SyntheticClip(seed=1, frames=24, height=240, width=432, objects=3)):
            alpha = (shot.ids[..., None] > 0) * shot.image[..., :1]
            pictures = {"overlay": shot.image, "matte": alpha[..., 0]}
            video.write(pictures.get(kind.result, np.concatenate((shot.image, alpha), 2)), index / 24)
"""


@pytest.mark.slow
def test_an_encoded_video_does_not_depend_on_uninitialized_memory(tmp_path):
    """Nor does its sound, copied or encoded."""
    write_sound_video(tmp_path / "sound.mov", [("pcm_s16le", 0.0), ("aac", 0.0)])
    for seed in SEEDS:
        environment = os.environ | {"MALLOC_PERTURB_": seed}
        (tmp_path / seed).mkdir()
        command = [sys.executable, "-c", ENCODE, str(tmp_path / seed), str(tmp_path / "sound.mov")]
        subprocess.run(command, env=environment, check=True)
    one, other = (contents(tmp_path / seed) for seed in SEEDS)
    assert one.keys() == {"overlay", "matte", "alpha", "webm"}
    assert [name for name in one if one[name] != other[name]] == []
