"""The commands by their words, such as "segment" and "benchmark read", as click and as Python have them."""

from collections.abc import Callable, Iterator
from typing import Any

import typer

from stm_fast.__main__ import app


def _commands(group: Any, before: str = "") -> Iterator[tuple[str, Any]]:
    for name, command in group.commands.items():
        if hasattr(command, "commands"):
            yield from _commands(command, f"{before}{name} ")
        else:
            yield before + name, command


def _callbacks(group: typer.Typer, before: str = "") -> Iterator[tuple[str, Callable[..., None]]]:
    for command in group.registered_commands:
        yield before + (command.name or command.callback.__name__), command.callback
    for inner in group.registered_groups:
        yield from _callbacks(inner.typer_instance, f"{before}{inner.name} ")


COMMANDS: dict[str, Any] = dict(_commands(typer.main.get_command(app)))
CALLBACKS = dict(_callbacks(app))
