"""The engine against the published numbers and the plain loop; objects that come and go."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch

from stm_fast.config import MemoryConfig
from stm_fast.errors import InputError
from stm_fast.inference import VideoSegmenter
from stm_fast.network import STM, stm_resnet18

SIZE = (40, 56)


@pytest.fixture(scope="module")
def model() -> STM:
    torch.manual_seed(0)
    return stm_resnet18(key_dim=16, value_dim=32, decoder_dim=16).eval()


def frames(count, size=SIZE, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return torch.rand(count, 3, *size, generator=generator)


def two_objects(size=SIZE):
    mask = torch.zeros(size, dtype=torch.uint8)
    mask[5:20, 5:20], mask[20:35, 25:45] = 1, 7
    return mask


@torch.no_grad()
def plain_loop(model, video, planes, every):
    """The published loop, with torch.cat: probabilities [T, 1 + O, H, W]."""
    first = torch.cat([(1 - planes.sum(0))[None], planes])
    probs, keys, values = [first], None, None
    for t in range(1, len(video)):
        key, value = (x[:, :, None] for x in model.memorize(video[t - 1], probs[t - 1][1:]))
        these = (key, value) if keys is None else (torch.cat([keys, key], 2), torch.cat([values, value], 2))
        probs.append(model.segment(video[t], *these).softmax(0))
        if (t - 1) % every == 0:
            keys, values = these
    return torch.stack(probs)


def test_the_engine_is_the_published_loop(model):
    video, mask = frames(9), two_objects()
    expected = plain_loop(model, video, torch.stack([mask == 1, mask == 7]).float(), every=3)
    segmenter = VideoSegmenter(model, memory=MemoryConfig(every=3))
    results = list(segmenter.propagate(video, {0: mask}))
    assert [result.frame_index for result in results] == list(range(9))
    torch.testing.assert_close(torch.stack([result.prob for result in results]), expected, rtol=1e-4, atol=1e-5)
    assert set(results[-1].mask.unique().tolist()) <= {0, 1, 7}
    assert segmenter.bank.rows == [3 * 4 * 3 + 3 * 4] * 2  # frames 0, 3, 6 stay; 7 is there for one step
