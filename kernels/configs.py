"""Which tile each kernel uses where: a table, so that every choice can be listed and compiled beforehand.

The tiles come from compiling, not from timing: large ones that keep all accumulators in registers (no stack) and fit
the shared and tensor memory of each architecture, by compile_gate.py. Nothing is tuned while a read waits for it; what
`stm-fast benchmark --tune` timed beforehand goes first (tuned.py).
"""

from collections.abc import Iterator
from dataclasses import dataclass, replace
from itertools import product, starmap

from stm_fast.kernels.targets import ARCHITECTURES, SHARED_MEMORY, Target
from stm_fast.kernels.tiles import ARITHMETICS, Arithmetic, BackwardConfig, Choice, ForwardConfig, chunks
from stm_fast.kernels.tuned import tuned_tile

WIDEST_KEY = 256


@dataclass(frozen=True)
class CombineConfig:
    """Tile of the combine kernel: queries and value columns of a program."""

    block_m: int = 8
    block_v: int = 128
    num_warps: int = 4
    num_stages: int = 1


@dataclass(frozen=True)
class DeltaConfig:
    """Tile of the delta kernel: queries and value columns of a step."""

    block_m: int = 16
    block_v: int = 128
    num_warps: int = 4
    num_stages: int = 1


@dataclass(frozen=True)
class GatherConfig:
    """Tile of the weighted sums of listed rows: sums and columns of a program."""

    block_m: int = 32
    block_c: int = 64
    num_warps: int = 4
    num_stages: int = 1


@dataclass(frozen=True)
class RowsConfig:
    """Tile of the copy that gives a tensor contiguous rows: rows and columns of a program."""

    block_n: int = 64
    block_c: int = 64
    num_warps: int = 4
    num_stages: int = 1


COMBINE = CombineConfig()
DELTA = DeltaConfig()
GATHER = GatherConfig()
ROWS = RowsConfig()


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
        return ForwardConfig(32, 32, 32, 128, 1, 8, 1)
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
    """The tile of the kernels of dk, dq, de and ds, and of the usage kernel."""
    return tuned_tile("backward", choice, BackwardConfig) or _backward_config(choice)


def value_config(choice: Choice) -> BackwardConfig:
    """The tile of the kernel of dv."""
    return tuned_tile("grad_value", choice, BackwardConfig) or _value_config(choice)


def topk_config(choice: Choice) -> BackwardConfig:
    """The tile of the top-k kernel."""
    return tuned_tile("top-k", choice, BackwardConfig) or _topk_config(choice)


def _backward_config(choice: Choice) -> BackwardConfig:
    if choice.arithmetic != "half":
        return BackwardConfig(32, 32, 16, 64, 16, 8, 1)
    return BackwardConfig(64, 64, 64, 128, 64, 8, 2) if choice.regular else BackwardConfig(32, 32, 32, 64, 32, 4, 1)


def _value_config(choice: Choice) -> BackwardConfig:
    """Wide where that stays in registers (not beside a selection): every program makes the scores again."""
    wide = _key_in_one_product(choice) and not choice.weighted and choice.value_dim % 256 == 0
    return replace(_backward_config(choice), **{"block_k": 128, "block_v": 256} if wide else {})


def _topk_config(choice: Choice) -> BackwardConfig:
    return replace(_backward_config(choice), **{"block_k": 128} if _key_in_one_product(choice) else {})


def _key_in_one_product(choice: Choice) -> bool:
    """Whether a tile may be as wide as the keys: loads inside a loop over their chunks are not pipelined."""
    return choice.arithmetic == "half" and choice.regular and choice.key_dim == 128


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
    pairs = product((_backward_config, _value_config, _topk_config), choices)
    yield from dict.fromkeys((choice.architecture, choice.arithmetic, config_of(choice)) for config_of, choice in pairs)
    yield from product(ARCHITECTURES, ("half", "ieee"), (COMBINE, DELTA, GATHER, ROWS))


def choose_splits(target: Target, tiles: int, steps: int) -> int:
    """Into how many parts to split the memory: the fewest that keep 90 % of the processors busy, or as many as can be.

    Args:
        tiles: programs without a split.
        steps: blocks of memory rows that each of them would visit; a part gets at least four.
    """
    most = max(1, min(steps // 4, target.processors))
    shares = [busy_share(tiles, steps, splits, target.processors) for splits in range(1, most + 1)]
    enough = min(0.9, max(shares))
    return next(splits for splits, share in enumerate(shares, start=1) if share >= enough)


def busy_share(tiles: int, steps: int, splits: int, processors: int) -> float:
    """The share of the processors at work, on average until the last program ends.

    Programs run in waves of one a processor, and a wave takes as long as the longest part: `tiles * steps` steps are
    done in the time of `waves * ceil(steps / splits) * processors`.
    """
    waves, longest = -(-tiles * splits // processors), -(-steps // splits)
    return tiles * steps / (waves * longest * processors) if tiles and steps else 1.0
