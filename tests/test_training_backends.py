"""The fused memory read inside training: the same loss curve as the reference, with less kept for the backward pass."""

from dataclasses import replace

import pytest
import torch

from costs import kept_bytes
from stm_fast.benchmarking.routes import published
from stm_fast.data.clips import collate
from stm_fast.ops import memory_read
from stm_fast.ops.backends import BACKENDS
from stm_fast.testing.criterion import FACTOR
from stm_fast.training.building import build_clip_loss, build_clips
from stm_fast.training.sampler import StepSampler
from training_runs import SMALL_CONFIG

STEPS = 20


@pytest.fixture(autouse=True)
def _needs_cpp(request):
    if request.node.get_closest_marker("gpu") is not None:
        return
    reasons = next(backend for backend in BACKENDS if backend.name == "cpp").absent_reasons()
    if reasons:
        pytest.skip("; ".join(reasons))


def losses(backend, dtype, device="cpu"):
    """The loss of each step of a run in one dtype."""
    config = replace(SMALL_CONFIG, backend=backend, clips_per_epoch=STEPS)
    clip_loss, clips = build_clip_loss(config).to(device, dtype), build_clips(config, skip_corrupt=False)
    optimizer = torch.optim.Adam(clip_loss.parameters(), lr=1e-4)
    curve = torch.zeros(STEPS, dtype=torch.float64)
    for step, keys in enumerate(StepSampler(config, 0, 0, 1)):
        batch = collate([clips[key] for key in keys])
        loss = clip_loss(batch.frames.to(device, dtype) / 255, batch.ids.to(device).long(), batch.objects)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        curve[step] = loss.item()
    return curve


ON_A_GPU = [pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no CUDA device")]


@pytest.mark.slow
@pytest.mark.parametrize(("backend", "device"), [("cpp", "cpu"), pytest.param("triton", "cuda", marks=ON_A_GPU)])
def test_the_loss_curve_matches_the_reference(backend, device, monkeypatch):
    """Compared by the float64 criterion: its measure, the error of the reference, grows from step to step."""
    monkeypatch.setattr(torch.backends.cudnn, "allow_tf32", False)  # convolutions would hide errors of the read
    exact = losses("reference", torch.float64, device)
    errors = {name: (losses(name, torch.float32, device) - exact).abs() for name in ("reference", backend)}
    growth = errors["reference"].cummax(0).values
    allowed = FACTOR * growth + 2 * torch.finfo(torch.float32).eps * exact.abs().max()
    assert (errors[backend] <= allowed).all(), (errors, allowed)
    assert exact[-5:].mean() < exact[:5].mean()  # it did train


def test_no_affinity_is_kept_for_the_backward_pass():
    objects, queries, rows, key_dim, value_dim = 2, 60, 120, 16, 32
    inputs = [
        torch.randn(objects, *shape, requires_grad=True)
        for shape in ((queries, key_dim), (rows, key_dim), (rows, value_dim))
    ]
    affinity = objects * queries * rows * 4
    out_and_lse = objects * queries * (value_dim + 1) * 4
    assert kept_bytes(published, *inputs) >= affinity
    assert kept_bytes(lambda *tensors: memory_read(*tensors, backend="cpp"), *inputs) <= out_and_lse
