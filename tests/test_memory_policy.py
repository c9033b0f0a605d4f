"""Which frames a bank keeps under every policy, and that caps are never exceeded."""

import math
from itertools import pairwise

import pytest
import torch

from stm_fast.config import MemoryConfig
from stm_fast.errors import InputError
from stm_fast.inference.engine import VideoSegmenter
from stm_fast.memory import MemoryBank, frames_that_stay, stays
from stm_fast.memory.policy import Slot, victim
from stm_fast.network import stm_resnet18
from stm_fast.ops import memory_read

CK, CV, H, W = 4, 6, 2, 3
PIXELS = H * W
SLOT_BYTES = 4 * PIXELS * (CK + CV)


@pytest.fixture(scope="module")
def model():
    torch.manual_seed(0)
    return stm_resnet18(key_dim=16, value_dim=32, decoder_dim=16).eval()


def frame(objects=1):
    return torch.randn(objects, CK, H, W), torch.randn(objects, CV, H, W)


def filled(config, count, objects=1, permanent=(0,), step=5):
    bank = MemoryBank(config)
    for index in range(count):
        bank.append(*frame(objects), permanent=[0] if index in permanent else [], frame=step * index)
    return bank


def test_the_default_is_the_published_policy():
    config = MemoryConfig()
    assert [t for t in range(12) if stays(config, t, given=t == 0)] == [0, 5, 10]
    assert filled(config, 30).frames == [[5 * index for index in range(30)]]


def test_first_and_previous():
    config = MemoryConfig(every=None)
    assert [t for t in range(30) if stays(config, t, given=t == 0)] == [0]
    assert frames_that_stay(config, 30, {0, 7}) == 2


@pytest.mark.parametrize(
    ("evict", "kept"),
    [("oldest", {0, 10, 11, 12}), ("even", {0, 4, 7, 12})],
)
def test_a_cap_evicts(evict, kept):
    bank = filled(MemoryConfig(max_frames=4, evict=evict), 13, step=1)
    assert set(bank.frames[0]) == kept
    assert bank.rows == [4 * PIXELS]


@pytest.mark.parametrize("cap", [3, 8, 21])
def test_even_thinning_leaves_no_large_gap(cap):
    slots = [Slot(0, True)]
    for newcomer in range(1, 400):
        if len(slots) == cap:
            slots.pop(victim("even", slots, newcomer))
        slots.append(Slot(newcomer, False))
        times = sorted(slot.frame for slot in slots)
        gaps = [after - before for before, after in pairwise(times)]
        assert max(gaps) <= 2 * math.ceil(newcomer / (cap - 1)), times


def test_permanent_frames_and_ties():
    slots = [Slot(0, True), Slot(9, False), Slot(3, False), Slot(6, False)]
    assert victim("oldest", slots, 12) == 2
    assert victim("even", slots, 12) == 2, "the gaps are equal, so the older frame goes"
    assert victim("least_used", slots, 12) == 2, "none was read yet"
    assert victim("oldest", [Slot(0, True)], 12) is None


def test_the_least_used_frame_goes():
    slots = [Slot(0, False, 9.0, 3), Slot(5, False, 2.0, 2), Slot(10, False, 2.0, 1), Slot(15, False)]
    assert victim("least_used", slots, 20) == 1, "1 per read; the others have 3 and 2, and one was never read"


@pytest.mark.parametrize("place", ["device", "host"])
def test_usage_is_that_of_the_memory_read(place):
    config = MemoryConfig(max_frames=8, evict="least_used", place=place, page_bytes=2 * SLOT_BYTES)
    bank, frames = MemoryBank(config), [frame(2), frame(3), frame(3), frame(3)]
    for number, each in enumerate(frames):
        bank.append(*each, temporary=number == 3)
    queries = [torch.randn(1, CK, 4, 5) for _ in range(2)]
    for query_key in queries:
        bank.read(query_key)
    for index, slots in enumerate(bank._slots):
        of_object = [(key[index], value[index]) for key, value in frames if index < len(key)]
        key, value = (torch.cat([part.flatten(1) for part in parts], 1).T for parts in zip(*of_object, strict=True))
        usages = [
            memory_read(query.flatten(2).mT, key[None], value[None], return_usage=True, backend="reference")[1]
            for query in queries
        ]
        expected = sum(usages)[0].unflatten(0, (-1, PIXELS)).sum(1)[:-1]  # the last is temporary
        torch.testing.assert_close(torch.tensor([slot.usage for slot in slots]), expected)
        assert [slot.reads for slot in slots] == [2] * len(expected)


def test_a_bank_evicts_the_least_used_frame():
    bank = MemoryBank(MemoryConfig(max_frames=3, evict="least_used", previous=False))
    keys = [torch.full((1, CK, H, W), float(number)) for number in (1, -1, 0, 2)]
    for number, key in enumerate(keys):
        bank.append(key, torch.randn(1, CV, H, W), frame=number)
        bank.read(torch.ones(1, CK, H, W))
    assert bank.frames == [[0, 3, 2]], "frame 1 points away from every query"


@pytest.mark.parametrize(("place", "left"), [("device", 2), ("host", 1)])
def test_a_cap_in_bytes_is_never_exceeded(place, left):
    """Later objects take their share of the cap; a page holds two slots, so an object has two or three."""
    config = MemoryConfig(max_bytes=13 * SLOT_BYTES, evict="even", place=place, page_bytes=2 * SLOT_BYTES)
    bank, frames = MemoryBank(config), {}
    for number in range(40):
        objects = 1 + number // 10
        frames[number] = frame(objects)
        bank.append(
            *frames[number],
            permanent=[objects - 1] if number % 10 == 0 else [],
            temporary=number % 3 == 2,
            frame=number,
        )
        assert bank.nbytes <= config.max_bytes
        assert_reads(bank, frames, number)
    assert [len(kept) for kept in bank.frames] == [left] * 4, "one more slot holds the previous frame"


def assert_reads(bank, frames, last):
    """A read covers exactly the frames that the bank reports, and the last one if it is temporary."""
    query_key = torch.randn(1, CK, H, W)
    found = bank.read(query_key)
    for index, kept in enumerate(bank.frames):
        numbers = [*kept, last] if len(kept) * PIXELS < bank.rows[index] else kept
        key, value = (torch.cat([frames[n][which][index].flatten(1) for n in numbers], 1) for which in (0, 1))
        affinity = (query_key[0].flatten(1).T @ key / math.sqrt(CK)).softmax(1)
        torch.testing.assert_close(found[index].flatten(1), value @ affinity.T)


@pytest.mark.parametrize("place", ["device", "host"])
def test_a_capped_bank_reads_what_it_keeps(place):
    config = MemoryConfig(max_frames=5, place=place, page_bytes=2 * SLOT_BYTES)
    bank, frames = MemoryBank(config), {}
    for number in range(25):
        frames[number] = frame(2)
        bank.append(
            *frames[number], permanent=(0, 1) if number in (0, 9) else (), temporary=number % 2 == 1, frame=number
        )
        assert_reads(bank, frames, number)
    assert {0, 24} <= set(bank.frames[0])
    assert bank.nbytes <= 2 * 6 * (SLOT_BYTES + 16), "fields are aligned in a page"


def test_a_memory_full_of_given_masks():
    config = MemoryConfig(max_frames=2)
    bank = filled(config, 2, permanent=(0, 1))
    bank.append(*frame(), frame=20)
    assert bank.frames == [[0, 5]]
    assert bank.rows == [3 * PIXELS], "a frame that may not stay is kept for one step"
    with pytest.raises(InputError, match="frame 25: the memory is full of 2 frames with given masks"):
        bank.append(*frame(), permanent=[0], frame=25)


def test_a_cap_that_holds_no_frame():
    bank = MemoryBank(MemoryConfig(max_bytes=2 * SLOT_BYTES - 1))
    with pytest.raises(InputError, match="max_bytes: 479 bytes do not hold one frame of 1 objects"):
        bank.append(*frame())


@pytest.mark.parametrize(
    ("wrong", "words"),
    [
        ({"every": 0}, "MemoryConfig.every: found 0"),
        ({"max_frames": 0}, "MemoryConfig.max_frames: found 0"),
        ({"evict": "newest"}, "found 'newest', expected one of oldest, least_used, even"),
        ({"storage": "int4"}, "MemoryConfig.storage: found 'int4'"),
        ({"place": "disk"}, "MemoryConfig.folder: found None with place 'disk'"),
    ],
)
def test_invalid_options_are_reported(wrong, words):
    with pytest.raises(ValueError, match=words):
        MemoryConfig(**wrong)


def test_a_frame_may_be_segmented_but_not_memorized(model):
    video = torch.rand(8, 3, 32, 48)
    mask = torch.zeros(32, 48, dtype=torch.uint8)
    mask[8:20, 8:20] = 1
    segmenter = VideoSegmenter(model, memory=MemoryConfig(every=1))
    for index, picture in enumerate(video):
        segmenter.step(picture, mask if index == 0 else None, memorize=index not in (2, 5))
    assert segmenter.bank.frames == [[0, 1, 3, 4, 6]], "7 would be memorized by the next step"
    with pytest.raises(InputError, match="frame 8: found a mask with memorize=False"):
        segmenter.step(video[0], mask, memorize=False)


def test_given_masks_outlive_a_cap(model):
    video = torch.rand(14, 3, 32, 48)
    mask = torch.zeros(32, 48, dtype=torch.uint8)
    mask[8:20, 8:20] = 1
    segmenter = VideoSegmenter(model, memory=MemoryConfig(every=2, max_frames=3))
    for index, picture in enumerate(video):
        segmenter.step(picture, mask if index in (0, 3) else None)
    assert set(segmenter.bank.frames[0]) == {0, 3, 12}
