"""adapt(): finds the memory read of a live model of the STM family and replaces it."""

import inspect
import logging
from collections.abc import Callable, Mapping
from copy import copy, deepcopy
from functools import wraps
from types import MethodType, ModuleType, SimpleNamespace
from typing import Any, NamedTuple, Self, get_args

from torch import nn

from stm_fast.arguments import shown
from stm_fast.choices import BackendName
from stm_fast.ops import adapters
from stm_fast.ops.adapters.code_base import python_modules
from stm_fast.ops.adapters.examples import disagreement
from stm_fast.ops.adapters.families import (
    ADAPTERS,
    FUNCTION_READERS,
    MODULE_READERS,
    PLAIN_READERS,
    FunctionReader,
    ModuleReader,
    PlainReader,
    Signatures,
    parameters,
)

logger = logging.getLogger(__name__)


def adapt(model: nn.Module, *, backend: str = "auto") -> "Adapted":
    """Replaces the memory read of a model of the STM family with :func:`stm_fast.memory_read`, in place.

    .. code-block:: python

        model = STM()                    # the published network, also in DataParallel or DistributedDataParallel
        print(stm_fast.adapt(model))     # module.Memory: Memory of STM -> stm_fast.memory_read

    The read is found by the names and signatures of classes and functions, and compared with ours on a small random
    memory before it is replaced, so a fork with another formula is left as it is: STM and its training forks, STCN,
    Mask-Propagation, MiVOS, XMem, Cutie, DEVA, XMem++, Track-Anything, MatAnyone, AOT, DeAOT, PAOT and SAM 2
    (``docs/dropin.md`` says what is covered of each).

    * A layer becomes an instance of a subclass of its own class. Parameters, state dict, hooks and mode are unchanged;
      copies and pickles of the model are adapted too.
    * STCN's ``MemoryBank`` and the functions of XMem's family belong to no model: they are replaced in the loaded
      modules of the model's code base, for every model that uses them. Import the inference code before this call.
    * Where a published layer also returns its affinity, an adapted one returns None.

    Args:
        model: the network, or a module that contains it.
        backend: as in :func:`stm_fast.memory_read`.

    Returns:
        What was replaced, and `restore()`. If all reads of the model are this package's already, its `replaced` is
        empty.

    Raises:
        TypeError: `model` is not a module.
        ValueError: no memory read was found in the model or its code base, or `backend` is unknown.
    """
    if not isinstance(model, nn.Module):
        raise TypeError(f"model: found {type(model).__name__}, expected a torch.nn.Module")
    if backend not in get_args(BackendName):
        raise ValueError(f"backend: found {shown(backend)}, expected one of {', '.join(get_args(BackendName))}")
    search = _Search(backend)
    search.layers(model)
    own, loaded = {type(part).__module__ for part in model.modules()}, list(python_modules(model))
    for module in loaded:
        search.classes(module)
        search.functions(module, loaded, is_own=module.__name__ in own)
    if not search.replacements and not search.present:
        raise ValueError(search.failure(model))
    return Adapted(search.replacements, search.present)


class Replacement(NamedTuple):
    """An attribute that is set, and what it was."""

    owner: Any  # a layer, a class or a Python module
    name: str
    new: Any
    old: Any
    line: str  # for people; empty for one that is part of another


class Adapted:
    """What :func:`adapt` replaced. A context manager that restores it at the end.

    Attributes:
        replaced: a line for each layer, class and function: ``"module.Memory: Memory of STM -> stm_fast.memory_read"``.
    """

    def __init__(self, replacements: list[Replacement], present: list[str]) -> None:
        self._replacements = replacements
        self._present = present
        self.replaced = tuple(replacement.line for replacement in replacements if replacement.line)
        for replacement in replacements:
            setattr(replacement.owner, replacement.name, replacement.new)
        for line in str(self).splitlines():
            logger.info(line)

    def restore(self) -> None:
        """Sets everything back; a second call does nothing."""
        while self._replacements:
            replacement = self._replacements.pop()
            setattr(replacement.owner, replacement.name, replacement.old)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.restore()

    def __str__(self) -> str:
        if not self.replaced:
            return f"nothing left to replace: stm_fast reads already in {', '.join(self._present)}"
        return "\n".join(self.replaced)

    def __repr__(self) -> str:
        return f"Adapted(replaced={self.replaced!r})"


class _AdaptedLayer:
    """The first base of adapted layers. They are pickled by the class they had, which others can import."""

    _published: type[nn.Module]
    _adapter: type[nn.Module]
    backend: str

    def __reduce_ex__(self, protocol: Any) -> Any:
        reduced: Any = super().__reduce_ex__(max(protocol, 2))
        _, _, *state = reduced
        return _new_layer, (self._published, self._adapter, self.backend), *state


def _new_layer(published: type[Any], adapter: type[Any], backend: str) -> Any:
    return object.__new__(_adapted_class(published, adapter, backend))


_adapted_classes: dict[tuple[type[Any], type[Any], str], type[Any]] = {}


def _adapted_class(published: type[Any], adapter: type[Any], backend: str) -> type[Any]:
    """A subclass of a published class whose methods are the adapter's; the same for all layers of the class."""
    key = published, adapter, backend
    if key not in _adapted_classes:
        names = {name: getattr(published, name) for name in ("__module__", "__qualname__", "__doc__")}
        own = {"_published": published, "_adapter": adapter, "backend": backend}
        _adapted_classes[key] = type(published.__name__, (_AdaptedLayer, adapter, published), names | own)
    return _adapted_classes[key]


class _Search:
    """Collects what can be replaced, what is this package's already, and what has a known name but not its form."""

    def __init__(self, backend: str) -> None:
        self.backend = backend
        self.replacements: list[Replacement] = []
        self.present: list[str] = []
        self.near: list[str] = []

    def layers(self, model: nn.Module) -> None:
        for path, layer in model.named_modules():
            published = type(layer)
            name = path or "the model"
            if isinstance(layer, (_AdaptedLayer, *ADAPTERS)):
                self.present.append(name)
            else:
                self._layer(layer, name, published)

    def _layer(self, layer: nn.Module, name: str, published: type[nn.Module]) -> None:
        reasons = []
        for reader in MODULE_READERS:
            if not _published_name(published, reader.name):
                continue
            reason = _mismatch(published, reader.name, reader.signatures)
            absent = [attribute for attribute in reader.attributes if not hasattr(layer, attribute)]
            if reason is None and absent:
                reason = f"no attribute {absent[0]}"
            if reason is None:
                reason = _layers_disagree(layer, published, reader)
            if reason is None:
                new = _adapted_class(published, reader.adapter, self.backend)
                line = f"{name}: {reader.name} of {reader.network} -> stm_fast.memory_read"
                self.replacements.append(Replacement(layer, "__class__", new, published, line))
                return
            reasons.append(f"{reader.name} of {reader.network}: {reason}")
        self.near.extend(f"{name} is not {reason}" for reason in reasons)

    def classes(self, module: ModuleType) -> None:
        for reader in PLAIN_READERS:
            found = vars(module).get(reader.name)
            if not inspect.isclass(found) or found.__module__ != module.__name__:
                continue
            name = f"{module.__name__}.{reader.name}"
            methods = reader.methods(self.backend)
            if all(_is_ours(vars(found).get(method)) for method in methods):
                self.present.append(name)
            elif reason := _mismatch(found, reader.name, reader.signatures) or _classes_disagree(found, reader):
                self.near.append(f"{name} is not that of {reader.network}: {reason}")
            else:
                line = f"{name} of {reader.network} -> stm_fast.memory_read"
                for method, new in methods.items():
                    self.replacements.append(Replacement(found, method, new, vars(found)[method], line))
                    line = ""

    def functions(self, module: ModuleType, loaded: list[ModuleType], *, is_own: bool) -> None:
        """Of a module of the code base. One that defines no part of the model may use ours for itself."""
        for reader in FUNCTION_READERS:
            found = {name: vars(module).get(name) for name in reader.functions}
            if ours := [name for name, function in found.items() if _is_ours(function)]:
                self.present += [f"{module.__name__}.{ours[0]}"] * is_own
                continue
            defined = {name: f for name, f in found.items() if getattr(f, "__module__", None) == module.__name__}
            if not any(map(inspect.isfunction, defined.values())):
                continue
            if reason := _unlike_ours(defined, reader) or _functions_disagree(defined, reader):
                self.near.append(f"{module.__name__} is not that of {reader.network}: {reason}")
                continue
            for holder in loaded:
                self._holder(holder, defined, reader)

    def _holder(self, holder: ModuleType, defined: dict[str, Any], reader: FunctionReader) -> None:
        names = vars(holder)
        held = {name: function for name, function in defined.items() if names.get(name) is function}
        for name, function in held.items():
            taker = reader.consumed.get(name)
            if taker is not None and taker not in held:
                logger.info("%s keeps its %s(): it does not use %s()", holder.__name__, name, taker)
                continue
            new = _with_backend(getattr(adapters, name), self.backend)
            line = f"{holder.__name__}.{name}() of {reader.network} -> stm_fast.memory_read"
            self.replacements.append(Replacement(holder, name, new, function, line))

    def failure(self, model: nn.Module) -> str:
        expected = [f"{reader.name} of {reader.network}" for reader in (*MODULE_READERS, *PLAIN_READERS)]
        expected += [f"{reader.functions[0]}() of {reader.network}" for reader in FUNCTION_READERS]
        inner = model.module if isinstance(getattr(model, "module", None), nn.Module) else model
        near = f" ({'; '.join(self.near)})" if self.near else ""
        return (
            f"model: found {type(inner).__module__}.{type(inner).__qualname__} without a known memory read{near}, "
            f"expected one with {', '.join(expected)}; code that is not imported yet is not found"
        )


def _published_name(published: type[nn.Module], name: str) -> bool:
    """Whether the class, or one that it extends, has the name; PyTorch's own classes of that name are others."""
    return any(base.__name__ == name and not base.__module__.startswith("torch.") for base in published.__mro__)


def _mismatch(found: type, name: str, signatures: Signatures) -> str | None:
    """How the methods of a class differ from those of the published class of the name."""
    for method, expected in signatures.items():
        owner = next((base for base in found.__mro__ if method in vars(base)), nn.Module)
        if owner is nn.Module:
            return f"no {method}()"
        if owner.__name__ != name:
            return f"{owner.__name__} has its own {method}()"
        if different := _different(method, parameters(vars(owner)[method]), expected):
            return different
    return None


def _layers_disagree(layer: nn.Module, published: type[nn.Module], reader: ModuleReader) -> str | None:
    if any(parameter.is_meta for parameter in layer.parameters()):
        return None  # no numbers to read with
    before = deepcopy(layer).cpu().double().eval()
    after = copy(before)
    after.__class__ = _adapted_class(published, reader.adapter, "reference")
    return disagreement(before, after, reader.examples)


def _classes_disagree(found: type, reader: PlainReader) -> str | None:
    def instance(methods: Mapping[str, Callable[..., Any]]) -> Any:
        made = SimpleNamespace(**reader.attributes)
        for name, method in methods.items():
            setattr(made, name, MethodType(method, made))
        return made

    ours = reader.methods("reference")
    published = {name: vars(found)[name] for name in ours}
    return disagreement(instance(published), instance(ours), (reader.example,))


def _functions_disagree(defined: Mapping[str, Any], reader: FunctionReader) -> str | None:
    return disagreement(defined, {name: getattr(adapters, name) for name in reader.functions}, (reader.example,))


def _unlike_ours(defined: dict[str, Any], reader: FunctionReader) -> str | None:
    """How functions differ from those that would replace them."""
    for name in reader.functions:
        if not inspect.isfunction(defined.get(name)):
            return f"no {name}()"
        found, ours = parameters(defined[name]), parameters(getattr(adapters, name))
        if different := _different(name, found, ours[: len(found)]):
            return different
    return None


def _different(name: str, found: tuple[str, ...], expected: tuple[str, ...]) -> str | None:
    if found == expected:
        return None
    return f"found {name}({', '.join(found)}), expected {name}({', '.join(expected)})"


def _is_ours(definition: object) -> bool:
    return str(getattr(definition, "__module__", "")).startswith("stm_fast.")


def _with_backend(function: Callable[..., Any], backend: str) -> Callable[..., Any]:
    """The function with another default of its backend, if it has one."""
    if backend == "auto" or "backend" not in inspect.signature(function).parameters:
        return function

    @wraps(function)
    def with_backend(*arguments: Any, **named: Any) -> Any:
        return function(*arguments, **{"backend": backend, **named})

    return with_backend
