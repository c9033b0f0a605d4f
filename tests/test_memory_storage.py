"""Rows in every format and place: results of reads, their size, and cleanup."""

import errno
import os
from contextlib import contextmanager

import pytest
import torch

from stm_fast.config import MemoryConfig
from stm_fast.errors import InputError
from stm_fast.memory import MemoryBank, places
from stm_fast.memory.formats import format_of
from stm_fast.memory.pages import DiskPages, HostPages
from stm_fast.memory.places import row_format_of
from stm_fast.memory.storage import FrameLayout, QuantizedPart
from stm_fast.memory.stream import PageStream
from stm_fast.ops import memory_read, quantized
from stm_fast.testing.criterion import assert_no_worse_than_eager

CK, CV, H, W = 16, 24, 5, 7
PIXELS = H * W
SLOT_BYTES = 4 * PIXELS * (CK + CV)
STORAGES = ["model", "bfloat16", "float16", "int8", "fp8"]
PLACES = ["device", "host", "disk"]


def config_of(place, folder, **options):
    folder = folder if place == "disk" else None
    return MemoryConfig(place=place, folder=folder, page_bytes=3 * SLOT_BYTES, **options)


def stm_like(objects, generator):
    """Keys that share a mean, as a network's do, and values whose channels differ in size."""
    mean = torch.linspace(-4, 4, CK)[:, None, None]
    spread = torch.logspace(-1, 1, CV)[:, None, None]
    key = torch.randn(objects, CK, H, W, generator=generator) + mean
    return key, torch.randn(objects, CV, H, W, generator=generator) * spread


def fill(bank, count, objects=2, seed=0, dtype=torch.float32):
    generator = torch.Generator().manual_seed(seed)
    frames = [tuple(x.to(dtype) for x in stm_like(objects, generator)) for _ in range(count)]
    for index, (key, value) in enumerate(frames):
        bank.append(key, value, temporary=index == count - 1)
    return frames


def joined(frames):
    """key [O, N, Ck] and value [O, N, Cv] of whole frames."""
    return tuple(torch.cat([part.flatten(2) for part in parts], 2).mT for parts in zip(*frames, strict=True))


def query(seed=9, dtype=torch.float32):
    return torch.randn(1, CK, 4, 6, generator=torch.Generator().manual_seed(seed)).to(dtype)


def read_whole(query_key, key, value):
    out = memory_read(query_key.flatten(2).mT, key, value, backend="reference")
    return out.mT.reshape(len(value), -1, *query_key.shape[2:])


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("place", PLACES)
def test_reads_joined_over_pages_meet_the_criterion(place, dtype, tmp_path):
    bank = MemoryBank(config_of(place, tmp_path))
    frames = fill(bank, 11, dtype=dtype)
    key, value = joined(frames)
    query_key = query(dtype=dtype)
    affinity = (query_key.flatten(2).mT @ key.mT * CK**-0.5).softmax(-1)
    eager = (affinity @ value).mT.reshape(2, CV, 4, 6)
    exact = read_whole(query_key.double(), key.double(), value.double())
    assert_no_worse_than_eager({"out": bank.read(query_key)}, {"out": eager}, {"out": eager}, {"out": exact})


@pytest.fixture
def products_of_floats(monkeypatch):
    """Reads of quantized rows by the reference: the other backends may round queries and weights to multiply bytes."""
    monkeypatch.setattr(quantized, "_BACKENDS", quantized._BACKENDS[-1:])


# relative root mean square: about the rounding of the stored numbers; products of bytes also round queries and weights
@pytest.mark.parametrize(
    ("storage", "allowed"), [("model", 1e-6), ("float16", 1e-3), ("bfloat16", 1e-2), ("int8", 1.5e-2), ("fp8", 5e-2)]
)
@pytest.mark.parametrize("place", PLACES)
def test_a_read_is_as_accurate_as_its_format(storage, allowed, place, tmp_path):
    bank = MemoryBank(config_of(place, tmp_path, storage=storage))
    key, value = joined(fill(bank, 9))
    exact = read_whole(query(), key, value)
    error = (bank.read(query()) - exact).square().mean().sqrt() / exact.square().mean().sqrt()
    assert error < allowed
    assert error > allowed / 50 or storage == "model"


@pytest.mark.usefixtures("products_of_floats")
@pytest.mark.parametrize("place", PLACES)
def test_an_int8_read_by_floats_is_as_accurate_as_its_format(place, tmp_path):
    test_a_read_is_as_accurate_as_its_format("int8", 1e-2, place, tmp_path)


@pytest.mark.usefixtures("products_of_floats")
@pytest.mark.parametrize("storage", STORAGES)
def test_parts_of_a_scaled_bank_are_joined_with_the_right_lse(storage, tmp_path):
    """A read in parts is the read of all decoded rows: a constant lost by centering keys would change the weights."""
    bank = MemoryBank(config_of("host", tmp_path, storage=storage))
    fill(bank, 10)
    parts = []
    for part in bank._storage.parts([10, 10]):
        kept = isinstance(part, QuantizedPart)
        numbers = part.memory.dequantized(torch.float32) if kept else (part.key, part.value)
        parts.append([tensor.clone() for tensor in numbers])
    assert len(parts) == 4
    key, value = (torch.cat(tensors, 1) for tensors in zip(*parts, strict=True))
    torch.testing.assert_close(bank.read(query()), read_whole(query(), key, value))


@pytest.mark.parametrize("storage", ["int8", "fp8"])
def test_rows_read_in_stored_form_equal_decoded_rows(storage):
    generator = torch.Generator().manual_seed(0)
    key, value = (tensor[0].flatten(1).T for tensor in stm_like(1, generator))
    formats = [format_of(storage, torch.float32, decoded=decoded) for decoded in (True, False)]
    decoded, kept = ({n: t.contiguous()[None, None] for n, t in each.encode(key, value).items()} for each in formats)
    assert {name: tuple(field[:2]) for name, field in formats[1].fields(PIXELS, CK, CV).items()} == {
        name: tuple(tensor.shape[2:]) for name, tensor in kept.items()
    }
    memory = formats[1].as_kept(kept)
    assert formats[0].as_kept(decoded) is None
    for pair in (formats[1].decode(kept, torch.float32), memory.dequantized(torch.float32)):
        for found, expected in zip(pair, formats[0].decode(decoded, torch.float32), strict=True):
            assert torch.equal(found, expected)
    # fp8 is multiplied with sixteen contiguous rows of a channel
    assert memory.value.stride()[2:] == ((1, 48) if storage == "fp8" else (CV, 1))


@pytest.mark.usefixtures("products_of_floats")
@pytest.mark.parametrize("storage", ["int8", "fp8"])
@pytest.mark.parametrize("place", PLACES)
def test_a_read_of_8_bit_rows_equals_one_of_decoded_rows(storage, place, tmp_path, monkeypatch):
    config = config_of(place, tmp_path, storage=storage, max_frames=5, evict="least_used")
    banks = []
    for decoded in (True, False):
        row_format = format_of(storage, torch.float32, decoded=decoded)
        monkeypatch.setattr(places, "row_format_of", lambda *_, row_format=row_format: row_format)
        bank = MemoryBank(config)
        fill(bank, 3, objects=1)
        bank.read(query())
        fill(bank, 5)
        banks.append(bank)
    assert all(isinstance(part, QuantizedPart) for part in banks[1]._storage.parts([5, 5]))
    torch.testing.assert_close(banks[1].read(query()), banks[0].read(query()))
    assert banks[1].frames == banks[0].frames


def test_8_bit_rows_are_read_in_stored_form():
    def keeps(device, backend="auto", storage="int8"):
        frame = FrameLayout(PIXELS, CK, CV, torch.float32, torch.device(device))
        return row_format_of(MemoryConfig(storage=storage), frame, backend).keeps(torch.float32)

    assert keeps("cuda")
    assert keeps("cuda:1", storage="fp8")
    assert keeps("cuda", backend="triton")
    assert not keeps("cuda", backend="reference")
    assert keeps("cpu")
    assert keeps("cpu", backend="cpp")
    assert not keeps("cpu", backend="reference")
    assert keeps("cpu", storage="fp8")
    assert not keeps("cpu", backend="reference", storage="fp8")


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no CUDA device")
@pytest.mark.parametrize(("storage", "allowed"), [("int8", 2e-2), ("fp8", 8e-2)])
@pytest.mark.parametrize("place", PLACES)
def test_a_read_of_8_bit_rows_on_the_device(storage, allowed, place, tmp_path):
    bank = MemoryBank(config_of(place, tmp_path, storage=storage))
    frames = [tuple(tensor.cuda() for tensor in stm_like(2, torch.Generator().manual_seed(seed))) for seed in range(9)]
    for key, value in frames:
        bank.append(key, value)
    exact = read_whole(query().cuda(), *joined(frames))
    error = (bank.read(query().cuda()) - exact).square().mean().sqrt() / exact.square().mean().sqrt()
    assert error < allowed


def test_fp8_rows_in_the_layout_of_another_backend_are_not_restored():
    bank = MemoryBank(MemoryConfig(storage="fp8"))
    bank.append(torch.randn(1, CK, 4, 8), torch.randn(1, 32, 4, 8))  # as many rows as channels: sizes do not tell
    with pytest.raises(ValueError, match="found fp8 rows in the layout of another backend"):
        MemoryBank(MemoryConfig(storage="fp8"), backend="reference").load_state_dict(bank.state_dict())


def test_centering_removes_the_mean_from_the_scale():
    generator = torch.Generator().manual_seed(0)
    spread = torch.randn(PIXELS, CK, generator=generator)
    errors = []
    for mean in (0, 100):
        row_format = format_of("int8", torch.float32)
        fields = {name: t[None, None] for name, t in row_format.encode(spread + mean, torch.zeros(PIXELS, 1)).items()}
        errors.append((row_format.decode(fields, torch.float32)[0][0] - mean - spread).abs().max())
    assert errors[1] < 1.01 * errors[0] + 1e-4


@pytest.mark.parametrize("storage", ["int8", "fp8"])
@pytest.mark.parametrize("number", [0.0, 1e-38, 1e30])
def test_numbers_of_any_size_stay_finite(storage, number):
    row_format = format_of(storage, torch.float32)
    key, value = torch.full((PIXELS, CK), number), torch.full((PIXELS, CV), -number)
    key[0] = 0
    fields = {name: t[None, None] for name, t in row_format.encode(key, value).items()}
    decoded_key, decoded_value = row_format.decode(fields, torch.float32)
    torch.testing.assert_close(decoded_key[0], key, rtol=0.07, atol=1e-37)
    torch.testing.assert_close(decoded_value[0], value, rtol=0.07, atol=1e-37)


@pytest.mark.parametrize(("storage", "share"), [("model", 1), ("bfloat16", 1 / 2), ("int8", 1 / 4), ("fp8", 1 / 4)])
def test_size_of_a_format(storage, share):
    fields = format_of(storage, torch.float32).fields(1620, 128, 512)
    taken = sum(field.nbytes for field in fields.values()) / (1620 * 640 * 4)
    assert share <= taken < 1.01 * share


@pytest.mark.parametrize("place", ["host", "disk"])
def test_objects_come_and_go_and_pages_are_reused(place, tmp_path):
    bank = MemoryBank(config_of(place, tmp_path))
    early, late = fill(bank, 7, objects=1), None
    pages = bank.nbytes
    late = fill(bank, 4, objects=3, seed=1)
    bank.remove([0])
    assert bank.rows == [4 * PIXELS] * 2
    expected = read_whole(query(), *(rows[1:] for rows in joined(late)))
    torch.testing.assert_close(bank.read(query()), expected)
    taken = bank.nbytes
    assert taken > pages
    fill(bank, 2, objects=3, seed=2)
    assert bank.nbytes == taken, "the pages of a removed object are reused for a new one"
    assert early


@pytest.mark.parametrize("place", ["host", "disk"])
def test_the_device_holds_two_pages_whatever_the_length(place, tmp_path):
    bank, taken = MemoryBank(config_of(place, tmp_path)), set()
    for _ in range(4):
        fill(bank, 10)
        bank.read(query())
        taken.add(bank._storage._stream.nbytes)
    assert taken == {2 * 2 * bank._storage._layout.nbytes}


@pytest.mark.parametrize("storage", STORAGES)
@pytest.mark.parametrize("place", PLACES)
@pytest.mark.parametrize("policy", [{}, {"max_frames": 4, "evict": "least_used"}, {"max_bytes": 20 * SLOT_BYTES}])
def test_a_bank_is_restored_bit_for_bit(storage, place, policy, tmp_path):
    config = config_of(place, tmp_path, storage=storage, **policy)
    bank, other = MemoryBank(config), MemoryBank(config)
    fill(bank, 5, objects=1)
    fill(bank, 4, objects=2, seed=1)
    bank.read(query())
    fill(other, 3, objects=3)
    other.load_state_dict({name: tensor.clone() for name, tensor in bank.state_dict().items()})
    for _ in range(2):
        assert other.frames == bank.frames
        assert other.rows == bank.rows
        assert torch.equal(other.read(query()), bank.read(query()))
        for each in (bank, other):
            fill(each, 3, objects=3, seed=2)
    assert place != "device" or other.nbytes == bank.nbytes


def test_an_empty_bank_is_restored():
    bank = MemoryBank()
    bank.load_state_dict(MemoryBank().state_dict())
    assert (bank.objects, bank.rows, bank.nbytes) == (0, [], 0)


def test_another_kind_of_bank_is_not_restored():
    bank = MemoryBank()
    fill(bank, 2)
    words = "found a bank of model rows on the device, rank 0 of 1, expected int8 rows on the device, rank 0 of 1"
    with pytest.raises(ValueError, match=words):
        MemoryBank(MemoryConfig(storage="int8")).load_state_dict(bank.state_dict())


def test_nothing_is_left_on_disk(tmp_path):
    bank = MemoryBank(config_of("disk", tmp_path))
    fill(bank, 9)
    assert bank.nbytes > 0
    assert not list(tmp_path.iterdir()), "the file has no name"
    bank.clear()
    assert bank.nbytes == 0


def test_a_folder_that_cannot_be_used_is_named(tmp_path):
    bank = MemoryBank(config_of("disk", tmp_path / "missing"))
    with pytest.raises(InputError, match="missing: cannot keep the memory there: No such file or directory"):
        fill(bank, 1)


def test_a_full_disk_is_an_input_error(tmp_path, monkeypatch):
    def full(*_):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    bank = MemoryBank(config_of("disk", tmp_path))
    fill(bank, 2)
    monkeypatch.setattr(os, "posix_fallocate", full)
    with pytest.raises(InputError, match=r"disk full after 0\.0 GB of memory rows"):
        fill(bank, 5, seed=1)


@pytest.mark.parametrize("kind", ["host", "disk"])
def test_pages_keep_their_bytes(kind, tmp_path):
    pages = HostPages(4097, pinned=False) if kind == "host" else DiskPages(4097, tmp_path)
    numbers = [pages.allocate() for _ in range(3)]
    for number in numbers:
        pages.open(number).fill_(number + 1)
    pages.free(numbers[1])
    assert pages.allocate() == numbers[1]
    assert [int(pages.open(number).unique()) for number in numbers] == [1, 2, 3]
    assert pages.open(0).shape == (4097,)


class Order:
    """Replaces the events of a GPU, and records the calls."""

    def __init__(self, device):
        self.log = []

    def buffers_are_new(self):
        self.log.append("new")

    @contextmanager
    def copying(self, buffer):
        self.log.append(f"copy {buffer}")
        yield

    def wait_for_copy(self, buffer):
        self.log.append(f"wait {buffer}")

    def read_is_done(self, buffer):
        self.log.append(f"done {buffer}")


def test_the_next_page_is_copied_before_this_one_is_read():
    pages = HostPages(64, pinned=False)
    steps = [[pages.allocate()] for _ in range(4)]
    for number, (page,) in enumerate(steps):
        pages.open(page).fill_(number)
    stream = PageStream(pages, 64, torch.device("cpu"))
    stream._cuda = order = Order(None)
    for number, buffer in enumerate(stream.steps(steps)):
        assert int(buffer.unique()) == number
        order.log.append(f"read {number % 2}")
    assert " ".join(order.log) == (
        "new copy 0 copy 1 wait 0 read 0 done 0 copy 0 wait 1 read 1 done 1 "
        "copy 1 wait 0 read 0 done 0 wait 1 read 1 done 1"
    )


@pytest.mark.gpu
@pytest.mark.parametrize("storage", STORAGES)
@pytest.mark.parametrize("place", PLACES)
def test_a_bank_on_a_gpu_reads_like_one_on_the_cpu(storage, place, tmp_path):
    if not torch.cuda.is_available():
        pytest.skip("no CUDA device")
    config = config_of(place, tmp_path, storage=storage)
    banks = {device: MemoryBank(config, backend="reference") for device in ("cpu", "cuda")}
    generator = torch.Generator().manual_seed(0)
    for _ in range(11):
        key, value = stm_like(2, generator)
        for device, bank in banks.items():
            bank.append(key.to(device), value.to(device))
    for _ in range(3):
        found, expected = (banks[device].read(query().to(device)).cpu() for device in ("cuda", "cpu"))
        torch.testing.assert_close(found, expected, rtol=1e-3, atol=1e-3)
