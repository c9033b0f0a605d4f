"""Masks of boxes, lassos and clicks by SAM 2 (Ravi et al., 2024), through transformers, with weights that the user has.

H x W pixels; places x, y are in pixels from the upper left corner of the frame.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from importlib import import_module
from pathlib import Path
from threading import Lock
from typing import Any, Self

import numpy as np
import torch
from torch import Tensor

from stm_fast.clicks.regions import Point, Region, area_of
from stm_fast.errors import InputError, option, reason_of, refusing, shown_text
from stm_fast.network.device import choose_device
from stm_fast.network.places import Repository, repository
from stm_fast.versions import how_to_install
from stm_fast.video.click import connected_change
from stm_fast.video.first_mask import FirstMask, bounds, check_click, require_opencv
from stm_fast.video.grabcut import Bools, Picture

_WEIGHTS = option("prompter_weights")
_EXPECTED = "expected a folder with weights of SAM 2 for transformers, or user/repo on the Hugging Face hub"
# the logit of a given mask
_CERTAIN = 10.0


class Sam2Prompter:
    """A Prompter with a SAM 2 network; the features of the last frame are kept, so that only the first answer is slow.

    Args:
        model: a `transformers.Sam2Model`.
        processor: its `transformers.Sam2Processor`.
    """

    clicks_alone = True

    def __init__(self, model: Any, processor: Any) -> None:
        self._model, self._processor = model.eval(), processor
        self._last: tuple[Picture, list[Tensor]] | None = None
        self._one_at_a_time = Lock()

    @classmethod
    def load(cls, weights: str | Path | None, allow_network: bool = False, device: str = "auto") -> Self:
        """A prompter with weights in safetensors.

        Args:
            weights: a folder that `Sam2Model.save_pretrained` wrote, or a repository of the Hugging Face hub, such as
                facebook/sam2.1-hiera-tiny.
            allow_network: download a repository that the cache of the hub lacks.
            device: "auto", "cpu", "cuda" or "cuda:N".

        Raises:
            InputError: transformers or the weights are missing, they are not those of SAM 2, or no such device.
        """
        if weights is None:
            raise InputError(f"{_WEIGHTS}: found none, {_EXPECTED}")
        library = _transformers()
        place = _place_of(weights)
        require_opencv()
        with refusing(f"{_WEIGHTS}: found {shown_text(str(weights))}, {_EXPECTED}"), _without_progress(library):
            try:
                parts = _load(library, place, local_files_only=True)
            except OSError:  # not all of its files are here
                if not isinstance(place, Repository):
                    raise
                _require_repository(place, allow_network)
                parts = _load(library, place, local_files_only=False)
        model, processor = parts
        return cls(model.to(choose_device(device)), processor)

    def from_region(self, image: Picture, region: Region) -> FirstMask:
        """A new mask. For a lasso, it is what the network finds in the box around it, as far as it is enclosed."""
        area = area_of(region, (image.shape[1], image.shape[0]))
        found = self._answer(image, input_boxes=[[list(map(float, bounds(area)))]])
        if region.box is None:
            found &= area
        return FirstMask(found, True) if found.any() else FirstMask(area, False)

    def from_click(self, image: Picture, shown: Bools, point: Point, add: bool) -> Bools:
        """The mask, corrected near a click; without a mask, that of the object under the click."""
        check_click(point, (image.shape[1], image.shape[0]))
        if not (add or shown.any()):
            return shown.copy()
        click = {"input_points": [[[list(map(float, point))]]], "input_labels": [[[int(add)]]]}
        found = self._answer(image, shown if shown.any() else None, **click)
        changed = connected_change(found & ~shown if add else shown & ~found, point)
        return shown | changed if add else shown & ~changed

    def _answer(self, image: Picture, shown: Bools | None = None, **prompt: Any) -> Bools:
        """The likeliest mask [H, W] of a prompt, which may start from the one that is shown."""
        size = image.shape[:2]
        inputs = self._processor(original_sizes=[list(size)], return_tensors="pt", **prompt).to(self._model.device)
        del inputs["original_sizes"]
        if shown is not None:
            inputs["input_masks"] = self._as_input(shown)
        with self._one_at_a_time, torch.inference_mode():
            features = self._features(image)
            # a click alone may mean the object or a part of it
            several = shown is None and "input_boxes" not in inputs
            output = self._model(image_embeddings=features, multimask_output=several, **inputs)
            best = int(output.iou_scores[0, 0].argmax())
            logits = output.pred_masks[:, 0, best : best + 1].float()
            logits = torch.nn.functional.interpolate(logits, size, mode="bilinear", align_corners=False)
        found: Bools = (logits[0, 0] > 0).cpu().numpy()
        return found

    def _features(self, image: Picture) -> list[Tensor]:
        if self._last is None or not np.array_equal(self._last[0], image):
            kept = image.copy()
            pixels = self._processor(images=kept, return_tensors="pt")["pixel_values"]
            self._last = kept, self._model.get_image_embeddings(pixels.to(self._model.device))
        return self._last[1]

    def _as_input(self, shown: Bools) -> Tensor:
        """The logits [1, 1, h, w] of a mask, at the size that the network takes."""
        mask = torch.from_numpy(shown.copy()).to(self._model.device)[None, None].float()
        size = tuple(self._model.prompt_encoder.mask_input_size)
        small = torch.nn.functional.interpolate(mask, size, mode="bilinear", align_corners=False, antialias=True)
        return (2 * small - 1) * _CERTAIN


def _place_of(weights: str | Path) -> Path | Repository:
    """The folder or the repository that is named. Raises InputError if it cannot be either."""
    if Path(weights).is_dir():
        return Path(weights)
    try:
        return repository(str(weights))
    except InputError:
        raise InputError(f"{_WEIGHTS}: found {shown_text(str(weights))}, {_EXPECTED}") from None


def _load(library: Any, place: Path | Repository, **options: Any) -> tuple[Any, Any]:
    """The model and its processor. Raises OSError if a file of them is missing."""
    name = str(place)
    if isinstance(place, Repository):
        name, options["revision"] = place.name, place.revision
    model = library.Sam2Model.from_pretrained(name, use_safetensors=True, dtype=torch.float32, **options)
    return model, library.Sam2Processor.from_pretrained(name, **options)


def _require_repository(place: Repository, allow_network: bool) -> None:
    """Downloads the weights. Raises InputError at once if that is not allowed, or impossible."""
    if not allow_network:
        hint = f"expected one that is, or {option('allow_network', True)} to download it"
        raise InputError(f"{_WEIGHTS}: found {place}, which is not in the cache of the hub, {hint}")
    from stm_fast.network.hub import download

    try:
        download(place)
    except InputError as error:
        raise InputError(f"{_WEIGHTS}: {error}") from error


def _transformers() -> Any:
    """The library. Raises InputError, which says how to install it, if it is missing or too old for SAM 2."""
    try:
        library = import_module("transformers")
        _ = library.Sam2Model, library.Sam2Processor
    except (ImportError, AttributeError, RuntimeError) as error:  # RuntimeError: one of its own imports failed
        why = f"the prompter sam2 needs transformers with SAM 2, which cannot be imported ({reason_of(error)})"
        raise InputError(f"{why}: {how_to_install('sam2')}") from error
    return library


@contextmanager
def _without_progress(library: Any) -> Iterator[None]:
    """The library prints no bars while it loads weights."""
    shown = library.utils.logging.is_progress_bar_enabled()
    library.utils.logging.disable_progress_bar()
    try:
        yield
    finally:
        if shown:
            library.utils.logging.enable_progress_bar()
