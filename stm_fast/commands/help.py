"""The help of commands: panels in one order, flags without a type, and a usage line without braces."""

import inspect
from typing import Any

from typer.core import TyperCommand, TyperGroup

from stm_fast.commands.cluster import with_address
from stm_fast.commands.options import GENERAL, PANELS


class Command(TyperCommand):
    """A command of stm-fast."""

    def __init__(self, *arguments: Any, help: str | None = None, **options: Any) -> None:
        # the lines of a docstring end where the source does
        paragraphs = inspect.cleandoc(help or "").split("\n\n")
        super().__init__(*arguments, help="\n\n".join(" ".join(text.split()) for text in paragraphs), **options)

    def get_params(self, ctx: Any) -> list[Any]:
        return _legible(super().get_params(ctx))

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        return super().parse_args(ctx, with_address(args))

    def collect_usage_pieces(self, ctx: Any) -> list[str]:
        return ["[OPTIONS]", *(_placeholder(one) for one in self.params if one.param_type_name == "argument")]


class Group(TyperGroup):
    """Commands of stm-fast."""

    def get_params(self, ctx: Any) -> list[Any]:
        return _legible(super().get_params(ctx))


def _legible(parameters: list[Any]) -> list[Any]:
    """The parameters, as the help shows them."""
    for parameter in parameters:
        if getattr(parameter, "is_flag", False) or getattr(parameter, "count", False):
            parameter.metavar = ""
        if parameter.param_type_name == "option" and _panel(parameter) < 0:  # --help, and others of typer itself
            parameter.rich_help_panel = GENERAL
    return sorted(parameters, key=_panel)


def _panel(parameter: Any) -> int:
    """The position of a parameter's panel in the help; arguments come first."""
    panel = getattr(parameter, "rich_help_panel", None)
    return PANELS.index(panel) if panel in PANELS else -1


def _placeholder(argument: Any) -> str:
    """An argument in the usage line, such as SOURCE... for one or several, or [SOURCE] for one or none."""
    name: str = argument.metavar or argument.name.upper()
    if not argument.required:
        return f"[{name}]"
    return name if argument.nargs == 1 or name.endswith("...") else f"{name}..."
