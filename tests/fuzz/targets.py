"""The fuzz targets: for every reader its samples, their mutations, and how it is called and checked."""

import json
import struct
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache
from itertools import islice
from pathlib import Path
from random import Random
from typing import TYPE_CHECKING
from unittest.mock import patch

import numpy as np

from fuzz import containers, samples
from fuzz.containers import Mutation, either
from fuzz.mutate import mutated_bytes, mutated_json, mutated_text
from fuzz.samples import Files

if TYPE_CHECKING:
    from stm_fast.video import FrameReader

_MOST_FRAMES = 40
_BY_SUFFIX: dict[str, Mutation] = {
    ".png": either(containers.png),
    ".jpg": either(containers.jpeg),
    ".webp": either(containers.riff),
    ".avi": either(containers.riff),
    ".mp4": either(containers.boxes),
    ".safetensors": either(containers.safetensors),
    ".pth": either(containers.zipped),
    ".pt": either(containers.zipped, 0.9),
    ".mat": either(containers.mat),
    ".json": mutated_json,
    **dict.fromkeys((".yaml", ".txt", ".csv", ".jsonl"), mutated_text),
}


@dataclass(frozen=True)
class Target:
    """A reader.

    Attributes:
        name: of the reader.
        read: reads the files of a folder and checks the result; raises AssertionError if that cannot be right.
        samples: valid files.
        changed: files whose names contain one of these are mutated; all files if it is empty.
        needs: modules that it requires.
        cases: how many `make test` runs; they take a second or two.
        sealed: whether half of the mutated JSON gets a matching checksum, as an attacker would write it.
    """

    name: str
    read: Callable[[Path], None]
    samples: Callable[[], list[Files]]
    changed: tuple[str, ...] = ()
    needs: tuple[str, ...] = ()
    cases: int = 100
    sealed: bool = False

    def valid(self) -> list[Files]:
        """The samples, made once."""
        return _made(self.samples)


def case(target: Target, seed: int, number: int) -> Files:
    """The files of a case: always the same for a target, seed and number."""
    draw = Random(f"{target.name} {seed} {number}")
    known = target.valid()
    files = dict(draw.choice(known))
    wanted = sorted(file for file in files if not target.changed or any(part in file for part in target.changed))
    for file in draw.sample(wanted, 2) if len(wanted) > 1 and draw.random() < 0.1 else [draw.choice(wanted)]:
        others = [content for sample in known for other, content in sample.items() if other.endswith(Path(file).suffix)]
        files[file] = _BY_SUFFIX.get(Path(file).suffix, mutated_bytes)(files[file], draw, others)
        if target.sealed and draw.random() < 0.5:
            files[file] = _sealed(files[file])
    return files


def _sealed(record: bytes) -> bytes:
    from stm_fast.record_file import CHECKSUM, with_checksum

    try:
        content = json.loads(record)
    except (ValueError, RecursionError):
        return record
    if not isinstance(content, dict):
        return record
    content.pop(CHECKSUM, None)
    return json.dumps(with_checksum(content)).encode()


@cache
def _made(samples: Callable[[], list[Files]]) -> list[Files]:
    return samples()


def _read_video(folder: Path) -> None:
    from stm_fast.video import open_frames

    reader = open_frames(next(folder.iterdir()))
    count = _count(reader)
    # a decoder silently drops frames of a damaged file, which the reader reports; it never adds any
    stated = reader.frame_count
    assert count is None or stated is None or count <= stated, f"{count} frames, but {stated} are stated"
    if count is not None:
        _compare_directions(reader)


def _read_pictures(folder: Path) -> None:
    from stm_fast.video import open_frames

    reader = open_frames(folder / "frames")
    count = _count(reader)
    assert count == reader.frame_count


def _count(reader: object) -> int | None:
    """The number of frames; None if there are more than are read."""
    count = 0
    for frame in islice(reader, _MOST_FRAMES):
        assert frame.image.dtype == np.uint8
        assert frame.image.shape == (reader.height, reader.width, 3)
        assert frame.index == count
        count += 1
    return None if count == _MOST_FRAMES else count


def _compare_directions(reader: "FrameReader") -> None:
    """Not pixels: those that a decoder could not decode are what was in its memory."""
    with patch("stm_fast.video.rewind.HELD_BYTES", 1):  # a few frames
        backward = [(frame.index, frame.time, frame.name) for frame in reader.backward()]
    assert [(frame.index, frame.time, frame.name) for frame in reader] == backward[::-1]


def _read_mask(folder: Path) -> None:
    from stm_fast.video import read_mask

    file = next(folder.iterdir())
    mask, head = read_mask(file), file.read_bytes()[:24]
    assert mask.ids.dtype == np.uint8
    assert mask.ids.ndim == 2
    if head[:4] == b"\x89PNG" and head[12:16] == b"IHDR":
        assert sorted(mask.ids.shape) == sorted(struct.unpack(">II", head[16:24]))  # an orientation may rotate it
    assert mask.palette is None or len(mask.palette) <= 768


def _find_masks(folder: Path) -> None:
    from stm_fast.runs.given import find_masks, match_masks
    from stm_fast.video import open_frames

    reader = open_frames(folder / "frames")
    given = match_masks(find_masks(folder / "masks", reader.path), reader)
    assert set(given.ids) == {0, 2}


def _find_annotations(folder: Path) -> None:
    from stm_fast.runs.given import find_masks, match_masks
    from stm_fast.video import open_frames

    reader = open_frames(folder / "frames")
    (masks,) = (path for path in folder.iterdir() if path.name != "frames")
    given = match_masks(find_masks(masks, reader.path), reader)
    for index, objects in given.ids.items():
        ids = given.read(index)
        assert ids.shape == (reader.height, reader.width)
        assert sorted({*ids.ravel().tolist()} - {0}) == objects
        assert 0 <= index < reader.frame_count


def _read_boxes(folder: Path) -> None:
    from stm_fast.boxes import read_boxes

    for box, object_id, frame, _ in read_boxes(next(folder.iterdir())):
        assert all(type(number) is float for number in box)
        assert object_id is None or 1 <= object_id <= 255
        assert isinstance(frame, str)


def _read_coco(folder: Path) -> None:
    from stm_fast.data.coco import CocoSource

    source = CocoSource(folder / "pictures", folder / "instances.json")
    for index in range(len(source)):
        shot = source.frame(index, 0)
        assert shot.ids.dtype == np.uint8
        assert shot.ids.shape == shot.read(1).shape[:2]


def _read_mat(folder: Path) -> None:
    from stm_fast.data.sbd import read_mat

    ids = read_mat(folder / "a.mat")
    assert ids.dtype == np.uint8
    assert ids.ndim == 2
    assert ids.size <= (folder / "a.mat").stat().st_size * 1100  # zlib does not compress more


def _read_config(folder: Path) -> None:
    from stm_fast.training.config_file import read_config

    read_config(folder / "run.yaml")


def _read_sets(folder: Path) -> None:
    from stm_fast.data.sequences import davis16, davis17
    from stm_fast.data.sequences import folder as any_data

    lists = {"ImageSets/2017/val.txt": davis17, "ImageSets/val.txt": any_data}
    read = next((read for name, read in lists.items() if (folder / name).exists()), davis16)
    _check_sequences(read(folder, "val"), folder)


def _read_meta(folder: Path) -> None:
    from stm_fast.data.sequences import youtube_vos

    _check_sequences(youtube_vos(folder, "valid"), folder)


def _check_sequences(sequences: Sequence, root: Path) -> None:
    for sequence in sequences:
        assert sequence.name in ("bear", "car two")
        assert sequence.frames.is_relative_to(root)
        assert all(isinstance(name, str) for name in sequence.required or ())
        for name in sequence.annotated:
            sequence.read_annotation(name)


def _read_checkpoint(folder: Path) -> None:
    import torch

    from stm_fast.network.checkpoint import architecture_of, load_checkpoint

    file = next(folder.iterdir())
    architecture = architecture_of(file)
    network = _network()
    if architecture == network.architecture:
        load_checkpoint(network, file)
        assert all(tensor.isfinite().all() for tensor in network.state_dict().values()), "weights that are not finite"
        assert all(type(tensor) in (torch.Tensor, torch.nn.Parameter) for tensor in network.state_dict().values())


@cache
def _network():
    from stm_fast.network import STM

    return STM("resnet18_half", 8, 8, 8)


def _resume(folder: Path) -> None:
    import torch

    from stm_fast.runs.checkpoint import Checkpoint, Position
    from stm_fast.runs.ranks import Ranks

    checkpoint = Checkpoint(folder, samples.RUN, Ranks())
    position = checkpoint.find()
    if position is None:
        return
    state: dict[str, torch.Tensor] = {}
    checkpoint.restore(position, state.update)
    written = samples.resume_state()
    assert position == Position(3, False, [1, 7]), f"a position that was never written: {position}"
    assert state.keys() == written.keys(), "entries that were never written"
    for name, tensor in written.items():
        assert state[name].dtype == tensor.dtype, f"{name}: another dtype than was written"
        assert torch.equal(state[name], tensor), f"{name}: other numbers than were written"


def _read_run(folder: Path) -> None:
    from stm_fast.data.sequences import Objects
    from stm_fast.data.sequences import Sequence as Video
    from stm_fast.evaluation.benchmark_sets import claim_output, read_timings
    from stm_fast.evaluation.record import speed

    claim_output(folder, samples.RUN)
    timings = read_timings([Video("bear", None, folder, Objects.ALL)], folder)
    speed(timings)


def _read_table(folder: Path) -> None:
    from stm_fast.runs.object_table import ObjectTable, sights

    for sight in sights(folder):
        assert sight.lost + sight.doubtful <= sight.frames
    ObjectTable(folder, range(2)).close()
    assert all(sight.frames <= 10**6 for sight in sights(folder))


def _read_log(folder: Path) -> None:
    from stm_fast.training.log import read_log

    assert all(isinstance(line, dict) for line in read_log(folder / "log.jsonl"))


def _read_training(folder: Path) -> None:
    from stm_fast.training.resuming import state_of

    state_of(folder / "checkpoint.pt", samples.training_config())


def _read_record(folder: Path) -> None:
    from stm_fast.benchmarking.records import ReadRow, read_record

    read_record(folder / "record.json", ReadRow).to_json()


def _read_frame_record(folder: Path) -> None:
    from stm_fast.benchmarking.records import FrameRow, read_record
    from stm_fast.benchmarking.report import by_workload

    by_workload(read_record(folder / "record.json", FrameRow).rows)


_ALL = (
    Target("video", _read_video, samples.videos, needs=("av",)),
    Target("stack", _read_video, samples.stacks),
    Target("pictures", _read_pictures, samples.picture_folders, changed=("00001",)),
    Target("mask", _read_mask, samples.masks, cases=300),
    Target("masks", _find_masks, samples.mask_folders, changed=("masks/",)),
    Target(
        "annotations", _find_annotations, samples.annotations, changed=("masks",), needs=("pycocotools",), cases=300
    ),
    Target("pages", _find_annotations, samples.pages, changed=("masks",), cases=200),
    Target("boxes", _read_boxes, samples.boxes, cases=300),
    Target("checkpoint", _read_checkpoint, samples.checkpoints, cases=60),
    Target("config", _read_config, samples.configs, needs=("yaml",), cases=60),
    Target("coco", _read_coco, samples.coco, changed=(".json",), needs=("pycocotools",)),
    Target("mat", _read_mat, samples.mats, cases=300),
    Target("sets", _read_sets, samples.sets, changed=("ImageSets",)),
    Target("meta", _read_meta, samples.metas, changed=("meta.json",)),
    Target("resume", _resume, samples.resumes),
    Target("run", _read_run, samples.run_records, sealed=True),
    Target("objects", _read_table, samples.object_tables, cases=300),
    Target("log", _read_log, samples.logs, cases=300),
    Target("training", _read_training, samples.trainings, needs=("yaml",)),
    Target("record", _read_record, samples.benchmark_records, cases=300, sealed=True),
    Target("frame-record", _read_frame_record, samples.frame_records, sealed=True),
)
TARGETS = {target.name: target for target in _ALL}
