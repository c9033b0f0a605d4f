"""The images, masks and subfolders of a folder. Hidden entries are ignored."""

import os
import re
from collections.abc import Collection
from glob import glob
from pathlib import Path

from stm_fast.errors import InputError, reading

# compared without regard to case, as in ".PNG"
_TIFF_SUFFIXES = frozenset({".tif", ".tiff"})
_IMAGE_SUFFIXES = frozenset({".jpg", ".jpeg", ".png", ".webp"}) | _TIFF_SUFFIXES
_MASK_SUFFIX = ".png"
_ANNOTATION_SUFFIX = ".json"


def list_images(folder: Path) -> list[Path]:
    """The jpg, png, webp and tif files of a folder, in the natural order of their names.

    Raises InputError if the folder cannot be read or has a broken link.
    """
    return _files(folder, _IMAGE_SUFFIXES)


def is_image(name: str) -> bool:
    """Whether a file of this name is one of the images that folders are searched for."""
    return Path(name).suffix.lower() in _IMAGE_SUFFIXES


def glob_images(pattern: str) -> list[Path]:
    """The jpg, png, webp and tif files whose paths match a pattern, as "frames/*.png", in natural order.

    Raises InputError if there is none.
    """
    found = [Path(match) for match in glob(pattern, recursive=True)]
    images = [file for file in found if is_image(file.name) and not file.is_dir()]
    if not images:
        what = f"only {found[0]}" if found else "no such file"
        raise InputError(f"{pattern}: found {what}, expected jpg, png, webp or tif images that match this pattern")
    return sorted(images, key=lambda file: natural_key(str(file)))


def list_masks(folder: Path) -> list[Path]:
    """The masks of a folder, see `split_masks`."""
    return split_masks(folder)[0]


def split_masks(folder: Path) -> tuple[list[Path], list[Path]]:
    """The PNGs of a folder in natural order, or else its TIFFs, or else all images; and its other images.

    Raises InputError as `list_images` does, and for two masks with the same stem.
    """
    images = list_images(folder)
    masks = _masks_of(images)
    taken = set(by_stem(masks).values())
    return masks, [file for file in images if file not in taken]


def list_annotations(folder: Path) -> list[Path]:
    """The json files of a folder in natural order. Raises InputError as `list_images` does."""
    return _files(folder, {_ANNOTATION_SUFFIX})


def _masks_of(images: list[Path]) -> list[Path]:
    for suffixes in ({_MASK_SUFFIX}, _TIFF_SUFFIXES):
        if masks := [file for file in images if file.suffix.lower() in suffixes]:
            return masks
    return images


def by_stem(files: Collection[Path]) -> dict[str, Path]:
    """Files by stem. Raises InputError if two have the same."""
    named: dict[str, Path] = {}
    for file in files:
        twin = named.setdefault(file.stem, file)
        if twin is not file:
            raise InputError(f"{file}: same name as {twin}, but for the suffix; expected one file of each name")
    return named


def mask_of(folder: Path, name: str) -> Path:
    """The mask with this stem in a folder; if there is none, the path that it would have."""
    usual = folder / f"{name}{_MASK_SUFFIX}"
    if usual.exists() or not folder.is_dir():
        return usual
    return mask_among(list_images(folder), name) or usual


def mask_among(images: list[Path], name: str) -> Path | None:
    """The mask with this stem among images; None if there is none. Raises InputError for two of the same stem."""
    return by_stem(_masks_of([file for file in images if file.stem == name])).get(name)


def list_folders(folder: Path) -> list[Path]:
    """The subfolders of a folder, sorted by name. Raises InputError as `list_images` does."""
    with reading(folder), os.scandir(folder) as entries:
        found = [entry for entry in entries if entry.name[0] != "."]
        for entry in found:
            _check_not_broken(entry)
        return sorted(Path(entry.path) for entry in found if entry.is_dir())


def natural_key(name: str) -> tuple[list[str | int], str]:
    """Sort key that compares numbers in names by value: "frame2" before "frame10"."""
    parts = re.split(r"(\d+)", name.lower())
    return [int(part) if at % 2 else part for at, part in enumerate(parts)], name


def _files(folder: Path, suffixes: Collection[str]) -> list[Path]:
    with reading(folder), os.scandir(folder) as entries:
        found = [entry for entry in entries if entry.name[0] != "." and Path(entry.name).suffix.lower() in suffixes]
        for entry in found:
            _check_not_broken(entry)
        files = [Path(entry.path) for entry in found if not entry.is_dir()]
    return sorted(files, key=lambda file: natural_key(file.name))


def _check_not_broken(entry: os.DirEntry[str]) -> None:
    """Raises InputError for a broken link: otherwise nobody would notice that a frame or a sequence is missing."""
    if entry.is_symlink() and not os.path.exists(entry.path):
        raise InputError(f"{entry.path}: found a broken link to {os.readlink(entry.path)}")
