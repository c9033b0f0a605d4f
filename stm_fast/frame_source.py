"""Where frames come from: a file, a folder, an image glob, a store, a URL, a camera, a pipe or standard input.

Parsed without importing what opens them, because commands check their arguments first.
"""

import os
import re
import stat
import sys
from pathlib import Path, PurePosixPath
from typing import Any, Literal, NamedTuple
from urllib.parse import unquote, urlsplit

from stm_fast.errors import InputError, option, reading, require_present
from stm_fast.listing import glob_images, is_image
from stm_fast.store import SCHEMES, StoreUrl, matches_of, resolved

Kind = Literal["path", "glob", "store", "url", "camera", "pipe"]

STANDARD_INPUT = "-"
STALL_SECONDS = 60.0
_URL = re.compile(r"([A-Za-z][A-Za-z0-9+.-]*)://")
# of each kind of URL: what FFmpeg may use for it, in the order of its own messages
PROTOCOLS: dict[str, tuple[str, ...]] = {
    # a server may redirect to https, but not back
    "http": ("http", "https", "tls", "tcp", "httpproxy"),
    "https": ("https", "tls", "tcp", "httpproxy"),
    "rtsp": ("rtp", "tcp", "udp"),
    "rtsps": ("rtp", "tls", "tcp"),
    "rtmp": ("rtmp", "tcp"),
    "rtmps": ("rtmps", "tls", "tcp"),
    "srt": ("srt",),
    "tcp": ("tcp",),
    "udp": ("udp",),
}
_RECORDED = frozenset({"http", "https"})
_CAMERA = "camera:"
_GLOB = re.compile(r"[*?\[]")


class FrameSource(NamedTuple):
    """One source of frames.

    Attributes:
        text: as the user gave it.
        kind: "pipe" is a named pipe, or standard input if `text` is "-"; "store" is the URL of a `StoreUrl`.
        stall_seconds: a live source that gives no frame for so long has ended.
        drop_frames: of a live source, use only the newest frame whenever the network is ready for one.
        identity: what identifies the frames, if they come from a store.
        nbytes: of a video in a store, if it was listed.
    """

    text: str
    kind: Kind
    stall_seconds: float = STALL_SECONDS
    drop_frames: bool = False
    identity: str | None = None
    nbytes: int | None = None

    @property
    def url(self) -> StoreUrl | None:
        """Where it is in a store; None if it is elsewhere."""
        return StoreUrl(self.text) if self.kind == "store" else None

    @property
    def live(self) -> bool:
        """Whether it is known to be readable only once; for http and https it depends on the server."""
        return self.kind in ("camera", "pipe") or (self.kind == "url" and self.scheme not in _RECORDED)

    @property
    def scheme(self) -> str:
        """Of a URL, in lower case."""
        return urlsplit(self.text).scheme.lower()

    @property
    def label(self) -> str:
        """The source for messages: a URL without what may be secret, its password and its query."""
        if self.kind != "url":
            return "standard input" if self.text == STANDARD_INPUT else self.text
        parts = urlsplit(self.text)
        return f"{parts.scheme}://{parts.netloc.rpartition('@')[2]}{parts.path}"

    @property
    def path(self) -> Path | None:
        """The local file, folder or named pipe; of a glob, the folder of its first image; otherwise None."""
        if self.kind == "glob":
            return glob_images(self.text)[0].parent
        local = self.kind == "path" or (self.kind == "pipe" and self.text != STANDARD_INPUT)
        return Path(self.text) if local else None

    @property
    def place(self) -> Path:
        """`path`, or else one that cannot exist, with the name of the source."""
        return self.path or Path(os.devnull, self.name)

    @property
    def files(self) -> list[Path]:
        """Everything local that is read."""
        if self.kind == "glob":
            return glob_images(self.text)
        return [] if self.path is None else [self.path]

    @property
    def name(self) -> str:
        """The name of the video, which becomes that of its folder: one of several videos has a folder of its own."""
        if self.kind == "url":
            parts = urlsplit(self.text)
            return PurePosixPath(unquote(parts.path)).stem or parts.hostname or ""
        if self.kind == "store":
            url = StoreUrl(self.text)
            return url.fixed.name if url.is_pattern else PurePosixPath(url.name).stem
        if self.text == STANDARD_INPUT:
            return "stdin"
        if self.kind == "camera":
            return re.sub(r"[^\w.-]+", "-", self.text.removeprefix("/dev/"))
        path = self.path or Path(self.text)
        return os.path.basename(os.path.realpath(path)) if path.is_dir() else path.stem

    def check(self) -> None:
        """Raises InputError if it is known, without opening it, that it cannot be read."""
        if self.kind == "glob":
            glob_images(self.text)
        elif self.text == STANDARD_INPUT:
            if sys.stdin is not None and sys.stdin.isatty():
                raise InputError("standard input: found a terminal, expected a video, as from cat clip.mp4 |")
        elif self.kind == "camera" and self.text.startswith(_CAMERA):
            if camera_number(self.text) is not None and sys.platform == "linux":
                require_present(Path(f"/dev/video{camera_number(self.text)}"), f"camera, for {self.text}")
        elif self.kind not in ("url", "store"):
            hint = f"; a camera is {_CAMERA}{self.text}" if self.text.isdecimal() else ""
            require_present(Path(self.text), f"file or folder{hint}")


def frame_source(
    given: "str | Path | FrameSource",
    *,
    allow_network: bool = False,
    stall_seconds: float = STALL_SECONDS,
    drop_frames: bool = False,
) -> FrameSource:
    """The source that a user names; nothing is opened.

    Text that names an existing file or folder means that one, whatever else it could be; so does every `Path`.

    Args:
        given: a file or folder, an image glob, a URL, "camera:0" or "/dev/video0", a named pipe, or "-".
        allow_network: accept a URL that is not in a store.
        stall_seconds, drop_frames: as in `FrameSource`.

    Raises:
        InputError: a URL without `allow_network`, or of an unknown kind.
    """
    if isinstance(given, FrameSource):
        return given
    place = resolved(given)
    if isinstance(place, StoreUrl):
        return FrameSource(str(place), "store")
    source = FrameSource(os.fspath(place), _kind_of(place), stall_seconds, drop_frames)
    if source.kind == "url":
        if source.scheme not in PROTOCOLS:
            found = f"{source.scheme}://, expected one of {', '.join((*PROTOCOLS, *SCHEMES, 'file'))}"
            raise InputError(f"{source.label}: found a URL of kind {found}")
        if not allow_network:
            raise InputError(f"{source.label}: needs the network, which {option('allow_network', True)} allows")
    return source


def camera_number(text: str) -> int | None:
    """The number of "camera:<number>"; None if it has a name instead."""
    number = text.removeprefix(_CAMERA)
    return int(number) if re.fullmatch("[0-9]{1,4}", number) else None


def _kind_of(given: str | Path) -> Kind:
    text = os.fspath(given)
    if isinstance(given, str):
        if text == STANDARD_INPUT:
            return "pipe"
        if _URL.match(text):
            return "url"
    with reading(Path(text)):
        mode = os.stat(text).st_mode if os.path.exists(text) else None
    if mode is not None:
        camera = stat.S_ISCHR(mode) and re.match(r"/dev/(video|v4l/)", text)
        return "pipe" if stat.S_ISFIFO(mode) else "camera" if camera else "path"
    if isinstance(given, str) and text.startswith(_CAMERA):
        return "camera"
    return "glob" if isinstance(given, str) and _GLOB.search(text) else "path"


def frame_sources(given: "str | Path | FrameSource", **options: Any) -> list[FrameSource]:
    """The sources that a user names: all videos that match a pattern in a store, otherwise the one of `frame_source`.

    Images that match are one source. Options and errors are those of `frame_source`; raises InputError also if nothing
    matches, or both images and other objects do.
    """
    source = frame_source(given, **options)
    pattern = source.url
    if pattern is None or not pattern.is_pattern:
        return [source]
    found = matches_of(pattern)
    images = [url for url in found if is_image(url.name)]
    if not found:
        raise InputError(f"{pattern}: no object matches, expected videos or images")
    if images and len(images) < len(found):
        other = next(url for url in found if url not in images)
        raise InputError(f"{pattern}: found {images[0]} and {other}, expected only videos or only images")
    videos = [source._replace(text=str(url), nbytes=facts.size) for url, facts in found.items()]
    return [source] if images else videos
