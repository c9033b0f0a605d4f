"""The environment of the program: its variables, standard streams, and system errors."""

import contextlib
import errno
import os
import pty
import re
import socket
import subprocess
import sys
from pathlib import Path

import pytest
from typer.testing import CliRunner

from stm_fast.__main__ import app
from stm_fast.errors import InputError, as_input_error
from stm_fast.printing import printable
from stm_fast.progress import progress_bar
from stm_fast.runs.ranks import Ranks, launched
from stm_fast.tasks.interruption import how_to_resume
from stm_fast.whole_file import whole_file

ROOT = Path(__file__).resolve().parents[1]
MASTER = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "29500"}
VARIABLES = ("RANK", "WORLD_SIZE", "LOCAL_RANK", *MASTER)


def run(*arguments):
    return CliRunner().invoke(app, [str(argument) for argument in arguments])


def assert_refused(result, *words):
    assert (result.exit_code, result.stdout) == (2, ""), (result.output, result.exception)
    assert isinstance(result.exception, SystemExit)
    assert re.fullmatch("stm-fast: .*\n", result.stderr), result.stderr
    for word in words:
        assert str(word) in result.stderr


@pytest.fixture
def environment(monkeypatch):
    """Sets the given variables of a distributed run, and removes the others."""

    def set_all(given):
        for name in VARIABLES:
            monkeypatch.delenv(name, raising=False)
        for name, value in given.items():
            monkeypatch.setenv(name, value)

    set_all({})
    return set_all


# variables


@pytest.mark.parametrize(
    ("given", "found"),
    [
        ({}, Ranks(0, 1, 0)),
        ({"RANK": "0"}, Ranks(0, 1, 0)),
        ({"RANK": "0", "WORLD_SIZE": "1"}, Ranks(0, 1, 0)),
        ({"RANK": "3", "WORLD_SIZE": "4", "LOCAL_RANK": "1", **MASTER}, Ranks(3, 4, 1)),
        ({"RANK": "0", "WORLD_SIZE": "1", "LOCAL_RANK": "0", **MASTER}, Ranks(0, 1, 0)),
    ],
)
def test_processes_of_a_run(environment, given, found):
    environment(given)
    assert launched() == found
    assert list(launched().share(range(10))) == list(range(found.rank, 10, found.world))


TWO = {"RANK": "0", "WORLD_SIZE": "2", "LOCAL_RANK": "0", **MASTER}
NOT_NUMBERS = ("", " ", "x", "-1", "+1", " 1", "1 ", "1.0", "1e9", "0x1", "1_000", "٣", "nan", "9" * 5000, "1000000000")
IMPLAUSIBLE = [
    *(({"RANK": text}, "RANK: found") for text in ("1", *NOT_NUMBERS)),
    *((TWO | {"RANK": text}, "RANK: found") for text in ("2", "3", *NOT_NUMBERS)),
    *((TWO | {"LOCAL_RANK": text}, "LOCAL_RANK: found") for text in ("2", *NOT_NUMBERS)),
    *((TWO | {"WORLD_SIZE": text}, "WORLD_SIZE: found") for text in ("0", *NOT_NUMBERS)),
    *((TWO | {"MASTER_PORT": text}, "MASTER_PORT: found") for text in ("0", "65536", *NOT_NUMBERS[1:])),
    ({"LOCAL_RANK": "0"}, "RANK: missing"),
    ({"LOCAL_RANK": "1"}, "LOCAL_RANK: found"),
    *(
        ({name: text for name, text in TWO.items() if name != missing}, f"{missing}: ")
        for missing in TWO
        if missing != "WORLD_SIZE"
    ),
]


@pytest.mark.parametrize(("given", "words"), IMPLAUSIBLE, ids=lambda given: str(given)[:80])
def test_an_implausible_process_variable_is_refused(environment, given, words):
    environment(given)
    with pytest.raises(InputError, match="^" + words) as refused:
        launched()
    assert len(str(refused.value)) < 200


@pytest.mark.parametrize(
    "command",
    [
        ("segment", "absent.mp4", "--masks", "absent.png", "--output", "out"),
        ("segment", "a.mp4", "b.mp4", "--masks", "absent", "--output", "out"),
        ("evaluate", "davis17", "--data", "absent", "--output", "out"),
        ("train", "absent.yaml", "--output", "out"),
        ("demo", "--output", "out"),
    ],
    ids=lambda command: command[0],
)
@pytest.mark.parametrize("given", [{"RANK": "1"}, {"RANK": ""}, {"LOCAL_RANK": "x"}, {"WORLD_SIZE": "2"}], ids=str)
def test_a_command_for_several_processes_checks_their_variables_first(
    environment, command, given, tmp_path, monkeypatch
):
    monkeypatch.chdir(tmp_path)
    environment(given)
    assert_refused(run(*command), "RANK: ")
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("given", [{"RANK": "x"}, {"WORLD_SIZE": "0"}], ids=str)
def test_help_ignores_the_process_variables(environment, given):
    environment(given)
    assert run("segment", "--help").exit_code == 0


def test_processes_that_cannot_connect_get_a_message(environment, monkeypatch):
    def unknown(*_):
        raise socket.gaierror(socket.EAI_NONAME, "Name or service not known")

    environment(TWO | {"MASTER_ADDR": "no.such.host"})
    monkeypatch.setattr(socket, "getaddrinfo", unknown)
    with pytest.raises(InputError, match=r"MASTER_ADDR, MASTER_PORT: .* connect at no\.such\.host:29500 .*not known"):
        launched().wait()


# system errors


@pytest.mark.parametrize(
    ("error", "line"),
    [
        (InputError("a: wrong"), "a: wrong"),
        (OSError(errno.EROFS, "Read-only file system", "a"), "a: Read-only file system"),
        (OSError(errno.EXDEV, "Invalid cross-device link", "a", None, "b"), "a -> b: Invalid cross-device link"),
        (OSError(errno.EIO, "Input/output error", b"a\xff"), "a\udcff: Input/output error"),
        (PermissionError(errno.EACCES, "Permission denied", 7), "Permission denied"),
        (OSError("no number"), "no number"),
        (OSError(), "OSError()"),
        (RuntimeError("Symlink loop from 'a'"), "Symlink loop from 'a'"),
    ],
)
def test_a_system_error_becomes_one_line(error, line):
    assert str(as_input_error(error)) == line


@pytest.mark.parametrize("error", [RuntimeError("a bug"), ValueError("a bug"), KeyError("a"), AssertionError()])
def test_bugs_are_not_input_errors(error):
    assert as_input_error(error) is None


def test_a_system_error_ends_any_command(monkeypatch):
    def full():
        raise OSError(errno.EROFS, os.strerror(errno.EROFS), "some\nfile")

    monkeypatch.setattr("stm_fast.tasks.info.print_info", full)
    assert_refused(run("info"), "some file: Read-only file system")


LONG = "a" * 300
# arguments of each command; {} is the bad path
PLACES = {
    # a named pipe is read, if something is written into it
    "source": ("segment", "{}", "--masks", "mask.png", "--output", "out", "--stall-seconds", "0.2"),
    "masks": ("segment", "clip.mp4", "--masks", "{}", "--output", "out"),
    "masks of many": ("segment", "clip.mp4", "other.mp4", "--masks", "{}", "--output", "out"),
    "weights": ("segment", "clip.mp4", "--masks", "mask.png", "--output", "out", "--weights", "{}"),
    "memory": (
        *("segment", "clip.mp4", "--masks", "mask.png", "--output", "out"),
        *("--memory-place", "disk", "--memory-folder", "{}"),
    ),
    "data": ("evaluate", "folder", "--data", "{}", "--output", "out"),
    "listed data": ("evaluate", "davis17", "--data", "{}", "--output", "out"),
    "youtube": ("evaluate", "youtube-vos", "--data", "{}", "--output", "out"),
    "results": ("evaluate", "folder", "--only-score", "{}", "masks"),
    "truth": ("evaluate", "folder", "--only-score", "masks", "{}"),
    "split": ("evaluate", "davis17", "--data", "masks", "--output", "out", "--split", "{}"),
    "config": ("train", "{}", "--output", "out"),
    "checkpoint": ("convert", "{}", "out.safetensors"),
    "weights of a benchmark": ("benchmark", "frames", "--weights", "{}"),
}
# reading must neither block on a pipe nor go on forever on a device; in "mask.png/x", the parent is not a folder
PATHS = (LONG, f"full/{LONG}", "loop", "loop/x", "mask.png/x", "pipe", "socket", "/dev/zero", "/dev/full", "dangling")


@pytest.fixture
def place(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for name in ("clip.mp4", "other.mp4", "mask.png"):
        Path(name).touch()
    for name in ("masks/a", "full"):
        Path(name).mkdir(parents=True)
    Path("loop").symlink_to("loop")
    Path("dangling").symlink_to("nowhere")
    os.mkfifo("pipe")
    with socket.socket(socket.AF_UNIX) as listening:
        listening.bind("socket")
        yield tmp_path


@pytest.mark.parametrize("path", PATHS, ids=lambda path: path[:20])
@pytest.mark.parametrize("arguments", PLACES.values(), ids=PLACES)
def test_an_unreadable_path_is_refused_in_one_line(place, environment, arguments, path):
    if "--split" in arguments and "/" in path:
        pytest.skip("refused for its slash, as test_startup.py checks")
    before = sorted(place.rglob("*"))
    assert_refused(run(*(argument.format(path) for argument in arguments)))
    assert sorted(place.rglob("*")) == before


@pytest.mark.parametrize(
    "command", [("segment", "clip.mp4", "--masks", "mask.png"), ("demo",)], ids=lambda words: words[0]
)
@pytest.mark.parametrize("path", [LONG, "loop", "dangling", "other.mp4", "pipe", "/dev/null", "socket"])
def test_an_output_that_cannot_be_a_folder_is_refused_before_any_work(place, environment, command, path):
    before = sorted(place.rglob("*"))
    assert_refused(run(*command, "--output", path), path)
    assert sorted(place.rglob("*")) == before


@pytest.mark.parametrize("path", ["pipe", "socket", "device"])
def test_a_device_or_pipe_is_not_replaced_by_a_file(place, path):
    Path("device").symlink_to("/dev/null")
    before = Path(path).lstat()
    with (
        pytest.raises(InputError, match=f"cannot write {path}: found a device or a pipe, expected a file"),
        whole_file(Path(path)) as partial,
    ):
        partial.write_text("text")
    assert Path(path).lstat() == before
    assert not list(place.glob(".*"))


# printed text


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("frames 1.mp4", "frames 1.mp4"),
        ("ö é 視頻 👩\u200d👩\u200d👧", "ö é 視頻 👩\u200d👩\u200d👧"),
        ("{0} %s [red]x[/red]", "{0} %s [red]x[/red]"),
        ("a\x1b[31mb\x07", r"a\x1b[31mb\x07"),
        ("a\nb\tc\rd\x7f\x9b", r"a\nb\tc\rd\x7f\x9b"),
        ("fig\u202egpj.exe\u2066\u2028", r"fig\u202egpj.exe\u2066\u2028"),
    ],
)
def test_control_characters_in_a_name_are_escaped(text, shown):
    assert printable(text) == shown


# prints lines, and exits like the command
PRINTING = """
import sys
from stm_fast.printing import all_printed, open_streams, say, warn
open_streams()
for number in range(3):
    say(f"result {number} of \\xf6\\udce9")
warn("doubtful\\nof \\xf6")
print("another's")
with open(sys.argv[1], "w") as file:
    file.write("whole")
sys.exit(0 if all_printed() else 2)
"""
RESULTS = "".join(f"result {number} of ö\\udce9\n" for number in range(3)) + "another's\n"
WARNING = "stm-fast: doubtful of ö\n"
LOST = "stm-fast: cannot write to stdout: No space left on device\n"
IN_ASCII = {"PYTHONIOENCODING": "ascii"}


@pytest.mark.parametrize(
    ("streams", "variables", "code", "output", "errors"),
    [
        ("", {}, 0, RESULTS, WARNING),
        ("", IN_ASCII, 0, RESULTS.replace("ö", r"\xf6"), WARNING.replace("ö", r"\xf6")),
        ("", {"LC_ALL": "C"}, 0, RESULTS, WARNING),
        (">/dev/full", {}, 2, "", LOST + WARNING),
        (">&-", {}, 0, "", WARNING),
        ("2>&-", {}, 0, RESULTS, ""),
        ("2>/dev/full", {}, 0, RESULTS, ""),
        ("<&- >&- 2>&-", {}, 0, "", ""),
        (">/dev/full 2>/dev/full", {}, 2, "", ""),
        ("| head -n 0", {}, 0, "", WARNING),
    ],
)
def test_broken_streams_do_not_stop_the_work(streams, variables, code, output, errors, tmp_path):
    script = f'set -o pipefail; "$0" -c "$1" "$2" {streams}'
    command = ["bash", "-c", script, sys.executable, PRINTING, tmp_path / "file"]
    given = {**os.environ, "PYTHONPATH": str(ROOT), **variables}
    ended = subprocess.run(command, capture_output=True, env=given, check=False, encoding="utf-8")
    assert (ended.returncode, ended.stdout, ended.stderr) == (code, output, errors)
    assert (tmp_path / "file").read_text() == "whole", "and none of the printed text"


@pytest.mark.parametrize("arguments", [["--version"], ["--help"], ["segment", "--help"]], ids=" ".join)
def test_lost_output_is_reported(arguments):
    command = [sys.executable, "-m", "stm_fast", *arguments]
    with Path("/dev/full").open("w") as full:
        ended = subprocess.run(command, stdout=full, stderr=subprocess.PIPE, text=True, cwd=ROOT, check=False)
    assert ended.returncode == 2
    assert re.fullmatch("stm-fast: .*No space left on device\n", ended.stderr)


def progress_on_a_terminal(name, monkeypatch):
    """The bytes sent to a terminal."""
    ours, theirs = pty.openpty()
    monkeypatch.setenv("TERM", "xterm")
    with open(ours, "rb", buffering=0) as reader:
        with open(theirs, "w", encoding="utf-8") as stderr, monkeypatch.context() as patch:
            patch.setattr(sys, "stderr", stderr)
            with progress_bar(name) as advance:
                advance(1, 2)
        return read_until_closed(reader).decode()


def read_until_closed(reader):
    """All bytes of a terminal whose other side is closed: a single read may return only those that have arrived."""
    received = b""
    with contextlib.suppress(OSError):  # EIO: Linux reports the end of a terminal so
        while more := reader.read(100_000):
            received += more
    return received


@pytest.mark.parametrize("name", ["{0}", "{task.nothing}", "[red]x[/red]", "[/]", "{", "%s", "a b"])
def test_a_progress_bar_shows_a_name_as_it_is(name, monkeypatch):
    shown = progress_on_a_terminal(name, monkeypatch)
    assert name in shown
    assert "1/2" in shown


def test_a_progress_bar_escapes_control_characters(monkeypatch):
    assert r"a\x1b[2Jb\n" in progress_on_a_terminal("a\x1b[2Jb\n", monkeypatch)


HOSTILE = [
    "plain",
    "",
    "my clip.mp4",
    "it's",
    "$(touch x)",
    "a\nb",
    "\x1b[31m",
    "'\n'",
    "ö\n",
    "\udce9\\1",
    "-",
    "\u202e",
]


def test_the_resume_command_is_quoted_for_the_shell(monkeypatch):
    monkeypatch.setattr(sys, "argv", ["/bin/stm-fast", "segment", *HOSTILE])
    _, command = how_to_resume()
    assert printable(command) == command
    script = command.replace("/bin/stm-fast segment --resume", r"printf '%s\0'")
    ended = subprocess.run(["bash", "-c", script], capture_output=True, check=True)
    assert [os.fsdecode(word) for word in ended.stdout.split(b"\0")[:-1]] == HOSTILE
