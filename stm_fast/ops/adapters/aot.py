"""The long-term attention of AOT (Yang et al., NeurIPS 2021), which is a memory read with heads."""

import math

from torch import Tensor, nn

from stm_fast.arguments import number
from stm_fast.ops.arguments import check_tensors
from stm_fast.ops.functional import memory_read


class AOTLongTermAttention(nn.Module):
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
            between 0 and 1, minus a share of the number of queries below 0; -1 reads all.

    Raises:
        ValueError: `dropout` is not 0, or `top_k` is 0, below -1 or NaN.
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
        if dropout:
            raise ValueError(f"dropout: found {dropout}, expected 0: the memory read has no dropout")
        top_k, max_mem_len_ratio = number(top_k, "top_k"), number(max_mem_len_ratio, "max_mem_len_ratio")
        if not (top_k > 0 or -1 <= top_k < 0):
            raise ValueError(f"top_k: found {top_k:g}, expected above 0, or from -1 to below 0")
        self.num_head = num_head
        self.d_att = d_model // num_head if d_att is None else d_att
        self.use_linear = use_linear
        self.use_dis = use_dis
        self.max_mem_len_ratio = max_mem_len_ratio
        self.top_k = top_k
        self.backend = backend
        if use_linear:
            self.linear_Q = nn.Linear(d_model, d_model)
            self.linear_K = nn.Linear(d_model, d_model)
            self.linear_V = nn.Linear(d_model, d_model)
        self.projection = nn.Linear(d_model, d_model)
        for parameter in self.parameters():
            if parameter.ndim > 1:
                nn.init.xavier_uniform_(parameter)

    def forward(self, Q: Tensor, K: Tensor, V: Tensor) -> tuple[Tensor, None]:
        """Query ``[M, batch, C]``, key and value ``[N, batch, C]`` to ``[M, batch, d_model]``, and None.

        Raises TypeError or ValueError for tensors whose shapes, dtypes or devices do not match.
        """
        check_tensors(Q=Q, K=K, V=V)
        for name, tensor in (("Q", Q), ("K", K), ("V", V)):
            if tensor.ndim != 3:
                raise ValueError(f"{name}: found shape {tuple(tensor.shape)}, expected 3 dimensions")
        batch = Q.shape[1]
        if self.use_linear:
            Q, K, V = self.linear_Q(Q), self.linear_K(K), self.linear_V(V)
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
        merged = read.transpose(0, 1).reshape(-1, batch, self.num_head * value.shape[2])  # [M, batch, d_model]
        return self.projection(merged), None

    def _heads_to_batch(self, tensor: Tensor) -> Tensor:
        """[rows, batch, heads * width] -> [batch * heads, rows, width], a view."""
        rows, batch, width = tensor.shape
        return tensor.reshape(rows, batch * self.num_head, width // self.num_head).transpose(0, 1)

    def _score_factor(self, ratio: float) -> float:
        if self.training or not 0 < self.max_mem_len_ratio < ratio:
            return 1.0
        return math.log(ratio) / math.log(self.max_mem_len_ratio)

    def _rows_read(self, queries: int, rows: int) -> int | None:
        if self.training or self.top_k == -1 or self.top_k >= rows:
            return None
        if self.top_k >= 1:
            return int(self.top_k)
        return int(rows * self.top_k) if self.top_k > 0 else int(queries * -self.top_k)
