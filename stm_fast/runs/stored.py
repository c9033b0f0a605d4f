"""A run whose input or results are in a store, such as s3://bucket/name: it works on local copies, which are mirrored.

Videos are not copied: they are read by ranges. What is copied, and the results while they are made, are in a temporary
folder, which is removed at the end.

The results in a store are those of a finished run if there is a ``run.json``, which is written last and removed first.
Until then the record of the checkpoint, ``.resume.json``, is next to them. It is written after everything that it
names, and what it named before is removed after that, so that a run can be resumed from any machine, whenever this one
stops.

If two processes segment the same video into the same folder, since one was thought lost, each writes whole objects, of
equal bytes on a CPU, and removes only what it wrote or found. Once one has finished, the other writes no more
checkpoints; at its end it writes the same results again. Until then a record may name a state that the other process
has removed, which is reported if such a run is resumed after both have stopped.
"""

import glob
import hashlib
import tempfile
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

from stm_fast.errors import InputError, Message, check_name, option
from stm_fast.frame_source import FrameSource
from stm_fast.listing import is_image
from stm_fast.runs.checkpoint import position_in
from stm_fast.runs.mask_sources import Mask, Masks
from stm_fast.runs.output_folder import (
    ANNOTATIONS,
    RECORD,
    RUN,
    TABLE,
    VIDEOS,
    Job,
    OutputOptions,
    check_output,
    is_of_run,
)
from stm_fast.runs.ranks import Ranks
from stm_fast.store import (
    Facts,
    StoreUrl,
    download,
    entries_in,
    facts_of,
    is_there,
    matches_of,
    naming,
    objects_in,
    place_of,
    remove,
    upload,
    with_urls,
)
from stm_fast.whole_file import LEFT_OVER

_STACKS = (".tif", ".tiff")
# the size and modification time of a file
_Stamp = tuple[int, int]


class LocalJob(NamedTuple):
    """A job with local copies of what it needs from a store.

    Attributes:
        job: a video that is read by ranges keeps its URL.
        folder: for the results.
        saved: called when a checkpoint is complete.
        named: a message with URLs instead of local copies.
    """

    job: Job
    folder: Path
    saved: Callable[[], None]
    named: Callable[[str], Message]


@contextmanager
def stored(job: Job, outputs: OutputOptions, ranks: Ranks) -> Iterator[LocalJob]:
    """The job to run in the block, at whose end the results are in their place; none are if the block raises.

    Raises InputError if the store cannot be read or written, or the output has something else. InputErrors of the block
    name URLs.
    """
    url = job.output
    if isinstance(url, Path):
        with localized(job) as local:
            yield local
        return
    with _copies(job) as copies:
        if ranks.world > 1:
            raise InputError(
                f"{url}: found {ranks.world} processes that share a memory, expected a local output folder"
            )
        check_output(url, outputs.overwrite, job.inputs, resume=outputs.resume)
        mirror = _Mirror(copies.folder_of(url), url)
        mirror.begin(resume=outputs.resume)
        yield LocalJob(copies.localized(job), mirror.folder, mirror.save, copies.named)
        mirror.finish()


@contextmanager
def localized(job: Job) -> Iterator[LocalJob]:
    """As `stored`, for a job whose output is local."""
    assert isinstance(job.output, Path)
    with _copies(job) as copies:
        yield LocalJob(copies.localized(job), job.output, _nothing, copies.named)


@contextmanager
def _copies(job: Job) -> Iterator["_Copies"]:
    """Within the block, there is a folder for copies if the job needs some; InputErrors name URLs."""
    if not any(isinstance(place, StoreUrl) for place in (job.output, *job.inputs)):
        yield _Copies(Path())
        return
    with tempfile.TemporaryDirectory(prefix="stm_fast-", ignore_cleanup_errors=True) as folder:
        copies = _Copies(Path(folder))
        with naming(copies.urls):
            yield copies


class _Copies:
    """Copies of objects below a local folder; those of one folder in a store are in one folder.

    Attributes:
        urls: of the local folders.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self.urls: dict[Path, StoreUrl] = {}

    def folder_of(self, url: StoreUrl) -> Path:
        """The local folder for the objects in a folder."""
        known = next((path for path, one in self.urls.items() if one == url), None)
        if known is None:
            known = self._folder / str(len(self.urls)) / check_name(url.name, str(url))
            self.urls[known] = url
        known.mkdir(parents=True, exist_ok=True)
        return known

    def named(self, message: str) -> Message:
        """A message with URLs."""
        return with_urls(message, self.urls)

    def localized(self, job: Job) -> Job:
        """The job with copies of its images and masks. Raises InputError if they cannot be read."""
        return job._replace(source=self._source(job.source), masks=self._masks(job.masks))

    def _source(self, source: FrameSource) -> FrameSource:
        url = source.url
        if url is None:
            return source
        _refuse_unfinished(url)
        if url.is_pattern:
            return self._pattern(source, url)
        facts = facts_of(url)
        if facts is None:
            return self._images(source, url)
        source = source._replace(identity=_identity(url, {url.name: facts}))
        if url.suffix not in _STACKS:
            return source
        return source._replace(text=str(self._object(url)), kind="path")

    def _pattern(self, source: FrameSource, pattern: StoreUrl) -> FrameSource:
        found = matches_of(pattern)
        folders = {url.parent for url in found}
        if len(folders) != 1 or not all(is_image(url.name) for url in found):
            raise InputError(f"{pattern}: found {len(found)} objects, expected images in one folder that match")
        (parent,) = folders
        assert parent is not None
        folder = self._fetch(parent, [url.name for url in found])
        identity = _identity(pattern, {url.name: facts for url, facts in found.items()})
        last = pattern.name if len(pattern.parts) == len(parent.parts) + 1 else "*"
        return source._replace(text=f"{glob.escape(str(folder))}/{last}", kind="glob", identity=identity)

    def _images(self, source: FrameSource, url: StoreUrl) -> FrameSource:
        found = {name: facts for name, facts in _files_in(url).items() if is_image(name)}
        if not found:
            raise InputError(f"{url}: no such object, and no images below it; expected a video or a folder of images")
        return source._replace(text=str(self._fetch(url, found)), kind="path", identity=_identity(url, found))

    def _masks(self, masks: Masks | None) -> Masks | None:
        if isinstance(masks, Mapping):
            return {frame: self._mask(mask) for frame, mask in masks.items()}
        return None if masks is None else self._mask(masks)

    def _mask(self, mask: Mask) -> Mask:
        if not isinstance(mask, str | Path | StoreUrl):
            return mask
        url = place_of(mask)
        if isinstance(url, Path):
            return url
        _refuse_unfinished(url)
        if facts_of(url) is not None:
            return self._object(url)
        found = _files_in(url)
        if not found:
            raise InputError(f"{url}: no such mask file or folder of masks")
        return self._fetch(url, [name for name in found if is_image(name) or name.lower().endswith(".json")])

    def _object(self, url: StoreUrl) -> Path:
        assert url.parent is not None
        return self._fetch(url.parent, [url.name]) / url.name

    def _fetch(self, url: StoreUrl, names: Iterable[str]) -> Path:
        """The folder with copies of these objects of a folder in a store."""
        folder = self.folder_of(url)
        download({url / name: folder / check_name(name, str(url)) for name in names if not (folder / name).exists()})
        return folder


class _Mirror:
    """Results in a store, equal to those in a local folder at each checkpoint and at the end.

    Only what is of a run is ever replaced or removed.
    """

    def __init__(self, folder: Path, url: StoreUrl) -> None:
        self.folder, self._url = folder, url
        # what is in the store: the stamp of the file that it equals; None for that of an earlier run
        self._there: dict[str, _Stamp | None] = {}
        self._resumed = self._finished = False

    def begin(self, *, resume: bool) -> None:
        """Fetches the run that is to be resumed; of a finished one, only what its summary needs."""
        self._there = dict.fromkeys(filter(is_of_run, objects_in(self._url)))
        if not resume or RECORD not in self._there:
            return
        self._fetch([RECORD])
        self._resumed, self._finished = True, position_in(self.folder).finished
        left_out = {RECORD, RUN, *VIDEOS.values(), *ANNOTATIONS.values()}
        self._fetch([TABLE] if self._finished else [name for name in self._there if name not in left_out])

    def save(self) -> None:
        """After a checkpoint: what is new, then the record, then what is gone."""
        if self._finished_elsewhere():
            return
        self._unmark()
        files = self._files()
        self._put(name for name in files if name not in (RECORD, RUN))
        self._put([RECORD])
        self._remove(self._there.keys() - files)

    def finish(self) -> None:
        """At the end: all results, then the marker, then what is left of the checkpoint."""
        if self._finished:
            return
        self._unmark()
        files = self._files()
        self._put(name for name in files if name not in (RECORD, RUN))
        self._put([RUN])
        if RECORD in files:
            self._put([RECORD])
        self._remove({RECORD} - files)
        self._remove(self._there.keys() - files)

    def _finished_elsewhere(self) -> bool:
        """Whether another process has finished this run: its results must not be replaced by parts of them."""
        return RUN not in self._there and is_there(self._url / RUN)

    def _unmark(self) -> None:
        """Removes the marker of an earlier run, once the record says that there is a new one."""
        if RUN in self._there:
            if not self._resumed and (self.folder / RECORD).exists():
                self._put([RECORD])
            self._remove({RUN})

    def _files(self) -> set[str]:
        """Of the run, without unfinished ones."""
        paths = (path for path in self.folder.rglob("*") if path.is_file() and not path.match(LEFT_OVER))
        return {path.relative_to(self.folder).as_posix() for path in paths}

    def _put(self, names: Iterable[str]) -> None:
        stamps = {name: self._stamp(name) for name in names}
        changed = {name: stamp for name, stamp in stamps.items() if self._there.get(name) != stamp}
        upload({self._url / name: self.folder / name for name in changed})
        self._there.update(changed)

    def _remove(self, names: Iterable[str]) -> None:
        gone = self._there.keys() & names
        remove(self._url / name for name in gone)
        for name in gone:
            del self._there[name]

    def _fetch(self, names: Iterable[str]) -> None:
        wanted = [name for name in names if name in self._there]
        download({self._url / name: self.folder / name for name in wanted})
        self._there |= {name: self._stamp(name) for name in wanted}

    def _stamp(self, name: str) -> _Stamp:
        facts = (self.folder / name).stat()
        return facts.st_size, facts.st_mtime_ns


def _nothing() -> None:
    """Nothing is mirrored."""


def _files_in(url: StoreUrl) -> dict[str, Facts]:
    """The objects directly in a folder, without hidden ones."""
    return {name: facts for name, facts in entries_in(url) if facts is not None and name[0] != "."}


def _identity(url: StoreUrl, found: Mapping[str, Facts]) -> str:
    """What identifies objects: their names, sizes and versions."""
    lines = sorted(f"{name} {facts.size} {facts.version}" for name, facts in found.items())
    return f"{url} {len(lines)} files {hashlib.sha256(chr(10).join(lines).encode()).hexdigest()}"


def _refuse_unfinished(url: StoreUrl) -> None:
    """Raises InputError if this is, or is in, the output folder of a run that has not finished."""
    folder: StoreUrl | None = url
    # the folder, one in it, an object in that
    for _ in range(3):
        if folder is None or len(folder.parts) < 2:
            return
        if is_there(folder / RECORD) and not is_there(folder / RUN):
            raise InputError(
                f"{folder}: holds an unfinished run, {option('resume', True)} continues it; expected results"
            )
        folder = folder.parent
