"""Every kernel configuration compiles for every architecture within its limits. No GPU is needed."""

import re
from typing import Any

import pytest
import torch
import triton
from triton.backends.compiler import GPUTarget

from gate import sass
from gate.__main__ import amd_rows
from gate.cases import (
    FORWARD,
    HOPPER,
    QUANTIZED,
    hopper_cases,
    portable_cases,
    quantized_cases,
    reachable,
    unvisited,
)
from gate.compiling import Case, Compiled, compile_case, launch_of, source
from gate.limits import breaches
from stm_fast.benchmarking.shapes import grid
from stm_fast.kernels.configs import bytes_of_a_part, choose_splits, read_time
from stm_fast.kernels.experimental.configs_hopper import HopperConfig
from stm_fast.kernels.targets import Target, nearest_architecture

CASES = [*portable_cases(), *quantized_cases()]
EXPERIMENTAL = [pytest.param(case, marks=pytest.mark.experimental) for case in hopper_cases()]


@pytest.mark.compiles
@pytest.mark.parametrize("case", [*CASES, *EXPERIMENTAL], ids=str)
def test_a_kernel_compiles_within_its_limits(case: Case) -> None:
    assert breaches(compile_case(case)) == []


def test_every_configuration_is_compiled() -> None:
    assert unvisited((case, launch_of(case).config) for case in (*CASES, *hopper_cases())) == []


def test_a_configuration_that_was_not_visited_is_reported() -> None:
    assert len(unvisited([])) == len(list(reachable()))


@pytest.mark.compiles
def test_amd_is_in_the_table_as_information() -> None:
    gfx90a, gfx942 = amd_rows()
    assert gfx90a.startswith("gfx90a: ")
    assert gfx942.startswith("gfx942: ")


EVERY_KERNEL = [
    ({"stack": 8}, "8 bytes of stack"),
    ({"shared": 228 * 1024}, "shared memory"),
    ({"tensor_memory": 608}, "tensor memory"),
    ({"registers": 4}, "empty"),
    ({"wgmma": 0}, "0 wgmma, expected at least"),
    ({"narrow": 3}, "3 loads of two bytes"),
]
HOPPER_ONLY = [
    ({"local_memory": 2}, "2 uses of local memory"),
    ({"wgmma": 8}, "8 wgmma, expected at least 16"),
    ({"copies": 0}, "no copy by TMA"),
    ({"serialized": True}, "serialized"),
    ({"config": HopperConfig(maxnreg=176)}, "176 registers"),
]


@pytest.mark.parametrize(
    ("case", "change", "breach"),
    [
        *((case, *limit) for case in (FORWARD, QUANTIZED, HOPPER) for limit in EVERY_KERNEL),
        *((HOPPER, *limit) for limit in HOPPER_ONLY),
    ],
)
def test_each_limit_is_enforced(case: Case, change: dict[str, Any], breach: str) -> None:
    good = Compiled(case, HopperConfig(), 168, 0, 200_000, 0, wgmma=16, seconds=1.0, copies=14)
    assert breaches(good) == []
    (found,) = breaches(good._replace(**change))
    assert breach in found


def test_gradient_kernels_may_spill_a_little() -> None:
    good = Compiled(FORWARD._replace(kernel="grad_key"), None, 168, 192, 200_000, 0, wgmma=0, seconds=1.0)
    assert breaches(good) == []
    assert "200 bytes of stack" in breaches(good._replace(stack=200))[0]


LISTING = """
MOV R1, c[0x0][0x28]
LDG.E.U16 R2, desc[UR4][R2.64]
.L_x_0:
@P0 LDG.E.U16.CONSTANT R3, desc[UR4][R2.64]
BRA.U UP0, `(.L_x_0)
.L_x_1:
LDGSTS.E.BYPASS.128 [R3], desc[UR4][R2.64]
DEPBAR.LE SB0, 0x2
@!P0 BRA `(.L_x_5)
.L_x_2:
HGMMA.64x64x16.F32.BF16 R24, gdesc[UR8], RZ, !UPT, gsb0
WARPGROUP.DEPBAR.LE gsb0, 0x0
NOP
@P1 BRA `(.L_x_1)
HGMMA.64x64x16.F32.BF16 R24, gdesc[UR8], R24, gsb0
EXIT
.L_x_5:
SYNCS.PHASECHK.TRANS64.TRYWAIT P0, [UR4], R5
@!P0 BRA `(.L_x_5)
BRA `(.L_x_2)
""".strip().splitlines()


def test_the_main_loop_is_that_of_the_products() -> None:
    loop = sass.main_loop(LISTING)
    assert sass.products(loop) == 1
    assert loop[0].startswith("LDGSTS")
    # rarely executed code after the end belongs to the loop that it returns to, and is not a loop itself
    assert sass.opcodes(loop).total() == 9
    assert sass.waits(loop) == 3
    assert sass.main_loop(LISTING[:4]) == []


def test_loads_of_two_bytes_count_only_in_loops() -> None:
    assert sass.narrow_loads(LISTING) == 2
    assert sass.narrow_loads(sass.in_loops(LISTING)) == 1


def compile_for_sm_90(case: Case) -> Any:
    launch = launch_of(case)
    return triton.compile(source(launch), target=GPUTarget("cuda", 90, 32), options=launch.options)


@pytest.mark.compiles
def test_the_forward_kernel_has_one_kind_of_warps() -> None:
    ptx = compile_for_sm_90(FORWARD).asm["ptx"]
    assert "wgmma.mma_async" in ptx
    assert "setmaxnreg" not in ptx


@pytest.mark.compiles
def test_fp8_products_are_added_in_float32() -> None:
    """Hopper's tensor cores sum fp8 products in about 14 bits, so every step starts new sums."""
    compiled = compile_for_sm_90(QUANTIZED._replace(dtype=torch.float8_e4m3fn))
    sums = re.findall(r"warp_group_dot [^,]+, [^,]+, (%\w+)", compiled.asm["ttgir"])
    assert len(sums) == 2
    assert all(start.startswith("%cst") for start in sums)


@pytest.mark.compiles
def test_the_units_of_both_slots_are_loaded_in_the_loop_over_slots() -> None:
    """Compiled code once kept the first slot's unit as the old one; Triton's interpreter does not show this."""
    compiled = compile_for_sm_90(QUANTIZED)
    loop = re.search(r"^( *)[^\n]*scf\.for.*?^\1\}", compiled.asm["ttgir"], re.DOTALL | re.MULTILINE)
    assert loop is not None
    block_v = launch_of(QUANTIZED).config.block_v
    assert len(re.findall(rf"tt\.load .*tensor<{block_v}x!tt\.ptr<f32>", loop[0])) == 2


@pytest.mark.parametrize(
    ("tiles", "steps", "splits"),
    [(26, 26, 5), (260, 500, 1), (1, 3, 1), (0, 100, 1), (1, 10000, 130), (131, 1000, 1), (78, 26, 3)],
)
def test_the_memory_is_split_to_fill_the_processors(tiles: int, steps: int, splits: int) -> None:
    assert choose_splits(Target(90, 132), tiles, steps) == splits


@pytest.mark.parametrize(
    ("queries", "objects", "rows", "splits"),
    [
        (1620, 1, 1620, 4),
        (1620, 3, 1620, 1),  # three parts would take less time if bytes did not count
        (1620, 3, 32400, 5),
        (8160, 1, 163200, 1),  # 33 parts would keep the last wave full, but write 550 MB
    ],
)
def test_the_bytes_of_the_parts_count(queries: int, objects: int, rows: int, splits: int) -> None:
    tiles, part_bytes = -(-queries // 64) * objects, bytes_of_a_part(objects, queries, 512)
    assert choose_splits(Target(90, 132), tiles, -(-rows // 64), part_bytes) == splits


def test_the_time_of_a_split_read_by_hand() -> None:
    # 26 tiles x 5 parts are one wave of 130 programs; 26 steps make parts of 6, 6, 6, 6 and 2
    assert read_time(26, 26, 5, 132) == 6
    # 78 x 5 are three waves of parts of 20 steps, and five parts of 6 MiB are the time of 10 more
    assert read_time(78, 100, 5, 132) == 60
    assert read_time(78, 100, 5, 132, 6 * 2**20) == 70
    assert read_time(132, 7, 1, 132, 6 * 2**20) == 7


@pytest.mark.parametrize(("queries", "programs"), [(128, 2), (64, 1), (64, 2)], ids=["portable", "hopper", "quantized"])
def test_a_memory_of_five_frames_or_more_keeps_an_h100_busy(queries: int, programs: int) -> None:
    """An even share of the steps for every processor (stream-K) could gain at most 8 %."""
    for shape in grid():
        tiles, steps = -(-shape.queries // queries) * programs * shape.objects, -(-shape.rows // 64)
        even = -(-tiles * steps // 132)
        time = read_time(tiles, steps, choose_splits(Target(90, 132), tiles, steps), 132)
        assert even / time > (0.92 if shape.frames >= 5 else 0.88), shape


def test_an_unknown_device_uses_the_tiles_of_the_architecture_before_it() -> None:
    assert [nearest_architecture(capability) for capability in (80, 87, 90, 103, 121)] == [80, 86, 90, 100, 120]
    with pytest.raises(ValueError, match=r"compute capability 7\.5: the kernels need 8\.0"):
        nearest_architecture(75)
