"""Numbers on the command line, with the range of each."""

import re
from collections.abc import Callable
from typing import Any

import typer

from stm_fast.errors import shown

_UNITS = {"": 1, "k": 10**3, "m": 10**6, "g": 10**9, "t": 10**12}
_MOST_BYTES = 10**18


def whole(least: int, most: int) -> dict[str, Any]:
    """Arguments of `typer.Option` for a whole number in a range."""
    return _ranged(lambda text: int(text) if re.fullmatch("[+-]?[0-9]{1,99}", text) else None, least, most, "whole ")


def real(least: float, most: float) -> dict[str, Any]:
    """Arguments of `typer.Option` for a real number in a range."""
    pattern = r"[+-]?([0-9]+\.?[0-9]*|\.[0-9]+)(e[+-]?[0-9]+)?"
    return _ranged(lambda text: float(text) if re.fullmatch(pattern, text.lower()) else None, least, most, "")


def nbytes() -> dict[str, Any]:
    """Arguments of `typer.Option` for a number of bytes, such as 800MB or 2.5GB."""
    return {"parser": _nbytes, "metavar": "BYTES"}


def _ranged(number: Callable[[str], float | None], least: float, most: float, kind: str) -> dict[str, Any]:
    limits = f"{least:.10g} to {most:.10g}"

    def parsed(given: Any) -> float:
        found = number(str(given))  # a default is a number already
        if found is None or not least <= found <= most:
            raise typer.BadParameter(f"found {shown(str(given))}, expected a {kind}number from {limits}")
        return found

    return {"parser": parsed, "metavar": limits.replace(" to ", "..")}


def _nbytes(text: str) -> int:
    match = re.fullmatch(r"([0-9]+(?:\.[0-9]+)?)([kmgt]?)b?", text.strip().lower())
    if match is None:
        raise typer.BadParameter(f"{shown(text)} is not a number of bytes such as 800MB or 2.5GB")
    found = float(match[1]) * _UNITS[match[2]]
    if not 1 <= found <= _MOST_BYTES:
        raise typer.BadParameter(f"found {shown(text)}, expected 1 to {_MOST_BYTES // 10**12}TB")
    return int(found)
