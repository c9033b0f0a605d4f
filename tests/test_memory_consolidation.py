"""Consolidation: prototypes, usage of rows, and a bank that is compared with a simulation of its definition."""

import math

import pytest
import torch

from stm_fast.config import MemoryConfig
from stm_fast.inference.engine import VideoSegmenter
from stm_fast.memory import MemoryBank
from stm_fast.memory.consolidation import SHARE
from stm_fast.memory.policy import Slot, victims
from stm_fast.memory.storage import Part, QuantizedPart
from stm_fast.memory.usage import RowUsage, part_usage
from stm_fast.network import stm_lite2, stm_resnet18
from stm_fast.network.shared_trunk import SharedKeyValue
from stm_fast.ops import memory_read
from stm_fast.ops.quantized import quantize_memory

CK, CV, H, W = 8, 12, 3, 4
R = H * W
SLOT_BYTES = 8 * R * (CK + CV)  # of float64
SCALE = CK**-0.5
PLACES = ["device", "host", "disk"]
STORAGES = ["model", "float32", "bfloat16", "float16", "int8", "fp8"]


def config_of(place, folder, **options):
    folder = folder if place == "disk" else None
    return MemoryConfig(place=place, folder=folder, page_bytes=3 * SLOT_BYTES, **options)


class Video:
    """The frames of a video, in the order in which they are drawn: objects that come, leave, and are absent."""

    def __init__(self, dtype=torch.float64):
        self._generator = torch.Generator().manual_seed(0)
        self._dtype = dtype

    def _random(self, *size):
        return 1.5 * torch.randn(size, generator=self._generator, dtype=torch.float64).to(self._dtype)

    def feed(self, bank, number):
        """Appends frame `number` to the bank, and returns the read that follows."""
        objects = 1 if number < 9 else 3 if number < 60 else 2
        if number == 60:
            bank.remove([1])
        bank.append(
            self._random(objects, CK, H, W),
            self._random(objects, CV, H, W),
            temporary=number % 3 == 2,
            permanent=[0] if number in (0, 25) else [],
            absent=[1] if 30 <= number < 40 else [],
            frame=number,
        )
        return bank.read(self._random(1, CK, H, W))


def query_of(key):
    """The queries of memory keys, which differ as in a network with a shared trunk."""
    return 0.5 * key + 0.1


class Simulated:
    """The definition, with one list of rows per object and every affinity in memory.

    Args:
        cap: slots of each object.
        most: of these, for prototypes.
    """

    def __init__(self, cap, most):
        self._cap, self._most, self._objects = cap, most, []

    def remove(self, indices):
        self._objects = [each for index, each in enumerate(self._objects) if index not in indices]

    def append(self, key, value, *, temporary, permanent, absent, frame):
        self._objects += [Object(self._cap, self._most) for _ in range(len(key) - len(self._objects))]
        for index, each in enumerate(self._objects):
            if index not in absent:
                each.append(Rows(key[index].flatten(1).T, value[index].flatten(1).T, index in permanent), temporary)

    def read(self, query_key):
        query = query_key[0].flatten(1).T
        measured = any(each.stays for each in self._objects)
        return torch.stack([each.read(query, measured).T.unflatten(1, (H, W)) for each in self._objects])


class Rows:
    """The rows of a frame, or one prototype of each pixel."""

    def __init__(self, key, value, permanent):
        self.key, self.value, self.permanent = key.clone(), value.clone(), permanent
        self.weight, self.reads = torch.zeros(R), torch.zeros(R)

    @property
    def usage(self):
        return self.weight / self.reads


class Object:
    """The memory of one object; frames in the order of time."""

    def __init__(self, cap, most):
        self._cap, self._most = cap, most
        self._frames, self._prototypes, self._temporary, self._consolidated = [], [], None, 0

    def append(self, new, temporary):
        self._temporary = new if temporary else None
        if not temporary:
            if len(self._frames) + len(self._prototypes) == self._cap:
                self._consolidate()
            self._frames.append(new)

    def _consolidate(self):
        evictable = [rows for rows in self._frames if not rows.permanent]
        added = self._most - len(self._prototypes)
        self._prototypes += evictable[:added]
        gone = evictable[added]
        self._frames = [rows for rows in self._frames if rows is not gone and rows not in self._prototypes]
        self._consolidated += added + 1
        least = [min(self._prototypes, key=lambda rows, pixel=pixel: rows.usage[pixel]) for pixel in range(R)]
        gain = [float(gone.usage[pixel] / least[pixel].usage[pixel]) for pixel in range(R)]
        count = max(1, int(SHARE * R * self._most / self._consolidated))
        for pixel in sorted(range(R), key=lambda pixel: -gain[pixel])[:count]:
            candidates = [(rows.key[pixel], rows.value[pixel]) for rows in (*self._prototypes, gone)]
            for rows in self._frames:
                candidates += zip(rows.key, rows.value, strict=True) if rows.permanent else []
            scores = torch.stack([query_of(gone.key[pixel]) @ key / math.sqrt(CK) for key, _ in candidates])
            affinity = scores.exp() / scores.exp().sum()
            value = sum(share * value for share, (_, value) in zip(affinity, candidates, strict=True))
            replaced = least[pixel]
            replaced.key[pixel], replaced.value[pixel] = gone.key[pixel], value
            replaced.weight[pixel], replaced.reads[pixel] = gone.weight[pixel], gone.reads[pixel]

    @property
    def stays(self):
        """Whether the last frame was added for good."""
        return self._temporary is None

    def read(self, query, measured):
        every = [*self._frames, *self._prototypes, *([self._temporary] if self._temporary else [])]
        key, value = (torch.cat([getattr(rows, name) for rows in every]) for name in ("key", "value"))
        weights = (query @ key.T / math.sqrt(CK)).softmax(1)
        if measured:
            for rows, weight in zip(every, weights.sum(0).split(R), strict=True):
                rows.weight += weight.float()
                rows.reads += 1
        return weights @ value


@pytest.mark.parametrize("place", PLACES)
def test_a_bank_follows_the_definition(place, tmp_path):
    config = config_of(place, tmp_path, max_frames=7, consolidate=3)
    bank, simulated = MemoryBank(config, query_of=query_of), Simulated(7, 3)
    videos = Video(), Video()
    for number in range(100):
        found, expected = (video.feed(each, number) for video, each in zip(videos, (bank, simulated), strict=True))
        assert (found - expected).abs().max() <= 1e-9 * expected.abs().max(), number
    assert [sum(slot.prototypes > 0 for slot in slots) for slots in bank._slots] == [3, 3]


@pytest.mark.parametrize("storage", STORAGES)
def test_every_place_reads_the_same(storage, tmp_path):
    """And takes the same memory from the first consolidation on."""
    banks = [MemoryBank(config_of(p, tmp_path, max_frames=7, consolidate=3, storage=storage)) for p in PLACES]
    videos = [Video(torch.float32) for _ in PLACES]
    sizes = set()
    for number in range(100):
        first, *others = (video.feed(bank, number) for video, bank in zip(videos, banks, strict=True))
        for other in others:
            torch.testing.assert_close(other, first)
        if 20 < number < 60:
            sizes.add(tuple(bank.nbytes for bank in banks))
    assert len(sizes) == 1


@pytest.mark.parametrize("place", PLACES)
@pytest.mark.parametrize("storage", ["model", "int8"])
def test_a_bank_resumes_anywhere_in_a_cycle(storage, place, tmp_path):
    config = config_of(place, tmp_path, max_frames=7, consolidate=3, storage=storage)
    for stopped in (6, 7, 8, 9, 11, 24, 35):
        banks, videos = [MemoryBank(config), MemoryBank(config)], [Video(torch.float32), Video(torch.float32)]
        for number in range(stopped + 20):
            if number == stopped:
                state = {name: tensor.clone() for name, tensor in banks[0].state_dict().items()}
                banks[1] = MemoryBank(config)
                banks[1].load_state_dict(state)
            found, expected = (video.feed(bank, number) for video, bank in zip(videos, banks, strict=True))
            assert torch.equal(found, expected), (stopped, number)


def test_a_bank_with_prototypes_is_not_loaded_without():
    bank = MemoryBank(MemoryConfig(max_frames=7, consolidate=3))
    with pytest.raises(ValueError, match=r"found a bank of .*, consolidated, rank 0 of 1, expected model rows"):
        MemoryBank(MemoryConfig(max_frames=7)).load_state_dict(bank.state_dict())


@pytest.mark.parametrize("place", ["device", "host"])
def test_a_cap_in_bytes_holds_when_objects_are_added(place, tmp_path):
    """Four objects leave room for two frames and no prototypes; when three are gone, there are prototypes again."""
    config = config_of(place, tmp_path, max_bytes=2 * 6 * SLOT_BYTES, consolidate=4)
    bank, generator = MemoryBank(config), torch.Generator().manual_seed(0)
    prototypes = []
    for number in range(80):
        objects = 1 + number // 15 if number < 60 else 1
        if number == 60:
            bank.remove([0, 2, 3])
        key, value = (torch.randn(objects, width, H, W, generator=generator).double() for width in (CK, CV))
        bank.append(key, value, permanent=[objects - 1] if number in (0, 15, 30, 45) else [], frame=number)
        assert bank.read(torch.randn(1, CK, H, W, generator=generator).double()).isfinite().all()
        assert bank.nbytes <= config.max_bytes
        prototypes.append([sum(slot.prototypes > 0 for slot in slots) for slots in bank._slots])
    assert prototypes[14] == [4]
    assert prototypes[59] == [0] * 4
    assert prototypes[79] == [4]


def test_rows_keep_their_usage_when_they_move():
    """A second object halves the number of slots: the last ones move to the places of those that are given up."""
    bank = MemoryBank(MemoryConfig(max_bytes=12 * SLOT_BYTES, consolidate=2, previous=False))
    for number in range(20):
        objects = 1 if number < 19 else 2
        if number == 19:
            slots = bank._slots[0]
            before = {each.frame: (slot, bank._consolidation.usage.mean(0, [slot])) for slot, each in enumerate(slots)}
        key, value = (torch.randn(objects, width, H, W).double() for width in (CK, CV))
        bank.append(key, value, frame=number)
        if number < 19:
            bank.read(torch.randn(1, CK, H, W).double())
    kept = {each.frame: slot for slot, each in enumerate(bank._slots[0]) if each.frame < 19 and not each.prototypes}
    assert any(slot != before[frame][0] for frame, slot in kept.items())
    for frame, slot in kept.items():
        assert torch.equal(bank._consolidation.usage.mean(0, [slot]), before[frame][1])


def test_rows_that_were_never_read_count_as_most_used():
    usage = RowUsage()
    usage.reserve(2, 3, R, torch.device("cpu"))
    usage.add(torch.ones(2, 3, R))
    usage.reset(1, 2)
    usage.add(torch.full((2, 2, R), 3.0))
    assert usage.mean(1, [2, 0]).unique(dim=1).tolist() == [[math.inf], [2]]
    assert usage.mean(0, [2]).unique().tolist() == [1]


def test_given_masks_take_the_place_of_prototypes():
    bank = MemoryBank(MemoryConfig(max_frames=6, consolidate=3, previous=False))
    held = []
    for number in range(16):
        key, value = torch.randn(1, CK, H, W), torch.randn(1, CV, H, W)
        bank.append(key, value, permanent=[0] if number >= 10 else [], frame=number)
        bank.read(torch.randn(1, CK, H, W))
        held.append(sum(slot.prototypes > 0 for slot in bank._slots[0]))
        assert bank.rows[0] <= 6 * R
    assert held == [0] * 6 + [3] * 6 + [2, 1, 0, 0]
    assert sorted(bank.frames[0]) == list(range(10, 16))


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("queries", [1, 2])
@pytest.mark.parametrize("backend", ["auto", "reference"])
def test_the_usage_of_parts_is_that_of_the_whole_read(dtype, queries, backend):
    generator = torch.Generator().manual_seed(0)
    key, value, query = (
        (3 * torch.randn(*size, generator=generator)).to(dtype)
        for size in ((2, 3 * R, CK), (2, 3 * R, CV), (queries, 19, CK))
    )
    _, lse, expected = memory_read(query, key, value, return_lse=True, return_usage=True, backend="reference")
    parts = [Part(key[:, : 2 * R], value[:, : 2 * R], [2, 2]), Part(key[:, 2 * R :], value[:, 2 * R :], [1, 1])]
    found = torch.cat([part_usage(query, lse, part, R, backend) for part in parts], dim=1)
    assert found.shape == (2, 3, R)
    # lse is a float32 number
    torch.testing.assert_close(found.flatten(1), expected.float(), rtol=1e-5, atol=1e-6)
    assert found.sum((1, 2)).tolist() == pytest.approx([19, 19], rel=1e-5)


def test_the_usage_of_8_bit_rows():
    generator = torch.Generator().manual_seed(0)
    memory = quantize_memory(
        torch.randn(2, 3, R, CK, generator=generator), torch.randn(2, 3, R, CV, generator=generator)
    )
    key, value = memory.dequantized(torch.float32)
    query = torch.randn(1, 19, CK, generator=generator)
    _, lse, expected = memory_read(query, key, value, return_lse=True, return_usage=True)
    found = part_usage(query, lse, QuantizedPart(memory, [3, 3]), R, "auto")
    torch.testing.assert_close(found.flatten(1), expected)


def test_usage_is_measured_in_several_steps_if_keys_are_many(monkeypatch):
    part = Part(torch.randn(2, 3 * R, CK), torch.randn(2, 3 * R, CV), [3, 3])
    query, lse = torch.randn(1, 19, CK), torch.zeros(2, 19)
    expected = part_usage(query, lse, part, R, "auto")
    monkeypatch.setattr("stm_fast.memory.usage.SCRATCH_BYTES", 4 * 2 * 2 * R * CK)
    torch.testing.assert_close(part_usage(query, lse, part, R, "auto"), expected)


def test_the_least_used_prototypes_go():
    """Rows that match the queries stay through many consolidations; those that match none are replaced."""
    bank = MemoryBank(MemoryConfig(max_frames=5, consolidate=1, previous=False))
    query = torch.ones(1, CK, H, W)
    for number in range(40):
        key = torch.full((1, CK, H, W), 0.5)
        if number < 2:
            key[:, :, 0], key[:, :, 1:] = 2, -2
        bank.append(key, torch.zeros(1, CV, H, W), frame=number)
        bank.read(query)
        slots = [slot for slot, each in enumerate(bank._slots[0]) if each.prototypes]
        kept = [bank._storage.rows(0, slot)[0][:, 0].tolist() for slot in slots]
        if number == 5:
            assert kept == [[2.0] * 4 + [-2.0] * 8]
    assert kept == [[2.0] * 4 + [0.5] * 8]


def test_8_bit_prototypes_do_not_drift():
    """Rows that stay through 100 consolidations change by less than one step of their format."""
    generator = torch.Generator().manual_seed(0)
    moved = {}
    for storage, step in (("int8", 1 / 127), ("fp8", 1 / 16)):
        bank = MemoryBank(MemoryConfig(max_frames=6, consolidate=2, previous=False, storage=storage))
        toward = torch.ones(CK)
        first = None
        for number in range(110):
            key = torch.randn(1, CK, H, W, generator=generator) * 0.3
            value = torch.randn(1, CV, H, W, generator=generator)
            if number in (1, 2):
                key[0, :, 0, :2] = 2 * toward[:, None] + key[0, :, 0, :2]
            bank.append(key, value, frame=number)
            bank.read(toward[None, :, None, None].expand(1, CK, H, W))
            held = [slot for slot, each in enumerate(bank._slots[0]) if each.prototypes]
            if held:
                rows = [torch.cat(parts) for parts in zip(*(bank._storage.rows(0, slot) for slot in held), strict=True)]
                strong = rows[0].mean(1) > 1
                first = first or [part[strong] for part in rows]
                last = [part[strong] for part in rows]
        assert strong.sum() == 4
        moved[storage] = [float((a - b).abs().max() / a.abs().max()) / step for a, b in zip(first, last, strict=True)]
    assert all(change < 1 for changes in moved.values() for change in changes), moved


def test_the_frames_that_would_be_evicted_one_after_another():
    slots = [
        Slot(0, True),
        Slot(9, False),
        Slot(3, False),
        Slot(6, False),
        Slot(12, False),
        Slot(1, False, prototypes=4),
    ]
    assert victims("oldest", slots, 15, 2) == [2, 3]
    assert victims("oldest", slots, 15, 9) == [2, 3, 1], "neither the newest frame nor prototypes"
    # without frame 3 the gap around 6 is 9, and that around 9 is 6
    assert victims("even", slots, 15, 2) == [2, 1]
    assert victims("oldest", [Slot(0, True), Slot(3, False)], 6, 2) == []


def test_the_query_of_a_memory_key_is_that_of_its_pixel():
    torch.manual_seed(0)
    heads = SharedKeyValue([6, 10], key_dim=16, frame_dim=8).double()
    query_key, _ = heads(torch.randn(1, 16, 5, 7).double())
    memory_key = heads.memory_key(query_key)
    found = heads.query_of(memory_key[0].flatten(1).T)
    torch.testing.assert_close(found, query_key[0].flatten(1).T)
    assert not torch.allclose(memory_key, query_key)


def test_a_network_with_a_shared_trunk_converts_its_keys():
    model = stm_lite2().eval()
    segmenter = VideoSegmenter(model, memory=MemoryConfig(max_frames=6, consolidate=2))
    assert segmenter.bank._consolidation._query_of == model.query_key_value.query_of


@pytest.mark.parametrize(
    ("wrong", "words"),
    [
        ({"consolidate": 2}, "MemoryConfig.consolidate: found 2 without max_frames or max_bytes, expected one of them"),
        (
            {"consolidate": 5, "max_frames": 6},
            "MemoryConfig.consolidate: found 5 with max_frames 6, expected at least 2",
        ),
        ({"consolidate": 0, "max_frames": 6}, "MemoryConfig.consolidate: found 0, expected at least 1"),
    ],
)
def test_invalid_options_are_reported(wrong, words):
    with pytest.raises(ValueError, match=words):
        MemoryConfig(**wrong)


def test_a_video_is_segmented_in_constant_memory():
    torch.manual_seed(0)
    model = stm_resnet18(key_dim=16, value_dim=32, decoder_dim=16).eval()
    mask = torch.zeros(32, 48, dtype=torch.uint8)
    mask[8:20, 8:20] = 1
    segmenter = VideoSegmenter(model, memory=MemoryConfig(every=1, max_frames=6, consolidate=2))
    sizes = set()
    for number in range(20):
        prob = segmenter.step(torch.rand(3, 32, 48), mask if number == 0 else None)
        assert prob.isfinite().all()
        if number > 8:
            sizes.add(segmenter.bank.nbytes)
    assert len(sizes) == 1
    assert sum(slot.prototypes > 0 for slot in segmenter.bank._slots[0]) == 2
