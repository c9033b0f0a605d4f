"""The commands by full name, such as "segment" or "benchmark read": click's objects and the Python functions."""

from collections.abc import Callable, Iterator
from typing import Any

import typer

from stm_fast.__main__ import app


def _commands(group: Any, prefix: str = "") -> Iterator[tuple[str, Any]]:
    for name, command in group.commands.items():
        if hasattr(command, "commands"):
            yield from _commands(command, f"{prefix}{name} ")
        else:
            yield prefix + name, command


def _callbacks(group: typer.Typer, prefix: str = "") -> Iterator[tuple[str, Callable[..., None]]]:
    for command in group.registered_commands:
        yield prefix + (command.name or command.callback.__name__), command.callback
    for inner in group.registered_groups:
        yield from _callbacks(inner.typer_instance, f"{prefix}{inner.name} ")


COMMANDS: dict[str, Any] = dict(_commands(typer.main.get_command(app)))
CALLBACKS = dict(_callbacks(app))
