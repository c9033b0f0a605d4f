"""Replaces options in the library's messages with the flags of the command line."""

from stm_fast.errors import InputError, Message

# flags whose names differ from those of the options
_FLAGS = {"max_frames": "--max-memory-frames", "max_bytes": "--max-memory-bytes"}
_FLAGS |= {name: f"--memory-{name}" for name in ("storage", "place", "folder")}


def with_flags(message: object) -> str:
    """An error or a message of the library, with options replaced by flags."""
    text = message.message if isinstance(message, InputError) else message
    return text.with_options(_flag) if isinstance(text, Message) else str(text)


def _flag(name: str, value: str | None) -> str:
    if (name, value) == ("every", "None"):
        return "--first-and-previous"
    flag = _FLAGS.get(name, f"--{name.replace('_', '-')}")
    if value is None or value == "True":
        return flag
    if value == "False":
        return f"no {flag}"
    unquoted = value.strip("'")
    return f"{flag} {unquoted}"
