"""The long-term attentions of AOT (Yang et al., NeurIPS 2021) and DeAOT (Yang and Yang, NeurIPS 2022)."""

import math

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from stm_fast.arguments import number
from stm_fast.ops.arguments import check_tensors
from stm_fast.ops.functional import memory_read


class _LongTermRead(nn.Module):
    """A memory read with heads, and the options that the long-term attentions of AOT and DeAOT share."""

    num_head: int
    d_att: int
    use_dis: bool
    max_mem_len_ratio: float
    top_k: float
    backend: str

    def _keep_options(
        self,
        dropout: float,
        num_head: int,
        d_att: int,
        use_dis: bool,
        max_mem_len_ratio: float,
        top_k: float,
        backend: str,
    ) -> None:
        if dropout:
            raise ValueError(f"dropout: found {dropout}, expected 0: the memory read has no dropout")
        top_k, max_mem_len_ratio = number(top_k, "top_k"), number(max_mem_len_ratio, "max_mem_len_ratio")
        if math.isnan(top_k):
            raise ValueError("top_k: found nan, expected a number")
        self.num_head = num_head
        self.d_att = d_att
        self.use_dis = use_dis
        self.max_mem_len_ratio = max_mem_len_ratio
        self.top_k = top_k
        self.backend = backend

    def _initialize(self) -> None:
        for parameter in self.parameters():
            if parameter.ndim > 1:
                nn.init.xavier_uniform_(parameter)

    def _read(self, Q: Tensor, K: Tensor, V: Tensor) -> Tensor:
        """[M, batch, heads * Ck] and [N, batch, heads * Ck or Cv] to [M, batch, heads * Cv]."""
        batch = Q.shape[1]
        query, key, value = (self._heads_to_batch(tensor) for tensor in (Q, K, V))
        temperature = self._score_factor(key.shape[1] / query.shape[1]) / math.sqrt(self.d_att)
        read = memory_read(
            # |k|^2 has no factor, so the scale of "l2" is 1, and the query carries the factor of <q, k>
            query * temperature if self.use_dis else query,
            key,
            value,
            scale=1.0 if self.use_dis else temperature,
            similarity="l2" if self.use_dis else "dot",
            query_norm=False,
            top_k=self._rows_read(query.shape[1], key.shape[1]),
            backend=self.backend,
        )
        return read.transpose(0, 1).reshape(-1, batch, self.num_head * value.shape[2])

    def _heads_to_batch(self, tensor: Tensor) -> Tensor:
        """[rows, batch, heads * width] -> [batch * heads, rows, width], a view."""
        rows, batch, width = tensor.shape
        return tensor.reshape(rows, batch * self.num_head, width // self.num_head).transpose(0, 1)

    def _score_factor(self, ratio: float) -> float:
        if self.training or not 0 < self.max_mem_len_ratio < ratio:
            return 1.0
        return math.log(ratio) / math.log(self.max_mem_len_ratio)

    def _rows_read(self, queries: int, rows: int) -> int | None:
        if self.training or self.top_k == 0 or self.top_k <= -1 or self.top_k >= rows:
            return None
        if self.top_k >= 1:
            return int(self.top_k)
        return int(rows * self.top_k) if self.top_k > 0 else int(queries * -self.top_k)


class AOTLongTermAttention(_LongTermRead):
    """``MultiheadAttention`` of AOT, with its arguments, its state dict and its quirks.

    .. code-block:: python

        # networks/layers/transformer.py of aot-benchmark
        from stm_fast.ops.adapters import AOTLongTermAttention    # with the other imports
        self.long_term_attn = AOTLongTermAttention(...)           # was: MultiheadAttention(...), the same arguments

    The heads become the batch. `forward` returns None in place of the attention, which is never materialized.

    Args:
        d_model: width of the features.
        num_head: heads; `d_model` is divided among them.
        dropout: only 0: the memory read has no dropout of attention weights.
        use_linear: project query, key and value first.
        d_att: key width of a head, ``d_model / num_head`` when None.
        use_dis: scores ``2 <q, k> / sqrt(d_att) - |k|^2``; as published, the second term is not divided.
        qk_chunks: ignored; the memory read needs no chunks.
        max_mem_len_ratio: outside training, if the memory has r times as many rows as there are queries, and r is
            larger than this, scores are multiplied by ``log(r) / log(max_mem_len_ratio)``; never if it is not positive.
            With `use_dis` only the first term is multiplied, as published.
        top_k: outside training, the number of rows read per query: a count if at least 1, a share of the memory rows
            between 0 and 1, minus a share of the number of queries between -1 and 0 (the shares are PAOT's); 0, and -1
            and less, read all.

    Raises:
        ValueError: `dropout` is not 0, or `top_k` is NaN.
        TypeError: `top_k` or `max_mem_len_ratio` is not a number.
    """

    def __init__(
        self,
        d_model: int,
        num_head: int = 8,
        dropout: float = 0.0,
        use_linear: bool = True,
        d_att: int | None = None,
        use_dis: bool = False,
        qk_chunks: int = 1,
        max_mem_len_ratio: float = -1,
        top_k: float = -1,
        backend: str = "auto",
    ) -> None:
        super().__init__()
        d_att = d_model // num_head if d_att is None else d_att
        self._keep_options(dropout, num_head, d_att, use_dis, max_mem_len_ratio, top_k, backend)
        self.use_linear = use_linear
        if use_linear:
            self.linear_Q = nn.Linear(d_model, d_model)
            self.linear_K = nn.Linear(d_model, d_model)
            self.linear_V = nn.Linear(d_model, d_model)
        self.projection = nn.Linear(d_model, d_model)
        self._initialize()

    def forward(self, Q: Tensor, K: Tensor, V: Tensor) -> tuple[Tensor, None]:
        """Query ``[M, batch, C]``, key and value ``[N, batch, C]`` to ``[M, batch, d_model]``, and None.

        Raises TypeError or ValueError for tensors whose shapes, dtypes or devices do not match.
        """
        _check_sequences(Q=Q, K=K, V=V)
        if self.use_linear:
            Q, K, V = self.linear_Q(Q), self.linear_K(K), self.linear_V(V)
        return self.projection(self._read(Q, K, V)), None


class DeAOTGatedPropagation(_LongTermRead):
    """``GatedPropagation`` of DeAOT and PAOT (DeAOT, section 4.2), with its arguments, its state dict and its quirks.

    .. code-block:: python

        # networks/layers/transformer.py of aot-benchmark
        from stm_fast.ops.adapters import DeAOTGatedPropagation    # with the other imports
        self.long_term_attn = DeAOTGatedPropagation(...)           # was: GatedPropagation(...), the same arguments

    The read is multiplied by the gate, goes through a depth-wise 5x5 convolution and is projected. `forward` returns
    None in place of the attention.

    Args:
        d_qk: width of query and key.
        d_vu: width of value and gate, of both branches together.
        num_head: heads.
        dropout: only 0: the memory read has no dropout of attention weights.
        use_linear: project first. As published, the projected query is then the key too, and `K` is ignored; each half
            of value and gate has its own projection, and their halves lie side by side within each head.
        d_att: key width of a head, ``d_qk / num_head`` when None.
        use_dis, qk_chunks, max_mem_len_ratio, top_k: as in :class:`AOTLongTermAttention`.
        expand_ratio: value and gate are ``d_vu * expand_ratio`` wide inside.

    Raises:
        ValueError: `dropout` is not 0, or `top_k` is NaN.
        TypeError: `top_k` or `max_mem_len_ratio` is not a number.
    """

    def __init__(
        self,
        d_qk: int,
        d_vu: int,
        num_head: int = 8,
        dropout: float = 0.0,
        use_linear: bool = True,
        d_att: int | None = None,
        use_dis: bool = False,
        qk_chunks: int = 1,
        max_mem_len_ratio: float = -1,
        top_k: float = -1,
        expand_ratio: float = 2.0,
        backend: str = "auto",
    ) -> None:
        super().__init__()
        d_att = d_qk // num_head if d_att is None else d_att
        self._keep_options(dropout, num_head, d_att, use_dis, max_mem_len_ratio, top_k, backend)
        self.use_linear = use_linear
        expanded = int(d_vu * expand_ratio)
        if use_linear:
            half = expanded // num_head * num_head // 2
            self.linear_QK = nn.Linear(d_qk, d_att * num_head)
            self.linear_V1 = nn.Linear(d_vu // 2, half)
            self.linear_V2 = nn.Linear(d_vu // 2, half)
            self.linear_U1 = nn.Linear(d_vu // 2, half)
            self.linear_U2 = nn.Linear(d_vu // 2, half)
        self.dw_conv = _DepthwiseConvolution(expanded)
        self.projection = nn.Linear(expanded, d_vu)
        self._initialize()

    def forward(self, Q: Tensor, K: Tensor, V: Tensor, U: Tensor, size_2d: tuple[int, int]) -> tuple[Tensor, None]:
        """Query ``[M, batch, Ck]``, key ``[N, batch, Ck]``, value ``[N, batch, Cv]``, gate ``[M, batch, Cv]``.

        Args:
            size_2d: ``(h, w)`` of the current frame's features, with ``h * w == M``.

        Returns:
            ``[M, batch, d_vu]``, and None.

        Raises:
            TypeError, ValueError: tensors whose shapes, dtypes or devices do not match.
        """
        _check_sequences(Q=Q, K=K, V=V, U=U)
        height, width = size_2d
        if height * width != Q.shape[0]:
            raise ValueError(f"size_2d: found {height}x{width}, expected the {Q.shape[0]} positions of Q")
        if self.use_linear:
            Q = K = self.linear_QK(Q)
            V = self._halves_projected(V, self.linear_V1, self.linear_V2)
            U = self._halves_projected(U, self.linear_U1, self.linear_U2)
        return self.projection(self.dw_conv(self._read(Q, K, V) * U, size_2d)), None

    def _halves_projected(self, tensor: Tensor, first: nn.Module, second: nn.Module) -> Tensor:
        """[rows, batch, d_vu] -> [rows, batch, heads * width]: in each head a part of the first, then of the second."""
        parts = zip((first, second), tensor.chunk(2, dim=-1), strict=True)
        heads = [project(half).reshape(*half.shape[:2], self.num_head, -1) for project, half in parts]
        return F.silu(torch.cat(heads, dim=-1).flatten(-2))


class _DepthwiseConvolution(nn.Module):
    """DeAOT's depth-wise convolution of a sequence [h * w, batch, C], with its dropout of channels in training."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(width, width, 5, padding=2, groups=width, bias=False)
        self.dropout = nn.Dropout2d(0.1)

    def forward(self, x: Tensor, size_2d: tuple[int, int]) -> Tensor:
        plane = self.conv(x.permute(1, 2, 0).reshape(*x.shape[1:], *size_2d))  # [batch, C, h, w]
        dropped: Tensor = self.dropout(plane)
        return dropped.flatten(2).permute(2, 0, 1)


def _check_sequences(**tensors: Tensor) -> None:
    check_tensors(**tensors)
    for name, tensor in tensors.items():
        if tensor.ndim != 3:
            raise ValueError(f"{name}: found shape {tuple(tensor.shape)}, expected 3 dimensions")
