"""Frames without a hidden object do not enter its memory, and it is found again wherever it reappears."""

import math
from itertools import pairwise

import pytest
import torch

from stm_fast.config import MemoryConfig
from stm_fast.inference.engine import VideoSegmenter
from stm_fast.inference.objects import Presence, label
from stm_fast.memory import MemoryBank
from stm_fast.network import STM, stm_lite2
from stm_fast.network.deploy import for_inference

HEIGHT, WIDTH = 160, 640
HIDDEN = range(3, 11)


def picture(*middles: int) -> tuple[torch.Tensor, torch.Tensor]:
    """A scene with a differently colored disc at each of the given columns, and its ids 1, 2, ..."""
    generator = torch.Generator().manual_seed(3)
    coarse = torch.rand(1, 3, 20, 40, generator=generator)
    scene = torch.nn.functional.interpolate(coarse, size=(HEIGHT, WIDTH), mode="bilinear")[0] * 0.5
    colors = torch.tensor([[0.95, 0.25, 0.1], [0.1, 0.35, 0.95]])
    y, x = torch.meshgrid(torch.arange(HEIGHT), torch.arange(WIDTH), indexing="ij")
    ids = torch.zeros(HEIGHT, WIDTH, dtype=torch.uint8)
    for number, middle in enumerate(middles):
        inside = (y - 80).square() + (x - middle).square() < 28**2
        stripes = 0.8 + 0.2 * ((x - middle + y) // 6 % 2)
        scene = torch.where(inside, colors[number][:, None, None] * stripes, scene)
        ids[inside] = number + 1
    return scene.clamp(0, 1), ids


def video() -> tuple[list[torch.Tensor], list[torch.Tensor]]:
    """A disc on the left that is hidden for eight frames and reappears on the right."""
    pairs = [picture() if index in HIDDEN else picture(60 if index < 3 else 580) for index in range(16)]
    frames, ids = zip(*pairs, strict=True)
    return list(frames), list(ids)


@pytest.fixture(scope="module")
def model() -> STM:
    """The package's network, but scores fall six times as fast with distance, so that distance decides."""
    network = stm_lite2()
    with torch.no_grad():
        network.query_key_value.distance += math.log(6)
    network.min_size = 1
    return for_inference(network)


def found_in(segmenter: VideoSegmenter, frames: list[torch.Tensor], first: torch.Tensor | None) -> list[torch.Tensor]:
    probs = [segmenter.step(frame, None if index else first) for index, frame in enumerate(frames)]
    return [label(prob, segmenter.object_ids) for prob in probs]


def similarity(found: torch.Tensor, ids: torch.Tensor, number: int = 1) -> float:
    mine, truth = found == number, ids == number
    return float((mine & truth).sum() / (mine | truth).sum().clamp(min=1))


def test_an_object_is_found_where_it_reappears(model):
    frames, ids = video()
    segmenter = VideoSegmenter(model)
    found = found_in(segmenter, frames, ids[0])
    assert not any(found[index].any() for index in HIDDEN)
    assert all(similarity(found[index], ids[index]) > 0.85 for index in range(HIDDEN.stop, 16))
    assert segmenter.bank.frames == [[0]], "frames 5 and 10 do not show it; 15 is added with the next frame"
    as_published = VideoSegmenter(model, memory=MemoryConfig(redetect=False))
    lost = found_in(as_published, frames, ids[0])
    assert as_published.bank.frames == [[0, 5, 10]]
    assert not any(lost[index].any() for index in range(HIDDEN.stop, 16)), (
        "remembered frames that do not show it keep it from being found"
    )


def test_a_visible_object_is_remembered_while_another_one_is_lost(model):
    pairs = [picture(60, 160), picture(60, 160), *[picture(60)] * 6, picture(60, 580)]
    segmenter = VideoSegmenter(model)
    found = found_in(segmenter, [frame for frame, _ in pairs], pairs[0][1])
    assert segmenter.bank.frames == [[0, 5], [0]]
    assert similarity(found[-1], pairs[-1][1], 1) > 0.85
    assert similarity(found[-1], pairs[-1][1], 2) > 0.85


def test_an_interrupted_search_resumes_bit_for_bit(model):
    frames, ids = video()
    segmenter, resumed = VideoSegmenter(model), VideoSegmenter(model)
    found_in(segmenter, frames[:9], ids[0])
    state = {name: tensor.clone() for name, tensor in segmenter.state_dict().items()}
    assert state["presence.lost"].tolist() == [0]
    resumed.load_state_dict(state)
    for frame in frames[9:]:
        assert torch.equal(segmenter.step(frame), resumed.step(frame))


def test_networks_without_positions_in_keys_use_the_published_memory():
    torch.manual_seed(0)
    frames, ids = video()
    segmenter = VideoSegmenter(STM("resnet18", 16, 32, 16).eval())
    found_in(segmenter, frames[:7], ids[0])
    assert segmenter.bank.frames == [[0, 5]]
    assert not any(name.startswith("presence") for name in segmenter.state_dict())


def test_objects_with_almost_no_pixels_count_as_lost():
    def masks(*pixels: int) -> torch.Tensor:
        planes = torch.zeros(len(pixels), 20, 50)
        for plane, count in zip(planes.flatten(1), pixels, strict=True):
            plane[:count] = 0.9
        return planes

    presence = Presence()
    losses = []
    for frame, given in [
        (masks(200, 40), [0, 1]),
        (masks(9, 40), []),  # 4.5 % of its earlier size
        (masks(11, 3), []),  # found again, and small from now on
        (masks(1, 0, 500), [1, 2]),  # the user gave a mask without the second object
        (masks(0, 0, 100), []),
    ]:
        presence.update(frame, given)
        losses.append(list(presence.lost))
    assert losses == [[], [0], [], [], [0]]
    presence.keep([0, 2])
    presence.update(masks(1, 4), [])
    assert presence.lost == [1], "object 0 had one pixel and still has one; the other one had 100"
    again = Presence()
    again.load_state_dict(presence.state_dict())
    assert (again.lost, again._pixels) == ([1], [1, 100])


@pytest.mark.parametrize(
    "config",
    [
        MemoryConfig(),
        MemoryConfig(storage="int8"),
        MemoryConfig(place="host", page_bytes=2**12),
        MemoryConfig(max_frames=2, evict="least_used"),
    ],
    ids=str,
)
def test_the_memory_of_an_absent_object_is_unchanged(config):
    torch.manual_seed(0)
    rows = [(torch.randn(2, 16, 3, 4), torch.randn(2, 24, 3, 4)) for _ in range(4)]
    query = torch.randn(1, 16, 3, 4)
    bank = MemoryBank(config)
    bank.append(*rows[0])
    bank.append(*rows[1], temporary=True)
    before = bank.read(query)
    bank.append(*rows[2], absent=[1])
    after = bank.read(query)
    assert torch.equal(after[1], before[1]), "the earlier temporary frame is kept too"
    assert not torch.equal(after[0], before[0])
    assert bank.frames == [[0, 2], [0]]
    assert bank.rows == [24, 24]
    bank.append(*rows[3])
    assert [len(frames) for frames in bank.frames] == [min(3, config.max_frames or 3), 2]
    one_each = torch.cat([query, torch.randn(1, 16, 3, 4)])
    together = bank.read(one_each)
    for index, (start, stop) in enumerate(pairwise(range(3))):
        torch.testing.assert_close(together[index], bank.read(one_each[start:stop])[index])


def test_an_absent_object_loses_its_temporary_frame_if_a_new_object_needs_memory():
    """Slots move then, and the temporary frame would no longer follow the last one."""
    torch.manual_seed(0)
    key, value = torch.randn(3, 16, 3, 4), torch.randn(3, 24, 3, 4)
    slot = 12 * (16 + 24) * 4  # bytes
    bank = MemoryBank(MemoryConfig(max_bytes=8 * slot))
    for frame in range(3):
        bank.append(key[:2] + frame, value[:2] + frame)
    bank.append(key[:2] + 3, value[:2] + 3, temporary=True)
    assert bank.rows == [48, 48]
    bank.append(key + 4, value + 4, absent=[1])
    kept = [len(frames) for frames in bank.frames]
    assert kept[1] < 3
    assert bank.rows[1] == 12 * kept[1]
