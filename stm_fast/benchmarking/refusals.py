"""Why a route does not run, in one line."""

import re
from collections.abc import Sequence

_LONGEST = 400
_WHERE = re.compile(r"\s*\(Triggered internally at .*?\)")
_TRACED = re.compile(r"Developer debug context: (?:raised exception )?(.+)")


def refusal(error: Exception, messages: Sequence[str] = ()) -> str:
    """The error, followed by the warnings in which PyTorch says why each of its attention backends refuses."""
    reasons = [f"{type(error).__name__}: {_gist(str(error))}", *map(_gist, messages)]
    # "... not used because:" announces the warning that follows
    kept = [reason for reason in dict.fromkeys(reasons) if not reason.endswith("because:")]
    text = "; ".join(kept)
    return text if len(text) <= _LONGEST else f"{text[: _LONGEST - 3]}..."


def _gist(message: str) -> str:
    """The first line, or what the compiler met while it traced."""
    traced = _TRACED.search(message)
    first = next((line.strip() for line in message.splitlines() if line.strip()), "no message")
    return _WHERE.sub("", traced[1] if traced else first)
