"""Every kernel configuration compiles for every architecture within its limits. No GPU is needed."""

import pytest
import torch

from stm_fast.kernels import compile_gate
from stm_fast.kernels.compile_gate import Case, Compiled
from stm_fast.kernels.configs import COMBINE, all_configs, choose_splits
from stm_fast.kernels.targets import Target, nearest_architecture


@pytest.mark.slow
def test_every_configuration_compiles_within_its_limits() -> None:
    results = list(compile_gate.compile_all(list(compile_gate.cases())))
    problems = [breach for result in results for breach in compile_gate.breaches(result)]
    assert not problems + compile_gate.unvisited(results)


@pytest.mark.slow
def test_amd_is_in_the_table_as_information() -> None:
    gfx90a, gfx942 = compile_gate.amd_rows()
    assert gfx90a.startswith("gfx90a: ")
    assert gfx942.startswith("gfx942: ")


@pytest.mark.parametrize(
    ("change", "breach"),
    [
        ({"stack": 8}, "8 bytes of stack"),
        ({"shared": 228 * 1024}, "shared memory"),
        ({"tensor_memory": 608}, "tensor memory"),
        ({"registers": 4}, "empty"),
        ({"wgmma": 0}, "no wgmma"),
    ],
)
def test_each_limit_is_enforced(change: dict[str, int], breach: str) -> None:
    case = Case("forward", 90, "half", torch.bfloat16, 128, 512, "rows")
    good = Compiled(case, COMBINE, 200, 0, 100 * 1024, 0, 12, 1.0)
    assert compile_gate.breaches(good) == []
    (found,) = compile_gate.breaches(good._replace(**change))
    assert breach in found


def test_a_configuration_that_was_not_visited_is_a_problem() -> None:
    assert len(compile_gate.unvisited([])) == len(set(all_configs()))


@pytest.mark.parametrize(
    ("tiles", "steps", "splits"), [(26, 26, 5), (260, 500, 1), (1, 3, 1), (0, 100, 1), (1, 10000, 119), (131, 1000, 1)]
)
def test_the_memory_is_split_to_fill_the_processors(tiles: int, steps: int, splits: int) -> None:
    assert choose_splits(Target(90, 132), tiles, steps) == splits


def test_an_unknown_device_takes_the_tiles_of_the_one_before_it() -> None:
    assert [nearest_architecture(capability) for capability in (80, 87, 90, 103, 121)] == [80, 86, 90, 100, 120]
    with pytest.raises(ValueError, match=r"compute capability 7\.5: the kernels need 8\.0"):
        nearest_architecture(75)
