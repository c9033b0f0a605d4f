"""The engine: segments the frames of a video one by one.

O objects, H x W the frame as the user gave it, h x w the frame as the network sees it.
"""

from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple, Self

import numpy as np
import torch
from torch import Tensor

from stm_fast.arguments import flag, integer
from stm_fast.config import MemoryConfig
from stm_fast.errors import InputError
from stm_fast.inference.arrays import as_frame, as_ids, as_mask, in_pixels, in_unit_range, resized
from stm_fast.inference.detections import detections
from stm_fast.inference.objects import Presence, impose, label, object_scores, split_mask
from stm_fast.inference.options import check_sizes, network_size, smallest_side
from stm_fast.inference.sightings import Sighting, Watch
from stm_fast.memory import MemoryBank, Shard, stays
from stm_fast.network import STM
from stm_fast.network.shared_trunk import SharedKeyValue
from stm_fast.ops import memory_read
from stm_fast.video import Frame

if TYPE_CHECKING:
    import supervision


class Segmentation(NamedTuple):
    """The result for one frame."""

    frame_index: int  #: from 0
    prob: Tensor  #: [1 + O, H, W] float32, sums to 1 over the channels; channel 0 is the background
    object_ids: list[int]  #: of channels 1, 2, ...
    sightings: Sequence[Sighting] = ()  #: whether each object was found, doubtful or lost
    frame: Frame | None = None  #: its pixels, time and name; None from `propagate`, whose caller has the frames

    @property
    def mask(self) -> Tensor:
        """The most likely object of each pixel, ``[H, W]`` uint8, 0 the background."""
        return label(self.prob, self.object_ids)

    @property
    def scores(self) -> Tensor:
        """Confidence in each object, ``[O]`` float32: the expected J; 0 for an object without pixels."""
        return object_scores(self.prob, self.mask, self.object_ids)

    def watched(self, watch: Watch, given: Collection[int]) -> Self:
        """The same with its sightings, as the next frame of `watch`; `given` are the ids of masks from the user."""
        return self._replace(sightings=watch.see(self.prob, self.mask, self.object_ids, given))

    def to_detections(self) -> "supervision.Detections":
        """For the package supervision, which draws, filters and writes them: the objects that have pixels.

        ``tracker_id`` and ``class_id``, by which annotators color, are the object ids, ``mask`` is ``[O, H, W]`` bool,
        ``xyxy`` the corner pixels of its box, and ``confidence`` the scores.

        Raises InputError if supervision is not installed.
        """
        return detections(self.mask, self.scores, self.object_ids)


# how far values of a frame may exceed [0, 1]: resampling overshoots a little
_OVERSHOOT = 0.5
# prefixes in the state
_BANK, _PRESENCE = "bank.", "presence."


class _Seen(NamedTuple):
    """A segmented frame that is not in the memory yet: it is memorized when the next frame comes."""

    frame: Tensor  # [3, h, w]
    objects: Tensor  # [O, h, w] soft masks
    frame_index: int
    given_ids: list[int]  # of the objects whose masks came from the user
    known: tuple[Tensor, Tensor] | None = None  # with a shared trunk: its key and value features


class VideoSegmenter:
    """Segments the objects of a video from masks of some of its frames (STM section 3.4).

    Use one segmenter per video and thread. Threads may share a network, prepared or not: segmenting changes nothing in
    it, and on a CPU each thread gets the bits that it would get alone. They may not share a compiled network, whose
    results are valid only until its next frame.

    Args:
        model: the network, as from :func:`stm_fast.load`; it determines the device and the dtype.
        memory: which frames to remember, in which format and where.
        max_size: downscale for the network so that the shorter side is at most this many pixels; masks come back at the
            frame's own size.
        min_size: upscale frames whose shorter side is below this; by default `model.min_size`, which suits the weights,
            but at most `max_size`.
        backend: for the memory read, as in :func:`stm_fast.memory_read`.
        shard: this process's part of the memory, if several processes segment the same video together.

    Raises:
        InputError: a `max_size` below 16 or below `min_size`, a `min_size` below 1, or a backend that is unknown or
            cannot run here.
        TypeError: a size that is not an integer.
    """

    def __init__(
        self,
        model: STM,
        *,
        memory: MemoryConfig | None = None,
        max_size: int | None = None,
        min_size: int | None = None,
        backend: str = "auto",
        shard: Shard | None = None,
    ) -> None:
        max_size = None if max_size is None else integer(max_size, "max_size", "an integer or None")
        min_size = None if min_size is None else integer(min_size, "min_size", "an integer or None")
        check_sizes(max_size, min_size)
        check_backend(model, backend)
        self._model = model.eval()
        self._memory = memory or MemoryConfig()
        self._max_size, self._min_size = max_size, smallest_side(min_size, max_size, model.min_size)
        known = self._memory.frames
        slots = None if known is None else known + self._memory.previous
        heads = model.query_key_value
        query_of = heads.query_of if isinstance(heads, SharedKeyValue) else None
        self._bank = MemoryBank(self._memory, frames=slots, backend=backend, shard=shard, query_of=query_of)
        self._ids: list[int] = []
        self._frame_count = 0
        self._size: tuple[int, ...] | None = None
        self._seen: _Seen | None = None
        self._presence = Presence() if self._memory.redetect and model.architecture.shared_trunk else None

    @property
    def object_ids(self) -> list[int]:
        """The ids of the current objects, in the order of the probability channels."""
        return list(self._ids)

    @property
    def bank(self) -> MemoryBank:
        """The memory, for inspection."""
        return self._bank

    @torch.inference_mode()
    def step(
        self,
        frame: "Tensor | np.ndarray[Any, Any]",
        mask: "Tensor | np.ndarray[Any, Any] | None" = None,
        objects: Iterable[int] | None = None,
        *,
        memorize: bool = True,
    ) -> Tensor:
        """Segments the next frame of the video.

        A mask may come with any frame. Its objects are taken from it, all others are predicted: new ids add objects,
        known ids correct them.

        NumPy arrays are accepted too. The arguments are not kept: a buffer may be reused for the next frame.

        Args:
            frame: ``[3, H, W]``, float in [0, 1] or uint8, RGB.
            mask: ``[H, W]`` object ids, or ``[O, H, W]`` a plane in [0, 1] for each object; see `split_mask`.
            objects: the ids that the mask gives; required with planes, by default those that occur.
            memorize: False leaves the memory unchanged: even the next frame does not read this one.

        Returns:
            ``[1 + O, H, W]`` float32 probabilities that sum to 1 over the channels; channel 0 is the background, the
            others are those of `object_ids`. Before the first mask, everything is background.

        Raises:
            InputError: a wrong shape or size, a float frame outside [0, 1], a mask without objects or with ids outside
                1..255, or a mask with ``memorize=False``. The state is then unchanged: the frame may be passed again.
            TypeError: neither a tensor nor an array, or a wrong dtype; ids that are not integers.
        """
        memorize = flag(memorize, "memorize")
        taken = as_frame(frame, self._weight)
        self._check_frame(taken)
        if mask is not None and not memorize:
            raise InputError(f"frame {self._frame_count}: found a mask with memorize=False, expected one or the other")
        size = tuple(taken.shape[1:])
        given_ids, planes = ([], None) if mask is None else self._given(mask, size, objects)
        if self._model.compiled:
            torch.compiler.cudagraph_mark_step_begin()  # type: ignore[no-untyped-call]
        self._size = size
        inner_size = network_size(size, self._max_size, self._min_size)
        self._memorize_seen()
        inner = resized(in_unit_range(taken.to(self._device, non_blocking=True)), inner_size)  # [3, h, w]
        if inner is taken:
            inner = inner.clone()  # it is memorized at the next step, when its buffer may hold the next frame
        prob, known = self._predict(inner, given_ids)  # [1 + O, h, w]
        full = resized(prob, size)  # [1 + O, H, W]
        if planes is not None:
            full = impose(full, self._ids, given_ids, planes)
            prob = impose(prob, self._ids, given_ids, resized(planes, inner_size))
            self._ids += [object_id for object_id in given_ids if object_id not in self._ids]
        if self._ids:
            self._seen = _Seen(inner, prob[1:], self._frame_count, given_ids, known) if memorize else None
        self._frame_count += 1
        return full

    def prime(self, given: "Iterable[tuple[Tensor | np.ndarray[Any, Any], Tensor | np.ndarray[Any, Any]]]") -> None:
        """Memorizes frames with given masks that come later in the video, or came before, without counting them.

        They are never evicted. The last one acts as the previous frame of the next step: pass the nearest one last. To
        segment a video backwards, prime the frame that has a mask, then step through the frames before it, in reverse.

        Args:
            given: pairs of a frame and its mask, as `step` takes them.

        Raises:
            InputError, TypeError: as `step` does, at the first wrong pair; those before it are memorized.
        """
        count = self._frame_count
        try:
            for frame, mask in given:
                self.step(frame, mask)
        finally:
            self._frame_count = count

    def propagate(
        self,
        frames: "Iterable[Tensor | np.ndarray[Any, Any]]",
        masks: "Mapping[int, Tensor | np.ndarray[Any, Any]] | None" = None,
    ) -> Iterator[Segmentation]:
        """Segments frames as they come, holding one at a time.

        Args:
            frames: any iterable of ``[3, H, W]``, as `step` takes them.
            masks: given masks, by the frame's position in `frames`.

        Raises:
            InputError, TypeError: as `step` does; also for masks that are not a mapping from integers.
        """
        if not isinstance(frames, Iterable):
            raise TypeError(f"frames: found {type(frames).__name__}, expected an iterable of [3, H, W]")
        if masks is not None and not isinstance(masks, Mapping):
            raise TypeError(f"masks: found {type(masks).__name__}, expected a mapping from positions of frames")
        for position in masks or ():
            integer(position, "masks", "integers as keys")
        watch = Watch()
        for position, frame in enumerate(frames):
            result = Segmentation(self._frame_count, self.step(frame, (masks or {}).get(position)), self.object_ids)
            given_ids = [] if self._seen is None else self._seen.given_ids
            yield result.watched(watch, given_ids)

    def delete_objects(self, ids: Iterable[int]) -> None:
        """Forgets objects; the others keep their ids and their memory.

        Raises InputError for unknown ids, TypeError for ids that are not integers.
        """
        gone = set(as_ids(ids, "delete_objects"))
        unknown = gone - set(self._ids)
        if unknown:
            raise InputError(f"delete_objects: found ids {sorted(unknown)}, expected some of {self._ids}")
        kept = [index for index, object_id in enumerate(self._ids) if object_id not in gone]
        # an object that first appeared in the last frame is not in the bank yet
        self._bank.remove([index for index in range(self._bank.objects) if index not in kept])
        self._ids = [self._ids[index] for index in kept]
        if self._presence is not None:
            self._presence.keep(kept)
        if self._seen is not None:
            self._seen = self._seen._replace(objects=self._seen.objects[kept]) if kept else None

    def clear_memory(self, frame_index: int = 0) -> None:
        """Forgets every frame and every object: the next frame has this index in a new video, as if none came before.

        Raises InputError for a negative index, TypeError for one that is not an integer.
        """
        frame_index = integer(frame_index, "frame_index")
        if frame_index < 0:
            raise InputError(f"frame_index: found {frame_index}, expected at least 0")
        self._bank.clear()
        self._ids, self._frame_count, self._size, self._seen = [], frame_index, None, None
        self._presence = None if self._presence is None else Presence()

    def state_dict(self) -> dict[str, Tensor]:
        """Everything that the next step depends on, as tensors. Save them first: they may share memory with the bank.

        With a shard, this is this process's part.
        """
        state = {
            "object_ids": torch.tensor(self._ids, dtype=torch.int64),
            "frame_count": torch.tensor(self._frame_count),
            "size": torch.tensor(self._size or (), dtype=torch.int64),
        }
        if self._seen is not None:
            state["seen.frame_index"] = torch.tensor(self._seen.frame_index)
            state["seen.given_ids"] = torch.tensor(self._seen.given_ids, dtype=torch.int64)
            for name, tensor in (("frame", self._seen.frame), ("objects", self._seen.objects)):
                state[f"seen.{name}"] = tensor.contiguous()
                state[f"seen.{name}.strides"] = torch.tensor(tensor.stride())
        if self._presence is not None:
            state |= {f"{_PRESENCE}{name}": tensor for name, tensor in self._presence.state_dict().items()}
        return state | {f"{_BANK}{name}": tensor for name, tensor in self._bank.state_dict().items()}

    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:
        """Restores a state; the next steps give the same bits as those of the segmenter that saved it.

        Args:
            state: from `state_dict` of a segmenter with the same network, options and shard.

        Raises:
            ValueError: a state that does not fit, as from a bank with another row format; the memory is then empty.
        """
        try:
            self._load(state)
        except (InputError, torch.OutOfMemoryError):
            raise  # out of memory
        except (LookupError, RuntimeError, StopIteration, TypeError, ValueError) as error:
            self.clear_memory()
            why = f"{type(error).__name__}: {error}".splitlines()[0]
            raise ValueError(f"VideoSegmenter.load_state_dict: the state does not fit ({why})") from error

    def _load(self, state: Mapping[str, Tensor]) -> None:
        self._bank.load_state_dict(_part(state, _BANK), self._device)
        if self._presence is not None:
            self._presence.load_state_dict(_part(state, _PRESENCE))
        self._ids = state["object_ids"].tolist()
        self._frame_count = int(state["frame_count"])
        self._size = tuple(state["size"].tolist()) or None
        self._seen = None
        if "seen.frame" in state:
            frame, objects = (self._with_saved_strides(state, f"seen.{name}") for name in ("frame", "objects"))
            given_ids = state["seen.given_ids"].tolist()
            self._seen = _Seen(frame, objects, int(state["seen.frame_index"]), given_ids)
        seen = len(self._ids) if self._seen is None else len(self._seen.objects)
        if self._bank.objects > len(self._ids) or seen != len(self._ids):
            found = f"{self._bank.objects} objects in the memory and {seen} in the last frame"
            raise ValueError(f"found {found}, expected {len(self._ids)}")

    def _with_saved_strides(self, state: Mapping[str, Tensor], name: str) -> Tensor:
        """A tensor of the state with its original strides, on which convolution algorithms, and so rounding, depend."""
        saved, strides = state[name], state[f"{name}.strides"].tolist()
        return torch.empty_strided(saved.shape, strides, dtype=saved.dtype, device=self._device).copy_(saved)

    def _memorize_seen(self) -> None:
        """Puts the previous frame into the memory, permanently or for this step only (STM section 3.4)."""
        seen, self._seen = self._seen, None
        if seen is None:
            return
        given = [index for index, object_id in enumerate(self._ids) if object_id in seen.given_ids]
        absent = self._absent(seen, given)
        for_good = stays(self._memory, seen.frame_index, bool(seen.given_ids))
        if len(absent) < len(self._ids) and (for_good or self._memory.previous):
            key, value = self._model.memorize(seen.frame, seen.objects, seen.known)
            self._bank.append(
                key, value, temporary=not for_good, permanent=given, absent=absent, frame=seen.frame_index
            )

    def _absent(self, seen: _Seen, given: list[int]) -> list[int]:
        """The indices of objects that are not visible in a frame."""
        if self._presence is None:
            return []
        self._presence.update(seen.objects, given)
        return self._presence.lost

    def _predict(self, frame: Tensor, given_ids: list[int]) -> tuple[Tensor, tuple[Tensor, Tensor] | None]:
        """The probabilities [1 + O, h, w] of the current objects, and `_Seen.known`."""
        if set(self._ids) <= set(given_ids):  # nothing to predict
            prob = frame.new_zeros(1 + len(self._ids), *frame.shape[1:], dtype=torch.float32)
            prob[0] = 1
            return prob, None
        features = self._model.encode_query(frame)
        prob = self._model.probabilities(self._bank.read(self._query(features.key)), features)
        if not self._model.architecture.shared_trunk:
            return prob, None
        # the next frame overwrites what a compiled network returns
        return prob, (features.key.clone(), features.value.clone())

    def _query(self, query_key: Tensor) -> Tensor:
        """The query of the memory read, [1 or O, Ck, h, w]. Lost objects are searched everywhere."""
        if self._presence is None or not self._presence.lost:
            return query_key
        heads = self._model.query_key_value
        assert isinstance(heads, SharedKeyValue)
        return heads.anywhere(query_key, self._presence.lost, self._bank.objects)

    def _check_frame(self, frame: Tensor) -> None:
        found = tuple(frame.shape[1:])
        if self._size is not None and found != self._size:
            sizes = f"found {in_pixels(found)} pixels, expected {in_pixels(self._size)} like the first frame"
            raise InputError(f"frame {self._frame_count}: {sizes}")
        # only the first frame: on a GPU, each check waits for the device
        if self._size is None and frame.is_floating_point():
            least, most = frame.aminmax()
            where = f"frame {self._frame_count}"
            if most > 1 + _OVERSHOOT:
                raise InputError(f"{where}: found values up to {most:.0f}, expected float in [0, 1], or uint8")
            if not least >= -_OVERSHOOT:
                raise InputError(f"{where}: found values from {least:g}, expected float in [0, 1], not normalized")

    def _given(
        self, found: "Tensor | np.ndarray[Any, Any]", size: tuple[int, ...], objects: Iterable[int] | None
    ) -> tuple[list[int], Tensor]:
        """The ids in a mask and their planes [O, H, W], on the model's device."""
        mask, ids = as_mask(found, self._weight), None if objects is None else as_ids(objects, "objects")
        shape = tuple(mask.shape)
        if shape[-2:] != size and shape[:2] == size:
            raise InputError(f"mask: found shape {shape}, expected [H, W], or [O, H, W] with the planes first")
        if shape[-2:] != size:
            sizes = f"found {in_pixels(shape[-2:])} pixels, expected {in_pixels(size)} like the frame"
            raise InputError(f"mask of frame {self._frame_count}: {sizes}")
        return split_mask(mask.to(self._device), ids)

    @property
    def _weight(self) -> Tensor:
        return next(self._model.parameters())

    @property
    def _device(self) -> torch.device:
        return self._weight.device


def check_backend(model: STM, backend: str) -> None:
    """Raises InputError if the backend is unknown or cannot read this model's memory. Tries a read of one row."""
    like = next(model.parameters())
    query, key, value = (like.new_zeros(1, 1, width) for width in (model.key_dim, model.key_dim, model.value_dim))
    lengths = torch.ones(1, dtype=torch.int32, device=like.device)
    try:
        memory_read(query, key, value, lengths=lengths, backend=backend)
    except (ValueError, NotImplementedError) as error:
        raise InputError(str(error)) from None


def _part(state: Mapping[str, Tensor], prefix: str) -> dict[str, Tensor]:
    return {name.removeprefix(prefix): tensor for name, tensor in state.items() if name.startswith(prefix)}
