"""The tuner: its search with made-up times, its table, and kernels that take tiles from it. Needs no GPU."""

import json
import math
from dataclasses import replace

import pytest
import torch

from gate.compiling import Case, launch_of
from stm_fast.benchmarking.measuring import Reading
from stm_fast.benchmarking.records import read_record
from stm_fast.benchmarking.routes import ROUTES
from stm_fast.benchmarking.shapes import parse_shape
from stm_fast.benchmarking.tuning import TileRow, climb, neighbors_of, tune
from stm_fast.errors import InputError
from stm_fast.kernels import tuned
from stm_fast.kernels.configs import backward_config, forward_config, grad_value_config, topk_config
from stm_fast.kernels.targets import INTERPRETER
from stm_fast.kernels.tiles import Choice, ForwardConfig
from stm_fast.ops import triton_ops
from stm_fast.ops.inputs import ReadInputs

CHOICE = Choice(90, "half", 128, 512, True, False)
HERE = CHOICE._replace(architecture=INTERPRETER.architecture, arithmetic="ieee")
TILE = ForwardConfig(64, 32, 64, 128, 2, 4, 3)


def distance(tile, best):
    """In doublings of every field."""
    pairs = zip(vars(tile).values(), vars(best).values(), strict=True)
    return sum(abs(math.log2(left / right)) for left, right in pairs)


def test_the_climb_ends_on_the_fastest_tile_and_times_none_twice():
    start, best = forward_config(CHOICE), replace(forward_config(CHOICE), block_m=32, block_n=128, num_stages=4)
    timed = []

    def time_of(tile):
        timed.append(tile)
        return math.inf if tile.num_warps == 4 else 1 + distance(tile, best)

    found = climb(start, lambda tile: neighbors_of("forward", tile), time_of)
    assert (found.tile, found.time, found.tried) == (best, 1, len(timed))
    assert len(set(timed)) == len(timed)


def test_the_climb_ignores_gains_within_the_noise():
    assert climb(0, lambda tile: [tile + 1], lambda tile: 1 - 0.01 * tile).tile == 0


def test_neighbors_by_hand():
    around = set(neighbors_of("forward", TILE))
    assert replace(TILE, num_stages=4) in around
    assert replace(TILE, block_v=256, accumulators=1) in around
    assert replace(TILE, block_v=64, accumulators=4) in around
    # 64 x 512 numbers are 256 registers of 128 threads
    assert replace(TILE, accumulators=4) not in around
    assert TILE not in around
    # the width of values does not affect scores
    tile = backward_config(CHOICE)
    assert all((other.block_c, other.block_v) == (tile.block_c, tile.block_v) for other in neighbors_of("top-k", tile))


class FakeClock:
    """A machine where tiles are slower the farther they are from the best one, and some do not compile."""

    def __init__(self, best):
        self._best = best

    def measure(self, call, inputs):
        tile = forward_config(HERE)
        if tile.block_n == 128:
            raise RuntimeError("out of resource: shared memory")
        seconds = 1 + distance(tile, self._best)
        return Reading(seconds, seconds)


def record_of(best, monkeypatch, reports):
    monkeypatch.setitem(ROUTES, "triton", ROUTES["reference"])
    shapes = [parse_shape(name) for name in ("2x3-T1-O1", "2x3-T2-O2")]
    return tune(shapes, [torch.float32], ["forward"], FakeClock(best), reports.append, device="cpu")


def use_table(path, monkeypatch):
    """As if the process had been started with the variable."""
    monkeypatch.setenv(tuned.VARIABLE, str(path))
    tuned.file_of_tiles.cache_clear()


def test_the_kernels_take_the_tuned_tile(monkeypatch, tmp_path):
    default = forward_config(HERE)
    best, reports = replace(default, block_n=64, num_stages=2), []
    record = record_of(best, monkeypatch, reports)
    (row,) = record.rows
    assert ForwardConfig(**row.tile) == best
    assert ForwardConfig(**row.instead_of) == default
    assert row.relative_time == pytest.approx(1 / (1 + distance(default, best)))
    assert {"gpu", "triton", "commit"} <= set(record.machine)
    assert record.settings["shapes"] == ["2x3-T1-O1", "2x3-T2-O2"]
    assert any("RuntimeError: out of resource" in report for report in reports)

    path = tmp_path / "tiles.json"
    record.write(path)
    assert read_record(path, TileRow) == record
    use_table(path, monkeypatch)
    assert forward_config(HERE) == best
    case = Case("forward", HERE.architecture, HERE.arithmetic, torch.float32, 128, 512, "rows")
    assert launch_of(case).config == best
    # only for the timed case
    assert launch_of(case._replace(key_dim=64)).config == default
    assert topk_config(HERE) == backward_config(HERE) == grad_value_config(HERE)


def test_a_tile_that_is_no_faster_is_not_in_the_table(monkeypatch):
    assert record_of(forward_config(HERE), monkeypatch, []).rows == []


def test_a_tile_with_a_wrong_result_is_not_taken(monkeypatch):
    default = forward_config(HERE)

    def read(query, key, value):
        out = query.new_ones(len(value), query.shape[1], value.shape[2])
        return out if forward_config(HERE) == default else 2 * out

    monkeypatch.setitem(ROUTES, "reference", replace(ROUTES["reference"], make=lambda workload: read))
    reports = []
    assert record_of(replace(default, block_n=64), monkeypatch, reports).rows == []
    assert any("ArithmeticError: a wrong result" in report for report in reports)


GOOD = {"schema": 3, "settings": {"architecture": 90}, "rows": []}
ENTRY = {"kernel": "forward", "choice": CHOICE._asdict(), "tile": vars(TILE)}


def test_each_kernel_takes_its_own_tile(monkeypatch, tmp_path):
    gradient, best = replace(backward_config(CHOICE), block_m=32), topk_config(CHOICE)
    entries = [ENTRY, {"kernel": "backward", "choice": CHOICE._asdict(), "tile": vars(gradient)}]
    path = tmp_path / "tiles.json"
    path.write_text(json.dumps(GOOD | {"rows": entries}))
    use_table(path, monkeypatch)
    assert (forward_config(CHOICE), backward_config(CHOICE)) == (TILE, gradient)
    assert topk_config(CHOICE) == best
    with tuned.using({}):
        assert forward_config(CHOICE) != TILE


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (json.dumps(GOOD | {"settings": {"architecture": 80}}), "found tiles for sm_80, expected sm_90 as this GPU is"),
        ("[]", "expected the JSON of stm-fast benchmark tune, schema 3"),
        ("{", "expected the JSON of stm-fast benchmark tune, schema 3"),
        (json.dumps(GOOD | {"schema": 2}), "schema 2"),
        (json.dumps(GOOD | {"rows": [ENTRY | {"kernel": "sideways"}]}), "sideways"),
        (json.dumps(GOOD | {"rows": [ENTRY | {"tile": {"block_m": 64}}]}), "missing"),
        (json.dumps(GOOD | {"rows": [ENTRY | {"tile": vars(TILE) | {"block_m": 0.5}}]}), "block_m: expected whole"),
        (None, "cannot read"),
    ],
)
def test_invalid_tables_are_refused_in_one_line(text, message, monkeypatch, tmp_path):
    path = tmp_path / "tiles.json"
    if text is not None:
        path.write_text(text)
    use_table(path, monkeypatch)
    with pytest.raises(ValueError, match=f"STM_FAST_CONFIGS: .*{message}") as caught:
        tuned.check_table(90)
    assert "\n" not in str(caught.value)


def test_a_read_with_a_table_of_another_gpu_is_an_input_error(monkeypatch, tmp_path):
    path = tmp_path / "tiles.json"
    path.write_text(json.dumps(GOOD))
    use_table(path, monkeypatch)
    tensors = [torch.zeros(1, 2, 16) for _ in range(3)]
    with pytest.raises(InputError, match=f"found tiles for sm_90, expected sm_{INTERPRETER.architecture}"):
        triton_ops.problem_of(ReadInputs(*tensors, None, None, None, 1.0, 0, False, 0))
