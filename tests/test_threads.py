"""Several threads segment different videos with one network, each with its own VideoSegmenter."""

import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from threading import Barrier

import numpy as np
import pytest
import torch
from torch import Tensor

from small_inputs import draw, small_network
from stm_fast import STM, MemoryConfig, VideoSegmenter, stm_lite2
from stm_fast.network.deploy import for_inference

THREADS, REPETITIONS, FRAMES = 4, 3, 6
MODELS = {
    "lite2": stm_lite2,
    "lite2, prepared": lambda: for_inference(stm_lite2()),
    "lite2, prepared, bfloat16": lambda: for_inference(stm_lite2(), dtype=torch.bfloat16),
    "resnet18": small_network,
    "resnet18, prepared": lambda: for_inference(small_network()),
}
MEMORIES = [MemoryConfig(every=2), MemoryConfig(every=1, max_frames=3, consolidate=1, storage="int8")]


@pytest.fixture(autouse=True)
def _frequent_switches() -> Iterator[None]:
    before = sys.getswitchinterval()
    sys.setswitchinterval(1e-5)
    yield
    sys.setswitchinterval(before)


def segment(model: STM, memory: MemoryConfig, seed: int) -> list[Tensor]:
    """The probabilities and the mask of each frame of a clip; the number of objects differs between clips."""
    pictures, ids = draw(seed, objects=1 + seed % 3, frames=FRAMES)
    frames = np.moveaxis(pictures, -1, 1)  # [T, 3, H, W]
    segmenter = VideoSegmenter(model, memory=memory, min_size=1)
    return [tensor for found in segmenter.propagate(frames, {0: ids[0]}) for tensor in (found.prob, found.mask)]


@pytest.mark.slow
@pytest.mark.parametrize("memory", MEMORIES, ids=["rows", "prototypes"])
@pytest.mark.parametrize("name", MODELS)
def test_threads_that_share_a_network_get_the_bits_of_one(name, memory):
    model = MODELS[name]().eval()
    expected = [segment(model, memory, seed) for seed in range(THREADS)]
    assert not torch.equal(expected[0][-2], expected[3][-2])  # two clips of one object
    barrier = Barrier(THREADS)

    def start(seed: int) -> list[Tensor]:
        barrier.wait()
        return segment(model, memory, seed)

    with ThreadPoolExecutor(THREADS) as pool:
        for _ in range(REPETITIONS):
            for found, alone in zip(pool.map(start, range(THREADS)), expected, strict=True):
                assert all(map(torch.equal, found, alone))
