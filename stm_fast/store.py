"""Objects in a store, such as s3://bucket/name: listed, read by ranges, downloaded and uploaded through fsspec.

fsspec, and its package for a kind of store, are imported when such a URL is used. Connections, retries and credentials
are theirs; credentials come from the environment, never from a URL.
"""

import io
import os
import re
import tempfile
from collections.abc import Callable, Iterable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from functools import cache
from importlib.util import find_spec
from itertools import takewhile
from pathlib import Path
from threading import Lock
from typing import Any, NamedTuple, TypeVar
from urllib.parse import unquote, urlsplit

from stm_fast.errors import InputError, Message, check_name, reason_of
from stm_fast.versions import how_to_install

# of each kind of store: fsspec's package for it, and the extra that installs it
_PACKAGES: dict[str, tuple[str, str] | None] = {
    "s3": ("s3fs", "s3"),
    "gs": ("gcsfs", "gs"),
    "az": ("adlfs", "az"),
    "memory": None,
}
SCHEMES = tuple(_PACKAGES)
_LOCAL = "file"
_URL = re.compile(rf"({'|'.join((*SCHEMES, _LOCAL))})://(.*)", re.IGNORECASE | re.DOTALL)
_PATTERN = re.compile(r"[*?\[]")
# what stores call the version of an object, the best first
_VERSIONS = ("ETag", "etag", "md5Hash", "content_md5", "LastModified", "mtime", "last_modified", "updated", "created")
# of an object that is read by ranges
_BLOCK_BYTES = 2**20
_BLOCKS = 64  # in memory
_AT_ONCE = 16  # uploads, downloads or removals
# of the first call, in seconds: later ones are repeated for minutes, because they may have work to lose
_FIRST_ANSWER = 10
_FIRST_TRIES = 2
_USER = re.compile(r"://[^/@\s]*@")
_QUERY = re.compile(r"(://[^\s?\"']*)\?[^\s\"']*")

T = TypeVar("T")


@dataclass(frozen=True, order=True)
class StoreUrl:
    """The URL of an object, of all objects below it (a folder), or of all that match a pattern. See `place_of`.

    Attributes:
        text: without a slash at its end.
    """

    text: str

    def __str__(self) -> str:
        return self.text

    def __truediv__(self, name: str) -> "StoreUrl":
        return StoreUrl(f"{self.text}/{name}")

    @property
    def scheme(self) -> str:
        """The kind of store."""
        return self.text.partition("://")[0]

    @property
    def parts(self) -> list[str]:
        """The bucket, the folders and the name."""
        return self.text.partition("://")[2].split("/")

    @property
    def name(self) -> str:
        """The last part."""
        return self.parts[-1]

    @property
    def suffix(self) -> str:
        """Of the name, in lower case, as ".png"."""
        return Path(self.name).suffix.lower()

    @property
    def parent(self) -> "StoreUrl | None":
        """The folder that it is in; None for a bucket."""
        return StoreUrl(self.text.rpartition("/")[0]) if len(self.parts) > 1 else None

    @property
    def is_pattern(self) -> bool:
        """Whether it may stand for several objects."""
        return is_pattern(self.text)

    @property
    def fixed(self) -> "StoreUrl":
        """Of a pattern, the folder before the first part that is one."""
        parts = [*takewhile(lambda part: not is_pattern(part), self.parts)]
        return StoreUrl(f"{self.scheme}://{'/'.join(parts)}")

    def is_in(self, folder: "StoreUrl") -> bool:
        """Whether it is this folder, or below it."""
        return f"{self.text}/".startswith(f"{folder.text}/")


class Facts(NamedTuple):
    """The size of an object in bytes, and what changes when it is replaced."""

    size: int
    version: str


class Entry(NamedTuple):
    """One name in a folder; of an object, its facts."""

    name: str
    facts: Facts | None


def is_pattern(text: str) -> bool:
    """Whether text has characters of a pattern."""
    return _PATTERN.search(text) is not None


def place_of(given: str | Path | StoreUrl) -> Path | StoreUrl:
    """The path or the URL in a store that a user gives. Raises InputError as `resolved` does."""
    found = resolved(given)
    return found if isinstance(found, StoreUrl) else Path(found)


def resolved(given: str | Path | StoreUrl) -> str | Path | StoreUrl:
    """The text of a user, with file:// as a local path and s3:// and so on as URLs in a store.

    Raises InputError for a URL with credentials or without a name, or if the package for it is missing.
    """
    match = _URL.fullmatch(given) if isinstance(given, str) else None
    if match is None:
        return given
    scheme, rest = match[1].lower(), match[2]
    if "@" in rest.partition("/")[0]:
        raise InputError(f"{scheme}://...: found a user name in a URL, expected credentials in the environment")
    if scheme == _LOCAL:
        return _local(given)
    url = StoreUrl(f"{scheme}://{rest.strip('/')}")
    # memory:// has no buckets
    if not all(url.parts) or (len(url.parts) == 1 and scheme != "memory"):
        raise InputError(f"{given}: found no object, expected {scheme}://bucket/name")
    _require_package(url)
    return url


def _local(given: object) -> Path:
    parts = urlsplit(str(given))
    if parts.netloc not in ("", "localhost") or not parts.path:
        raise InputError(f"{given}: found a file of another machine, expected file:///path")
    return Path(unquote(parts.path))


def _require_package(url: StoreUrl) -> None:
    needed = _PACKAGES[url.scheme]
    if needed is not None and find_spec(needed[0]) is None:
        raise InputError(f"{url}: {url.scheme}:// needs {needed[0]}: {how_to_install(needed[1])}")


# listing


def facts_of(url: StoreUrl) -> Facts | None:
    """Of an object; None if there is none with this name. Raises InputError if the store cannot be read."""
    with _using(url):
        try:
            found = _filesystem(url).info(str(url))
        except FileNotFoundError:
            return None
        return _facts(found) if found["type"] == "file" else None


def is_there(url: StoreUrl) -> bool:
    """Whether there is an object, and this may be known. Raises InputError if the store cannot be read."""
    with _using(url):
        try:
            return bool(_filesystem(url).info(str(url))["type"] == "file")
        except (FileNotFoundError, PermissionError):
            return False


def entries_in(url: StoreUrl) -> list[Entry]:
    """What is directly in a folder, by name; nothing if there is none. Raises InputError as `objects_in` does."""
    return _listed(url, lambda store: store.ls(str(url), detail=True))


def objects_in(url: StoreUrl) -> dict[str, Facts]:
    """All objects below a folder by their names relative to it; empty if there is none.

    Raises InputError if there is no such bucket, or it cannot be listed.
    """
    found = _listed(url, lambda store: store.find(str(url), detail=True).values())
    return {name: facts for name, facts in found if facts is not None}


def matches_of(pattern: StoreUrl) -> dict[StoreUrl, Facts]:
    """The objects that match a pattern, in which * does not match a slash and ** does, sorted by name.

    An object with exactly this name counts alone. Raises InputError as `objects_in` does.
    """
    exact = facts_of(pattern)
    if exact is not None:
        return {pattern: exact}
    with _using(pattern):
        found = _filesystem(pattern).glob(str(pattern), detail=True)
        named = {_url(pattern.scheme, name): facts for name, facts in found.items() if facts["type"] == "file"}
        return {url: _facts(named[url]) for url in sorted(named)}


def _listed(url: StoreUrl, listing: Callable[[Any], Iterable[dict[str, Any]]]) -> list[Entry]:
    with _using(url):
        store = _filesystem(url)
        try:
            found = list(listing(store))
        except FileNotFoundError as error:
            # either nothing is in the folder, or there is no bucket
            if url.scheme != "memory":
                _require_bucket(store, url.parts[0], error)
            return []
        below = f"{_url(url.scheme, '')}{'/'.join(url.parts)}/"
        named = {str(_url(url.scheme, one["name"])): one for one in found}
        inside = {text.removeprefix(below): one for text, one in named.items() if text.startswith(below)}
        return [Entry(name, _facts(one) if one["type"] == "file" else None) for name, one in sorted(inside.items())]


def _require_bucket(store: Any, bucket: str, error: FileNotFoundError) -> None:
    """Raises the error if there is no bucket of this name."""
    try:
        store.info(bucket)
    except FileNotFoundError:
        raise error from None


def _url(scheme: str, path: str) -> StoreUrl:
    """The URL of what fsspec calls `path`."""
    return StoreUrl(f"{scheme}://{path.strip('/')}")


def _facts(info: Mapping[str, Any]) -> Facts:
    version = next((info[name] for name in _VERSIONS if info.get(name)), "")
    return Facts(int(info["size"]), str(version).strip('"'))


# whole objects


def download(wanted: Mapping[StoreUrl, Path]) -> None:
    """Downloads objects into files, many at once. Raises InputError if one is missing or the store cannot be read."""

    def one(item: tuple[StoreUrl, Path]) -> None:
        url, path = item
        with _using(url):
            _filesystem(url).get_file(str(url), str(path))

    for folder in {path.parent for path in wanted.values()}:
        folder.mkdir(parents=True, exist_ok=True)
    _all(one, wanted.items())


def upload(files: Mapping[StoreUrl, Path]) -> None:
    """Uploads files, many at once: each object is whole or absent. Raises InputError if the store refuses one."""

    def one(item: tuple[StoreUrl, Path]) -> None:
        with _using(item[0], "cannot be written: "):
            _filesystem(item[0]).put_file(str(item[1]), str(item[0]))

    _all(one, files.items())


def remove(urls: Iterable[StoreUrl]) -> None:
    """Removes objects, many at once; one that is gone already does not matter. Raises InputError if that fails."""

    def one(url: StoreUrl) -> None:
        with _using(url, "cannot be removed: "), suppress(FileNotFoundError):
            _filesystem(url).rm_file(str(url))

    _all(one, urls)


def _all(work: Callable[[T], None], items: Iterable[T]) -> None:
    """Calls `work` for all items, several at a time. Raises what the first one that fails raises."""
    pool = ThreadPoolExecutor(_AT_ONCE)
    try:
        for _ in pool.map(work, items):
            pass
    finally:
        pool.shutdown(cancel_futures=True)


@contextmanager
def downloaded(url: StoreUrl) -> Iterator[Path]:
    """A copy of an object as a file, removed after the block. InputErrors in the block name the URL."""
    with tempfile.TemporaryDirectory(prefix="stm_fast-", ignore_cleanup_errors=True) as folder:
        path = Path(folder, check_name(url.name, f"{url}"))
        with naming({path: url}):
            download({url: path})
            yield path


def with_urls(message: str, copies: Mapping[Path, StoreUrl]) -> Message:
    """A message with the URLs of what local copies are of."""
    text = Message(message).marked
    for path in sorted(copies, key=lambda path: len(str(path)), reverse=True):
        text = text.replace(str(path), str(copies[path]))
    return Message(text)


@contextmanager
def naming(copies: Mapping[Path, StoreUrl]) -> Iterator[None]:
    """InputErrors in the block name URLs instead of the local copies."""
    try:
        yield
    except InputError as error:
        named = with_urls(error.message, copies)
        if named == error.message:
            raise
        raise InputError(named) from error


# parts of objects


class StoredObject:
    """An object that is read by ranges, from any thread. Blocks of it stay in memory, up to 64 MiB.

    Raises InputError if it is missing or the store cannot be read.
    """

    def __init__(self, url: StoreUrl) -> None:
        self.url = url
        self._lock = Lock()
        with _using(url):
            options = {"cache_type": "blockcache", "cache_options": {"maxblocks": _BLOCKS}}
            self._file = _filesystem(url).open(str(url), "rb", block_size=_BLOCK_BYTES, **options)
            self.size = int(self._file.size)

    def read(self, start: int, count: int) -> bytes:
        """Up to `count` bytes from `start` on. Raises InputError if they cannot be read."""
        with self._lock, _using(self.url):
            self._file.seek(start)
            data: bytes = self._file.read(count)
        expected = max(0, min(count, self.size - start))
        if len(data) != expected:
            raise InputError(f"{self.url}: received {len(data)} of {expected} bytes")
        return data


class ObjectReader(io.RawIOBase):
    """A position in a `StoredObject`, for libraries that read files.

    Attributes:
        blank: give zeros from now on, and read nothing.
    """

    def __init__(self, source: StoredObject) -> None:
        super().__init__()
        self._source, self._at, self.blank = source, 0, False

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def tell(self) -> int:
        return self._at

    def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:
        start = {os.SEEK_SET: 0, os.SEEK_CUR: self._at, os.SEEK_END: self._source.size}[whence]
        self._at = max(0, start + offset)
        return self._at

    def read(self, size: int = -1) -> bytes:
        left = max(0, self._source.size - self._at)
        count = left if size < 0 else min(size, left)
        data = bytes(count) if self.blank else self._source.read(self._at, count)
        self._at += len(data)
        return data


# connections


def _filesystem(url: StoreUrl) -> Any:
    """fsspec's access to a store. An instance belongs to one process."""
    process = os.getpid()
    if url.scheme == "s3":
        _reach_s3(url.parts[0], process)
    return _opened(url.scheme, process)


@cache
def _opened(scheme: str, _: int) -> Any:
    import fsspec

    return fsspec.filesystem(scheme, skip_instance_cache=True, use_listings_cache=False)


@cache
def _reach_s3(bucket: str, _: int) -> None:
    """Fails within seconds if no server answers, which a call with its many retries takes minutes to say."""
    import fsspec
    from botocore.exceptions import BotoCoreError

    config = {"read_timeout": _FIRST_ANSWER, "retries": {"max_attempts": 0}}
    store = fsspec.filesystem("s3", skip_instance_cache=True, config_kwargs=config)
    store.retries = _FIRST_TRIES
    try:
        store.info(bucket)
    except BotoCoreError:
        raise
    except OSError:  # an answer, even if it is a refusal
        return


@contextmanager
def _using(url: StoreUrl, what: str = "") -> Iterator[None]:
    """Turns errors of the libraries, which are of many types, into an InputError that names the URL."""
    try:
        yield
    except InputError:
        raise
    except Exception as error:
        raise InputError(f"{url}: {what}{_kind_of(error)}{_without_secrets(reason_of(error))}") from error


def _kind_of(error: Exception) -> str:
    if isinstance(error, PermissionError):
        return "no permission: "
    return "not found: " if isinstance(error, FileNotFoundError) else ""


def _without_secrets(text: str) -> str:
    """A message of a library without passwords and signatures in its URLs."""
    return _QUERY.sub(r"\1", _USER.sub("://", text))
