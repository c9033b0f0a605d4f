"""Argument checks of public functions: accept numbers of Python, NumPy and PyTorch, and return those of Python."""

from numbers import Real
from operator import index
from typing import Annotated, Any


class Limits:
    """Replaces `pydantic.Field(...)` in an `Annotated` type, with the same arguments, such as `ge` and `le`.

    It imports pydantic only when a file is validated, so the annotated class can be defined and used without it.
    """

    def __init__(self, **field: Any) -> None:
        self._field = field

    def __get_pydantic_core_schema__(self, source: Any, handler: Any) -> Any:
        from pydantic import Field

        return handler(Annotated[source, Field(**self._field)])


def integer(found: object, name: str, expected: str = "an integer") -> int:
    """Converts an integer of Python or NumPy, or a zero-dimensional integer array or tensor, to an int.

    Raises TypeError, with a message that begins with `name`, for anything else, including bool and float.
    """
    if isinstance(found, int) and not isinstance(found, bool):
        return found
    plain = _plain(found)
    # arrays and tensors of one element have __index__() as well, even with dimensions
    if not isinstance(plain, bool) and not getattr(plain, "ndim", 0):
        try:
            return index(plain)
        except TypeError:
            pass
    raise _wrong(found, name, expected)


def number(found: object, name: str, expected: str = "a number") -> float:
    """Converts a real number of Python or NumPy, or a zero-dimensional real array or tensor, to a float.

    Raises TypeError, with a message that begins with `name`, for anything else, including bool, and ValueError for a
    number that float64 cannot represent.
    """
    plain = _plain(found)
    if not isinstance(plain, Real) or isinstance(plain, bool):
        raise _wrong(found, name, expected)
    try:
        return float(plain)
    except OverflowError:
        raise ValueError(f"{name}: found a number beyond float64, expected {expected}") from None


def flag(found: object, name: str) -> bool:
    """Converts True, False or an equal value, such as NumPy's, to a bool. Raises TypeError for anything else."""
    plain = _plain(found)
    if not isinstance(plain, Real) or plain not in (0, 1):
        raise _wrong(found, name, "True or False")
    return bool(plain)


def shown(found: object) -> str:
    """An argument for a message, in one line: None and short strings as they are, anything else by its type."""
    return repr(found) if found is None or (isinstance(found, str) and len(found) <= 80) else type(found).__name__


def _plain(found: object) -> Any:
    """The element of a zero-dimensional array or tensor; anything else unchanged."""
    # scalars of NumPy are real numbers, except its bool
    if not isinstance(found, Real) and getattr(found, "ndim", None) == 0 and hasattr(found, "item"):
        try:
            return found.item()
        except RuntimeError:  # a tensor without data: a fake one, or one on "meta"
            pass
    return found


def _wrong(found: object, name: str, expected: str) -> TypeError:
    shape = getattr(found, "shape", None)
    described = f" of shape {tuple(shape)}" if isinstance(shape, tuple) and shape else ""
    return TypeError(f"{name}: found {type(found).__name__}{described}, expected {expected}")
