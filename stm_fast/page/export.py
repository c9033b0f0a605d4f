"""Exports a project: what `--write` of a run writes, made of the masks that are shown.

O objects, H x W the frames of the video.
"""

from collections.abc import Callable, Collection, Sequence
from contextlib import closing, suppress
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from stm_fast.choices import Result
from stm_fast.errors import InputError
from stm_fast.inference.sightings import Sighting
from stm_fast.page.project import PageObject, Project
from stm_fast.record_file import write_record_file
from stm_fast.runs.annotations import write_annotations
from stm_fast.runs.environment import environment
from stm_fast.runs.loop import FRAMES_WAITING, BackgroundWriter, Ids, Segmented, prefetch
from stm_fast.runs.output_folder import RUN, OutputOptions, others_in, remove_working_files
from stm_fast.runs.sinks import Results, needs_prob, require_encoders
from stm_fast.video import Frame
from stm_fast.video.excerpt import Excerpt
from stm_fast.whole_file import refuse_links, remove_left_over, whole_folder


class _Stopped(Exception):
    """The user asked to stop."""


def export(
    project: Project,
    folder: Path,
    write: Collection[Result],
    should_stop: Callable[[], bool],
    progress: Callable[[int, int], None],
) -> None:
    """Writes results of the frames between the marks into a folder. An earlier export there is replaced at the end.

    Args:
        project: its masks, probabilities, and names and colors of objects.
        folder: it is absent, or holds nothing but an earlier export.
        write: the results.
        should_stop: asked between frames; the folder then stays as it was.
        progress: called with the number of frames done, and of all.

    Raises:
        InputError: an unknown result, or one that cannot be encoded on this machine; other files in the folder; a frame
            that cannot be decoded; a file that cannot be written. The folder is then unchanged.
    """
    write = OutputOptions(tuple(write)).write
    require_encoders(folder, write)
    _check_replaceable(folder)
    for name in (folder.name, f"{folder.name}.earlier"):
        remove_left_over(folder.parent, name)
    with suppress(_Stopped), whole_folder(folder, replace=True) as partial:
        _Export(project, write).write(partial, should_stop, progress)
        _check_replaceable(folder)


def _check_replaceable(folder: Path) -> None:
    """Raises InputError if the folder holds anything but an export."""
    refuse_links(folder)
    others = others_in(folder)
    if others:
        raise InputError(f"{others[0]}: found among the results of an export, which are replaced; move it elsewhere")


class _Export:
    """One export. Objects that are added or deleted in the meantime do not change it."""

    def __init__(self, project: Project, write: Collection[Result]) -> None:
        self._project, self._write = project, write
        self._objects: Sequence[PageObject] = project.objects
        self._frames = project.marks
        self._known = [one.id for one in self._objects]
        self._keep_prob = needs_prob(write)

    def write(self, folder: Path, should_stop: Callable[[], bool], progress: Callable[[int, int], None]) -> None:
        """Fills an empty folder. Raises _Stopped on request, and InputError as `export` does."""
        reader, total = Excerpt(self._project.reader, self._frames), len(self._frames)
        progress(0, total)
        with Results() as results:
            results.open(folder, reader, self._project.palette, self._write, range(0), 0)
            decoded = prefetch(reader, FRAMES_WAITING)
            with BackgroundWriter(results.write, FRAMES_WAITING) as writer, closing(decoded) as frames:
                for done, frame in enumerate(frames, start=1):
                    if should_stop():
                        raise _Stopped
                    writer.put(self._segmented(frame))
                    progress(done, total)
        names = {one.id: one.name for one in self._objects}
        write_annotations(folder, reader, total, names, self._write)
        self._write_record(folder)
        remove_working_files(folder, self._write)

    def _write_record(self, folder: Path) -> None:
        run = {
            "video": self._project.source.place.name,
            "frames": [self._frames.start, self._frames.stop - 1],
            "given": self._project.given_frames(),
            "write": sorted(self._write),
        }
        objects = {one.id: one.name for one in self._objects}
        record = {"run": run, "frames": len(self._frames), "objects": objects, "environment": environment(None)}
        write_record_file(folder / RUN, record)

    def _segmented(self, frame: Frame) -> Segmented:
        index = self._frames[frame.index]
        shown = self._project.shown(index)
        ids: Ids = np.where(np.isin(shown, self._known), shown, np.uint8(0))
        segmented = Segmented(frame, ids, self._sightings(index, ids))
        if not self._keep_prob:
            return segmented
        channels, prob = self._prob(index, ids)
        return segmented._replace(object_ids=channels, prob=prob)

    def _sightings(self, index: int, ids: Ids) -> list[Sighting]:
        """What was seen of each object, in line with the mask even if someone just edits it."""
        pixels = np.bincount(ids.ravel(), minlength=256).tolist()
        return [
            one._replace(pixels=pixels[one.object_id])
            if pixels[one.object_id]
            else Sighting(one.object_id, 0, 0.0, 0.0, "lost")
            for one in self._project.sightings(index)
            if one.object_id in self._known
        ]

    def _prob(self, index: int, ids: Ids) -> tuple[list[int], Tensor]:
        """The ids of the channels after the background, and the probabilities [1 + O, H, W] float32."""
        soft = {one: plane for one, plane in self._project.soft(index).items() if one in self._known}
        planes = np.stack([np.zeros_like(ids), *soft.values()])[1:]
        return [*soft], _agreeing(_with_background(torch.from_numpy(planes)), [*soft], torch.from_numpy(ids))


def _with_background(soft: Tensor) -> Tensor:
    """Probabilities [1 + O, H, W] that sum to 1, of planes uint8 [O, H, W], 255 times the probability."""
    planes = soft.float() / 255
    planes /= planes.sum(0).clamp(min=1)
    return torch.cat([(1 - planes.sum(0, keepdim=True)).clamp(min=0), planes])


def _agreeing(prob: Tensor, channels: list[int], ids: Tensor) -> Tensor:
    """The probabilities [1 + O, H, W] with the largest one of each pixel given to the object that is shown there.

    They differ where 8 bits rounded, and where an edit came after the tracking.
    """
    table = torch.zeros(256, dtype=torch.int64)
    table[channels] = torch.arange(1, 1 + len(channels))
    shown, likely = table[ids.long()][None], prob.argmax(0, keepdim=True)
    least, most = prob.gather(0, shown), prob.gather(0, likely)
    return prob.scatter(0, likely, least).scatter(0, shown, most)
