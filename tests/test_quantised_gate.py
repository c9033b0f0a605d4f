"""The read of a quantised memory compiles for every architecture within its limits. No GPU is needed."""

import pytest
import torch

from stm_fast.kernels import compile_gate_quantised as gate
from stm_fast.kernels.compile_gate_quantised import QuantisedCase, QuantisedCompiled
from stm_fast.kernels.configs_quantised import quantised_config
from stm_fast.kernels.targets import ARCHITECTURES

GOOD = QuantisedCompiled(QuantisedCase(90, torch.int8), 255, 0, 70_000, 0, 12)


@pytest.mark.slow
@pytest.mark.parametrize("case", gate.quantised_cases(), ids=str)
def test_it_compiles_within_its_limits(case: QuantisedCase) -> None:
    assert gate.quantised_breaches(gate.compile_quantised(case)) == []


def test_every_tile_is_compiled() -> None:
    compiled = {(case.architecture, gate.quantised_launch(case).config) for case in gate.quantised_cases()}
    chosen = {(architecture, quantised_config(architecture, True)) for architecture in ARCHITECTURES}
    assert compiled == chosen | {(90, quantised_config(90, False))}


@pytest.mark.parametrize(
    ("change", "breach"),
    [
        ({"stack": 8}, "8 bytes of stack"),
        ({"shared": 233_000}, "shared memory"),
        ({"tensor_memory": 608}, "tensor memory"),
        ({"registers": 4}, "empty"),
        ({"wgmma": 0}, "no wgmma"),
    ],
)
def test_each_limit_is_enforced(change, breach: str) -> None:
    assert gate.quantised_breaches(GOOD) == []
    (found,) = gate.quantised_breaches(GOOD._replace(**change))
    assert breach in found
