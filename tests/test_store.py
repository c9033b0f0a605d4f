"""Videos, masks, results and weights in object storage, through an S3 server on this machine and in memory."""

import itertools
import json
import os
import random
import signal
import socket
import subprocess
import sys
import time
from collections import Counter
from fractions import Fraction
from pathlib import Path

import fsspec
import numpy as np
import pytest
import torch
from PIL import Image
from typer.testing import CliRunner

from processes import CONTEXT
from s3_server import CUT, DENIED, FULL, KEY, SECRET, SLOW_DOWN, Store, s3_server
from small_inputs import HEIGHT, WIDTH, contents, one_object, small_network, write_video, write_weights
from stm_fast import store
from stm_fast.__main__ import app
from stm_fast.choices import RESULTS
from stm_fast.errors import InputError
from stm_fast.frame_source import each_source, frame_source
from stm_fast.runs.lazy import segment
from stm_fast.runs.output_folder import check_output, plan
from stm_fast.runs.video import InterruptedRun, segment_video
from stm_fast.store import StoreUrl, place_of
from stm_fast.video import OverlayVideoWriter, write_mask
from stm_fast.video.reader import open_frames

av = pytest.importorskip("av")

FRAMES = 10
PLAIN = ("masks", "csv")


@pytest.fixture(autouse=True)
def _one_thread(one_thread):
    pass


@pytest.fixture(scope="module")
def server():
    with s3_server() as running:
        running.put("data")
        yield running


@pytest.fixture
def s3(server, monkeypatch):
    """The server, with an empty bucket "data" and no faults."""
    for name, value in server.environment.items():
        monkeypatch.setenv(name, value)
    forget_connections()
    for name in server.names("data"):
        server.delete(f"data/{name}")
    server.fault = lambda method, path: None
    server.requests.clear()
    yield server
    server.fault = lambda method, path: None
    forget_connections()


def forget_connections():
    """The next connection reads the environment again."""
    store._opened.cache_clear()
    store._reach_s3.cache_clear()


@pytest.fixture(scope="module")
def model():
    return small_network()


@pytest.fixture(scope="module")
def local(tmp_path_factory):
    """A clip, a mask for its first frame, the frames as images, and masks as a folder."""
    folder = tmp_path_factory.mktemp("local")
    write_video(folder / "clip.mp4", FRAMES)
    write_mask(folder / "first.png", one_object())
    write_images(folder / "frames")
    (folder / "masks").mkdir()
    write_mask(folder / "masks/00000.png", one_object())
    write_mask(folder / "masks/00004.png", one_object(5))
    return folder


def picture(number, height=HEIGHT, width=WIDTH):
    return np.random.default_rng(number).integers(0, 256, (height, width, 3), dtype=np.uint8)


def write_images(folder):
    folder.mkdir()
    for number in range(FRAMES):
        Image.fromarray(picture(number)).save(folder / f"{number:05d}.png")


def put(s3, folder, name="data"):
    """Stores the files of a folder below "bucket/name"."""
    for path, data in contents(folder).items():
        s3.put(f"{name}/{path}", data)


def without_input(found):
    """Results without what identifies the input of their run."""
    record = json.loads(found["run.json"])
    del record["sha256"], record["run"]["video"]
    return {**found, "run.json": record}


def same_results(s3, folder, expected):
    found = s3.contents(folder)
    assert found.keys() == expected.keys()
    assert without_input(found) == without_input(expected)


def stop_after(count):
    frames = itertools.count(1)
    return lambda: next(frames) == count


# results


@pytest.mark.parametrize("source", ["clip.mp4", "frames", "frames/*.png"])
@pytest.mark.parametrize("masks", ["first.png", "masks"])
def test_results_in_a_store_equal_local_ones(s3, local, model, tmp_path, source, masks):
    put(s3, local)
    given = {"mask_frame": 0} if masks == "first.png" else {}
    segment_video(str(local / source), local / masks, tmp_path / "out", model=model, **given)
    summary = segment_video(f"s3://data/{source}", f"s3://data/{masks}", "s3://data/out/a", model=model, **given)
    assert str(summary.output) == "s3://data/out/a"
    assert summary.frames == FRAMES
    same_results(s3, "data/out/a", contents(tmp_path / "out"))


def test_the_marker_is_written_last_and_only_then_the_checkpoint_is_removed(s3, local, model):
    put(s3, local)
    s3.requests.clear()
    segment_video("s3://data/clip.mp4", "s3://data/masks", "s3://data/out", model=model, checkpoint_seconds=0)
    written = [(one.method, one.path.removeprefix("/data/out/")) for one in s3.requests if one.method != "GET"]
    written = [one for one in written if one[0] in ("PUT", "DELETE", "POST")]
    assert written[0] == ("PUT", ".resume.json")
    marker = written.index(("PUT", "run.json"))
    assert all(method == "DELETE" and name.startswith(".resume") for method, name in written[marker + 1 :])
    assert [name for method, name in written if name == "run.json"] == ["run.json"]
