"""How FFmpeg opens a URL, a camera, a named pipe and standard input, and what it may use for that."""

import ssl
import sys

import av

from stm_fast.errors import InputError
from stm_fast.frame_source import PROTOCOLS, STANDARD_INPUT, FrameSource, camera_number
from stm_fast.video.stream_input import VideoInput

# formats of cameras by operating system
_CAMERA_FORMATS = {"linux": "v4l2", "darwin": "avfoundation", "win32": "dshow"}
_OPTIONS = {
    # several ranges over one connection: without it, FFmpeg 8 waits for an answer on connections that it let close
    "http": (("multiple_requests", "1"),),
    # UDP, which loses frames, only if the server has no TCP
    "rtsp": (("rtsp_flags", "prefer_tcp"),),
}
# a live stream starts as soon as its size is known: FFmpeg would take twenty frames to estimate their rate
_LIVE_OPTIONS = (("fpsprobesize", "3"), ("analyzeduration", "2000000"))
# beyond the limit of the reader, which says so more clearly
_GRACE_SECONDS = 5.0
_IN_A_PIPE = "not a video that can be read from a pipe, where MP4 and MOV need their index first"
_FROM_A_SERVER = "cannot be read as a video"


def input_of(source: FrameSource) -> VideoInput:
    """The input of a source that is not a local file or folder. Raises InputError if this PyAV cannot read it."""
    if source.kind == "camera":
        return _camera(source, sys.platform)
    seconds = source.stall_seconds + _GRACE_SECONDS
    if source.kind == "pipe":
        url, protocol = ("pipe:0", "pipe") if source.text == STANDARD_INPUT else (f"file:{source.text}", "file")
        return VideoInput(source.label, url, (protocol,), None, _LIVE_OPTIONS, seconds, _IN_A_PIPE)
    protocols = PROTOCOLS[source.scheme]
    options = _OPTIONS.get(source.scheme.removesuffix("s"), ()) + (_certificates() if "tls" in protocols else ())
    options += _LIVE_OPTIONS if source.live else ()
    format = "rtsp" if source.scheme in ("rtsp", "rtsps") else None
    return VideoInput(source.label, source.text, protocols, format, options, seconds, _FROM_A_SERVER)


def _camera(source: FrameSource, platform: str) -> VideoInput:
    """A camera, by number, by name (macOS, Windows), or by its device file (Linux)."""
    kind = _CAMERA_FORMATS.get(platform)
    name, number = source.text.removeprefix("camera:"), camera_number(source.text)
    if kind is None or not _has_format(kind):
        raise InputError(f"{source.label}: this PyAV cannot read cameras on {platform}")
    if kind == "v4l2" and number is not None:
        name = f"/dev/video{number}"
    elif kind == "dshow":
        if number is not None:
            raise InputError(f"{source.label}: found a number, expected the name of the camera, as camera:NAME")
        name = f"video={name}"
    seconds = source.stall_seconds + _GRACE_SECONDS
    return VideoInput(source.label, name, (), format=kind, seconds=seconds, problem="not a camera that can be read")


def _has_format(name: str) -> bool:
    return any(name in known.split(",") for known in av.formats_available)


def _certificates() -> tuple[tuple[str, str], ...]:
    """FFmpeg does not check the certificate of a server unless told to, and does not know the system's authorities."""
    paths = ssl.get_default_verify_paths()
    authorities = (("ca_file", paths.cafile),) if paths.cafile else ()
    return ("tls_verify", "1"), *authorities
