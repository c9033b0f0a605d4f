"""In every Python that make gpu-cache starts: the device that launches nothing, and Triton's launchers kept."""

import os
from pathlib import Path

import launchless

HERE = str(Path(__file__).parent)
launchless.install(compile=True)
# launchless puts its own sitecustomize there; processes that are started from here must find this one first
os.environ["PYTHONPATH"] = os.pathsep.join([HERE, os.environ["PYTHONPATH"]])

from gpu_cache import keep_sources  # noqa: E402  # after the device

keep_sources()
