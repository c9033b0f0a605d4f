"""The Hopper kernel compiles, for every tile, to machine code within its limits. No GPU is needed."""

import pytest
import torch

from stm_fast.kernels import compile_gate_hopper as gate
from stm_fast.kernels.compile_gate_hopper import HopperCase, HopperCompiled
from stm_fast.kernels.configs_hopper import ALL_HOPPER_CONFIGS, HopperConfig

GOOD = HopperCompiled(HopperCase(torch.bfloat16, HopperConfig(), 1), 0, 200_000, 36, 0, 14, False)


@pytest.mark.compiles
@pytest.mark.parametrize("case", gate.CASES, ids=str)
def test_it_compiles_within_its_limits(case: HopperCase) -> None:
    assert gate.hopper_breaches(gate.compile_hopper(case)) == []


def test_every_tile_is_compiled() -> None:
    assert {case.config for case in gate.CASES} == set(ALL_HOPPER_CONFIGS)


@pytest.mark.parametrize(
    ("change", "breach"),
    [
        ({"stack": 8}, "8 bytes of stack"),
        ({"local_memory": 2}, "2 uses of local memory"),
        ({"shared": 233_000}, "shared memory"),
        ({"wgmma": 8}, "8 HGMMA, expected at least 16"),
        ({"copies": 0}, "no copy by TMA"),
        ({"serialised": True}, "serialised"),
        ({"case": GOOD.case._replace(config=HopperConfig(maxnreg=176))}, "176 registers"),
    ],
)
def test_each_limit_is_enforced(change, breach: str) -> None:
    assert gate.hopper_breaches(GOOD) == []
    (found,) = gate.hopper_breaches(GOOD._replace(**change))
    assert breach in found
