"""The kernelized memory read of KMN against its formula, with every backend."""

import math

import pytest
import torch

from stm_fast import kernelized_memory_read, memory_read
from stm_fast.testing.criterion import assert_no_worse_than_eager

BACKENDS = ["reference", "cpp"]
SIZE = (5, 9)


def tensors(dtype=torch.float64, batch=2, shared=False, size=SIZE, rows=70, key_dim=16):
    generator = torch.Generator().manual_seed(0)

    def normal(*shape):
        return torch.randn(*shape, generator=generator, dtype=torch.float64).to(dtype)

    one = 1 if shared else batch
    return normal(one, math.prod(size), key_dim), normal(one, rows, key_dim), normal(batch, rows, 6)


def by_formula(query, key, value, sigma, size, top_k=None, scale=None, lengths=None):
    """The product of the exponential of the scores with the Gaussian, normalized: [B, M, Cv]."""
    scale = 1 / math.sqrt(query.shape[2]) if scale is None else scale
    score = query @ key.mT * scale  # [B, M, N]
    best = score.argmax(1)  # [B, N]
    height, width = size
    y, x = torch.meshgrid(torch.arange(height), torch.arange(width), indexing="ij")
    y, x = y.flatten(), x.flatten()
    distance = (y[:, None] - y[best][:, None]).square() + (x[:, None] - x[best][:, None]).square()  # [B, M, N]
    weight = (score - score.amax(-1, keepdim=True)).exp() * (-distance.to(score.dtype) / (2 * sigma**2)).exp()
    if lengths is not None:
        weight = weight * (torch.arange(key.shape[1]) < lengths[:, None])[:, None]
    if top_k is not None:
        weight = weight.where(weight >= weight.topk(top_k, dim=-1).values[..., -1:], 0)
    return weight / weight.sum(-1, keepdim=True) @ value


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize(
    "chosen", [{}, {"top_k": 7}, {"scale": 0.5}, {"scale": -0.3}, {"lengths": torch.tensor([70, 9])}], ids=str
)
@pytest.mark.parametrize(("shared", "sigma"), [(False, 7), (True, 0.8), (False, 1.5)])
def test_equals_the_formula(backend, chosen, shared, sigma):
    given = tensors(shared=shared)
    found = kernelized_memory_read(*given, sigma=sigma, size=SIZE, backend=backend, **chosen)
    torch.testing.assert_close(found, by_formula(*given, sigma, SIZE, **chosen), rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("top_k", [None, 7])
def test_gradients_equal_those_of_the_formula(backend, top_k):
    given = [tensor.requires_grad_() for tensor in tensors()]
    found = kernelized_memory_read(*given, sigma=2.0, size=SIZE, top_k=top_k, backend=backend)
    expected = by_formula(*given, 2.0, SIZE, top_k)
    upstream = torch.randn_like(found)
    gradients, by_hand = (torch.autograd.grad(out, given, upstream) for out in (found, expected))
    torch.testing.assert_close(gradients, by_hand, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_no_worse_than_eager_in_a_frame_of_1080p(backend, dtype):
    # the terms of the distance are up to 50 times as large as the scores, and cancel
    size = (68, 120)
    query, key, value = tensors(dtype, batch=1, size=size, rows=200, key_dim=64)
    exact = by_formula(query.double(), key.double(), value.double(), 7, size)
    eager = by_formula(query, key, value, 7, size)
    found = kernelized_memory_read(query, key, value, sigma=7, size=size, backend=backend)
    assert found.dtype == dtype
    rounded = exact.to(dtype)
    assert_no_worse_than_eager({"out": found}, {"out": eager}, {"out": rounded}, {"out": exact})


def test_lse_usage_and_kept_rows_are_those_of_the_whole_scores():
    query, key, value = tensors(batch=1)
    out, lse, usage, weights, rows = kernelized_memory_read(
        query, key, value, sigma=2, size=SIZE, top_k=70, return_lse=True, return_usage=True, return_top_k=True
    )
    torch.testing.assert_close(weights @ value, out)
    torch.testing.assert_close(weights.sum(1), usage)
    assert torch.equal(rows, torch.arange(70).expand_as(rows))
    score = (query @ key.mT / 4)[0]  # [M, N]
    place = torch.cartesian_prod(torch.arange(5.0), torch.arange(9.0)).double()
    score = score - (place[:, None] - place[score.argmax(0)]).square().sum(-1) / 8
    torch.testing.assert_close(lse[0], score.logsumexp(-1))


def test_a_wide_gaussian_is_the_plain_read_and_a_narrow_one_is_not():
    given = tensors()
    plain = memory_read(*given)
    torch.testing.assert_close(kernelized_memory_read(*given, sigma=1e7, size=SIZE), plain, rtol=1e-9, atol=1e-9)
    assert not torch.allclose(kernelized_memory_read(*given, sigma=2, size=SIZE), plain, rtol=0.01)


def test_autocast_reads_in_the_lower_precision():
    query, key, value = tensors(torch.float32)
    expected = kernelized_memory_read(query.bfloat16(), key.bfloat16(), value.bfloat16(), sigma=7, size=SIZE)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        found = kernelized_memory_read(query, key, value, sigma=7, size=SIZE)
    assert torch.equal(found, expected)


def test_reads_without_queries():
    query, key, value = tensors()
    assert kernelized_memory_read(query[:, :0], key, value, sigma=7, size=(0, 9)).shape == (2, 0, 6)


@pytest.mark.parametrize(
    ("chosen", "error", "message"),
    [
        ({"sigma": 0}, ValueError, "sigma: found 0, expected a positive number"),
        ({"sigma": math.nan}, ValueError, "sigma: found nan, expected a positive number"),
        ({"sigma": "7"}, TypeError, "sigma: found"),
        ({"size": (5, 8)}, ValueError, "size: found 5 x 8, expected that of 45 query pixels"),
        ({"size": (-5, -9)}, ValueError, "size: found -5 x -9, expected that of 45 query pixels"),
        ({"size": 45}, TypeError, "size: found 45, expected the height and width of the query frame"),
    ],
)
def test_errors(chosen, error, message):
    with pytest.raises(error, match=message):
        kernelized_memory_read(*tensors(), **{"sigma": 7, "size": SIZE, **chosen})


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_the_largest_frame_in_16_bits(dtype):
    query, key, value = tensors(dtype, batch=1, size=(511, 511), rows=3, key_dim=4)
    found = kernelized_memory_read(query, key, value, sigma=100, size=(511, 511))
    exact = by_formula(query.double(), key.double(), value.double(), 100, (511, 511))
    # a few roundings of scores and values
    torch.testing.assert_close(found.double(), exact, rtol=0, atol=4 * torch.finfo(dtype).eps)
    with pytest.raises(ValueError, match=f"size: found 1 x 512, expected at most 511 x 511 pixels in {dtype}"):
        kernelized_memory_read(query[:, :512], key, value, sigma=7, size=(1, 512))
