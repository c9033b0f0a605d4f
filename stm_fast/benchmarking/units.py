"""Numbers with their units, for readers; empty where there is no number."""


def seconds_text(seconds: float | None) -> str:
    """Three digits, in s, ms or us."""
    if seconds is None:
        return ""
    for factor, unit in ((1.0, "s"), (1e3, "ms")):
        if seconds * factor >= 1:
            return f"{seconds * factor:.3g} {unit}"
    return f"{seconds * 1e6:.3g} us"


def rate_text(tflop_per_second: float | None) -> str:
    """GFLOP/s below one TFLOP/s."""
    if tflop_per_second is None:
        return ""
    if tflop_per_second < 1:
        return f"{1e3 * tflop_per_second:.3g} GFLOP/s"
    return f"{tflop_per_second:.4g} TFLOP/s"


def bytes_text(count: int | None) -> str:
    """In MB, of 10^6 bytes."""
    return "" if count is None else f"{count / 1e6:,.1f} MB"
