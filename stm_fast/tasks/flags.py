"""What the fields that the library's messages name are called on the command line."""

import re

_SWITCHES = {"every=None": "--first-and-previous", "overwrite=True": "--overwrite", "resume=True": "--resume"}
_FLAGS = {"max_frames": "--max-memory-frames", "max_bytes": "--max-memory-bytes"}
_FLAGS |= {name: f"--memory-{name}" for name in ("storage", "place", "folder")}
_FLAGS |= {name: f"--{name.replace('_', '-')}" for name in ("max_size", "min_size", "mask_frame", "overlay", "backend")}
_FLAGS |= {name: f"--{name}" for name in ("arch", "device", "weights", "output", "sequence", "split")}
_SWITCH = re.compile("|".join(map(re.escape, _SWITCHES)))
_VALUE = re.compile(rf"\b({'|'.join(_FLAGS)})='?([^\s',;]+)'?")
# at the beginning of a message; or anywhere, where a name cannot be a word: not as a part of a path
_NAME = re.compile(
    rf"^({'|'.join(_FLAGS)})(?=: (?:found|missing))"
    rf"|(?<![\w/.'-])({'|'.join(name for name in _FLAGS if '_' in name)})(?![\w/.'-]|: no )"
)


def with_flags(message: str) -> str:
    """A message of the library, with the names of flags in place of those of fields.

    The library writes fields as ``max_size: found ...``, ``max_frames=7`` and ``overwrite=True``.
    """
    message = _SWITCH.sub(lambda found: _SWITCHES[found[0]], message)
    message = _VALUE.sub(lambda found: f"{_FLAGS[found[1]]} {found[2]}", message)
    return _NAME.sub(lambda found: _FLAGS[found[1] or found[2]], message)
