"""The command line: stm-fast demo | open | segment | convert | export | info | train | evaluate | benchmark."""

import sys
from collections.abc import Callable
from typing import Annotated, Any

import typer

from stm_fast.commands.benchmark import frames, read, tune
from stm_fast.commands.convert import convert
from stm_fast.commands.demo import demo
from stm_fast.commands.evaluate import evaluate
from stm_fast.commands.export import export
from stm_fast.commands.grouped import grouped
from stm_fast.commands.help import Command, Group
from stm_fast.commands.info import info
from stm_fast.commands.open import open
from stm_fast.commands.options import general_option
from stm_fast.commands.segment import segment
from stm_fast.commands.train import train
from stm_fast.commands.verbosity import Quiet, Verbose, notes_printed, set_verbosity
from stm_fast.errors import as_input_error
from stm_fast.printing import all_printed, open_streams, say, warn
from stm_fast.tasks.flags import with_flags

_BAD_USAGE = 2
_INTERRUPTED = 130  # the shell convention for a program ended by ctrl-C

# in the order in which --help lists them
_EXAMPLES: dict[Callable[..., None], str] = {
    demo: "stm-fast demo --output demo",
    open: "stm-fast open clip.mp4",
    segment: "stm-fast segment clip.mp4 --masks first.png --output out --max-size 480",
    convert: "stm-fast convert STM_weights.pth stm.safetensors",
    export: "stm-fast export --format onnx --output exported",
    info: "stm-fast info",
    train: "stm-fast train tiny --output runs/tiny",
    evaluate: "stm-fast evaluate davis17 --data DAVIS --split val --output out --weights STM_weights.pth",
}
_BENCHMARK_EXAMPLES: dict[Callable[..., None], str] = {
    read: "stm-fast benchmark read --shapes 480p-T5-O1,480p-T20-O1 --passes forward",
    frames: "stm-fast benchmark frames --shapes 480p-T10-O1 --variants published,prepared",
    tune: "stm-fast benchmark tune --output tiles.json --passes forward",
}

# from click, or from the copy that newer versions of typer include
_UsageError: type[Any] = typer.BadParameter.__mro__[1]


class _OneLineErrors(Group):
    """Ends with exit code 2 and one line if the user or the system is at fault; any other exception is a bug."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        if not args:  # prints the help
            return super().parse_args(ctx, args)
        try:
            return super().parse_args(ctx, args)
        except _UsageError as error:
            raise _usage_error(error, ctx) from None
        except OSError as error:  # printing the help failed
            raise _bad_input(error) from None

    def invoke(self, ctx: Any) -> Any:
        try:
            with notes_printed():
                return super().invoke(ctx)
        except _UsageError as error:
            raise _usage_error(error, ctx) from None
        except KeyboardInterrupt:
            raise _exit("interrupted; all files written so far are complete", _INTERRUPTED) from None
        except Exception as error:
            if as_input_error(error) is None:
                raise
            raise _bad_input(error) from None


class _HelpWithoutArguments(Group):
    """Commands inside a command."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        return super().parse_args(ctx, args or ["--help"])


def _bad_input(error: Exception) -> typer.Exit:
    if not all_printed():  # which has printed the reason
        return typer.Exit(_BAD_USAGE)
    return _exit(with_flags(as_input_error(error)), _BAD_USAGE)


def _usage_error(error: Any, ctx: Any) -> typer.Exit:
    """The exit after an error of a command; `ctx` is that of its group."""
    # with newer versions of typer, the message includes the kind of pydantic's error
    what = error.format_message().removesuffix(".").replace(": Value error, ", ": ")
    # an option without its value, or a flag with one, is reported without a context
    command = error.ctx.command_path if error.ctx else f"{ctx.command_path} {ctx.invoked_subcommand or ''}".strip()
    return _exit(f"{what}; see {command} --help", _BAD_USAGE)


def _exit(why: str, code: int) -> typer.Exit:
    warn(why)
    return typer.Exit(code)


app = typer.Typer(
    cls=_OneLineErrors,
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
    epilog="Example: stm-fast demo",
    help="Segment the objects of a video from masks of some of its frames, with a Space-Time Memory network.",
)
for command, example in _EXAMPLES.items():
    app.command(cls=Command, epilog=f"Example: {example}")(grouped(command, set_verbosity))
benchmark = typer.Typer(
    cls=_HelpWithoutArguments,
    epilog="Example: stm-fast benchmark read --quick",
    help="Time memory reads, whole frames, or tiles of the Triton kernels.",
)
for command, example in _BENCHMARK_EXAMPLES.items():
    benchmark.command(cls=Command, epilog=f"Example: {example}")(grouped(command, set_verbosity))
app.add_typer(benchmark, name="benchmark")


def _print_version(asked: bool) -> None:
    if asked:
        from stm_fast.versions import __version__

        say(f"stm_fast {__version__}")
        raise typer.Exit


@app.callback()
def _options(
    version: Annotated[
        bool,
        general_option("--version", is_eager=True, callback=_print_version, help="Show the version and exit."),
    ] = False,
    quiet: Quiet = False,
    verbose: Verbose = 0,
) -> None:
    set_verbosity(quiet, verbose)


def main() -> None:
    """The entry point of the stm-fast command."""
    open_streams()
    try:
        app()
    except SystemExit as end:
        sys.exit(end.code or (0 if all_printed() else _BAD_USAGE))


if __name__ == "__main__":
    main()
