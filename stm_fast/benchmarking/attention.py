"""The memory read by PyTorch's own attention: scaled_dot_product_attention and FlexAttention.

Each function takes query [1, M, Ck], key [O, N, Ck] and value [O, N, Cv], and gives out [O, M, Cv].
"""

from collections.abc import Callable
from contextlib import nullcontext
from typing import Any

import torch
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.nn.functional import scaled_dot_product_attention

# of the query and the tensors of the memory: key and value, or those of a QuantisedMemory
Read = Callable[..., Tensor]


def sdpa(backend: SDPBackend | None = None, *, split: bool = False) -> Read:
    """PyTorch's attention, the backend forced where one is named.

    split: values as Cv / Ck heads of width Ck under one affinity, computed once a head: 1.6 times the work at 128 and
    512, but widths that the fast kernels take.
    """

    def read(query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        objects, key_dim, value_dim = key.shape[0], key.shape[2], value.shape[2]
        heads = value_dim // key_dim if split else 1
        query_heads = query[:, None].expand(objects, heads, -1, -1)  # [O, heads, M, Ck]
        key_heads = key[:, None].expand(-1, heads, -1, -1)  # [O, heads, N, Ck]
        value_heads = value.view(objects, -1, heads, value_dim // heads).transpose(1, 2)  # [O, heads, N, Cv / heads]
        with nullcontext() if backend is None else sdpa_kernel(backend):
            out = scaled_dot_product_attention(query_heads, key_heads, value_heads)
        return out.transpose(1, 2).flatten(2)  # [O, M, Cv]

    return read


def flex(kernel_options: Any = None) -> Read:
    """FlexAttention, compiled for one shape."""
    from torch.nn.attention.flex_attention import flex_attention

    compiled = torch.compile(flex_attention, dynamic=False, fullgraph=True)

    def read(query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        query_heads = query[:, None].expand(key.shape[0], -1, -1, -1)  # [O, 1, M, Ck]
        return compiled(query_heads, key[:, None], value[:, None], kernel_options=kernel_options)[:, 0]

    return read


def flex_tile(queries: int, rows: int) -> dict[str, int]:
    """Options that make FlexAttention's tile small enough for values of width 512 to fit into shared memory."""
    tile = {"BLOCK_M": queries, "BLOCK_N": rows, "num_stages": 1, "num_warps": 4 if queries < 64 else 8}
    backward = {"bwd_BLOCK_M1": 32, "bwd_BLOCK_N1": 32, "bwd_BLOCK_M2": 32, "bwd_BLOCK_N2": 32, "bwd_num_stages": 1}
    return {f"fwd_{name}": size for name, size in tile.items()} | backward
