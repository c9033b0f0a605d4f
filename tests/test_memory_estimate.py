"""The estimated memory of a run, compared with the memory it takes."""

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from typer.testing import CliRunner

from small_inputs import one_object, write_video
from stm_fast.__main__ import app
from stm_fast.config import MemoryConfig
from stm_fast.errors import InputError
from stm_fast.inference.options import RunOptions
from stm_fast.memory import MemoryBank, Shard
from stm_fast.memory.estimate import estimate_bank
from stm_fast.memory.storage import FrameLayout
from stm_fast.network import stm_resnet18
from stm_fast.runs import estimation as estimates
from stm_fast.runs.estimation import Workload, check_fits, estimate, note_on_size
from stm_fast.runs.video import segment_video
from stm_fast.video import write_mask

LAYOUT = FrameLayout(35, 16, 24, torch.float32, torch.device("cpu"))
SLOT_BYTES = 35 * 40 * 4
PAGE_BYTES = 5632  # including the alignment of its fields


@pytest.fixture(scope="module")
def model():
    torch.manual_seed(0)
    return stm_resnet18(key_dim=16, value_dim=32, decoder_dim=16).eval()


def run(model, **options):
    return Workload(model, RunOptions(MemoryConfig(**options)), (1080, 1920), objects=3, frames=1000)


@pytest.mark.parametrize("storage", ["model", "bfloat16", "int8", "fp8"])
@pytest.mark.parametrize("place", ["device", "host"])
@pytest.mark.parametrize(
    "policy", [{"frames": 11}, {"max_frames": 7}, {"max_frames": 7, "consolidate": 3}, {"max_bytes": 33 * SLOT_BYTES}]
)
def test_a_bank_takes_what_was_estimated(storage, place, policy):
    config = MemoryConfig(storage=storage, place=place, page_bytes=3 * SLOT_BYTES, **policy)
    expected = estimate_bank(config, LAYOUT, objects=2, frames=config.frames)
    bank = MemoryBank(config, frames=None if config.frames is None else config.frames + 1)
    for _ in range(11):
        bank.append(torch.randn(2, 16, 5, 7), torch.randn(2, 24, 5, 7))
    bank.append(torch.randn(2, 16, 5, 7), torch.randn(2, 24, 5, 7), temporary=True)
    if config.max_bytes is None:
        assert bank.nbytes == expected.bank
    else:
        assert bank.nbytes <= expected.bank <= config.max_bytes


def test_an_unbounded_bank_is_estimated_per_frame():
    found = estimate_bank(MemoryConfig(), LAYOUT, objects=2, frames=None)
    assert (found.bank, found.frame) == (None, 2 * SLOT_BYTES)


def test_consolidation_takes_workspace():
    plain, consolidated = (
        estimate_bank(MemoryConfig(max_frames=9, consolidate=most), LAYOUT, objects=3, frames=None)
        for most in (None, 4)
    )
    assert consolidated.bank == plain.bank
    usage = 3 * 10 * LAYOUT.rows * 2 * 4  # of nine frames and the previous one
    assert consolidated.workspace >= plain.workspace + usage + 6 * SLOT_BYTES  # prototypes, a frame, a given one


def test_probabilities_that_wait_to_be_written_are_counted(model):
    plain, kept = (estimate(run(model)._replace(keep_prob=keep)) for keep in (False, True))
    assert kept.waiting - plain.waiting == 6 * 4 * 1080 * 1920 * 4  # planes of three objects and the background
    assert kept.memory_bytes - plain.memory_bytes == kept.waiting - plain.waiting


def test_objects_that_come_later_cost_a_copy():
    together, later = (estimate_bank(MemoryConfig(), LAYOUT, objects=3, frames=9, later_objects=n) for n in (0, 2))
    assert later.bank == together.bank + (together.bank * 24 // 40) // 3


@pytest.mark.parametrize("place", ["device", "host"])
@pytest.mark.parametrize("world", [2, 3])
def test_each_process_takes_its_part_of_a_bank(place, world):
    config = MemoryConfig(place=place, page_bytes=SLOT_BYTES, max_frames=7)
    expected = estimate_bank(config, LAYOUT, objects=2, frames=None, world=world).bank
    shard = Shard()
    shard.world = world  # of rank 0, which has the most
    bank = MemoryBank(config, shard=shard)
    for _ in range(9):
        bank.append(torch.randn(2, 16, 5, 7), torch.randn(2, 24, 5, 7))
    bank.append(torch.randn(2, 16, 5, 7), torch.randn(2, 24, 5, 7), temporary=True)
    assert bank.nbytes == expected


@pytest.mark.parametrize("place", ["device", "host"])
@pytest.mark.parametrize(("slots", "world", "fits"), [(4, 1, False), (5, 1, True), (2, 2, False), (3, 2, True)])
def test_given_frames_that_exceed_a_cap_in_bytes(place, slots, world, fits):
    """Four given frames and the previous one; a process holds `slots` of them for each of two objects."""
    config = MemoryConfig(place=place, page_bytes=SLOT_BYTES, max_bytes=2 * slots * PAGE_BYTES)
    given = {"objects": 2, "frames": None, "given_frames": 4, "world": world}
    if fits:
        estimate_bank(config, LAYOUT, **given)
    else:
        words = "for 4 frames with given masks, which are never evicted, of 2 objects and the previous one"
        with pytest.raises(InputError, match=rf"max_bytes: found {config.max_bytes}, expected at least \d+ {words}"):
            estimate_bank(config, LAYOUT, **given)


@pytest.mark.parametrize("version", [1, 2])
def test_the_page_cache_counts_as_available_memory(tmp_path, version):
    limit, used = estimates._GROUP_FILES[2 - version]
    (tmp_path / limit).parent.mkdir(exist_ok=True)
    (tmp_path / limit).write_text("1000\n")
    (tmp_path / used).write_text("900\n")
    (tmp_path / limit).with_name("memory.stat").write_text("anon 300\nactive_file 500\ninactive_file 90\nslab 7\n")
    assert estimates._group_bytes(tmp_path) == 690
    (tmp_path / used).write_text("2000\n")
    assert estimates._group_bytes(tmp_path) == 0
    (tmp_path / limit).write_text("max\n")
    assert estimates._group_bytes(tmp_path) > 10**18


MEASURED = """
import gc, re, sys, torch
from stm_fast.config import MemoryConfig
from stm_fast.inference.engine import VideoSegmenter
from stm_fast.inference.options import RunOptions
from stm_fast.network import stm_resnet18
from stm_fast.network.deploy import for_inference
from stm_fast.runs.estimation import Workload, estimate

def kilobytes(name):
    return 1024 * int(re.search(name + r":\\s+(\\d+)", open("/proc/self/status").read())[1])

def segment(height, width, memory):
    planes = torch.zeros(2, height, width)
    planes[0, :, : width // 3], planes[1, :, width // 2 :] = 1, 1
    segmenter = VideoSegmenter(model, memory=memory)
    for t in range(4):
        first = (planes, [1, 2]) if t == 0 else ()
        segmenter.step(torch.rand(3, height, width), *first)

torch.set_num_threads(1)
torch.manual_seed(0)
model = stm_resnet18().eval()
if sys.argv[2] == "prepared":
    model = for_inference(model)
segment(32, 48, MemoryConfig())
gc.collect()
open("/proc/self/clear_refs", "w").write("5")  # resets the peak
before = kilobytes("VmRSS")
memory = MemoryConfig(every=1, frames=3, storage=sys.argv[1])
segment(240, 432, memory)
expected = estimate(Workload(model, RunOptions(memory), (240, 432), objects=2, frames=3))
print(kilobytes("VmHWM") - before, expected.memory_bytes)
"""


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self/clear_refs").exists(), reason="only Linux reports the peak of a process")
@pytest.mark.parametrize(("storage", "network"), [("model", "plain"), ("int8", "prepared")])
def test_a_run_takes_no_more_than_was_estimated(storage, network):
    command = [sys.executable, "-c", MEASURED, storage, network]
    # glibc keeps part of freed large blocks, which differs by 50 MiB between runs: make it keep none
    environment = {**os.environ, "MALLOC_MMAP_THRESHOLD_": str(2**20)}
    result = subprocess.run(command, check=True, capture_output=True, text=True, env=environment)
    measured, expected = map(int, result.stdout.split())
    # no lower bound: a system that reclaims idle pages makes a process look smaller than it is
    assert measured <= expected, "the run took more"


def test_a_run_that_cannot_fit_is_refused_with_options_that_would(model, monkeypatch):
    needed = estimate(run(model)).memory_bytes
    monkeypatch.setattr(estimates, "available_bytes", lambda device: needed)
    assert check_fits(run(model)).memory_bytes == needed
    monkeypatch.setattr(estimates, "available_bytes", lambda device: needed // 2)
    words = r"memory: the run needs .* of memory, .* is available; options that would fit: .*storage='int8'"
    with pytest.raises(InputError, match=words) as refused:
        check_fits(run(model))
    frames = int(str(refused.value).rpartition("max_frames=")[2])
    assert check_fits(run(model, max_frames=frames))
    with pytest.raises(InputError):
        check_fits(run(model, max_frames=frames + 1))


def test_the_folder_must_exist(model, tmp_path):
    with pytest.raises(InputError, match="missing: no such folder to keep the memory in"):
        check_fits(run(model, place="disk", folder=tmp_path / "missing"))


def test_caps_that_are_too_small_are_found_before_the_first_frame(model):
    with pytest.raises(
        InputError, match=r"max_bytes: found 1000, expected at least \d+ for a frame of 3 objects and the"
    ):
        check_fits(run(model, max_bytes=1000))


@pytest.mark.slow
def test_enlarged_frames_are_estimated_at_their_new_size(model):
    small, large, enlarged = (
        estimate(Workload(model, RunOptions(min_size=min_size), size)).bank.frame
        for size, min_size in [((240, 432), 1), ((480, 864), 1), ((240, 432), 480)]
    )
    assert small < enlarged == large


@pytest.mark.parametrize(
    ("size", "min_size", "max_size", "note"),
    [
        (
            (1080, 1920),
            480,
            None,
            "frames of 1920x1080; max_size=480, the size of the weights, would process 5.1",
        ),
        ((1280, 720), 480, None, "frames of 720x1280; max_size=480, the size of the weights, would process 2.2"),
        ((718, 1280), 480, None, None),
        ((1080, 1920), 480, 1080, None),
        ((1080, 1920), 1, None, None),
    ],
)
def test_frames_much_larger_than_those_of_the_weights_are_noted(model, monkeypatch, size, min_size, max_size, note):
    monkeypatch.setattr(model, "min_size", min_size)
    found = note_on_size(Workload(model, RunOptions(max_size=max_size), size))
    assert found is None if note is None else f"the network sees {note} times fewer pixels" == found


@pytest.mark.slow
def test_a_run_tells_what_would_be_faster(model, monkeypatch, tmp_path, caplog):
    monkeypatch.setattr(model, "min_size", 16)
    write_video(tmp_path / "clip.mp4", 2)
    segment_video(tmp_path / "clip.mp4", one_object(), tmp_path / "out", model=model, write=["masks"])
    assert [message for message in caplog.messages if "max_size=16" in message]
    caplog.clear()
    segment_video(tmp_path / "clip.mp4", one_object(), tmp_path / "other", model=model, max_size=16, write=["masks"])
    assert not caplog.messages


@pytest.mark.slow
@pytest.mark.parametrize(("more", "option"), [(["--min-size", "1"], "--max-size"), ([], "--min-size")])
def test_the_command_line_refuses_a_run_that_cannot_fit(tmp_path, monkeypatch, more, option):
    (tmp_path / "frames").mkdir()
    ids = np.zeros((32, 48), np.uint8)
    ids[8:20, 8:20] = 1
    write_mask(tmp_path / "mask.png", ids)
    for index in range(2):
        Image.fromarray(np.zeros((32, 48, 3), np.uint8)).save(tmp_path / f"frames/{index:05}.jpg")
    monkeypatch.setattr(estimates, "available_bytes", lambda device: 10**6)
    paths = [str(tmp_path / name) for name in ("frames", "mask.png", "out")]
    result = CliRunner().invoke(app, ["segment", paths[0], "--masks", paths[1], "--output", paths[2], *more])
    assert result.exit_code == 2
    assert result.stderr.startswith("stm-fast: memory: the run needs ")
    assert result.stderr.endswith(f"options that would fit: none; use a smaller {option}\n")
    assert result.stderr.count("\n") == 1
    assert not (tmp_path / "out").exists()


def test_rows_on_disk_take_no_device_memory(model, tmp_path):
    here, elsewhere = (estimate(run(model, **options)) for options in ({}, {"place": "disk", "folder": tmp_path}))
    assert here.bank.bank < here.memory_bytes
    assert elsewhere.memory_bytes < here.memory_bytes
    assert elsewhere.disk_bytes == elsewhere.bank.bank


def test_available_memory_respects_the_limit_of_a_cgroup(tmp_path):
    (tmp_path / "memory.current").write_text("300\n")
    assert estimates._group_bytes(tmp_path) > 2**60
    (tmp_path / "memory.max").write_text("max\n")
    assert estimates._group_bytes(tmp_path) > 2**60
    (tmp_path / "memory.max").write_text("1000\n")
    assert estimates._group_bytes(tmp_path) == 700
