"""Groups of options shared by several commands."""

import inspect
from collections.abc import Callable
from functools import wraps
from typing import Annotated, Any, get_args, get_origin


def grouped(command: Callable[..., None], *first: Callable[..., None]) -> Callable[..., None]:
    """A command in which a parameter may stand for several options.

    A parameter ``Annotated[T, function]`` is replaced by the parameters of the function, which returns a T. The
    parameters of the functions `first` are options of the command too; these functions are called before everything.
    """
    signature = inspect.signature(command)
    makers = {name: _maker(parameter) for name, parameter in signature.parameters.items()}
    groups = {name: (maker, inspect.signature(maker).parameters) for name, maker in makers.items() if maker is not None}
    options: list[inspect.Parameter] = []
    for name, parameter in signature.parameters.items():
        options += groups[name][1].values() if name in groups else [parameter]
    options += [option for function in first for option in inspect.signature(function).parameters.values()]

    @wraps(command)
    def call(**given: Any) -> None:
        for function in first:
            function(**{part: given.pop(part) for part in inspect.signature(function).parameters})
        made = {name: maker(**{part: given.pop(part) for part in parts}) for name, (maker, parts) in groups.items()}
        command(**given, **made)

    keywords = [option.replace(kind=inspect.Parameter.KEYWORD_ONLY) for option in options]
    call.__signature__ = signature.replace(parameters=keywords)  # type: ignore[attr-defined]
    return call


def _maker(parameter: inspect.Parameter) -> Callable[..., Any] | None:
    annotation = parameter.annotation
    _, *metadata = get_args(annotation) if get_origin(annotation) is Annotated else (annotation,)
    return next((entry for entry in metadata if inspect.isfunction(entry)), None)
