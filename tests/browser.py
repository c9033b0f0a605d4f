"""The browser of the tests of the page: one that is installed, never downloaded."""

import os
import shutil
from importlib.util import find_spec

import pytest

PROGRAMS = ("chromium", "chromium-browser", "google-chrome")
PACKAGES = ("playwright", "axe_playwright_python", "fastapi", "uvicorn", "cv2", "av", "pycocotools")


def browser_path() -> str | None:
    """The program that STM_FAST_BROWSER names, otherwise the first of `PROGRAMS` on PATH; None if there is none."""
    names = [named] if (named := os.environ.get("STM_FAST_BROWSER")) else PROGRAMS
    return next((path for name in names if (path := shutil.which(name))), None)


def absent_reasons() -> list[str]:
    """Why the page cannot be tested in a browser; empty if it can."""
    reasons = [f"Python cannot import {name}" for name in PACKAGES if find_spec(name) is None]
    if browser_path() is None:
        named = os.environ.get("STM_FAST_BROWSER")
        reasons.append(f"no program {named or ', '.join(PROGRAMS)}")
    return reasons


needs_browser = pytest.mark.skipif(bool(absent_reasons()), reason="; ".join(absent_reasons()))
