"""The help: panels in one order, and whole sentences that can be read without the name of the option."""

import os
import re
import subprocess
import sys

import pytest
from typer.testing import CliRunner

from command_line import COMMANDS
from stm_fast.__main__ import app
from stm_fast.commands.options import PANELS

OPTIONS = [
    (command, parameter)
    for command, found in COMMANDS.items()
    for parameter in found.params
    if parameter.param_type_name == "option"
]


def shown(*words):
    result = CliRunner().invoke(app, [*words, "--help"], prog_name="stm-fast", env={"COLUMNS": "200"})
    assert result.exit_code == 0, result.output
    return result.stdout


@pytest.mark.parametrize(("command", "option"), OPTIONS, ids=lambda value: getattr(value, "name", value))
def test_every_help_is_a_sentence_in_a_panel(command, option):
    assert option.rich_help_panel in PANELS
    assert re.fullmatch(r"[A-Z].*\.", option.help)
    assert len(option.help.split()) >= 4


@pytest.mark.parametrize("command", COMMANDS)
def test_panels_have_one_order_and_flags_no_type(command):
    text = shown(*command.split())
    panels = [panel for panel in re.findall(r"╭─ (\w+) ─", text) if panel != "Arguments"]
    assert panels == [panel for panel in PANELS if panel in panels]
    assert panels[-1] == "General"
    for unwanted in ("bool", "BOOLEAN", "default: default", "Options ─"):
        assert unwanted not in text


def test_the_panels_of_segment():
    text = shown("segment")
    for panel, names in {
        "Input": ("--masks", "--mask-frame"),
        "Output": ("--output", "--write"),
        "Speed": ("--device", "--dtype", "--compile", "--backend"),
        "Memory": ("--every", "--memory-folder"),
        "General": ("--quiet", "--verbose", "--help"),
    }.items():
        inside = text.split(f"╭─ {panel} ─")[1].split("╰─")[0]
        assert all(f" {name} " in inside for name in names), panel


@pytest.mark.parametrize(
    ("command", "usage"),
    [
        ("segment", "[OPTIONS] SOURCE..."),
        ("convert", "[OPTIONS] SOURCE... TARGET"),
        ("export", "[OPTIONS]"),
        ("train", "[OPTIONS] CONFIG"),
        ("evaluate", "[OPTIONS] SET"),
        ("info", "[OPTIONS]"),
        ("open", "[OPTIONS] [SOURCE]"),
    ],
)
def test_the_usage_line(command, usage):
    assert f"Usage: stm-fast {command} {usage}\n" in re.sub(" +\n", "\n", shown(command))


def test_an_option_has_one_meaning_in_all_commands():
    """Such as -o, which is --output wherever it exists."""
    meanings = {}
    for _, option in OPTIONS:
        for name in option.opts:
            meanings.setdefault(name, set()).add(option.opts[0])
    assert meanings["-o"] == {"--output"}
    assert not {name: found for name, found in meanings.items() if len(found) > 1}


@pytest.mark.parametrize(
    ("words", "found"),
    [
        ("stm-fast se", ["segment"]),
        ("stm-fast benchmark ", ["read", "frames", "tune"]),
        ("stm-fast train --stop", ["--stop-after-minutes"]),
        ("stm-fast open --prompter ", ["network", "grabcut", "sam2"]),
        ("stm-fast segment --evict ", ["oldest", "least_used", "even"]),
    ],
)
def test_a_shell_completes_commands_options_and_choices(words, found):
    asked = {"_STM_FAST_COMPLETE": "complete_bash", "COMP_WORDS": words, "COMP_CWORD": str(words.count(" "))}
    program = "import sys; sys.argv = ['stm-fast']; from stm_fast.__main__ import main; main()"
    command = [sys.executable, "-c", program]
    done = subprocess.run(command, env=os.environ | asked, capture_output=True, text=True, check=True)
    assert done.stdout.split() == found
