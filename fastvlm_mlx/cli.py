"""The command line: answers on stdout, everything else on stderr; exit code 0 success, 1 failure, 2 usage."""

from __future__ import annotations

import io
import os
import signal
import sys
from collections.abc import Callable
from typing import Annotated, NoReturn

import typer

from . import __version__
from .errors import FastVLMError
from .terminal import output
from .verbs.bench import bench
from .verbs.caption import caption
from .verbs.chat import chat
from .verbs.convert import convert
from .verbs.doctor import doctor
from .verbs.evaluate import evaluate
from .verbs.export import export
from .verbs.generate import generate
from .verbs.models import models
from .verbs.options import MODEL_VARIABLE as MODEL_VARIABLE
from .verbs.sections import SectionedCommand
from .verbs.serve import serve
from .verbs.train import train
from .verbs.tune import tune

_TERMINATED = 128 + signal.SIGTERM
_UsageError: type[typer.BadParameter] = typer.BadParameter.__bases__[0]  # Typer carries its own copy of click

app = typer.Typer(
    name="fastvlm-mlx",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,  # plain help cuts no names and does not load rich
    context_settings={"help_option_names": ["-h", "--help"]},
)


@app.callback(invoke_without_command=True)
def root(
    version: Annotated[bool, typer.Option("--version", help="Print the version and exit.")] = False,
) -> None:
    """Apple's FastVLM on Apple Silicon: ask questions about pictures, convert, train and measure models."""
    if version:
        output.print_line(__version__)
        raise typer.Exit


_VERBS: dict[str, Callable[..., None]] = {
    "generate": generate,
    "chat": chat,
    "serve": serve,
    "caption": caption,
    "convert": convert,
    "doctor": doctor,
    "export": export,
    "eval": evaluate,
    "bench": bench,
    "tune": tune,
    "train": train,
    "models": models,
}
_ALONE = ("bench", "chat", "models", "serve", "tune")  # verbs that run without arguments
for name, verb in _VERBS.items():
    app.command(name, cls=SectionedCommand, no_args_is_help=name not in _ALONE)(verb)


def main() -> NoReturn:
    """Run the command; errors are one line on stderr, and ctrl-C, SIGTERM and a closed pipe print nothing."""
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(_TERMINATED))  # results so far are kept
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):  # a closed stream is None
            stream.reconfigure(errors="replace")  # characters outside the terminal's encoding become ?
    try:
        code = app(prog_name="fastvlm-mlx", standalone_mode=False)
        sys.stdout.flush()
        status = code if isinstance(code, int) else 0
    except FastVLMError as error:
        status = _failed(str(error), 1)
    except _UsageError as error:
        command = error.ctx.command_path if error.ctx else "fastvlm-mlx"
        text = error.format_message().rstrip(".")
        if text.startswith("Usage:"):  # no arguments: the help is the output
            output.print_line(text)
            status = 2
        else:
            status = _failed(f"{text}; try `{command} --help`", 2)
    except (KeyboardInterrupt, typer.Abort):
        status = _failed("", 130)
    except BrokenPipeError:
        status = _abandon_stdout(0)
    except OSError as error:
        if error.filename is not None:  # only files have a name; streams do not
            raise
        _failed(f"standard output cannot be written ({error.strerror}); check the disk or the pipe", 1)
        status = _abandon_stdout(1)
    sys.exit(status)


def _failed(text: str, status: int) -> int:
    output.status(f"fastvlm-mlx: {' '.join(text.splitlines())}" if text else "")
    return status


def _abandon_stdout(status: int) -> int:
    """Point stdout at /dev/null so that the flush at exit does not fail again."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    return status


if __name__ == "__main__":
    main()
