"""Runs a module or a script on the device that launches nothing: python -m launchless [OPTIONS] [-m] NAME ..."""

import runpy
import sys
from pathlib import Path

from launchless import install

arguments = sys.argv[1:]
options = [argument for argument in arguments[:2] if argument in ("--compile", "--zeros")]
install(**{option.removeprefix("--"): True for option in options})
arguments = arguments[len(options) :]
if arguments[:1] == ["-m"]:
    sys.argv = arguments[1:]
    runpy.run_module(sys.argv[0], run_name="__main__", alter_sys=True)
else:
    sys.argv = arguments
    sys.path[0] = str(Path(sys.argv[0]).resolve().parent)  # as Python does for a script
    runpy.run_path(sys.argv[0], run_name="__main__")
