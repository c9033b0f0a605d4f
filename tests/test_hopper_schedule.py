"""The Hopper kernel without a GPU: its source is simulated, warp group by warp group, in many orders."""

import math
import weakref

import pytest
import torch
from torch import Tensor

from gluon_simulator import SOURCE, ScheduleError, simulate
from stm_fast.kernels import forward
from stm_fast.kernels.experimental import configs_hopper
from stm_fast.kernels.experimental.configs_hopper import HopperConfig, is_for_hopper
from stm_fast.kernels.experimental.forward_hopper import GluonLaunch, plan_forward_hopper
from stm_fast.kernels.launch import Launch, arithmetic_of
from stm_fast.kernels.problem import Problem
from stm_fast.kernels.targets import Target
from stm_fast.kernels.tiles import ForwardConfig
from stm_fast.kernels.tuned import using
from stm_fast.ops import memory_read, merge_reads

pytestmark = pytest.mark.experimental

torch.set_num_threads(1)


@pytest.fixture(autouse=True)
def _of_any_size(monkeypatch) -> None:
    monkeypatch.setattr(configs_hopper, "FEWEST_PAIRS", 0)


TARGET = Target(90, processors=4)
SMALL = HopperConfig(block_m=8, block_n=16, block_k=16, half=8)


def make(
    rows: int, queries: int = 8, batch: int = 1, shared_query: bool = False, shared_key: bool = False
) -> list[Tensor]:
    shapes = [(1 if shared_query else batch, queries, 16), (1 if shared_key else batch, rows, 16), (batch, rows, 16)]
    return [torch.randn(shape).half() for shape in shapes]


def problem_of(tensors: list[Tensor], lengths: list[int] | None = None, scale: float = 0.3) -> Problem:
    query, key, value = tensors
    counts = None if lengths is None else torch.tensor(lengths, dtype=torch.int32)
    return Problem(query, key, value, None, None, counts, scale, False, None, TARGET, arithmetic_of(query.dtype))


def plan(
    tensors: list[Tensor], lengths: list[int] | None = None, splits: int = 1, config: HopperConfig = SMALL
) -> tuple[Tensor, Tensor, GluonLaunch]:
    """Outputs full of NaN, and the launch that fills them."""
    out, lse, launch = plan_forward_hopper(problem_of(tensors, lengths), splits=splits, config=config)
    return out.fill_(math.nan), lse.fill_(math.nan), launch


def check(
    tensors: list[Tensor],
    lengths: list[int] | None = None,
    splits: int = 1,
    seeds: int = 2,
    config: HopperConfig = SMALL,
    source: str = SOURCE,
) -> None:
    """Every order gives the float64 read, up to float16 rounding."""
    counts = None if lengths is None else torch.tensor(lengths, dtype=torch.int32)
    exact = memory_read(*(t.double() for t in tensors), scale=0.3, lengths=counts, return_lse=True, backend="reference")
    for seed in range(seeds):
        out, lse, launch = plan(tensors, lengths, splits, config)
        simulate(launch, seed, source)
        assert not out.isnan().any()
        found = merge_reads(list(out.unbind(1)), list(lse.unbind(1)))
        torch.testing.assert_close(found[0].double(), exact[0], rtol=0, atol=4e-3)
        torch.testing.assert_close(found[1].double(), exact[1], rtol=0, atol=1e-5)


@pytest.mark.parametrize("rows", [1, 15, 16, 17, 32, 33, 48, 50, 64, 65, 150])
def test_any_number_of_steps(rows: int) -> None:
    check(make(rows), seeds=4)


@pytest.mark.slow
@pytest.mark.parametrize("splits", [2, 3, 5, 8])
@pytest.mark.parametrize("lengths", [None, [70, 0], [1, 79], [80, 16]])
def test_parts_of_the_memory_including_empty_ones(splits: int, lengths: list[int] | None) -> None:
    check(make(80, batch=2), lengths, splits)


@pytest.mark.parametrize("queries", [1, 7, 9, 20])
@pytest.mark.parametrize(("shared_query", "shared_key"), [(False, False), (True, False), (False, True), (True, True)])
def test_any_number_of_queries_and_shared_batches(queries: int, shared_query: bool, shared_key: bool) -> None:
    check(make(44, queries, 3, shared_query, shared_key), [44, 24, 33])


def test_whole_tiles() -> None:
    query, key = torch.randn(1, 70, 128).half(), torch.randn(1, 300, 128).half()
    check([query, key * 0.2, torch.randn(1, 300, 512).half()], [290], splits=2, seeds=1, config=HopperConfig())


def check_plan(problem: Problem, out: Tensor, lse: Tensor, launch: GluonLaunch) -> None:
    out.fill_(math.nan), lse.fill_(math.nan)
    simulate(launch, 0)
    exact = memory_read(
        *(t.double() for t in problem[:3]), scale=problem.scale, lengths=problem.lengths, return_lse=True
    )
    found = merge_reads(list(out.unbind(1)), list(lse.unbind(1)))
    torch.testing.assert_close(found[0].double(), exact[0], rtol=0, atol=4e-3)
    torch.testing.assert_close(found[1].double(), exact[1], rtol=0, atol=1e-5)


def wide(rows: int) -> Problem:
    """A read for which the engine uses the kernel."""
    tensors = [torch.randn(1, 20, 64), torch.randn(2, rows, 64), torch.randn(2, rows, 512)]
    return problem_of([tensor.half() for tensor in tensors], [rows, 7], 0.125)


@pytest.mark.parametrize(("rows", "parts"), [(60, 1), (600, 2)])
def test_the_engine_uses_the_kernel_and_chooses_parts(rows: int, parts: int) -> None:
    problem = wide(rows)
    assert is_for_hopper(problem)
    out, lse, launch = forward.plan_read(problem)
    assert out.shape[1] == parts
    assert isinstance(launch, GluonLaunch)
    check_plan(problem, out, lse, launch)


def test_a_plan_reads_other_tensors_of_the_same_layout() -> None:
    out, lse, launch = forward.plan_read(wide(60))
    assert isinstance(launch, GluonLaunch)
    other = wide(60)
    names = ("query", "key", "value", "lengths")
    operands = dict(zip(names, launch.operands()(*other.tensors), strict=True))
    check_plan(other, out, lse, launch._replace(arguments=launch.arguments | operands))


def test_a_plan_keeps_no_tensor_of_the_read_that_it_was_made_for() -> None:
    problem = wide(60)
    kept = [weakref.ref(tensor) for tensor in (problem.query, problem.key, problem.value)]
    launch = forward.plan_read(problem)[2]
    assert isinstance(launch, GluonLaunch)
    operands = launch.operands()
    del problem, launch
    assert [tensor() for tensor in kept] == [None] * 3
    assert callable(operands)


@pytest.mark.parametrize("key_dim", [8, 24])
def test_keys_that_do_not_fill_a_tile(key_dim: int) -> None:
    query, key = torch.randn(2, 9, key_dim).half(), torch.randn(2, 50, key_dim).half()
    check([query, key, torch.randn(2, 50, 16).half()], config=HopperConfig(8, 16, 32, 8))


def test_a_bank_with_spare_rows_that_hold_nan() -> None:
    query, key, value = make(100, batch=2)
    for rows in (key, value):
        rows[0, 53:], rows[1, 72:] = math.nan, math.nan
    found = plan([query, key[:, :80], value[:, :80]], [53, 72], splits=2)
    simulate(found[2], 0)
    exact = memory_read(query, key[:, :80], value[:, :80], scale=0.3, lengths=torch.tensor([53, 72]))
    assert isinstance(exact, Tensor)
    out = merge_reads(list(found[0].unbind(1)), list(found[1].unbind(1)))[0]
    torch.testing.assert_close(out.half(), exact, rtol=0, atol=4e-3)


# code of the source, its replacement, and the error that the simulator must report
IGNORE = "\n\n@gluon.jit\ndef ignore(*_arguments, **_options):\n    pass\n"
BROKEN = [
    ("mbarrier.arrive(weight_empty.index(slot), count=1)", "pass", "deadlock"),
    ("mbarrier.arrive(value_empty.index(before * 2), count=1)", "pass", "deadlock"),
    ("mbarrier.wait(key_empty.index(slot)", "ignore((slot)", "race"),
    ("mbarrier.wait(value_empty.index(slot)", "ignore((slot)", "race|more arrivals"),
    ("mbarrier.wait(weight_empty.index(slot)", "ignore((slot)", "race"),
    ("mbarrier.wait(weight_full.index(slot), phase)", "pass", "race"),
    ("mbarrier.wait(value_full.index(slot * 2 + 1), phase)", "pass", "race|deadlock"),
    ("mbarrier.wait(query_full, 0)", "pass", "race"),
    ("store(rescale)\n    fence_async_shared()", "store(rescale)", "no fence"),
    ("rows.load(layout), 0.0))\n        fence_async_shared()", "rows.load(layout), 0.0))", "no fence"),
    ("_wait(0, deps=[next_score, accumulator])", "_wait(1, deps=[next_score, accumulator])", "under way"),
    ("step // TILE.stages & 1, pred=step < steps", "step // TILE.stages & 1 ^ 1, pred=step < steps", "race|deadlock"),
    ("value_empty.index(slot * 2 + 1), count=1", "value_empty.index(slot * 2 + 1), count=2", "more arrivals"),
    ("TILE.block_n * TILE.half * 2)", "TILE.block_n * TILE.half)", "more arrivals|deadlock|race"),
]


@pytest.mark.parametrize(("found", "instead", "error"), BROKEN)
def test_the_simulator_finds_a_broken_schedule(found: str, instead: str, error: str) -> None:
    assert found in SOURCE
    source = SOURCE.replace(found, instead) + IGNORE
    with pytest.raises(ScheduleError, match=error):
        check(make(150, batch=2), [150, 120], source=source, seeds=10)


@pytest.mark.parametrize(
    ("change", "is_for_it"),
    [
        (lambda q, k, v: (q, k, v), True),
        (lambda q, k, v: (q[:1].expand(2, -1, -1), k, v), True),
        (lambda q, k, v: (q, k.mT.contiguous().view(2, 30, 128)[:, :, :120], v), True),
        (lambda q, k, v: (q.float(), k.float(), v.float()), False),
        (lambda q, k, v: (q, k, v[:, :, :256]), False),
        (lambda q, k, v: (q.repeat(1, 1, 2), k.repeat(1, 1, 2), v), False),
        (lambda q, k, v: (q, k.mT.contiguous().mT, v), False),
        (lambda q, k, v: (q[:, :0], k, v), False),
        (lambda q, k, v: (q[:, :, 1:], k[:, :, 1:], v), False),
        (
            lambda q, k, v: (
                q,
                k,
                torch.cat([v.flatten(), v.new_empty(8)]).as_strided(v.shape, (30 * 512 + 8, 512, 1)),
            ),
            False,
        ),
    ],
)
def test_reads_that_the_hopper_kernel_supports(change, is_for_it: bool) -> None:
    query, key, value = torch.randn(2, 20, 128), torch.randn(2, 30, 128), torch.randn(2, 30, 512)
    problem = problem_of(change(query.half(), key.half(), value.half()))
    assert is_for_hopper(problem) == is_for_it
    assert not is_for_hopper(problem._replace(similarity=1))
    assert not is_for_hopper(problem._replace(target=Target(100, processors=4)))


@pytest.mark.slow
def test_small_reads_are_left_to_the_portable_kernel(monkeypatch) -> None:
    monkeypatch.undo()
    problem = wide(2**22 // 40)  # two objects, 20 queries
    assert not is_for_hopper(problem)
    assert is_for_hopper(wide(2**22 // 40 + 1))


def test_a_tile_chosen_by_the_user_has_priority() -> None:
    problem = problem_of(make(30))._replace(value=torch.randn(1, 30, 512).half())
    assert isinstance(forward.plan_read(problem)[2], GluonLaunch)
    with using({("forward", problem.choice): ForwardConfig(64, 32, 32, 128, 1, 8, 1)}):
        assert isinstance(forward.plan_read(problem)[2], Launch)


def test_without_this_gluon_api_the_portable_kernel_is_used(monkeypatch) -> None:
    monkeypatch.setattr(forward, "hopper_module", lambda: None)
    assert isinstance(forward.plan_read(problem_of(make(30))._replace(value=torch.randn(1, 30, 512).half()))[2], Launch)
