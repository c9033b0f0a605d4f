"""The C++ engine: loads stm_fast._C, and gives the reasons if it cannot be loaded or cannot run some inputs."""

from importlib.resources import files

import torch
from torch import Tensor

from stm_fast.errors import InputError
from stm_fast.ops.inputs import Reader, ReadInputs, ReadResult
from stm_fast.ops.registration import call_engine, engine_reader, register_engine, transform_reasons
from stm_fast.torch_private import has_cpu_kernel

DTYPES = (torch.float32, torch.float64, torch.bfloat16, torch.float16)

register_engine("cpp")


def _load() -> str | None:
    """Loads the extension; returns the reason if it cannot be loaded."""
    try:
        import stm_fast._C  # noqa: F401  (its static initializers register the kernels)
    except ImportError as error:
        reason = files("stm_fast") / "_C_absent.txt"  # written by setup.py when the build failed
        return reason.read_text().strip() if reason.is_file() else f"stm_fast._C does not load: {error}"
    return None


_ABSENT = _load()


def absent_reasons() -> list[str]:
    """Why the extension is absent. Raises InputError if STM_FAST_CPU names an instruction set that the CPU lacks."""
    if _ABSENT is not None:
        return [_ABSENT]
    # torch.compile cannot trace the call
    if not torch.compiler.is_compiling():
        _check_instructions()
    return []


def operator_absent_reasons(name: str) -> list[str]:
    """Why another operator of the extension, like "stm_fast::winograd_convolution", is absent; empty if it is not."""
    # the extension may have been built from older sources
    no_kernel = [] if has_cpu_kernel(name) else ["the extension was built without it; build it again"]
    return absent_reasons() or no_kernel


def convolves(dtype: torch.dtype) -> bool:
    """Whether the extension, which must not be absent, makes convolutions in `dtype`.

    In bfloat16 it needs AVX512_BF16. With AMX they are left to PyTorch, which uses it.
    """
    import stm_fast._C as extension

    return dtype == torch.float32 or (dtype == torch.bfloat16 and bool(extension.convolves_bfloat16()))


def _check_instructions() -> None:
    import stm_fast._C as extension

    try:
        extension.instructions()
    except RuntimeError as error:
        raise InputError(str(error)) from None


def unsupported_reasons(inputs: ReadInputs) -> list[str]:
    return tensor_reasons(inputs.value)


def tensor_reasons(tensor: Tensor) -> list[str]:
    """Why the engine cannot read tensors with the device and dtype of this one."""
    reasons = transform_reasons()
    if tensor.device.type != "cpu":
        reasons.append(f"it runs on cpu tensors only, found {tensor.device.type}")
    if tensor.dtype not in DTYPES:
        reasons.append(f"it has no kernel for {tensor.dtype}")
    return reasons


def read(inputs: ReadInputs) -> ReadResult:
    return call_engine("cpp", inputs)


def reader(inputs: ReadInputs) -> Reader:
    return engine_reader("cpp", inputs)
