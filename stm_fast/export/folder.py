"""The folder of an export: a file for each part of the network, and a record that says how to call them."""

from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch

from stm_fast.choices import Dtype, ExportBackend, ExportFormat
from stm_fast.export.formats import FORMATS, OPSET, check_compiler
from stm_fast.export.parts import Part, Values, parts_of
from stm_fast.export.sizes import SIZES, described
from stm_fast.inference.engine import check_backend
from stm_fast.network.architecture import STRIDE
from stm_fast.network.shared_trunk import POSITION_CHANNELS
from stm_fast.network.stm import STM
from stm_fast.record_file import write_record_file
from stm_fast.versions import version_of
from stm_fast.whole_file import whole_folder, writing

RECORD = "export.json"
_PACKAGES = ("stm_fast", "torch", "onnx", "onnxscript")


def export_network(
    model: STM,
    folder: Path,
    form: ExportFormat,
    *,
    backend: ExportBackend = "reference",
    dtype: Dtype = "float32",
    weights: dict[str, str] | None = None,
) -> None:
    """Writes a network as files that run without this package, except for a `backend` of its own.

    The folder is whole or absent. ``export.json`` names the files and describes what they take and return.

    Args:
        model: on the CPU, not prepared for inference.
        folder: must not exist.
        form: "onnx" is for the reference and float32 only.
        backend: of the memory read. "reference" consists of PyTorch's operators and materializes the affinity.
        dtype: of weights and features. Frames, masks and probabilities are in float32.
        weights: what the record says about the weights.

    Raises:
        InputError: a backend that cannot run here, no C++ compiler for "aoti", or a folder that cannot be written.
    """
    check_backend(model, backend)
    if form == "aoti":
        check_compiler()
    end, write = FORMATS[form]
    parts = parts_of(model, backend, getattr(torch, dtype))
    with whole_folder(folder) as partial:
        for part in parts:
            with writing(folder / f"{part.name}.{end}"):
                write(part, partial / f"{part.name}.{end}")
        choice = {"format": form, "backend": backend, "dtype": dtype, "opset": OPSET if form == "onnx" else None}
        write_record_file(partial / RECORD, choice | _network(model, weights) | _calls(parts, end))


def _network(model: STM, weights: dict[str, str] | None) -> dict[str, Any]:
    """The part of the record that does not depend on the format."""
    shared = model.architecture.shared_trunk
    return {
        "versions": {package: version for package in _PACKAGES if (version := version_of(package)) is not None},
        "weights": weights or {},
        "architecture": asdict(model.architecture),
        "frame": {
            "values": "RGB in [0, 1], float32; the network normalizes them by mean and std",
            "mean": model.query_encoder.mean.flatten().tolist(),
            "std": model.query_encoder.std.flatten().tolist(),
            "multiple": STRIDE,
            "min_size": model.min_size,
        },
        "position_channels": POSITION_CHANNELS if shared else 0,
    }


def _calls(parts: list[Part], end: str) -> dict[str, Any]:
    """What the parts take and return."""
    return {
        "sizes": {size.name: [size.least, size.most] for size in SIZES},
        "parts": {
            part.name: {
                "file": f"{part.name}.{end}",
                "inputs": _described(part.inputs),
                "outputs": _described(part.outputs),
            }
            for part in parts
        },
    }


def _described(tensors: dict[str, Values]) -> dict[str, Any]:
    return {
        name: {"shape": described(values.shape), "dtype": str(values.dtype).removeprefix("torch.")}
        for name, values in tensors.items()
    }
