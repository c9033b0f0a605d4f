"""The memory bank: reads, growth, and removal."""

import math

import pytest
import torch

from stm_fast.config import MemoryConfig
from stm_fast.memory import MemoryBank, frames_that_stay, stays

CK, CV, H, W = 4, 6, 2, 3
PIXELS = H * W


def frame(objects=1, size=(H, W)):
    return torch.randn(objects, CK, *size), torch.randn(objects, CV, *size)


def plain_read(query_key, frames):
    """The read of one object's frames [(key [Ck, h, w], value [Cv, h, w]), ...], with torch.cat: [Cv, h, w]."""
    keys, values = (torch.cat([part.flatten(1) for part in parts], 1) for parts in zip(*frames, strict=True))
    affinity = (query_key[0].flatten(1).T @ keys / math.sqrt(CK)).softmax(1)
    return (values @ affinity.T).unflatten(1, query_key.shape[2:])


def assert_reads(bank, *objects):
    query_key = torch.randn(1, CK, H, W)
    expected = torch.stack([plain_read(query_key, frames) for frames in objects])
    torch.testing.assert_close(bank.read(query_key), expected)


def of(objects, *frames):
    """The keys and values of each object in these frames."""
    return [[(key[i], value[i]) for key, value in frames] for i in range(objects)]


def filled(count, objects=1, **options):
    bank, frames = MemoryBank(**options), [frame(objects) for _ in range(count)]
    for each in frames:
        bank.append(*each)
    return bank, frames


def rows_of(bank):
    """The bank's own tensors, each [O, slots, h*w, width]."""
    return list(bank._storage._tensors.values())


def test_a_read_sees_every_frame_of_every_object():
    bank, frames = filled(5, objects=3)
    assert bank.objects == 3
    assert bank.rows == [5 * PIXELS] * 3
    assert_reads(bank, *of(3, *frames))


def test_the_query_may_have_another_size():
    bank, frames = filled(2)
    query_key = torch.randn(1, CK, 5, 7)
    torch.testing.assert_close(bank.read(query_key)[0], plain_read(query_key, of(1, *frames)[0]))


def test_a_temporary_frame_stays_until_the_next():
    bank, (first,) = filled(1, objects=2)
    previous, staying = [frame(2) for _ in range(2)], frame(2)
    for each in previous:
        bank.append(*each, temporary=True)
        assert bank.rows == [2 * PIXELS] * 2
        assert_reads(bank, *of(2, first, each))
    bank.append(*staying)
    assert bank.rows == [2 * PIXELS] * 2
    assert_reads(bank, *of(2, first, staying))


def test_objects_that_appear_later_have_their_own_rows():
    bank, (first,) = filled(1)
    second, third = frame(3), frame(3)
    bank.append(*second)
    assert bank.rows == [2 * PIXELS, PIXELS, PIXELS]
    assert_reads(bank, of(1, first)[0] + of(3, second)[0], *of(3, second)[1:])
    bank.append(*third, temporary=True)
    assert bank.rows == [3 * PIXELS, 2 * PIXELS, 2 * PIXELS]
    assert_reads(bank, of(1, first)[0] + of(3, second, third)[0], *of(3, second, third)[1:])


def test_removing_an_object_leaves_the_others():
    bank, (first,) = filled(1, objects=2)
    second = frame(3)
    bank.append(*second)
    bank.remove([0])
    assert bank.rows == [2 * PIXELS, PIXELS]
    assert_reads(bank, of(2, first)[1] + of(3, second)[1], of(3, second)[2])
    bank.remove([0, 1])
    assert bank.objects == 0
    last = frame(2)
    bank.append(*last)
    assert_reads(bank, *of(2, last))


def test_a_bank_grows_by_doubling_and_spare_rows_are_zero(poisoned_memory):
    bank = MemoryBank()
    capacities = []
    for count in range(1, 10):
        bank.append(*frame(2))
        capacity = bank.nbytes // (4 * 2 * (CK + CV))
        capacities.append(capacity // PIXELS)
        for rows in rows_of(bank):
            assert rows.shape[1] == capacity // PIXELS
            assert not rows[:, count:].any()
    assert capacities == [1, 2, 4, 4, 8, 8, 8, 8, 16]


def test_rows_are_written_once_and_never_moved():
    bank, _ = filled(3)
    kept = [rows[:, :3].clone() for rows in rows_of(bank)]
    for temporary in (True, False, True, False, False):
        bank.append(*frame(), temporary=temporary)
    assert all(torch.equal(rows[:, :3], old) for rows, old in zip(rows_of(bank), kept, strict=True))


@pytest.mark.parametrize("later", [0, 2])
def test_storage_of_known_size_is_allocated_at_once(later):
    bank = MemoryBank(frames=10)
    bank.append(*frame(1))
    storage = [rows.data_ptr() for rows in rows_of(bank)]
    assert bank.nbytes == 4 * 10 * PIXELS * (CK + CV)
    for _ in range(8):
        bank.append(*frame(1))
    bank.append(*frame(1), temporary=True)
    assert [rows.data_ptr() for rows in rows_of(bank)] == storage
    for _ in range(later):  # more frames than expected: the bank grows
        bank.append(*frame(1))
    assert bank.rows == [(10 + max(0, later - 1)) * PIXELS]


def test_a_step_never_concatenates(monkeypatch):
    bank, _ = filled(4, objects=2, frames=9)

    def refuse(*_, **__):
        raise AssertionError("torch.cat")

    monkeypatch.setattr(torch, "cat", refuse)
    for _ in range(4):
        bank.append(*frame(2))
        bank.read(torch.randn(1, CK, H, W))


def test_a_cleared_bank_is_empty():
    bank, _ = filled(2)
    bank.clear()
    assert (bank.objects, bank.rows, bank.nbytes) == (0, [], 0)
    with pytest.raises(ValueError, match="found an empty bank"):
        bank.read(torch.randn(1, CK, H, W))
    key, value = torch.randn(1, 2, 1, 1), torch.randn(1, 3, 1, 1)  # a cleared bank accepts other widths
    bank.append(key, value)
    torch.testing.assert_close(bank.read(key), value)


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
def test_the_bank_has_the_dtype_of_what_it_holds(dtype):
    bank, (key, value) = MemoryBank(), frame()
    bank.append(key.to(dtype), value.to(dtype))
    assert bank.nbytes == PIXELS * (CK + CV) * dtype.itemsize
    assert bank.read(torch.randn(1, CK, H, W, dtype=dtype)).dtype == dtype


def test_the_backend_is_passed_on():
    bank = MemoryBank(backend="abacus")
    bank.append(*frame())
    with pytest.raises(ValueError, match="found 'abacus'"):
        bank.read(torch.randn(1, CK, H, W))


@pytest.mark.parametrize(
    ("key", "value", "words"),
    [
        (torch.zeros(2, CK, H), torch.zeros(2, CV, H), r"expected \[O, Ck, h, w\]"),
        (torch.zeros(2, CK, H, W), torch.zeros(1, CV, H, W), r"expected \[O, Ck, h, w\]"),
        (torch.zeros(2, CK, H, W), torch.zeros(2, CV, W, H), r"expected \[O, Ck, h, w\]"),
        (torch.zeros(1, CK, H, W), torch.zeros(1, CV, H, W), "expected at least 2 objects"),
        (torch.zeros(2, CK + 1, H, W), torch.zeros(2, CV, H, W), "key: found 5 and torch.float32, expected width 4"),
        (torch.zeros(2, CK, H, W), torch.zeros(2, CV, H, W).double(), "value: found 6 and torch.float64"),
    ],
)
def test_invalid_frames_are_reported(key, value, words):
    bank, frames = filled(1, objects=2)
    with pytest.raises(ValueError, match=words):
        bank.append(key, value)
    assert_reads(bank, *of(2, *frames))


def test_which_frames_stay():
    config = MemoryConfig(every=5)
    assert [t for t in range(16) if stays(config, t, given=t == 7)] == [0, 5, 7, 10, 15]
    assert frames_that_stay(config, 16, {0, 7}) == 5
    assert frames_that_stay(config, 16, {7}) == 3, "7, 10 and 15: before 7 there is no object"
