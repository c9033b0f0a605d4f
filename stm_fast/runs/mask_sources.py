"""The masks that a user gives, in any form: each is found by its content, and read when its frame comes."""

import codecs
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from types import MappingProxyType
from typing import Any, NamedTuple, TypeGuard

import numpy as np
import numpy.typing as npt
from torch import Tensor

from stm_fast.boxes import MAX_ID, ByFrame
from stm_fast.errors import InputError, option, reading, require_present, shown
from stm_fast.listing import list_annotations, split_masks
from stm_fast.store import StoreUrl
from stm_fast.text_file import read_json
from stm_fast.video import MaskImage, read_mask
from stm_fast.video.coco_annotations import read_coco, read_youtube_vis
from stm_fast.video.drawn_mask import Annotations
from stm_fast.video.image_file import TIFF_STARTS
from stm_fast.video.labelme import read_labelme
from stm_fast.video.mask_image import resized
from stm_fast.video.mask_pages import MaskPages
from stm_fast.video.mask_size import check_mask_size
from stm_fast.whole_file import same_file

# a file, one in a store, or ids [H, W]
Mask = str | Path | StoreUrl | npt.NDArray[Any] | Tensor
# of one frame, of all in a folder or file, or by frame: its index or name
Masks = Mask | ByFrame[Mask]

_EXPECTED = "expected a file of COCO, YouTube-VIS or LabelMe"
_JSON_STARTS = (b"{", b"[")
_HEAD = 64  # bytes


class MaskSource(NamedTuple):
    """The mask of one frame.

    Attributes:
        label: names it in messages.
        read: the mask for frames of W, H; raises InputError.
        exact: whether 255 is the id of an object, as any other; in images it may be void, or white.
        may_be_empty: whether a mask without objects is none, and not an error.
    """

    label: str
    read: Callable[[tuple[int, int]], MaskImage]
    exact: bool = False
    may_be_empty: bool = False


class FoundMasks(NamedTuple):
    """The masks of a video, before its frames are known.

    Attributes:
        label: what was given, for messages.
        masks: by frame, its name or index; None for a single mask that does not name one.
        single: whether this is the mask of one frame, which it may not name.
        files: those that are not frames of the video.
        others: images next to them, which are not masks.
        names: of objects, by id.
        notes: how the masks were interpreted.
    """

    label: str
    masks: dict[str | int | None, MaskSource]
    single: bool = False
    files: tuple[Path, ...] = ()
    others: tuple[Path, ...] = ()
    names: Mapping[int, str] = MappingProxyType({})
    notes: tuple[str, ...] = ()


def find_masks(given: Masks | None, source: Path) -> FoundMasks:
    """The masks that a user gives for the video `source`.

    Args:
        given: a file: an image that `read_mask` accepts, a TIFF whose page i is the mask of frame i, annotations of
            COCO or YouTube-VIS, or of LabelMe for one frame; a folder of images or of LabelMe files that are named
            after frames; object ids [H, W] of any integer or boolean dtype; or a mapping from frames, by index or
            name, to files or object ids. None if there are only boxes.

    Raises:
        InputError: no such file or folder, another content, two masks of one name, or a mask is the video itself.
    """
    if given is None:
        return FoundMasks("", {})
    if isinstance(given, Mapping):
        return _found_by_frame(given, source)
    if not isinstance(given, str | Path | StoreUrl):
        label = option("masks")
        return FoundMasks(label, {None: _array(given, label)}, single=True)
    path = Path(str(given))
    require_present(path, "mask file or folder of masks")
    found = _found_in_file(path, source) if path.is_file() else _found_in_folder(path, source)
    for file in found.files:
        if same_file(file, source):
            raise InputError(f"{file}: found as video and as mask, expected two files")
    return found


def _found_by_frame(given: ByFrame[Mask], source: Path) -> FoundMasks:
    masks: dict[str | int | None, MaskSource] = {}
    files: list[Path] = []
    for frame, mask in given.items():
        label = f"{option('masks')}: frame {shown(frame)}"
        if type(frame) is bool or not isinstance(frame, int | str | np.integer):
            raise InputError(f"{label}: expected the index or the name of a frame")
        key = frame if isinstance(frame, str) else int(frame)
        if isinstance(mask, str | Path | StoreUrl):
            found = find_masks(mask, source)
            if not found.single:
                raise InputError(f"{found.label}: given for frame {shown(frame)}, expected a mask of one frame")
            masks[key] = next(iter(found.masks.values()))
            files += found.files
        else:
            masks[key] = _array(mask, label)
    return FoundMasks(option("masks"), masks, files=tuple(files))


def _found_in_folder(folder: Path, source: Path) -> FoundMasks:
    """LabelMe files, which may be next to the images that they were drawn on; or else images."""
    labelme = _labelme_in(folder)
    files, others = split_masks(folder)
    if labelme:
        found = _drawn(str(folder), read_labelme(labelme))
        ignored = [] if same_file(folder, source) else [*files, *others]
        notes = [f"{ignored[0]}: ignored, because next to it are files of LabelMe"] if ignored else []
        return found._replace(notes=(*notes, *found.notes), single=False)
    # in the folder of the video, the other images are its frames
    ignored = [] if same_file(folder, source) else others
    masks: dict[str | int | None, MaskSource] = {file.stem: _image(file) for file in files}
    return FoundMasks(str(folder), masks, files=tuple(files), others=tuple(ignored))


def _labelme_in(folder: Path) -> dict[Path, Any]:
    """The contents of a folder's LabelMe files. Raises InputError if there are some, and another json is damaged."""
    found: dict[Path, Any] = {}
    damaged: list[InputError] = []
    for file in list_annotations(folder):
        try:
            content = read_json(file, "a file of LabelMe")
        except InputError as error:
            damaged.append(error)
        else:
            found |= {file: content} if _is_labelme(content) else {}
    if found and damaged:
        raise damaged[0]
    return found


def _found_in_file(file: Path, source: Path) -> FoundMasks:
    with reading(file), file.open("rb") as opened:
        head = opened.read(_HEAD).removeprefix(codecs.BOM_UTF8).lstrip()
    if head.startswith(_JSON_STARTS):
        return _found_in_json(file, source)
    if head.startswith(TIFF_STARTS):
        pages = MaskPages(file)
        if pages.count > 1:
            masks: dict[str | int | None, MaskSource] = {
                page: MaskSource(f"{file}: page {page}", partial(pages.read, page), may_be_empty=True)
                for page in range(pages.count)
            }
            return FoundMasks(str(file), masks, files=(file,))
    return FoundMasks(str(file), {file.stem: _image(file)}, single=True, files=(file,))


def _found_in_json(file: Path, source: Path) -> FoundMasks:
    content = read_json(file, _EXPECTED.removeprefix("expected "))
    video = source.resolve().name if source.is_dir() else source.stem
    if _is_labelme(content):
        found = _drawn(str(file), read_labelme({file: content}))
    elif isinstance(content, dict) and "annotations" in content and "videos" in content:
        return _drawn(str(file), read_youtube_vis(content, file, video))._replace(single=False)
    elif isinstance(content, dict) and "annotations" in content and "images" in content:
        found = _drawn(str(file), read_coco(content, file, video))
    else:
        keys = f"the keys {shown([*content])}" if isinstance(content, dict) else shown(content)
        raise InputError(f"{file}: found JSON with {keys}, {_EXPECTED}")
    if not found.masks:
        raise InputError(f"{file}: no shape in this file, {_EXPECTED} with some")
    return found


def _is_labelme(content: object) -> TypeGuard[dict[str, Any]]:
    return isinstance(content, dict) and "shapes" in content and "annotations" not in content


def _drawn(label: str, annotations: Annotations) -> FoundMasks:
    masks: dict[str | int | None, MaskSource] = {
        frame: MaskSource(mask.label, mask.read, exact=True, may_be_empty=True)
        for frame, mask in annotations.masks.items()
    }
    return FoundMasks(label, masks, len(masks) == 1, names=annotations.names, notes=annotations.notes)


def _image(file: Path) -> MaskSource:
    return MaskSource(str(file), partial(read_mask, file))


def _array(given: Mask, label: str) -> MaskSource:
    """A copy of object ids [H, W]. Raises InputError for another shape or dtype, or ids that are not from 0 to 255."""
    values = given.detach().cpu().numpy() if isinstance(given, Tensor) else np.asarray(given)
    if values.ndim != 2 or values.dtype.kind not in "biu" or not values.size:
        found = f"{values.dtype} of shape {values.shape}"
        raise InputError(f"{label}: found {found}, expected a file, or object ids [H, W] as whole numbers")
    least, most = int(values.min()), int(values.max())
    if least < 0 or most > MAX_ID:
        raise InputError(f"{label}: found values from {least} to {most}, expected object ids from 0 to {MAX_ID}")
    mask = MaskImage(values.astype(np.uint8), None)

    def read(size: tuple[int, int]) -> MaskImage:
        check_mask_size(label, values.shape[::-1], size)
        return resized(mask, size)

    return MaskSource(label, read)
