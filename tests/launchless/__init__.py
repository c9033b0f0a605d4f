"""A device that compiles and counts but launches nothing: the CPU poses as an sm_90 GPU with 132 processors.

Tensors are in the CPU's memory but claim to be on `cuda:0`. Triton specializes every launch as it does on a GPU, and on
request compiles it. Launches are recorded instead of made, so their outputs are whatever the memory held, or on request
zeros. Convolutions, torch.mm and PyTorch's own attention give zeros in the layout that they would have on a GPU.

    python -m launchless [--compile] [--zeros] -m MODULE ...     a module or a script, and its child processes
    pytest -p launchless ...                                     the tests of one process

both with this folder's parent in PYTHONPATH. In such a process:

    from launchless import LAUNCHES, counted_copies
"""

import functools
import itertools
import os
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path
from types import SimpleNamespace
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode

VARIABLE = "STM_FAST_LAUNCHLESS"  # the options of install(), for Python processes started from this one
ARCHITECTURE, PROCESSORS, MEMORY = 90, 132, 80 * 2**30
DEVICE = torch.device("cuda", 0)
COPIES = ("clone", "copy_", "_to_copy", "contiguous")


class Launched(NamedTuple):
    """One launch, recorded instead of made.

    constants: the arguments that are part of the compiled kernel, by name; tensors: the tensor arguments, by name.
    options: num_warps, num_stages and so on; source: the kernel's source, for compile_source().
    """

    kernel: str
    grid: tuple[int, int, int]
    constants: dict[str, Any]
    tensors: dict[str, Tensor]
    options: dict[str, Any]
    source: Any


LAUNCHES: list[Launched] = []
_copies: list[Counter[str]] = []  # of counted_copies(), the innermost last


@contextmanager
def counted_copies() -> Iterator[Counter[str]]:
    """The bytes that PyTorch's copies write inside the block, by operator."""
    _copies.append(Counter())
    try:
        with _CountCopies():
            yield _copies[-1]
    finally:
        _copies.pop()


def compile_source(launched: Launched) -> Any:
    """The launch's kernel as Triton compiles it."""
    import triton
    from triton.backends.compiler import GPUTarget

    target = GPUTarget("cuda", ARCHITECTURE, 32)
    compile_ = getattr(triton.compiler.compile, "__wrapped__", triton.compiler.compile)
    return compile_(launched.source, target=target, options=launched.options)


class _CountCopies(TorchDispatchMode):
    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        name = func._schema.name.removeprefix("aten::")
        if name in COPIES and _copies:
            _copies[-1][name] += result.nbytes
        return result


class _PassesForCuda(TorchFunctionMode):
    """Tensors claim to be on DEVICE; whatever is moved there remains on the CPU."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func in _ANSWERS:
            return _ANSWERS[func](*args, **(kwargs or {}))
        kwargs = {name: _on_cpu(argument) for name, argument in (kwargs or {}).items()}
        return func(*map(_on_cpu, args), **kwargs)


def _on_cpu(argument: Any) -> Any:
    if isinstance(argument, torch.device) and argument.type == "cuda":
        return torch.device("cpu")
    return "cpu" if isinstance(argument, str) and argument.startswith("cuda") else argument


def _conv2d(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    stride: Any = 1,
    padding: Any = 0,
    dilation: Any = 1,
    groups: int = 1,
) -> Tensor:
    meta = (None if tensor is None else torch.empty(tensor.shape, device="meta") for tensor in (x, weight, bias))
    shape = torch.conv2d(*meta, stride, padding, dilation, groups).shape
    channels_last = any(_is_channels_last(tensor) for tensor in (x, weight))
    out = x.new_zeros(shape).to(memory_format=torch.channels_last if channels_last else torch.contiguous_format)
    # a path for the gradients
    return out + 0 * (x.sum() + weight.sum()) if torch.is_grad_enabled() and weight.requires_grad else out


def _is_channels_last(tensor: Tensor) -> bool:
    # cuDNN's rule: a tensor that is contiguous in both formats does not count
    return tensor.is_contiguous(memory_format=torch.channels_last) and not tensor.is_contiguous()


def _attention(query: Tensor, key: Tensor, value: Tensor, *_options: Any, **_named: Any) -> Tensor:
    return (query.sum() + key.sum() + value.sum()) * 0 + query.new_zeros(*query.shape[:-1], value.shape[-1])


def _zeros(function: Callable[..., Tensor]) -> Callable[..., Tensor]:
    """A tensor factory that fills with zeros, the expected result of every kernel."""

    def filled(*arguments: Any, **named: Any) -> Tensor:
        made = function(*map(_on_cpu, arguments), **{name: _on_cpu(argument) for name, argument in named.items()})
        return made.zero_()

    return filled


_MAKERS = (torch.empty, torch.empty_like, torch.empty_strided, Tensor.new_empty, Tensor.new_empty_strided)
_ANSWERS: dict[Any, Callable[..., Any]] = {
    Tensor.device.__get__: lambda _tensor: DEVICE,
    Tensor.is_cuda.__get__: lambda _tensor: True,
    Tensor.is_cpu.__get__: lambda _tensor: False,
    Tensor.get_device: lambda _tensor: 0,
    Tensor.cuda: lambda tensor, *_args, **_kwargs: tensor,
    Tensor.pin_memory: lambda tensor, *_args: tensor,
    Tensor.is_pinned: lambda _tensor, *_args: False,
    Tensor.record_stream: lambda _tensor, _stream: None,
    torch.conv2d: _conv2d,
    torch.mm: lambda left, right: left.new_zeros(left.shape[0], right.shape[1]),
    torch.nn.functional.scaled_dot_product_attention: _attention,
}


class _Launcher:
    """A stand-in for the function that launches one compiled kernel."""

    def __init__(self, source: Any, options: dict[str, Any]) -> None:
        self._source, self._options = source, options

    def __call__(self, x: int, y: int, z: int, *rest: Any) -> None:
        # stream, function, metadata of the kernel and of the launch, hooks before and after
        names, arguments = self._source.fn.arg_names, rest[6:]
        constants = {names[path[0]]: value for path, value in self._source.constants.items() if len(path) == 1}
        given = dict(zip(names, arguments, strict=True))
        tensors = {name: argument for name, argument in given.items() if isinstance(argument, Tensor)}
        kernel = self._source.fn.__name__
        LAUNCHES.append(Launched(kernel, (x, y, z), constants, tensors, self._options, self._source))
        if "found" in tensors:
            # top-k repeats until it has found enough candidates
            tensors["found"].fill_(given["capacity"])


class _Specialized:
    """A stand-in for a kernel that was not compiled."""

    function, packed_metadata = 0, ()

    def __init__(self, source: Any, options: dict[str, Any]) -> None:
        self.src, self.run = source, _Launcher(source, options)
        self.metadata = SimpleNamespace(**options, shared=0, target=None, name=source.fn.__name__)

    def launch_metadata(self, *_arguments: Any) -> None:
        return None


class _Utils:
    """The functions of a driver that Triton calls."""

    _handles = itertools.count(1)

    def get_device_properties(self, _device: int) -> dict[str, int]:
        return {
            "max_shared_mem": 227 * 1024,
            "multiprocessor_count": PROCESSORS,
            "warpSize": 32,
            "max_num_regs": 65536,
            "sm_clock_rate": 1_980_000,
            "mem_clock_rate": 2_619_000,
            "mem_bus_width": 5120,
        }

    def load_binary(self, *_arguments: Any) -> tuple[int, int, int, int, int]:
        handle = next(self._handles)
        return handle, handle, 32, 0, 1024  # module, function, registers, spilled registers, threads

    def unload_module(self, _module: int) -> None:
        pass


class _Driver:
    utils = _Utils()

    def launcher_cls(self, source: Any, metadata: Any) -> _Launcher:
        return _Launcher(source, metadata._asdict())

    def get_current_device(self) -> int:
        return 0

    def get_current_stream(self, _device: int) -> int:
        return 0

    def set_current_device(self, _device: int) -> None:
        pass

    def get_current_target(self) -> Any:
        from triton.backends.compiler import GPUTarget

        return GPUTarget("cuda", ARCHITECTURE, 32)

    def get_active_torch_device(self) -> torch.device:
        return DEVICE

    def get_device_interface(self) -> Any:
        return torch.cuda


class _Generator(torch.Generator):
    """Generates random numbers on the CPU, whatever the device."""

    def __new__(cls, device: Any = "cpu") -> "_Generator":
        return super().__new__(cls, _on_cpu(device))


class _Event:
    """Measures the host's time between two events."""

    def __init__(self, *_arguments: Any, **_options: Any) -> None:
        self._time = 0.0

    def record(self, *_arguments: Any) -> None:
        self._time = time.perf_counter()

    def elapsed_time(self, end: "_Event") -> float:
        return max(1e3 * (end._time - self._time), 1e-3)

    def synchronize(self) -> None:
        pass

    def wait(self, *_arguments: Any) -> None:
        pass

    def query(self) -> bool:
        return True


class _Stream:
    cuda_stream = 0

    def __init__(self, *_arguments: Any, **_options: Any) -> None:
        pass

    def synchronize(self, *_arguments: Any) -> None:
        pass

    def is_capturing(self) -> bool:
        return False

    wait_stream = wait_event = record_event = synchronize


class _Graph:
    """A CUDA graph that records nothing: launches during capture count once, and replays are not launches."""

    def __init__(self, *_arguments: Any, **_options: Any) -> None:
        self.replays = 0

    def replay(self) -> None:
        self.replays += 1

    def reset(self) -> None:
        pass

    def pool(self) -> tuple[int, int]:
        return 0, 0


_installed = False


def install(compile: bool = False, zeros: bool = False) -> None:
    """Makes this process and its child processes see the device. Call it before importing stm_fast.

    compile: whether kernels are also compiled, not only specialized.
    zeros:   whether new tensors are all zeros, so that results computed from a kernel's outputs are finite.
    """
    global _installed
    if _installed:
        return
    _installed = True
    os.environ[VARIABLE] = " ".join(name for name, asked in (("compile", compile), ("zeros", zeros)) if asked)
    if zeros:
        _ANSWERS.update((maker, _zeros(maker)) for maker in _MAKERS)
    folders = [str(Path(__file__).parent / "site"), str(Path(__file__).parents[1])]
    os.environ["PYTHONPATH"] = os.pathsep.join([*folders, os.environ.get("PYTHONPATH", "")]).rstrip(os.pathsep)
    _install_torch()
    _install_triton(compile)


def _install_torch() -> None:
    properties = SimpleNamespace(
        name="launchless",
        major=ARCHITECTURE // 10,
        minor=ARCHITECTURE % 10,
        multi_processor_count=PROCESSORS,
        total_memory=MEMORY,
        L2_cache_size=50 * 2**20,
    )
    answers: dict[str, Any] = {
        "is_available": True,
        "device_count": 1,
        "current_device": 0,
        "get_device_capability": (properties.major, properties.minor),
        "get_device_name": properties.name,
        "get_device_properties": properties,
        "is_current_stream_capturing": False,
        "is_bf16_supported": True,
        "mem_get_info": (MEMORY, MEMORY),
        **dict.fromkeys(("memory_allocated", "max_memory_allocated", "memory_reserved", "max_memory_reserved"), 0),
        **dict.fromkeys(("synchronize", "set_device", "empty_cache", "reset_peak_memory_stats", "init"), None),
    }
    for name, answer in answers.items():
        setattr(torch.cuda, name, functools.partial(_answer, answer))
    for name in ("device", "stream", "graph"):
        setattr(torch.cuda, name, lambda *_arguments, **_options: nullcontext())
    for name in ("current_stream", "default_stream"):
        setattr(torch.cuda, name, _Stream)
    torch.accelerator.current_stream = _Stream
    torch.cuda.Event, torch.cuda.Stream, torch.cuda.CUDAGraph = _Event, _Stream, _Graph
    torch.Generator = _Generator
    torch.nn.Module.cuda = lambda module, *_arguments: module
    torch.library.impl = _registered_on_cpu(torch.library.impl)
    threading.Thread.run = _passing_for_cuda(threading.Thread.run)
    _PassesForCuda().__enter__()


def _answer(answer: Any, *_arguments: Any, **_options: Any) -> Any:
    return answer


def _registered_on_cpu(impl: Callable[..., Any]) -> Callable[..., Any]:
    """torch.library.impl, but CUDA implementations are registered for the CPU."""

    def registered(name: str, types: Any, func: Callable[..., Any] | None = None, **options: Any) -> Any:
        if types != "cuda":
            return impl(name, types, func, **options)
        if func is None:
            return lambda func: registered(name, types, func, **options)
        impl(name, "cpu", _passing_for_cuda(func), **options)
        return func

    return registered


def _passing_for_cuda(function: Callable[..., Any]) -> Callable[..., Any]:
    """The function, run in the modes that PyTorch switches off in operators and threads."""

    @functools.wraps(function)
    def passing(*arguments: Any, **options: Any) -> Any:
        with _PassesForCuda(), _CountCopies() if _copies else nullcontext():
            return function(*arguments, **options)

    return passing


def _install_triton(compile: bool) -> None:
    import triton
    from triton.runtime import driver

    driver.set_active(_Driver())
    if not compile:

        @functools.wraps(triton.compiler.compile)
        def specialize(source: Any, target: Any = None, options: dict[str, Any] | None = None, **_rest: Any) -> Any:
            return _Specialized(source, dict(options or {}))

        triton.compiler.compile = specialize


def install_as_asked() -> None:
    """Installs the device with the options of the parent process."""
    install(**dict.fromkeys(os.environ.get(VARIABLE, "").split(), True))


def pytest_load_initial_conftests() -> None:
    """Runs before any conftest imports the package."""
    install_as_asked()
