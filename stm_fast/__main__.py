"""The command line: stm-fast demo | segment | train | evaluate | benchmark | convert | info."""

import logging
import sys
from collections.abc import Callable
from typing import Annotated, Any

import typer
from typer.core import TyperGroup

import stm_fast.tasks as tasks
from stm_fast.commands.benchmark import benchmark
from stm_fast.commands.convert import convert
from stm_fast.commands.demo import demo
from stm_fast.commands.evaluate import evaluate
from stm_fast.commands.grouped import grouped
from stm_fast.commands.info import info
from stm_fast.commands.segment import segment
from stm_fast.commands.train import train
from stm_fast.errors import as_input_error
from stm_fast.printing import all_said, open_streams, say, warn
from stm_fast.tasks.flags import with_flags

_WRONG_USE = 2
_INTERRUPTED = 130  # what a shell says of a program that ctrl-C ended

# in the order of --help
_EXAMPLES: dict[Callable[..., None], str] = {
    demo: "stm-fast demo --output demo",
    convert: "stm-fast convert STM_weights.pth stm.safetensors",
    info: "stm-fast info",
    segment: "stm-fast segment clip.mp4 --masks first.png --output out --max-size 480",
    train: "stm-fast train configs/tiny.yaml --output runs/tiny",
    evaluate: "stm-fast evaluate davis17 --data DAVIS --split val --output out --weights STM_weights.pth",
    benchmark: "stm-fast benchmark --shapes 480p-T5-O1,480p-T20-O1 --passes forward",
}

# click's, or the copy of it that newer typers carry
_UsageError: type[Any] = typer.BadParameter.__mro__[1]


class _OneLineErrors(TyperGroup):
    """Ends with exit code 2 and one line where the user or the system is at fault; any other exception is a bug."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        if not args:  # help, which is no error
            return super().parse_args(ctx, args)
        try:
            return super().parse_args(ctx, args)
        except _UsageError as error:
            raise _wrong_use(error) from None
        except OSError as error:  # help, and stdout does not take it
            raise _refused(error) from None

    def invoke(self, ctx: Any) -> Any:
        logging.getLogger("stm_fast").addHandler(_NOTES)
        try:
            return super().invoke(ctx)
        except _UsageError as error:
            raise _wrong_use(error) from None
        except KeyboardInterrupt:
            raise _ended("interrupted; every file that was written is whole", _INTERRUPTED) from None
        except Exception as error:
            if as_input_error(error) is None:
                raise
            raise _refused(error) from None


def _refused(error: Exception) -> typer.Exit:
    if not all_said():  # and that has told why
        return typer.Exit(_WRONG_USE)
    return _ended(with_flags(str(as_input_error(error))), _WRONG_USE)


def _wrong_use(error: Any) -> typer.Exit:
    # newer typers tell which kind of error pydantic found
    what = error.format_message().removesuffix(".").replace(": Value error, ", ": ")
    return _ended(f"{what}; see {error.ctx.command_path} --help", _WRONG_USE)


def _ended(why: str, code: int) -> typer.Exit:
    warn(why)
    return typer.Exit(code)


class _Notes(logging.Handler):
    """What was made of input that could mean more than one thing, as the package logs it: a line on stderr."""

    def emit(self, record: logging.LogRecord) -> None:
        warn(with_flags(record.getMessage()))


_NOTES = _Notes(logging.WARNING)


app = typer.Typer(
    cls=_OneLineErrors,
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
    epilog="Example: stm-fast demo",
    help="Segments the objects of a video from masks of some of its frames, with a Space-Time Memory network.",
)
for command, example in _EXAMPLES.items():
    app.command(epilog=f"Example: {example}")(grouped(command))


def _print_version(asked: bool) -> None:
    if asked:
        say(f"stm_fast {tasks.__version__}")
        raise typer.Exit


@app.callback()
def _options(
    version: Annotated[
        bool, typer.Option("--version", is_eager=True, callback=_print_version, help="Show the version and exit.")
    ] = False,
) -> None:
    pass


def main() -> None:
    """What the stm-fast command runs."""
    open_streams()
    try:
        app()
    except SystemExit as end:
        sys.exit(end.code or (0 if all_said() else _WRONG_USE))


if __name__ == "__main__":
    main()
