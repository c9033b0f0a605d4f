"""The Triton engine against float64, on a GPU or under the interpreter.

Not collected by itself: test_triton_engine.py runs it in a process of its own.
"""

import os

import pytest
import torch

from stm_fast.kernels import configs, forward
from stm_fast.ops import memory_read
from stm_fast.testing import CASES, ReadCase, check_case, make_tensors

torch.set_num_threads(1)

INTERPRETED = os.environ.get("TRITON_INTERPRET") == "1"
DEVICE = "cpu" if INTERPRETED else "cuda"

BUILT = [case for case in CASES if case.similarity == "dot" and not case.return_usage]
BUILT = [case for case in BUILT if case.top_k is None or case.top_k >= case.rows]
WIDTHS = [
    ReadCase(batch=1, queries=5, rows=70, key_dim=192, value_dim=768),
    ReadCase(batch=1, queries=5, rows=33, key_dim=256, value_dim=1024),
    ReadCase(batch=1, queries=7, rows=40, key_dim=130, value_dim=300),
    ReadCase(batch=1, queries=7, rows=40, key_dim=64, value_dim=128, channels_first=True),
    ReadCase(batch=1, queries=3, rows=700),  # so few queries that the memory is split
]


@pytest.mark.parametrize("case", [*BUILT, *WIDTHS], ids=str)
def test_no_worse_than_eager(case: ReadCase) -> None:
    check_case(case, torch.float32, "triton", DEVICE, gradients=False)


# the interpreter multiplies bfloat16 wrongly; the tiles of all 16-bit dtypes are the same
@pytest.mark.parametrize("case", [ReadCase(lengths=(97, 40)), ReadCase(spread=100.0), *WIDTHS], ids=str)
def test_no_worse_than_eager_in_float16(case: ReadCase) -> None:
    check_case(case, torch.float16, "triton", DEVICE, gradients=False)


@pytest.mark.parametrize("splits", [1, 2, 3, 7])
@pytest.mark.parametrize("lengths", [None, (200, 33), (0, 1)])
def test_parts_of_the_memory_are_joined_exactly(
    splits: int, lengths: tuple[int, int] | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(forward, "choose_splits", lambda *_: splits)
    check_case(ReadCase(rows=200, queries=20, lengths=lengths), torch.float32, "triton", DEVICE, gradients=False)


@pytest.mark.skipif(not INTERPRETED, reason="the tiles of one architecture need not fit another")
@pytest.mark.parametrize("architecture", [80, 90, 100])
@pytest.mark.parametrize("value_dim", [128, 256, 512])
def test_the_tiles_of_every_architecture_are_right(
    architecture: int, value_dim: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    choose = configs.forward_config
    monkeypatch.setattr(forward, "forward_config", lambda _, *rest: choose(architecture, *rest))
    case = ReadCase(batch=1, queries=70, rows=100, key_dim=64, value_dim=value_dim)
    check_case(case, torch.float16, "triton", DEVICE, gradients=False)


def test_lengths_outside_the_memory_are_clamped() -> None:
    query, key, value = make_tensors(ReadCase(), torch.float32, DEVICE)[:3]
    lengths = torch.tensor([-3, 1000], dtype=torch.int32, device=DEVICE)
    out, lse = forward.forward(query, key, value, lengths, 0.25)
    whole, whole_lse = forward.forward(query, key, value, None, 0.25)
    assert not out[0].any()
    assert (lse[0] == -torch.inf).all()
    assert torch.equal(out[1], whole[1])
    assert torch.equal(lse[1], whole_lse[1])


def test_two_reads_are_bit_equal() -> None:
    query, key, value = make_tensors(ReadCase(batch=1, queries=3, rows=700), torch.float32, DEVICE)[:3]
    first, second = (memory_read(query, key, value, backend="triton") for _ in range(2))
    assert isinstance(first, torch.Tensor)
    assert torch.equal(first, second)


def test_any_strides_are_followed() -> None:
    tensors = make_tensors(ReadCase(), torch.float32, DEVICE)[:3]
    # every third element of a larger tensor: nothing contiguous, nothing aligned, NaN in between
    spread_out = [torch.full((*t.shape, 3), torch.nan, device=DEVICE)[..., 1].copy_(t) for t in tensors]
    found = memory_read(*spread_out, backend="triton")
    torch.testing.assert_close(found, memory_read(*tensors, backend="triton"))


def test_operator_passes_opcheck() -> None:
    query, key, value = make_tensors(ReadCase(queries=5, rows=9), torch.float32, DEVICE)[:3]
    operator = torch.ops.stm_fast.memory_read_triton.default
    torch.library.opcheck(operator, (query, key, value, None, None, None, 0.25, False, True, 0, False))
