"""The memory bank: the keys and values of the frames that are remembered, in slots made beforehand.

O objects, Ck key width, Cv value width, h and w the frame at stride 16; a memory row is one of a frame's h*w pixels.
"""

import torch
from torch import Tensor

from stm_fast.ops import memory_read


class MemoryBank:
    """Keys [O, capacity, Ck] and values [O, capacity, Cv], of which each object uses its own first rows.

    A row is written once and never moved: the bank grows by doubling (or to its known size), not by concatenation.
    Objects that appear later have fewer rows than the others; spare rows are zero. A temporary frame lies behind the
    rows that stay, and the next frame takes its place.

    Args:
        frames: how many frames the bank will hold, the temporary one included, where that is known.
        backend: as in :func:`stm_fast.ops.memory_read`.
    """

    def __init__(self, *, frames: int | None = None, backend: str = "auto") -> None:
        self._known_frames = frames
        self._backend = backend
        self._keys: Tensor | None = None  # [O, capacity, Ck]
        self._values: Tensor | None = None  # [O, capacity, Cv]
        self._lengths: list[int] = []  # rows that stay, of each object
        self._temporary = 0  # rows of the temporary frame, behind those

    @property
    def objects(self) -> int:
        """How many objects the bank holds."""
        return len(self._lengths)

    @property
    def rows(self) -> list[int]:
        """How many rows a read of each object sees."""
        return [length + self._temporary for length in self._lengths]

    @property
    def nbytes(self) -> int:
        """What the bank holds in memory, in bytes, spare rows included."""
        return 0 if self._keys is None or self._values is None else self._keys.nbytes + self._values.nbytes

    def append(self, key: Tensor, value: Tensor, *, temporary: bool = False) -> None:
        """Remembers a frame for every object; objects beyond those known are new and start here.

        Args:
            key: ``[O, Ck, h, w]``.
            value: ``[O, Cv, h, w]``.
            temporary: the frame is there until the next one is appended.

        Raises:
            ValueError: fewer objects than the bank holds, or widths and dtypes that are not the bank's.
        """
        self._check(key, value)
        self._lengths += [0] * (key.shape[0] - self.objects)
        frame_rows = key.shape[2] * key.shape[3]
        keys, values = self._reserve(key, value, max(self._lengths, default=0) + frame_rows)
        for index, length in enumerate(self._lengths):
            keys[index, length : length + frame_rows] = key[index].flatten(1).T
            values[index, length : length + frame_rows] = value[index].flatten(1).T
        self._temporary = frame_rows if temporary else 0
        if not temporary:
            self._lengths = [length + frame_rows for length in self._lengths]

    def read(self, query_key: Tensor) -> Tensor:
        """What each object's memory says of every pixel of the current frame (STM section 3.2).

        Args:
            query_key: ``[1, Ck, h, w]``.

        Returns:
            ``[O, Cv, h, w]``.
        """
        if self._keys is None or self._values is None:
            raise ValueError("MemoryBank.read: found an empty bank, expected at least one frame")
        rows = self.rows
        longest = max(rows, default=0)
        as_long = min(rows, default=0) == longest
        lengths = None if as_long else torch.tensor(rows, dtype=torch.int32, device=query_key.device)
        read = memory_read(
            query_key.flatten(2).mT,  # [1, h*w, Ck]
            self._keys[:, :longest],
            self._values[:, :longest],
            lengths=lengths,
            backend=self._backend,
        )
        assert isinstance(read, Tensor)
        return read.mT.reshape(self.objects, -1, *query_key.shape[2:])

    def remove(self, indices: list[int]) -> None:
        """Forgets objects; the others move up."""
        kept = [index for index in range(self.objects) if index not in indices]
        self._lengths = [self._lengths[index] for index in kept]
        if self._keys is not None and self._values is not None:
            self._keys, self._values = self._keys[kept], self._values[kept]

    def clear(self) -> None:
        """Forgets everything."""
        self._keys = self._values = None
        self._lengths, self._temporary = [], 0

    def _check(self, key: Tensor, value: Tensor) -> None:
        found = f"key {tuple(key.shape)}, value {tuple(value.shape)}"
        if key.ndim != 4 or value.ndim != 4 or key.shape[0] != value.shape[0] or key.shape[2:] != value.shape[2:]:
            raise ValueError(f"MemoryBank.append: found {found}, expected [O, Ck, h, w] and [O, Cv, h, w]")
        if key.shape[0] < self.objects:
            raise ValueError(f"MemoryBank.append: found {found}, expected at least {self.objects} objects")
        for name, new, old in (("key", key, self._keys), ("value", value, self._values)):
            if old is not None and (new.shape[1] != old.shape[2] or new.dtype != old.dtype):
                expected = f"width {old.shape[2]} and {old.dtype}"
                raise ValueError(
                    f"MemoryBank.append: {name}: found {new.shape[1]} and {new.dtype}, expected {expected}"
                )

    def _reserve(self, key: Tensor, value: Tensor, rows: int) -> tuple[Tensor, Tensor]:
        """Room for every object and `rows` rows each."""
        held = 0 if self._keys is None else self._keys.shape[1]
        if rows > held:
            known = 0 if self._known_frames is None else self._known_frames * key.shape[2] * key.shape[3]
            held = max(rows, known, 2 * held)
        self._keys = _grown(self._keys, key, held)
        self._values = _grown(self._values, value, held)
        return self._keys, self._values


def _grown(old: Tensor | None, like: Tensor, rows: int) -> Tensor:
    """A slot tensor [O, rows, C] with the old one's content; itself where it is large enough. Spare rows are zero."""
    if old is not None and old.shape[:2] == (like.shape[0], rows):
        return old
    # zeros, not empty: a NaN in a spare row would reach the sums as 0 * NaN in code that does not mask
    new = like.new_zeros(like.shape[0], rows, like.shape[1])
    if old is not None:
        new[: old.shape[0], : old.shape[1]] = old
    return new
