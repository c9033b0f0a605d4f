"""The read of a quantised memory compiles for every architecture within its limits. No GPU is needed."""

import re

import pytest
import torch
import triton
from triton.backends.compiler import GPUTarget

from stm_fast.kernels import compile_gate_quantised as gate
from stm_fast.kernels.compile_gate import source
from stm_fast.kernels.compile_gate_quantised import QuantisedCase, QuantisedCompiled
from stm_fast.kernels.configs_quantised import quantised_config
from stm_fast.kernels.targets import ARCHITECTURES

GOOD = QuantisedCompiled(QuantisedCase(90, torch.int8), 255, 0, 70_000, 0, 12)


@pytest.mark.compiles
@pytest.mark.parametrize("case", gate.quantised_cases(), ids=str)
def test_it_compiles_within_its_limits(case: QuantisedCase) -> None:
    assert gate.quantised_breaches(gate.compile_quantised(case)) == []


def test_every_tile_is_compiled() -> None:
    compiled = {(case.architecture, gate.quantised_launch(case).config) for case in gate.quantised_cases()}
    chosen = {(architecture, quantised_config(architecture, True, 512)) for architecture in ARCHITECTURES}
    narrow = {(architecture, quantised_config(architecture, True, 128)) for architecture in (90, 100)}
    assert compiled == chosen | narrow | {(90, quantised_config(90, False, 300))}


@pytest.mark.compiles
def test_fp8_products_are_added_in_float32() -> None:
    """Hopper's tensor cores sum products of fp8 in some 14 bits: every step has sums of its own."""
    launch = gate.quantised_launch(QuantisedCase(90, torch.float8_e4m3fn))
    compiled = triton.compile(source(launch), target=GPUTarget("cuda", 90, 32), options=launch.options)
    sums = re.findall(r"warp_group_dot [^,]+, [^,]+, (%\w+)", compiled.asm["ttgir"])
    assert len(sums) == 2
    assert all(start.startswith("%cst") for start in sums)


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


@pytest.mark.compiles
def test_the_units_of_both_slots_are_loaded_in_the_loop_over_slots() -> None:
    """Triton's interpreter cannot tell: by a name of its own the old unit stayed the first."""
    launch = gate.quantised_launch(QuantisedCase(90, torch.int8))
    compiled = triton.compile(source(launch), target=GPUTarget("cuda", 90, 32), options=launch.options)
    loop = re.search(r"^( *)[^\n]*scf\.for.*?^\1\}", compiled.asm["ttgir"], re.DOTALL | re.MULTILINE)
    assert loop is not None
    units = re.findall(rf"tt\.load .*tensor<{launch.config.block_v}x!tt\.ptr<f32>", loop[0])
    assert len(units) == 2
