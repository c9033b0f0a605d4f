"""The table of tiles: which one a kernel uses for a problem. A table can be listed and compiled beforehand.

The tiles come from compiling, not from timing: large ones that keep all accumulators in registers (no stack) and fit
the shared and tensor memory of each architecture (tests/gate). Nothing is tuned during a read; a table that
`stm-fast benchmark tune` wrote takes precedence (tuned.py).
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from functools import lru_cache
from itertools import product, starmap

from stm_fast.kernels.targets import ARCHITECTURES, SHARED_MEMORY, Target
from stm_fast.kernels.tiles import ARITHMETICS, Arithmetic, BackwardConfig, Choice, ForwardConfig, chunks
from stm_fast.kernels.tuned import tuned_tile

WIDEST_KEY = 256


@dataclass(frozen=True)
class PlainConfig:
    """Tile of a kernel without matrix products: rows and columns of a program, or of a step."""

    kernel: str
    rows: int
    columns: int
    num_warps: int = 4
    num_stages: int = 1


COMBINE = PlainConfig("combine", 8, 128)
DELTA = PlainConfig("delta", 16, 128)
GATHER = PlainConfig("weighted_sum", 32, 64)
ROWS = PlainConfig("rows", 64, 64)


def forward_config(choice: Choice) -> ForwardConfig:
    """The forward tile for Ck up to WIDEST_KEY and any Cv; values wider than value_width take several programs."""
    return tuned_tile("forward", choice, ForwardConfig) or _forward_config(*choice)


def _forward_config(
    architecture: int, arithmetic: Arithmetic, key_dim: int, value_dim: int, regular: bool, weighted: bool
) -> ForwardConfig:
    if arithmetic == "ieee":
        # without tensor cores the operands of a product are held in registers
        return ForwardConfig(64, 16, 16, 64, 2, 8, 1)
    if arithmetic == "tf32x3":
        # of a selection too, 32 rows are 8 bytes of stack on sm_120
        return ForwardConfig(32, 16 if weighted and architecture == 120 else 32, 32, 128, 1, 8, 1)
    if not regular:
        return ForwardConfig(64, 32, 128, 64 if architecture == 100 else 128, 1, 8, 1)
    narrow = value_dim <= 128
    if architecture == 90:
        # half of Cv for twice the queries: each key and value loaded serves 128 queries, for a product QK done twice
        narrow = narrow or (weighted and key_dim > 192)
        block_m = 64 if weighted and not narrow else 128
        config = ForwardConfig(block_m, 64, 128, 128 if narrow else 256, 1, 8, 3)
        return config if _fits(config, architecture, key_dim, weighted) else replace(config, num_stages=2)
    block_n = 64 if architecture == 100 else 32
    if weighted and key_dim > 128:
        return ForwardConfig(64, block_n, 128, 128, 1, 8, 2)
    if narrow:
        return ForwardConfig(128, block_n, 128, 128, 1, 8, 2)
    # wider keys leave no registers for the widest values
    whole = value_dim > 256 and not weighted and key_dim <= 128
    if architecture == 100:
        return ForwardConfig(64, block_n, 128, 512 if whole else 256, 1, 8, 2)
    # mma.sync: accumulators 128 wide with their own loads of V need no registers to shuffle V
    return ForwardConfig(64, block_n, 128, 128, 4 if whole else 2, 8, 2)


def _fits(config: ForwardConfig, architecture: int, key_dim: int, weighted: bool) -> bool:
    """Whether queries, their selection, and keys and values of every stage fit the shared memory, 16 bits a number."""
    columns = chunks(key_dim, config.block_k).width
    queries = config.block_m * columns * (1 + weighted)
    step = config.block_n * (columns + config.value_width)
    return 2 * (queries + config.num_stages * step) <= SHARED_MEMORY[architecture] * 1024


def is_regular(key_dim: int, value_dim: int) -> bool:
    """Whether rows of such widths start at multiples of 32 bytes, and tiles are made for them."""
    return key_dim % 16 == 0 and value_dim % 16 == 0


def backward_config(choice: Choice) -> BackwardConfig:
    """The tile of the kernel of P and G."""
    return tuned_tile("backward", choice, BackwardConfig) or _backward_config(choice)


def grad_value_config(choice: Choice) -> BackwardConfig:
    """The tile of the kernel of dv."""
    return tuned_tile("grad_value", choice, BackwardConfig) or _grad_value_config(choice)


def grad_key_config(choice: Choice) -> BackwardConfig:
    """The tile of the kernel of dk."""
    return tuned_tile("grad_key", choice, BackwardConfig) or _grad_key_config(choice)


def grad_query_config(choice: Choice) -> BackwardConfig:
    """The tile of the kernel of the sums for dq and de."""
    return tuned_tile("grad_query", choice, BackwardConfig) or _grad_query_config(choice)


def topk_config(choice: Choice) -> BackwardConfig:
    """The tile of the kernels that only make scores: top-k, usage and row totals."""
    return tuned_tile("top-k", choice, BackwardConfig) or _topk_config(choice)


# by the names that a user's table has for the kernels
CONFIG_OF: dict[str, Callable[[Choice], ForwardConfig | BackwardConfig]] = {
    "forward": forward_config,
    "backward": backward_config,
    "grad_value": grad_value_config,
    "grad_key": grad_key_config,
    "grad_query": grad_query_config,
    "top-k": topk_config,
}

_FLOAT32 = BackwardConfig(32, 32, 16, 64, 16, 8, 1)
_IRREGULAR = BackwardConfig(32, 32, 32, 64, 32, 4, 1)


def _backward_config(choice: Choice) -> BackwardConfig:
    if choice.arithmetic != "half":
        return _FLOAT32
    if not choice.regular:
        return _IRREGULAR
    if choice.weighted:
        return BackwardConfig(64, 64, 64, 128, 64, 8, 2)
    # a key or value loaded serves 128 queries, and the other way round
    return BackwardConfig(128, 128, 64, 128, 64, 8, 3 if choice.architecture in (90, 100) else 2)


def _grad_value_config(choice: Choice) -> BackwardConfig:
    """The weights lie in whole tiles, and dO is contiguous, whatever the layout of the inputs."""
    if choice.arithmetic != "half":
        return _FLOAT32
    if choice.value_dim % 16 != 0:
        return replace(_IRREGULAR, block_v=64)
    return _product_config(choice, block_v=256 if choice.value_dim % 256 == 0 else _columns(choice.value_dim))


def _grad_key_config(choice: Choice) -> BackwardConfig:
    if choice.arithmetic != "half":
        return _FLOAT32
    return _product_config(choice, block_c=_columns(choice.key_dim)) if choice.regular else _IRREGULAR


def _grad_query_config(choice: Choice) -> BackwardConfig:
    if choice.arithmetic != "half":
        return _FLOAT32
    if not choice.regular:
        return _IRREGULAR
    # two accumulators beside a selection
    tile = _product_config(choice, block_c=64 if choice.weighted else _columns(choice.key_dim))
    return replace(tile, block_m=tile.block_n, block_n=tile.block_m)


def _product_config(choice: Choice, **columns: int) -> BackwardConfig:
    """128 rows of the product, some columns, and a step along the sum."""
    tile = BackwardConfig(64, 128, 64, 64, 64, 8, 3)
    return replace(tile if choice.architecture in (90, 100) else replace(tile, block_m=32, num_stages=4), **columns)


def _columns(width: int) -> int:
    return 64 if width <= 64 else 128


def _topk_config(choice: Choice) -> BackwardConfig:
    """As wide as the keys, so that the side of a score that does not change in the loop is not loaded there."""
    if choice.arithmetic != "half":
        return _FLOAT32
    if not choice.regular:
        return _IRREGULAR
    if choice.weighted:
        # five products, of queries and selections in two parts each, which in mma.sync are in registers
        return BackwardConfig(64 if choice.architecture in (90, 100) else 32, 64, 64, 128, 64, 8, 2)
    return BackwardConfig(64, 64, max(16, 1 << (choice.key_dim - 1).bit_length()), 128, 64, 8, 2)  # in powers of 2


def all_forward_configs() -> Iterator[tuple[int, Arithmetic, ForwardConfig]]:
    """Every (architecture, arithmetic, configuration) of the forward kernel."""
    widths = range(16, WIDEST_KEY + 1, 16), (128, 256, 512)
    choices = product(ARCHITECTURES, ARITHMETICS, *widths, (True, False), (True, False))
    yield from dict.fromkeys((choice[0], choice[1], _forward_config(*choice)) for choice in choices)


def all_configs() -> Iterator[tuple[int, Arithmetic, object]]:
    """Every (architecture, arithmetic, configuration) that is chosen where no table of the user says otherwise."""
    yield from all_forward_configs()
    widths = (64, 128, 192, 256), (128, 256, 512)
    choices = list(starmap(Choice, product(ARCHITECTURES, ARITHMETICS, *widths, (True, False), (True, False))))
    config_of = (_backward_config, _grad_value_config, _grad_key_config, _grad_query_config, _topk_config)
    pairs = product(config_of, choices)
    yield from dict.fromkeys((choice.architecture, choice.arithmetic, config(choice)) for config, choice in pairs)
    yield from product(ARCHITECTURES, ("half", "ieee"), (COMBINE, DELTA, GATHER, ROWS))


# of parts, written to L2 and read again by the kernel that joins them, in the time of a step of all processors: from
# reads of one frame and of twenty frames on an H200 (benchmarks/NOTES.md)
PART_BYTES_A_STEP = 3 * 2**20
# a read that is slower by so little is taken where it has fewer parts
NEARLY = 1.02


@lru_cache(maxsize=4096)
def choose_splits(target: Target, tiles: int, steps: int, part_bytes: int = 0) -> int:
    """Into how many parts to split the memory: the fewest that are nearly as fast as the fastest.

    Args:
        tiles: programs without a split.
        steps: blocks of memory rows that each of them would visit; a part gets at least four.
        part_bytes: what one part of every tile takes, in float32; a memory in one part writes none.
    """
    most = max(1, min(steps // 4, target.processors))
    times = [read_time(tiles, steps, splits, target.processors, part_bytes) for splits in range(1, most + 1)]
    return next(splits for splits, time in enumerate(times, start=1) if time <= NEARLY * min(times))


def bytes_of_a_part(batch: int, queries: int, value_dim: int) -> int:
    """What one part of a split read writes: out [B, M, Cv] and lse [B, M] in float32."""
    return 4 * batch * queries * (value_dim + 1)


def read_time(tiles: int, steps: int, splits: int, processors: int, part_bytes: int = 0) -> float:
    """How long a split read takes, in steps of one program.

    Programs run in waves of one a processor, and a wave takes as long as the longest part.
    """
    waves, longest = -(-tiles * splits // processors), -(-steps // splits)
    return waves * longest + (splits * part_bytes / PART_BYTES_A_STEP if splits > 1 else 0.0)
