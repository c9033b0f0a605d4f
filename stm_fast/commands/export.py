"""stm-fast export: a network as files that run without this package."""

import os
from importlib.util import find_spec
from pathlib import Path
from typing import Annotated

from stm_fast.choices import Dtype, ExportBackend, ExportFormat
from stm_fast.commands.options import Weights, network_option, output_option, speed_option
from stm_fast.errors import InputError
from stm_fast.network.released import DEFAULT
from stm_fast.progress import waiting
from stm_fast.tasks.choice import NetworkChoice
from stm_fast.versions import how_to_install


def export(
    output: Annotated[
        Path,
        output_option(
            "--output",
            "-o",
            help="A file for each part of the network, and export.json, are written to this new folder.",
        ),
    ],
    format: Annotated[
        ExportFormat,
        output_option(
            help="The network is written in this format: pt2 of torch.export, aoti compiled by AOTInductor for this "
            "kind of CPU, or onnx."
        ),
    ],
    weights: Weights = DEFAULT,
    dtype: Annotated[
        Dtype, network_option(help="Weights and features are in this precision; onnx takes float32 only.")
    ] = "float32",
    backend: Annotated[
        ExportBackend,
        speed_option(
            help="This implementation reads the memory: reference consists of PyTorch's operators, and cpp needs this "
            "package where the files are used. The format onnx takes reference only."
        ),
    ] = "reference",
) -> None:
    """Export a network for frames of all sizes and any number of objects, as files that run without this package."""
    if os.path.lexists(output):
        raise InputError(f"{output}: exists already, expected the name of a new folder")
    if format == "onnx":
        _check_onnx(dtype, backend)
    network = NetworkChoice(weights, device="cpu", dtype=dtype)
    with waiting("loading PyTorch"):
        from stm_fast.tasks.export import run_export

    run_export(network, output, format, backend, dtype)


def _check_onnx(dtype: Dtype, backend: ExportBackend) -> None:
    for name, found, expected in (("--dtype", dtype, "float32"), ("--backend", backend, "reference")):
        if found != expected:
            raise InputError(f"{name}: found {found} with --format onnx, expected {expected}")
    missing = [package for package in ("onnx", "onnxscript") if find_spec(package) is None]
    if missing:
        raise InputError(f"--format onnx needs {' and '.join(missing)}: {how_to_install('export')}")
