"""Which tensors are copied before a read, and the chunks in which columns are multiplied. No GPU is needed."""

from typing import Any

import pytest
import torch
from torch import Tensor

from stm_fast.kernels.layout import FEWEST_QUERIES, LARGEST_TILE, addressable, copied
from stm_fast.kernels.problem import Problem, has_rows
from stm_fast.kernels.targets import Target
from stm_fast.kernels.tiles import Chunks, chunks

BF16 = torch.bfloat16


def rows_of(batch: int, rows: int, width: int) -> Tensor:
    return torch.empty(batch, rows, width, dtype=BF16, device="meta")


def channels_of(batch: int, rows: int, width: int) -> Tensor:
    return torch.empty(batch, width, rows, dtype=BF16, device="meta").mT


def problem(query: Tensor, key: Tensor, value: Tensor, **options: Any) -> Problem:
    given = {"shrinkage": None, "selection": None, "lengths": None, "norms": None} | options
    return Problem(query, key, value, scale=1.0, similarity=0, target=Target(90, 132), arithmetic="half", **given)


def test_rows_are_read_in_place():
    """Also rows of a bank with spare slots, rows shared by all objects, and a range of slots."""
    bank_key, bank_value = rows_of(3, 25 * 1620, 128), rows_of(3, 25 * 1620, 512)
    read = problem(rows_of(1, 1620, 128), bank_key[:, 1620 : 21 * 1620], bank_value[:, 1620 : 21 * 1620])
    assert read.regular
    assert copied(read) == []
    shared = read._replace(key=bank_key[:1, : 20 * 1620].expand(3, -1, -1), query=read.query.expand(3, -1, -1))
    assert shared.regular
    assert copied(shared) == []


def test_channels_first_is_copied_if_there_are_enough_queries():
    read = problem(channels_of(1, 1620, 128), channels_of(3, 32400, 128), channels_of(3, 32400, 512))
    assert not read.regular
    assert copied(read) == ["query", "key", "value"]
    few = read._replace(query=channels_of(1, FEWEST_QUERIES - 1, 128))
    assert copied(few) == ["query"]
    # two launches would cost more than so small a read
    small = problem(channels_of(1, 100, 128), channels_of(1, 100, 128), channels_of(1, 100, 512))
    assert copied(small) == ["query"]


def test_the_selection_is_copied_like_the_query():
    selection = torch.empty(1, 64, 1620, device="meta").mT
    read = problem(rows_of(1, 1620, 64), rows_of(1, 32400, 64), rows_of(2, 32400, 512), selection=selection)
    assert copied(read) == ["selection"]


@pytest.mark.parametrize(("key_dim", "value_dim"), [(127, 512), (128, 500)])
def test_widths_without_a_tile_are_read_in_place(key_dim, value_dim):
    read = problem(*(channels_of(1, rows, width) for rows, width in ((1620, key_dim), (32400, key_dim))), value=None)
    assert copied(read._replace(value=channels_of(1, 32400, value_dim))) == []


@pytest.mark.parametrize(
    "tensor",
    [
        rows_of(2, 10, 72)[..., :64],  # 144 bytes between rows: a multiple of 16 bytes, not of 16 numbers
        rows_of(2, 11, 64).flatten(1)[:, 4:644].view(2, 10, 64),  # begins 8 bytes after such a multiple
        rows_of(2, 10, 65)[:, :, 1:],
        channels_of(2, 10, 64),
    ],
    ids=["72", "offset", "65", "channels"],
)
def test_tensors_that_may_not_be_aligned_have_no_rows(tensor):
    assert not has_rows(tensor)
    read = problem(tensor, rows_of(2, 1620, 64), rows_of(2, 1620, 128))
    assert copied(read) == ["query"]


def test_strides_of_dimensions_of_size_one_do_not_matter():
    # PyTorch calls a tensor of one row contiguous whatever its strides are
    assert has_rows(torch.empty(64, dtype=BF16, device="meta").as_strided((1, 1, 64), (7, 5, 1)))


@pytest.mark.parametrize("rows", [10, 2**22, 2**24 - 128])
def test_a_view_whose_tiles_span_32_bits_is_read_in_place(rows):
    assert addressable(channels_of(1, rows, 128))
    assert addressable(rows_of(1, 2**31, 512))


def test_a_view_whose_tiles_span_more_is_copied():
    key = channels_of(1, 2**24, 128)
    assert LARGEST_TILE * key.stride(1) + 128 * key.stride(2) > 2**31
    assert copied(problem(rows_of(1, 1, 128), key, rows_of(1, 2**24, 512))) == ["key"]
    # with widths without a tile, too
    assert copied(problem(rows_of(1, 1, 127), channels_of(1, 2**25, 127), rows_of(1, 2**25, 511))) == ["key"]


@pytest.mark.parametrize(
    ("width", "widest", "expected"),
    [
        (64, 128, (64, 1, 64)),
        (80, 128, (64, 2, 16)),
        (96, 128, (64, 2, 32)),
        (112, 128, (128, 1, 128)),
        (128, 128, (128, 1, 128)),
        (192, 128, (128, 2, 64)),
        (208, 128, (128, 2, 128)),
        (512, 256, (256, 2, 256)),
        (512, 128, (128, 4, 128)),
        (48, 32, (32, 2, 16)),
        (127, 128, (128, 1, 128)),
        (1, 128, (16, 1, 16)),
        (0, 128, (16, 1, 16)),
    ],
)
def test_columns_in_chunks_by_hand(width, widest, expected):
    assert chunks(width, widest) == Chunks(*expected)


def test_chunks_of_a_minimum_width_by_hand():
    assert chunks(176, 128, narrowest=128) == Chunks(128, 2, 128)
    assert chunks(192, 256, narrowest=128) == Chunks(256, 1, 256)
    assert chunks(32, 64, narrowest=128) == Chunks(64, 1, 64)


@pytest.mark.parametrize("widest", [16, 64, 128, 256, 512])
@pytest.mark.parametrize("narrowest", [16, 128])
def test_only_the_last_chunk_may_be_wider_than_its_columns(widest, narrowest):
    for width in range(1, 600):
        found = chunks(width, widest, narrowest)
        assert (found.count - 1) * found.block < width <= found.width
        assert {found.block, found.last} <= {2**n for n in range(4, 10)}
        assert max(found.block, found.last) <= widest
