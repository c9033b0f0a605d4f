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

from stm_fast.errors import InputError, option, reason_of, refusing, shown_text
from stm_fast.network.device import choose_device
from stm_fast.network.places import Repository, find_weights
from stm_fast.page.prompts import Bools, Picture, Point, Region, area_of
from stm_fast.video.click import connected_change
from stm_fast.video.first_mask import FirstMask, bounds, check_click, require_opencv

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
            allow_network: download what the cache of the hub lacks; a folder never needs the network.
            device: "auto", "cpu", "cuda" or "cuda:N".

        Raises:
            InputError: transformers or the weights are missing, they are not those of SAM 2, or no such device.
        """
        name = option("prompter_weights")
        if weights is None:
            raise InputError(f"{name}: found none, expected a folder with weights of SAM 2 for transformers")
        place = find_weights(weights)
        library = _transformers()
        require_opencv()
        source: dict[str, Any] = {"local_files_only": not (isinstance(place, Repository) and allow_network)}
        path, hint = str(weights), ""
        if isinstance(place, Repository):
            path, source["revision"] = place.name, place.revision
            hint = "" if allow_network else f", or {option('allow_network', True)} to download them"
        expected = f"expected weights of SAM 2 for transformers{hint}"
        with refusing(f"{name}: found {shown_text(str(weights))}, {expected}"), _without_progress(library):
            model = library.Sam2Model.from_pretrained(path, use_safetensors=True, dtype=torch.float32, **source)
            processor = library.Sam2Processor.from_pretrained(path, **source)
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
            pixels = self._processor(images=image, return_tensors="pt")["pixel_values"]
            self._last = image.copy(), self._model.get_image_embeddings(pixels.to(self._model.device))
        return self._last[1]

    def _as_input(self, shown: Bools) -> Tensor:
        """The logits [1, 1, h, w] of a mask, at the size that the network takes."""
        mask = torch.from_numpy(shown).to(self._model.device)[None, None].float()
        size = tuple(self._model.prompt_encoder.mask_input_size)
        small = torch.nn.functional.interpolate(mask, size, mode="bilinear", align_corners=False, antialias=True)
        return (2 * small - 1) * _CERTAIN


def _transformers() -> Any:
    """The library. Raises InputError, which says how to install it, if it is missing or too old for SAM 2."""
    try:
        library = import_module("transformers")
        _ = library.Sam2Model, library.Sam2Processor
    except (ImportError, AttributeError, RuntimeError) as error:  # RuntimeError: one of its own imports failed
        why = f"the prompter sam2 needs transformers with SAM 2, which cannot be imported ({reason_of(error)})"
        raise InputError(f"{why}: pip install 'stm_fast[sam2]'") from error
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
