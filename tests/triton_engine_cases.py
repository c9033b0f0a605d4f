"""The Triton engine against float64, on a GPU or under the interpreter.

Not collected by itself: test_triton_engine.py runs it in a process of its own.
"""

import os
from dataclasses import replace

import pytest
import torch

from saved_tensors import WAYS, assert_same, gradients, plainly, read_of
from stm_fast.kernels import configs, forward, grad_query, grad_scores, layout, topk_backward, topk_select
from stm_fast.ops import kernelized_memory_read, memory_read, read_rows, triton_ops
from stm_fast.testing import CASES, ReadCase, check_case, make_tensors, runs
from stm_fast.testing.cases import options, read_inputs

torch.set_num_threads(1)

INTERPRETED = os.environ.get("TRITON_INTERPRET") == "1"
DEVICE = "cpu" if INTERPRETED else "cuda"

EVERYTHING = ReadCase(similarity="l2", shrinkage=True, selection=True, lengths=(97, 40), return_usage=True)
TOP = replace(EVERYTHING, top_k=7, queries=9)
WIDTHS = [
    ReadCase(batch=1, queries=5, rows=70, key_dim=80, value_dim=80),
    ReadCase(batch=1, queries=5, rows=40, key_dim=16, value_dim=272, channels_first=True),
    replace(EVERYTHING, batch=1, lengths=(30,), queries=7, rows=40, key_dim=112, value_dim=176),
    ReadCase(batch=1, queries=5, rows=70, key_dim=192, value_dim=768),
    ReadCase(batch=1, queries=5, rows=33, key_dim=256, value_dim=1024),
    ReadCase(batch=1, queries=7, rows=40, key_dim=130, value_dim=300),
    ReadCase(batch=1, queries=7, rows=40, key_dim=64, value_dim=128, channels_first=True),
    replace(EVERYTHING, batch=1, lengths=(30,), queries=7, rows=40, key_dim=130, value_dim=128),
    ReadCase(batch=1, queries=7, rows=140, key_dim=130, value_dim=300, top_k=9),
    ReadCase(batch=1, queries=3, rows=700),  # so few queries that the memory is split
]


@pytest.mark.parametrize("case", CASES, ids=str)
def test_no_worse_than_eager(case: ReadCase) -> None:
    # the interpreter takes minutes for wide gradients in float32; it takes those of WIDTHS in float16
    check_case(case, torch.float32, "triton", DEVICE, gradients=not INTERPRETED or case.value_dim <= 128)


@pytest.mark.parametrize("case", WIDTHS, ids=str)
def test_any_width_is_no_worse_than_eager(case: ReadCase) -> None:
    check_case(case, torch.float32, "triton", DEVICE, gradients=False)


# the interpreter multiplies bfloat16 wrongly; the tiles of all 16-bit dtypes are the same
@pytest.mark.parametrize("case", [ReadCase(spread=100.0), EVERYTHING, TOP, *WIDTHS], ids=str)
def test_no_worse_than_eager_in_float16(case: ReadCase) -> None:
    check_case(case, torch.float16, "triton", DEVICE)


@pytest.mark.parametrize("seed", [1, 3])
def test_gradients_of_large_scores_do_not_suffer_from_the_rounding_of_lse(seed: int) -> None:
    check_case(ReadCase(spread=100.0), torch.float32, "triton", DEVICE, seed=seed)


@pytest.mark.parametrize(("shared", "splits", "lengths"), [(True, 1, None), (True, 2, (130, 33)), (False, 2, None)])
def test_gradients_are_summed_over_blocks_and_their_parts(
    shared: bool, splits: int, lengths: tuple[int, int] | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(grad_scores, "MOST_PAIRS", 1)  # blocks of as few rows as can be, 128
    monkeypatch.setattr(grad_query, "choose_splits", lambda *_: splits)
    case = ReadCase(rows=140, queries=9, lengths=lengths, shared_query=shared, shared_key=shared)
    check_case(case, torch.float32, "triton", DEVICE)
    check_case(replace(EVERYTHING, rows=140, queries=9, lengths=lengths), torch.float16, "triton", DEVICE)


@pytest.mark.parametrize("splits", [1, 2, 3, 7])
@pytest.mark.parametrize("lengths", [None, (200, 33), (0, 1)])
def test_parts_of_the_memory_are_joined_exactly(
    splits: int, lengths: tuple[int, int] | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(forward, "choose_splits", lambda *_: splits)
    check_case(ReadCase(rows=200, queries=20, lengths=lengths), torch.float32, "triton", DEVICE, gradients=False)


@pytest.mark.skipif(not INTERPRETED, reason="the tiles of one architecture need not fit another")
@pytest.mark.parametrize("architecture", [80, 90, 100])
@pytest.mark.parametrize(("key_dim", "value_dim"), [(64, 128), (64, 256), (64, 512), (80, 128), (208, 176)])
def test_the_tiles_of_every_architecture_are_right(
    architecture: int, key_dim: int, value_dim: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    choose = configs.forward_config
    monkeypatch.setattr(forward, "forward_config", lambda choice: choose(choice._replace(architecture=architecture)))
    case = ReadCase(batch=1, queries=70, rows=100, key_dim=key_dim, value_dim=value_dim)
    check_case(case, torch.float16, "triton", DEVICE, gradients=False)
    weighted = replace(EVERYTHING, batch=1, lengths=(90,), key_dim=key_dim, value_dim=value_dim)
    check_case(weighted, torch.float16, "triton", DEVICE, gradients=False)


@pytest.mark.parametrize("top_k", [None, 30])
def test_keys_that_are_one_product_are_right(top_k: int | None) -> None:
    case = ReadCase(batch=1, queries=70, rows=150, key_dim=128, value_dim=256, top_k=top_k)
    check_case(case, torch.float16, "triton", DEVICE)


@pytest.mark.parametrize("spread", [0.0, 1.0])
@pytest.mark.parametrize("most", [1, 2**24])
def test_top_k_finds_room_for_every_candidate(spread: float, most: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(topk_select, "ROOM", 1)
    monkeypatch.setattr(topk_select, "BUCKETS", 1)
    monkeypatch.setattr(topk_select, "MOST_CANDIDATES", most)
    check_case(replace(TOP, spread=spread), torch.float32, "triton", DEVICE)


def test_top_k_is_exact_where_the_passes_round_differently(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(topk_select, "MARGIN", -0.5)  # a threshold that is far too high
    check_case(TOP, torch.float32, "triton", DEVICE, gradients=False)


def test_top_k_gradients_come_in_blocks_of_queries(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(topk_backward, "MOST_GATHERED", 2 * 7 * 32 * 4)
    check_case(TOP, torch.float32, "triton", DEVICE)


@pytest.mark.parametrize("top_k", [7, 40])
def test_top_k_of_equal_scores_takes_the_first_rows(top_k: int) -> None:
    query, key, value = make_tensors(ReadCase(queries=3, rows=300, spread=0.0), torch.float32, DEVICE)[:3]
    found = memory_read(query, key, value, top_k=top_k, backend="triton")
    torch.testing.assert_close(found, value[:, :top_k].mean(1, keepdim=True).expand(-1, 3, -1))


@pytest.mark.parametrize("dtype", [torch.float16, *([] if INTERPRETED else [torch.bfloat16])])
def test_top_k_with_a_selection_has_scores_of_more_than_16_bits(dtype: torch.dtype) -> None:
    """Among thousands of rows the k-th best is often one of several whose scores are equal in 16 bits."""
    case = ReadCase(batch=1, queries=20, rows=300, key_dim=128, similarity="l2", selection=True)
    tensors = make_tensors(case, dtype, DEVICE)
    query, key, _value, _shrinkage, selection = tensors
    assert selection is not None
    inputs = read_inputs(case, tensors._replace(value=key, selection=selection.float()))
    found = topk_select.select(triton_ops.problem_of(inputs._replace(scale=1.0)), 30)
    difference = query.double()[:, :, None] - key.double()[:, None]  # [1, M, N, Ck]
    score = -(selection.double()[:, :, None] * difference.square()).sum(-1)  # [1, M, N]
    # of about -100; with products rounded to 16 bits the error is 0.014 in float16, 0.09 in bfloat16; now 4e-5
    assert (found.scores - score.gather(2, found.rows)).abs().max() < 2e-3


def test_top_k_does_not_depend_on_the_order_of_the_candidates() -> None:
    # the interpreter always finds them in order, a GPU does not
    scores = torch.tensor([[[1.0, 3.0, -torch.inf, 3.0, 2.0]]], device=DEVICE)
    rows = torch.tensor([[[9, 8, topk_select.ABSENT, 4, 7]]], dtype=torch.int32, device=DEVICE)
    assert topk_select.best(scores, rows, 3).rows.tolist() == [[[4, 8, 7]]]
    assert topk_select.best(scores, rows, 5).rows.tolist() == [[[4, 8, 7, 9, -1]]]


def test_top_k_shows_nan() -> None:
    query, key, value = make_tensors(ReadCase(), torch.float32, DEVICE)[:3]
    key[0, 50] = torch.nan
    out = memory_read(query, key, value, top_k=3, backend="triton")
    assert isinstance(out, torch.Tensor)
    assert out[0].isnan().all()
    assert out[1].isfinite().all()


def test_objects_that_share_their_scores_share_the_top_k() -> None:
    case = ReadCase(batch=3, queries=9, rows=150, shared_query=True, shared_key=True, top_k=5, return_usage=True)
    check_case(case, torch.float32, "triton", DEVICE)


@pytest.mark.parametrize(
    "case", [TOP, ReadCase(batch=2, queries=9, shared_query=True, shared_key=True, top_k=5)], ids=str
)
def test_kept_rows_and_their_reads_equal_the_reference(case: ReadCase) -> None:
    tensors = runs.leaves(make_tensors(case, torch.float32, DEVICE), torch.float32, requires_grad=True)
    given = [tensor for tensor in tensors if tensor is not None]
    results = []
    for backend in ("triton", "reference"):
        extras = {"shrinkage": tensors.shrinkage, "selection": tensors.selection, **options(case, DEVICE)}
        out, usage, weights, rows = memory_read(
            *tensors[:3], **extras, return_usage=True, return_top_k=True, backend=backend
        )
        again = read_rows(weights, rows, tensors.value, backend=backend)
        torch.testing.assert_close(again, out)
        found = torch.autograd.grad(again, given, torch.ones_like(again))
        results.append((usage, weights, rows, *found))
    torch.testing.assert_close(*results, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("top_k", [None, 5])
def test_the_kernelized_read_equals_the_reference(top_k: int | None) -> None:
    case = ReadCase(batch=2, queries=12, rows=40, shared_query=True)
    tensors = runs.leaves(make_tensors(case, torch.float32, DEVICE), torch.float32, requires_grad=True)[:3]
    results = []
    for backend in ("triton", "reference"):
        out = kernelized_memory_read(*tensors, sigma=1.5, size=(3, 4), top_k=top_k, backend=backend)
        assert isinstance(out, torch.Tensor)
        results.append((out, *torch.autograd.grad(out, tensors, torch.ones_like(out))))
    torch.testing.assert_close(*results, rtol=1e-4, atol=1e-5)


def test_lengths_outside_the_memory_are_clamped() -> None:
    query, key, value = make_tensors(ReadCase(), torch.float32, DEVICE)[:3]
    lengths = torch.tensor([-3, 1000], dtype=torch.int32, device=DEVICE)
    operator = torch.ops.stm_fast.memory_read_triton
    out, lse, *_ = operator(query, key, value, None, None, lengths, 0.25, False, True, 0, False, False)
    whole, whole_lse, *_ = operator(query, key, value, None, None, None, 0.25, False, True, 0, False, False)
    assert not out[0].any()
    assert (lse[0] == -torch.inf).all()
    assert torch.equal(out[1], whole[1])
    assert torch.equal(lse[1], whole_lse[1])


@pytest.mark.parametrize(
    "case", [ReadCase(batch=1, queries=3, rows=700), replace(EVERYTHING, shared_key=True), TOP], ids=str
)
def test_two_reads_are_bit_equal(case: ReadCase) -> None:
    results = []
    for _ in range(2):
        leaves = runs.leaves(make_tensors(case, torch.float32, DEVICE), torch.float32, requires_grad=True)
        outputs = runs.read_outputs(case, leaves, "triton")
        results.append(runs.with_gradients(outputs, leaves, runs.random_upstream(outputs)))
    first, second = results
    assert all(torch.equal(first[name], second[name]) for name in first)


def test_any_strides_are_followed() -> None:
    tensors = make_tensors(ReadCase(), torch.float32, DEVICE)[:3]
    # every third element of a larger tensor: nothing contiguous, nothing aligned, NaN in between
    spread_out = [torch.full((*t.shape, 3), torch.nan, device=DEVICE)[..., 1].copy_(t) for t in tensors]
    found = memory_read(*spread_out, backend="triton")
    torch.testing.assert_close(found, memory_read(*tensors, backend="triton"))


@pytest.mark.parametrize("case", [ReadCase(return_usage=True), replace(EVERYTHING, shared_key=True), TOP], ids=str)
def test_tensors_that_are_given_rows_are_read_right(case: ReadCase, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(layout, "FEWEST_QUERIES", 1)
    monkeypatch.setattr(layout, "FEWEST_SCORES", 1)
    check_case(replace(case, channels_first=True), torch.float16, "triton", DEVICE)


@pytest.mark.parametrize("dtype", [torch.float16, torch.float32])
def test_rows_are_the_same_numbers(dtype: torch.dtype) -> None:
    large = torch.randn(3, 2 * 80, 2 * 70, device=DEVICE).to(dtype)
    strided = large[:, ::2, 1::2].mT  # [3, 70, 80]
    for tensor in (strided, strided[:1].expand(3, -1, -1), large.mT[:, :, :7]):
        rows = layout.with_rows(tensor)
        assert torch.equal(rows, tensor)
        assert rows[0].is_contiguous()
        assert (rows.stride(0) == 0) == (tensor.stride(0) == 0)


def test_what_is_saved_may_be_computed_again() -> None:
    case = replace(EVERYTHING, queries=5, rows=9, lengths=(9, 4))
    read, tensors = read_of(case, "triton"), make_tensors(case, torch.float32, DEVICE)
    expected = gradients(plainly, read, *tensors)
    assert_same(gradients(WAYS["checkpoint"], read, *tensors), expected, "checkpoint")


# opcheck looks at the .grad of its own copies
@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor that is not a leaf:UserWarning")
@pytest.mark.parametrize(("usage", "top_k"), [(False, 0), (True, 0), (True, 3)])
def test_operator_passes_opcheck(usage: bool, top_k: int) -> None:
    case = ReadCase(queries=5, rows=9, similarity="l2", shrinkage=True, selection=True)
    leaves = runs.leaves(make_tensors(case, torch.float32, DEVICE), torch.float32, requires_grad=True)
    operator = torch.ops.stm_fast.memory_read_triton.default
    torch.library.opcheck(operator, (*leaves, None, 0.25, True, True, top_k, usage, top_k > 0))


# opcheck looks at the .grad of its own copies
@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor that is not a leaf:UserWarning")
def test_reads_of_kept_rows_pass_opcheck() -> None:
    weights = torch.rand(1, 5, 3, device=DEVICE, requires_grad=True)
    rows = torch.tensor([[0, 3, -1]] * 5, device=DEVICE)[None]
    value = torch.rand(2, 9, 16, device=DEVICE, requires_grad=True)
    torch.library.opcheck(torch.ops.stm_fast.read_rows_triton.default, (weights, rows, value))
    backward = torch.ops.stm_fast.read_rows_triton_backward.default
    torch.library.opcheck(backward, (torch.rand(2, 5, 16, device=DEVICE), weights.detach(), rows, value.detach()))


@pytest.mark.gpu  # takes 5 GiB
def test_a_bank_of_more_than_2_31_elements_is_read_to_its_end() -> None:
    rows = 2**31 // 512 + 100
    value = torch.zeros(1, rows, 512, dtype=torch.bfloat16, device=DEVICE)
    key = torch.zeros(1, rows, 64, dtype=torch.bfloat16, device=DEVICE)
    query = torch.ones(1, 1, 64, dtype=torch.bfloat16, device=DEVICE)
    key[0, -1], value[0, -1] = 100, 1
    out = memory_read(query, key, value, backend="triton")
    assert isinstance(out, torch.Tensor)
    torch.testing.assert_close(out[0, 0], value[0, -1])
