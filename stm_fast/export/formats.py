"""Writers of the formats: each writes one part into one file."""

import warnings
from collections.abc import Callable
from pathlib import Path

import torch
from torch.export import ExportedProgram

from stm_fast.choices import ExportFormat
from stm_fast.errors import InputError, reason_of
from stm_fast.export.parts import Part
from stm_fast.export.sizes import dimension, varying
from stm_fast.torch_private import compile_failure, compile_package, cpp_compiler
from stm_fast.whole_file import in_memory

OPSET = 20  # of ONNX files


def program_of(part: Part) -> ExportedProgram:
    """The part's graph, for all sizes."""
    sizes = {
        name: {index: dimension(size) for index, size in varying(values.shape).items()}
        for name, values in part.inputs.items()
    }
    return torch.export.export(part.module, part.examples(), dynamic_shapes=sizes)


def _write_pt2(part: Part, path: Path) -> None:
    path.write_bytes(in_memory(lambda file: torch.export.save(program_of(part), file)))


def _write_aoti(part: Part, path: Path) -> None:
    try:
        path.write_bytes(in_memory(lambda file: compile_package(program_of(part), file)))
    except compile_failure() as error:
        raise InputError(f"--format aoti: the C++ compiler failed: {reason_of(error)}") from error


def _write_onnx(part: Part, path: Path) -> None:
    names = {
        name: {index: str(size) for index, size in varying(values.shape).items()}
        for name, values in part.inputs.items()
    }
    with warnings.catch_warnings():
        # a size that several inputs share has one name
        warnings.filterwarnings("ignore", "# The axis name: .* will not be used", UserWarning)
        program = torch.onnx.export(
            program_of(part),
            input_names=list(part.inputs),
            output_names=list(part.outputs),
            dynamic_shapes=names,
            opset_version=OPSET,
            dynamo=True,
            verbose=False,
        )
    assert program is not None
    program.save(path)


def check_compiler() -> None:
    """Raises InputError if AOTInductor finds no C++ compiler."""
    try:
        cpp_compiler()
    except RuntimeError as error:
        raise InputError(f"--format aoti needs a C++ compiler: {reason_of(error)}") from error


# the end of a file's name, and its writer
FORMATS: dict[ExportFormat, tuple[str, Callable[[Part, Path], None]]] = {
    "pt2": ("pt2", _write_pt2),
    "aoti": ("pt2", _write_aoti),
    "onnx": ("onnx", _write_onnx),
}
