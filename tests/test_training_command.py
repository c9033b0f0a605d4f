"""stm-fast train: what it prints, how it is stopped and resumed, and one clear line for every mistake."""

import multiprocessing
import re
import sys
from dataclasses import fields
from urllib.error import URLError

import numpy as np
import pytest
import torch
import yaml
from PIL import Image
from typer.testing import CliRunner

from stm_fast.__main__ import app
from stm_fast.training.config_file import read_config
from stm_fast.training.log import read_log
from stm_fast.video import write_mask
from training_runs import SMALL


@pytest.fixture
def data(tmp_path):
    """A folder of two videos of five frames."""
    root = tmp_path / "data"
    generator = np.random.default_rng(0)
    ids = np.zeros((40, 48), np.uint8)
    ids[8:32, 10:40] = 1
    for name in ("first", "second"):
        for kind in ("JPEGImages", "Annotations"):
            (root / kind / name).mkdir(parents=True)
        for time in range(5):
            image = generator.integers(0, 256, (40, 48, 3), dtype=np.uint8)
            Image.fromarray(image).save(root / "JPEGImages" / name / f"{time}.jpg")
            write_mask(root / "Annotations" / name / f"{time}.png", ids)
    return root


@pytest.fixture
def train(data, tmp_path):
    """Runs the command on `data`."""
    config = tmp_path / "config.yaml"
    source = {"kind": "folder", "path": str(data), "split": "all"}
    config.write_text(yaml.safe_dump(SMALL | {"data": [source], "log": {"every": 1, "pictures": None}}))
    return lambda *more: CliRunner().invoke(app, ["train", str(config), "--output", str(tmp_path / "run"), *more])


def assert_refused(result, message):
    assert result.exit_code == 2
    assert result.stderr.startswith("stm-fast: ")
    assert message in result.stderr
    assert result.stderr.count("\n") == 1


@pytest.mark.slow
def test_a_run_is_stopped_and_resumed(train, tmp_path):
    stopped = train("--stop-after-minutes", "0")
    assert (stopped.exit_code, stopped.stdout) == (0, f"1 steps so far, results in {tmp_path / 'run'}\n")
    assert stopped.stderr.startswith("To resume:\n")
    resumed = train("--resume")
    assert resumed.exception is None, resumed.exception
    assert (resumed.exit_code, resumed.stdout) == (0, f"5 steps done, results in {tmp_path / 'run'}\n")
    assert [line["step"] for line in read_log(tmp_path / "run" / "log.jsonl")] == [1, 2, 3, 4, 5]


@pytest.mark.slow
def test_a_run_writes_its_configuration_which_gives_the_same_run(train, tmp_path):
    assert train("--set", "optimizer.lr=2e-3", "--stop-after-minutes", "0").exit_code == 0
    run, again = tmp_path / "run", tmp_path / "again"
    expected = read_config(tmp_path / "config.yaml", ["optimizer.lr=2e-3"])
    assert read_config(run / "config.yaml") == expected
    assert set(yaml.safe_load((run / "config.yaml").read_text())) == {field.name for field in fields(expected)}
    # all that a resumed run may change is kept too
    assert train("--resume", "--set", "optimizer.lr=2e-3", "--set", "log.every=2").exit_code == 0
    assert read_config(run / "config.yaml").log.every == 2
    repeated = CliRunner().invoke(app, ["train", str(run / "config.yaml"), "-o", str(again)])
    assert repeated.exit_code == 0, repeated.output
    assert (again / "config.yaml").read_bytes() == (run / "config.yaml").read_bytes()
    assert (again / "model.safetensors").read_bytes() == (run / "model.safetensors").read_bytes()


@pytest.mark.slow
def test_a_run_resumes_from_its_own_configuration(train, tmp_path):
    assert train("--set", "optimizer.lr=2e-3", "--stop-after-minutes", "0").exit_code == 0
    run = tmp_path / "run"
    assert_refused(train("--resume"), "checkpoint.pt: the run began with optimizer.lr 0.002, found 0.001 now")
    assert read_config(run / "config.yaml").optimizer.lr == 2e-3, "a refused run changes nothing"
    resumed = CliRunner().invoke(app, ["train", str(run / "config.yaml"), "--output", str(run), "--resume"])
    assert resumed.stdout == f"5 steps done, results in {run}\n"


def test_a_configuration_of_the_user_in_the_folder_of_the_run_is_kept(train, tmp_path):
    (tmp_path / "run").mkdir()
    own = tmp_path / "run" / "config.yaml"
    own.write_text("mine: true\n")
    assert_refused(train(), f"{own}: found a file of yours where the run writes its own; rename it")
    assert own.read_text() == "mine: true\n"


@pytest.mark.slow
def test_validation_is_told_in_percent_with_v(train, data):
    found = train("-v", "--set", f"validation={{kind: folder, path: {data}, split: all, max_size: 32}}")
    assert found.exit_code == 0, found.output
    told = [line for line in found.stderr.splitlines() if "step 5" in line]
    assert re.fullmatch(r"stm-fast: step 5: J&F \d+\.\d, J \d+\.\d, F \d+\.\d in percent", told[0])


@pytest.mark.slow
def test_a_corrupt_picture_is_named_or_skipped_and_counted(train, data, tmp_path):
    for file in (data / "JPEGImages" / "first").iterdir():
        file.write_bytes(b"\xff\xd8no")
    assert_refused(train(), f"{data / 'JPEGImages' / 'first'}")
    assert train("--skip-corrupt", "--resume").exit_code == 0
    skipped = [line["skipped"] for line in read_log(tmp_path / "run" / "log.jsonl")]
    assert skipped == sorted(skipped)
    assert skipped[-1] > 0


@pytest.mark.slow
def test_a_corrupt_picture_that_a_worker_reads_is_named_in_one_line(train, data):
    for file in (data / "JPEGImages").glob("*/*"):
        file.write_bytes(b"\xff\xd8no")
    before = multiprocessing.active_children()
    assert_refused(train("--set", "workers=1"), f"{data / 'JPEGImages'}")
    assert set(multiprocessing.active_children()) <= set(before), "Python would wait forever for a remaining loader"


def test_a_frame_without_mask_is_named(train, data):
    (data / "Annotations" / "second" / "3.png").unlink()
    assert_refused(train(), f"{data / 'JPEGImages' / 'second' / '3.jpg'}: frame without mask")


def test_masks_of_other_sizes_are_named(train, data):
    for file in (data / "Annotations").glob("*/*"):
        write_mask(file, np.ones((8, 8), np.uint8))
    assert_refused(train(), "Annotations")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ("data.0.path=nowhere", "nowhere"),
        ("data.0={kind: davis17, path: nowhere}", "nowhere/ImageSets/2017/train.txt: no such list of sequences"),
        ("data=[]", "data: found a list of 0, expected a list of at least 1"),
        ("optimizer.lrr=1", "optimizer.lrr: unknown key, did you mean lr?"),
        ("network.backbone=vgg", "network.backbone: found 'vgg', expected one of"),
        ("weights=nowhere.pth", "nowhere.pth: no such file"),
        ("data.0={kind: synthetic, frames: 2}", "frames: synthetic clips of 2, expected at least 3"),
        ("data.0={kind: stills, path: nowhere, pictures: a}", "nowhere: found a pattern of pictures or of masks alone"),
        ("backend=fast", "backend: found 'fast', expected auto, triton, cpp or reference"),
        ("clips.size=[30, 32]", "clips.size.0: found 30, expected a multiple of 16"),
        ("clips.frames=1", "clips.frames: found 1, expected at least 2"),
        ("optimizer.batch=0", "optimizer.batch: found 0, expected at least 1"),
        ("optimizer.batch=100", "epochs: found 2, expected clips for one batch of 100 at least"),
        ("optimizer.lr=0", "optimizer.lr: found 0, expected more than 0"),
        ("skip.first=-1", "skip.first: found -1, expected at least 0"),
        ("ema=1", "ema: found 1, expected less than 1"),
    ],
)
def test_mistakes_are_reported_in_one_line(train, change, message):
    assert_refused(train("--set", change), message)


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a CUDA device")
def test_a_backend_that_cannot_run_here_is_refused_at_once(train, tmp_path):
    assert_refused(train("--set", "backend=triton"), "backend 'triton' cannot run")
    assert not (tmp_path / "run" / "checkpoint.pt").exists()


def test_weights_that_cannot_be_downloaded_are_reported_in_one_line(train, monkeypatch):
    def offline(*_, **__):
        raise URLError("no route to host")

    monkeypatch.setattr("torchvision.models.ResNet18_Weights.get_state_dict", offline)
    result = train("--set", "network.backbone=resnet18", "--set", "backbone_weights=imagenet")
    assert_refused(result, "cannot be downloaded (<urlopen error no route to host>)")


def test_an_empty_split_is_named(train, data):
    (data / "ImageSets").mkdir()
    (data / "ImageSets" / "train.txt").write_text("\n")
    assert_refused(train("--set", "data.0.split=train"), "train.txt: found no sequence")


def test_a_missing_package_is_named(train, monkeypatch):
    monkeypatch.setitem(sys.modules, "accelerate", None)
    assert_refused(train(), "training needs accelerate: pip install accelerate pyyaml tensorboard\n")


@pytest.mark.slow
def test_a_full_disk_is_named(train, small_disk):
    # the last --output counts
    run = small_disk / "run"
    assert_refused(train("--output", str(run)), f"disk full while writing {run / 'model.safetensors'}\n")
