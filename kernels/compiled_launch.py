"""A launch whose kernel is compiled and whose arguments were looked at, for all launches that follow it."""

from types import NoneType
from typing import Any, Protocol

from triton import knobs
from triton.runtime import driver


class AnyLaunch(Protocol):
    """What can be launched: Launch, GluonLaunch."""

    @property
    def kernel(self) -> Any: ...

    @property
    def grid(self) -> tuple[int, int, int]: ...

    @property
    def arguments(self) -> dict[str, Any]: ...

    @property
    def options(self) -> dict[str, Any]: ...


class CompiledLaunch:
    """A launch to be run with any tensors of the layouts that it was made with, on the device that was current then.

    Tensors, or descriptors of them, are the first parameters of a kernel. Triton reads, types and specialises every
    argument of every launch, which takes longer than the launch; here that is done once.
    """

    def __init__(self, launch: AnyLaunch) -> None:
        arguments = [launch.arguments[name] for name in launch.kernel.arg_names]
        is_scalar = [isinstance(argument, int | float | str | NoneType) for argument in arguments]
        self._scalars = arguments[len(arguments) - is_scalar[::-1].index(False) :]
        self._kernel, self._grid, self._options = launch.kernel, launch.grid, launch.options
        self._is_empty = 0 in launch.grid
        self._compiled = launch.kernel.warmup(**launch.arguments, grid=launch.grid, **launch.options)
        self._device = 0 if self.interpreted else driver.active.get_current_device()

    @property
    def interpreted(self) -> bool:
        """Whether Triton's interpreter runs it, which takes tensors alone."""
        return self._compiled is None

    def run(self, *tensors: Any) -> None:
        """Launches it on the current stream of its device; a tensor may be given as its address."""
        if self._is_empty:
            return
        compiled, grid = self._compiled, self._grid
        if compiled is None:
            self._kernel[grid](*tensors, *self._scalars, **self._options)
            return
        stream = driver.active.get_current_stream(self._device)
        enter, leave = _active(knobs.runtime.launch_enter_hook), _active(knobs.runtime.launch_exit_hook)
        arguments = (*tensors, *self._scalars)
        metadata = compiled.launch_metadata(grid, stream, *arguments) if enter or leave else None
        compiled.run(*grid, stream, compiled.function, compiled.packed_metadata, metadata, enter, leave, *arguments)


def _active(hook: Any) -> Any:
    """A hook of Triton's; None for a chain without any."""
    return hook if getattr(hook, "calls", hook) else None
