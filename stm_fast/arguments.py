"""Arguments of functions that users call: numbers as Python has them, from NumPy and PyTorch too."""

from numbers import Real
from operator import index
from typing import Annotated, Any


class Limits:
    """Stands in an `Annotated` type for `pydantic.Field` of the same arguments, such as `ge` and `le`.

    Pydantic is imported where a file is validated: to define and to use what the file describes, nobody needs it.
    """

    def __init__(self, **field: Any) -> None:
        self._field = field

    def __get_pydantic_core_schema__(self, source: Any, handler: Any) -> Any:
        from pydantic import Field

        return handler(Annotated[source, Field(**self._field)])


def integer(found: object, name: str, expected: str = "an integer") -> int:
    """An integer of Python or NumPy, or an array or a tensor of one without dimensions, as an int.

    Raises TypeError, which begins with `name`, for anything else, a bool and a float included.
    """
    if isinstance(found, int) and not isinstance(found, bool):
        return found
    plain = _plain(found)
    # a tensor or an array of one element with dimensions has __index__() as well
    if not isinstance(plain, bool) and not getattr(plain, "ndim", 0):
        try:
            return index(plain)
        except TypeError:
            pass
    raise _wrong(found, name, expected)


def number(found: object, name: str, expected: str = "a number") -> float:
    """A real number of Python or NumPy, or an array or a tensor of one without dimensions, as a float.

    Raises TypeError, which begins with `name`, for anything else, a bool included; ValueError for one beyond float64.
    """
    plain = _plain(found)
    if not isinstance(plain, Real) or isinstance(plain, bool):
        raise _wrong(found, name, expected)
    try:
        return float(plain)
    except OverflowError:
        raise ValueError(f"{name}: found a number beyond float64, expected {expected}") from None


def flag(found: object, name: str) -> bool:
    """True or False, as a bool; what equals them, such as NumPy's, is taken. Raises TypeError for anything else."""
    plain = _plain(found)
    if not isinstance(plain, Real) or plain not in (0, 1):
        raise _wrong(found, name, "True or False")
    return bool(plain)


def shown(found: object) -> str:
    """What was found, in one line: a short string or None itself, of anything else the type."""
    return repr(found) if found is None or (isinstance(found, str) and len(found) <= 80) else type(found).__name__


def _plain(found: object) -> Any:
    """What an array or a tensor without dimensions holds; anything else as it is."""
    # scalars of NumPy are real numbers, but for its bool
    if not isinstance(found, Real) and getattr(found, "ndim", None) == 0 and hasattr(found, "item"):
        try:
            return found.item()
        except RuntimeError:  # a tensor that holds nothing: a fake one, or one on "meta"
            pass
    return found


def _wrong(found: object, name: str, expected: str) -> TypeError:
    shape = getattr(found, "shape", None)
    described = f" of shape {tuple(shape)}" if isinstance(shape, tuple) and shape else ""
    return TypeError(f"{name}: found {type(found).__name__}{described}, expected {expected}")
