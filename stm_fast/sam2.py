"""The verbs of SAM 2's video predictor, on the networks of this package: a script changes its import.

O objects, H x W the frames of the video.
"""

import logging
import math
from collections.abc import Iterator, Sequence
from dataclasses import replace
from functools import cached_property
from pathlib import Path
from typing import Any, Self

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from stm_fast.arguments import flag, integer
from stm_fast.boxes import Box
from stm_fast.clicks.prompter import ClickPrompter
from stm_fast.clicks.prompting import Click
from stm_fast.clicks.regions import Region
from stm_fast.config import MemoryConfig
from stm_fast.errors import InputError
from stm_fast.inference.engine import VideoSegmenter
from stm_fast.network import STM, load
from stm_fast.network.released import DEFAULT
from stm_fast.runs.prompted import ObjectPrompt, PromptedVideo
from stm_fast.runs.tracking import Tracked
from stm_fast.video import FrameReader, open_frames
from stm_fast.video.mask_size import check_mask_size, to_size

logger = logging.getLogger(__name__)

# arguments of SAM 2
_WITHOUT_EFFECT = ("mode", "hydra_overrides_extra", "apply_postprocessing", "vos_optimized")
# a frame, the ids of all objects, and their logits [O, 1, H, W] there, float32: above 0 on the object
Output = tuple[int, list[int], Tensor]

# the smallest probability that differs from 0 in a logit
_LEAST = 1e-6
_CERTAIN = -math.log(_LEAST)


class InferenceState(PromptedVideo):
    """A video, its prompts and the masks found so far; from `VideoPredictor.init_state`.

    As in SAM 2, ``state["num_frames"]``, ``"video_height"``, ``"video_width"`` and ``"obj_ids"`` can be read.
    ``num_frames`` is None if the video does not say how many it has.
    """

    def __init__(self, reader: FrameReader, memory: MemoryConfig) -> None:
        super().__init__(reader)
        self.memory = memory

    @property
    def size(self) -> tuple[int, int]:
        """H, W of the frames."""
        return self.reader.height, self.reader.width

    def __getitem__(self, name: str) -> Any:
        reader = self.reader
        facts = {"num_frames": reader.frame_count, "video_height": reader.height, "video_width": reader.width}
        return (facts | {"obj_ids": list(self.ids)})[name]


class VideoPredictor:
    """Segments the objects of a video from masks, boxes and clicks, with the verbs of SAM 2's ``SAM2VideoPredictor``.

    The verbs have SAM 2's arguments and defaults and return what its verbs return. Frames are decoded as they are
    needed, so a long video starts at once and takes no more memory than a short one, except for the memory bank and a
    few kilobytes of masks per frame tracked. Differences:

    * Weights are those of this package; the names of SAM 2's configurations and weights select the package's own.
    * The masks of boxes and clicks are those of a small network of this package. They need OpenCV.
    * There is one mask per prompt (no multimask output), no image predictor, and no automatic mask generator.
    * Objects do not overlap, except where given masks do. A logit is the logarithm of an object's probability over
      that of the likeliest other object or of the background: its sign is as in SAM 2, its scale is not. It is between
      -13.8 and 13.8.
    * Tracking on from a frame that was tracked before remembers the given masks and the frame before, not all frames.
    * Bad input raises InputError, a ValueError, in place of RuntimeError.

    Args:
        model: the network.
        memory, max_size, min_size, backend: as in :class:`stm_fast.VideoSegmenter`.
    """

    def __init__(
        self,
        model: STM,
        *,
        memory: MemoryConfig | None = None,
        max_size: int | None = None,
        min_size: int | None = None,
        backend: str = "auto",
    ) -> None:
        self.model = model
        self._memory = memory or MemoryConfig()
        self._options: dict[str, Any] = {"max_size": max_size, "min_size": min_size, "backend": backend}

    @classmethod
    def from_pretrained(
        cls,
        model_id: str | Path = DEFAULT,
        *,
        device: str | torch.device = "auto",
        dtype: str = "auto",
        compile: str | None = None,
        **options: Any,
    ) -> Self:
        """A predictor with weights.

        Args:
            model_id: as `weights` in :func:`stm_fast.load`. A name of SAM 2's weights, as "facebook/sam2-hiera-tiny" or
                "sam2.1_hiera_large.pt", selects the package's own, and a warning is logged.
            device, dtype, compile: as in :func:`stm_fast.load`.
            options: of the predictor. SAM 2's `mode`, `vos_optimized`, `apply_postprocessing` and
                `hydra_overrides_extra` have no effect.

        Raises:
            InputError: as :func:`stm_fast.load`.
        """
        if _is_of_sam2(model_id):
            logger.warning("%s: weights of SAM 2 do not fit, using those of stm_fast", model_id)
            model_id = DEFAULT
        own = {name: value for name, value in options.items() if name not in _WITHOUT_EFFECT}
        return cls(load(model_id, device=device, dtype=dtype, compile=compile), **own)

    @property
    def device(self) -> torch.device:
        """The device of the network, on which logits are returned."""
        return next(self.model.parameters()).device

    def init_state(
        self,
        video_path: str | Path,
        offload_video_to_cpu: bool = False,
        offload_state_to_cpu: bool = False,
        async_loading_frames: bool = False,
    ) -> InferenceState:
        """Opens a video.

        Args:
            video_path: a video file, or a folder of images, as in :func:`stm_fast.segment_video`. Frames are counted
                from 0 in the natural order of the names.
            offload_video_to_cpu, async_loading_frames: without effect: frames are never on the device before they are
                needed, and are always decoded in a thread.
            offload_state_to_cpu: keep the memory bank in host memory.

        Raises:
            InputError: the video cannot be read.
        """
        flag(offload_video_to_cpu, "offload_video_to_cpu")
        flag(async_loading_frames, "async_loading_frames")
        memory = (
            replace(self._memory, place="host") if flag(offload_state_to_cpu, "offload_state_to_cpu") else self._memory
        )
        return InferenceState(open_frames(video_path), memory)

    def add_new_mask(
        self, inference_state: InferenceState, frame_idx: int, obj_id: int, mask: "Tensor | npt.ArrayLike"
    ) -> Output:
        """Gives the mask of an object in a frame; it replaces what was given for the object in this frame.

        Args:
            frame_idx: from 0.
            obj_id: any integer; a new one adds an object, at any time.
            mask: ``[H, W]``: bool, integers above 0 on the object, or float from 0.5 on. With the aspect ratio of the
                frames, it may have another size.

        Returns:
            The masks of all objects in this frame, as far as they are known.

        Raises:
            InputError: no such frame, a mask of another aspect ratio, or more than 255 objects.
        """
        obj_id, frame_idx = integer(obj_id, "obj_id"), _frame_of(inference_state, frame_idx)
        inference_state.add(frame_idx, obj_id, ObjectPrompt(_as_mask(mask, inference_state.size)))
        return self._known(inference_state, frame_idx)

    def add_new_points_or_box(
        self,
        inference_state: InferenceState,
        frame_idx: int,
        obj_id: int,
        points: "Tensor | npt.ArrayLike | None" = None,
        labels: "Tensor | npt.ArrayLike | None" = None,
        clear_old_points: bool = True,
        normalize_coords: bool = True,
        box: "Tensor | npt.ArrayLike | None" = None,
    ) -> Output:
        """Gives a box around an object in a frame, clicks, or both; their mask is found at once.

        Args:
            frame_idx, obj_id: as in `add_new_mask`.
            points: ``[N, 2]``, x and y. They correct the mask of the box, or of the box given before in this frame; if
                there is none, the mask that was given or found in this frame; otherwise they find the object.
            labels: ``[N]``, 1 for a click on the object, 0 for one beside it.
            clear_old_points: False adds the clicks to those given before.
            normalize_coords: points and box are in pixels; False: in shares of the width and height.
            box: x0, y0, x1, y1.

        Returns:
            As `add_new_mask`.

        Raises:
            InputError: as `add_new_mask`; points without labels; a box with ``clear_old_points=False``; neither box nor
                points; no click on the object where nothing is known of it; a box or a click outside the frame; or
                OpenCV is missing.
        """
        obj_id, frame_idx = integer(obj_id, "obj_id"), _frame_of(inference_state, frame_idx)
        scale = (1, 1) if flag(normalize_coords, "normalize_coords") else inference_state.size[::-1]
        clicks, old = _clicks(points, labels, scale), inference_state.given.get(frame_idx, {}).get(obj_id)
        if not flag(clear_old_points, "clear_old_points"):
            if box is not None:
                raise InputError("box: found with clear_old_points=False, expected the box before any clicks")
            clicks = (*old.clicks, *clicks) if old is not None else clicks
        where = f"object {obj_id} in frame {frame_idx}"
        if box is None and not clicks:
            raise InputError(f"{where}: found no box and no points, expected x0, y0, x1, y1, or clicks on the object")
        around = _box(box, scale) if box is not None else old.box if old is not None else None
        known = None
        if around is None:
            known = old.corrected if old is not None and old.clicks else inference_state.mask(frame_idx, obj_id)
        try:
            mask = self._mask_of(inference_state.frame(frame_idx).image, around, known, clicks)
        except InputError as error:
            raise InputError(f"{where}: {error}") from error
        inference_state.add(frame_idx, obj_id, ObjectPrompt(mask, around, known, clicks))
        return self._known(inference_state, frame_idx)

    def _mask_of(
        self,
        image: npt.NDArray[np.uint8],
        around: Box | None,
        known: npt.NDArray[np.bool_] | None,
        clicks: tuple[Click, ...],
    ) -> npt.NDArray[np.bool_]:
        """The mask [H, W] of a box, or the one that is known, corrected by clicks. Raises InputError."""
        region = None if around is None else Region(around)
        if region is not None:
            mask = self._prompter.from_region(image, region).mask
        elif known is not None and known.any():
            mask = known
        else:
            mask = np.zeros(image.shape[:2], bool)
            # what is beside an object says nothing before there is one
            clicks = tuple(sorted(clicks, key=lambda click: not click.add))
            if not clicks[0].add:
                raise InputError("found no click on the object, label 1, expected one where nothing is known of it")
        return self._prompter.from_clicks(image, mask, region, clicks)

    @cached_property
    def _prompter(self) -> ClickPrompter:
        return ClickPrompter.load(device=str(self.device))

    def add_new_points(self, *args: Any, **kwargs: Any) -> Output:
        """The former name of `add_new_points_or_box`."""
        return self.add_new_points_or_box(*args, **kwargs)

    def clear_all_prompts_in_frame(
        self, inference_state: InferenceState, frame_idx: int, obj_id: int, need_output: bool = True
    ) -> Output | None:
        """Takes back what was given for an object in a frame.

        Returns:
            As `add_new_mask`; None if `need_output` is False.
        """
        frame_idx = _frame_of(inference_state, frame_idx)
        inference_state.clear(frame_idx, integer(obj_id, "obj_id"))
        return self._known(inference_state, frame_idx) if flag(need_output, "need_output") else None

    def remove_object(
        self, inference_state: InferenceState, obj_id: int, strict: bool = False, need_output: bool = True
    ) -> tuple[list[int], list[tuple[int, Tensor]]]:
        """Forgets an object. The others are not affected.

        Args:
            strict: raise InputError if there is no such object.
            need_output: also return masks.

        Returns:
            The ids that are left, and the frames in which the object was given, each with the logits of the others.
        """
        obj_id = integer(obj_id, "obj_id")
        if obj_id not in inference_state.ids:
            if flag(strict, "strict"):
                raise InputError(f"obj_id: found {obj_id}, expected one of {list(inference_state.ids)}")
            return list(inference_state.ids), []
        frames = inference_state.remove(obj_id)
        outputs = need_output and inference_state.ids
        updated = [(frame_idx, self._known(inference_state, frame_idx)[2]) for frame_idx in frames if outputs]
        return list(inference_state.ids), updated

    def reset_state(self, inference_state: InferenceState) -> None:
        """Forgets every prompt, object and mask; the video stays open."""
        inference_state.reset()

    def propagate_in_video_preflight(self, inference_state: InferenceState) -> None:
        """Raises InputError if there is no object, or one without a prompt. Propagation begins with this."""
        given = {obj_id for prompts in inference_state.given.values() for obj_id in prompts}
        missing = [obj_id for obj_id in inference_state.ids if obj_id not in given]
        if missing or not given:
            found = f"nothing for object {missing[0]}" if missing else "no object"
            raise InputError(f"propagate_in_video: found {found}, expected a mask, a box or clicks in some frame first")

    def propagate_in_video(
        self,
        inference_state: InferenceState,
        start_frame_idx: int | None = None,
        max_frame_num_to_track: int | None = None,
        reverse: bool = False,
    ) -> Iterator[Output]:
        """Tracks all objects through the video, frame by frame.

        Everything given so far is remembered in every frame, whether it lies before or after it. Where a mask is given,
        it is the result.

        Args:
            start_frame_idx: the first frame; by default the first one in which something is given.
            max_frame_num_to_track: how many frames after it; by default all.
            reverse: from there to frame 0; from frame 0, none.

        Yields:
            Each frame, the ids of all objects, and their logits ``[O, 1, H, W]``.

        Raises:
            InputError: as `propagate_in_video_preflight`; no such frame; a negative number of frames; or a frame cannot
                be decoded.
        """
        self.propagate_in_video_preflight(inference_state)
        start = min(inference_state.given) if start_frame_idx is None else _frame_of(inference_state, start_frame_idx)
        count = None if max_frame_num_to_track is None else _count_of(max_frame_num_to_track)
        if flag(reverse, "reverse") and start == 0:
            return
        segmenter = VideoSegmenter(self.model, memory=inference_state.memory, **self._options)
        ids = dict(inference_state.ids)
        for tracked in inference_state.track(segmenter, start, count, reverse=reverse):
            yield tracked.frame.index, list(ids), _logits(tracked, list(ids.values()))

    def _known(self, state: InferenceState, frame_idx: int) -> Output:
        """The masks of all objects in a frame, as far as they are given or found."""
        planes = torch.zeros(len(state.ids), 1, *state.size, dtype=torch.bool)
        for plane, obj_id in zip(planes, state.ids, strict=True):
            mask = state.mask(frame_idx, obj_id)
            if mask is not None:
                plane[0] = torch.from_numpy(mask)
        return frame_idx, list(state.ids), _certain(planes.to(self.device))


# SAM 2's name
SAM2VideoPredictor = VideoPredictor


def build_sam2_video_predictor(
    config_file: str | Path | None = None, ckpt_path: str | Path | None = None, **options: Any
) -> VideoPredictor:
    """A predictor, as SAM 2's function of this name builds one.

    Args:
        config_file: None, or a configuration of SAM 2, which has no effect: weights say which network they belong to.
        ckpt_path: as `model_id` of `VideoPredictor.from_pretrained`; None for the package's weights.
        options: as there.

    Raises:
        InputError: another configuration, or as `VideoPredictor.from_pretrained`.
    """
    if config_file is not None and not _is_of_sam2(config_file):
        raise InputError(f"config_file: found {config_file}, expected None; weights are given as ckpt_path")
    return VideoPredictor.from_pretrained(DEFAULT if ckpt_path is None else ckpt_path, **options)


def build_sam2_video_predictor_hf(model_id: str, **options: Any) -> VideoPredictor:
    """`VideoPredictor.from_pretrained`, by SAM 2's name."""
    return VideoPredictor.from_pretrained(model_id, **options)


def _is_of_sam2(name: str | Path) -> bool:
    return Path(name).name.lower().startswith("sam2")


def _frame_of(state: InferenceState, frame_idx: int) -> int:
    frame_idx, count = integer(frame_idx, "frame_idx"), state.reader.frame_count
    if frame_idx < 0 or (count is not None and frame_idx >= count):
        most = "" if count is None else f" to {count - 1}"
        raise InputError(f"frame_idx: found {frame_idx}, expected 0{most}")
    return frame_idx


def _count_of(max_frame_num_to_track: int) -> int:
    """How many frames are tracked, the first one included."""
    more = integer(max_frame_num_to_track, "max_frame_num_to_track")
    if more < 0:
        raise InputError(f"max_frame_num_to_track: found {more}, expected at least 0")
    return 1 + more


def _as_mask(found: Any, size: tuple[int, int]) -> npt.NDArray[np.bool_]:
    """A copy of a mask, bool, for frames of H, W."""
    mask, wanted = _as_array(found), size[::-1]
    if mask.ndim != 2:
        raise InputError(f"mask: found shape {mask.shape}, expected [H, W]")
    if mask.dtype.kind not in "buif":
        raise TypeError(f"mask: found {mask.dtype}, expected bool or numbers")
    check_mask_size("mask", mask.shape[::-1], wanted)
    pixels, note = to_size((mask >= 0.5 if mask.dtype.kind == "f" else mask > 0).astype(np.uint8), wanted)
    if note is not None:
        logger.info("mask: %s", note)
    return pixels > 0


def _clicks(points: Any, labels: Any, scale: Sequence[int]) -> tuple[Click, ...]:
    if points is None and labels is None:
        return ()
    if points is None or labels is None:
        raise InputError(f"found {'labels' if points is None else 'points'} alone, expected points with their labels")
    places, marks = _as_array(points), _as_array(labels).reshape(-1)
    if places.shape[-1:] != (2,):
        raise InputError(f"points: found shape {places.shape}, expected [N, 2]")
    places = places.reshape(-1, 2) * scale
    if len(places) != len(marks) or not np.isin(marks, (0, 1)).all():
        raise InputError(f"labels: found {marks.tolist()} for {len(places)} points, expected 0 or 1 for each point")
    return tuple(Click((float(x), float(y)), bool(label)) for (x, y), label in zip(places, marks, strict=True))


def _box(found: Any, scale: Sequence[int]) -> Box:
    corners = _as_array(found).reshape(-1)
    if corners.shape != (4,):
        raise InputError(f"box: found {corners.size} numbers, expected x0, y0, x1, y1")
    left, top, right, bottom = (corners * (*scale, *scale)).tolist()
    return Box(left, top, right - left, bottom - top)


def _as_array(found: Any) -> npt.NDArray[Any]:
    return found.detach().cpu().numpy() if isinstance(found, Tensor) else np.asarray(found)


def _logits(tracked: Tracked, ids: list[int]) -> Tensor:
    """The logits [O, 1, H, W] of a frame, in the order of ids."""
    logs = tracked.prob.clamp(min=_LEAST).log()  # [1 + O, H, W]
    first, second = logs[0], torch.full_like(logs[0], -math.inf)
    for plane in logs[1:]:
        first, second = torch.maximum(first, plane), torch.maximum(second, torch.minimum(first, plane))
    logits = torch.stack([logs[1 + tracked.ids.index(one)] for one in ids])
    logits -= torch.where(logits == first, second, first)
    for one, mask in tracked.given.items():
        logits[ids.index(one)] = _certain(mask.to(logits.device))
    return logits[:, None]


def _certain(masks: Tensor) -> Tensor:
    """The logits of masks that are known."""
    return torch.where(masks, _CERTAIN, -_CERTAIN)
