"""The command line. Answers go to stdout, all else to stderr; exit codes: 0 well, 1 failed, 2 misused."""

from __future__ import annotations

import io
import json
import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, NoReturn

import typer

from . import __version__, tell
from .config import STRIDE
from .errors import ConfigError, FastVLMError, PromptError

if TYPE_CHECKING:
    from collections.abc import Callable
    from contextlib import AbstractContextManager

    from .convert.quantize import Recipe

MODEL_VARIABLE = "FASTVLM_MLX_MODEL"
DEFAULT_QUESTION = "Describe the image."
_UsageError: type[typer.BadParameter] = typer.BadParameter.__bases__[0]  # Typer carries its own copy of click

app = typer.Typer(
    name="fastvlm-mlx",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,  # plain help: names are never cut, and rich is not loaded for it,
    context_settings={"help_option_names": ["-h", "--help"]},
)


@app.callback(invoke_without_command=True)
def root(
    version: Annotated[bool, typer.Option("--version", help="Print the version and leave.")] = False,
) -> None:
    """Apple's FastVLM on Apple Silicon: ask questions about pictures, convert checkpoints."""
    if version:
        tell.print_line(__version__)
        raise typer.Exit


ImageSize = Annotated[
    int | None,
    typer.Option(help="Side in pixels, a multiple of 64; more is sharper and slower. Default: the model's."),
]
Temperature = Annotated[
    float, typer.Option("--temperature", "--temp", help="0 always takes the likeliest token.")
]


@app.command(no_args_is_help=True)
def generate(
    images: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="[IMAGE]...", help="Pictures: paths, - for standard input, or http(s) addresses."
        ),
    ] = None,
    prompt: Annotated[
        str | None,
        typer.Option(
            "--prompt", "-p", help="The question. Mark places of pictures with <image>, or leave it."
        ),
    ] = None,
    image: Annotated[list[str] | None, typer.Option("--image", help="One more picture; repeat it.")] = None,
    model: Annotated[
        str | None,
        typer.Option(
            "--model",
            "-m",
            envvar=MODEL_VARIABLE,
            help="A directory, a hub id such as apple/FastVLM-1.5B, or 0.5b, 1.5b, 7b.",
        ),
    ] = None,
    system: Annotated[
        str | None, typer.Option(help="Another system prompt; an empty one leaves it out.")
    ] = None,
    max_tokens: Annotated[int, typer.Option("--max-tokens", "-n", min=0, help="Stop after so many.")] = 512,
    temperature: Temperature = 0.0,
    top_p: Annotated[float, typer.Option(help="Sample from the likeliest tokens that sum to this.")] = 1.0,
    top_k: Annotated[int, typer.Option(help="Sample from so many likeliest tokens; 0 is off.")] = 0,
    min_p: Annotated[
        float, typer.Option(help="Drop tokens this much rarer than the likeliest; 0 is off.")
    ] = 0.0,
    seed: Annotated[int | None, typer.Option(help="Makes sampling repeatable.")] = None,
    repetition_penalty: Annotated[float, typer.Option(help="Above 1 discourages repeats; 1 is off.")] = 1.0,
    image_size: ImageSize = None,
    image_mode: Annotated[
        str | None,
        typer.Option(metavar="pad|crop|stretch", help="How a picture becomes square. Default: the model's."),
    ] = None,
    reference: Annotated[
        bool,
        typer.Option(
            "--reference",
            help="Read pictures exactly as the PyTorch reference does: EXIF and transparency ignored.",
        ),
    ] = False,
    dtype: Annotated[
        str | None,
        typer.Option(metavar="float16|bfloat16|float32", help="Compute in this type. Default: as stored."),
    ] = None,
    revision: Annotated[str | None, typer.Option(help="Branch, tag or commit on the hub.")] = None,
    stats: Annotated[bool, typer.Option("--stats", help="Say on stderr where the time went.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object instead of text.")] = False,
) -> None:
    """Answer a question about one or more pictures.

    \b
    Examples:
      fastvlm-mlx generate cat.jpg --model 0.5b
      fastvlm-mlx generate page.png -m 1.5b -p "Read the text." --stats
      fastvlm-mlx generate a.jpg b.jpg -m 7b -p "First <image>, then <image>: what changed?"
    """
    sources = [*(images or []), *(image or [])]
    if prompt is None and not sources:
        raise ConfigError("nothing to do: give a picture, or a question with --prompt")
    if prompt is not None and not prompt.strip():
        raise PromptError(f'--prompt is empty; ask something, for example -p "{DEFAULT_QUESTION}"')
    if model is None:
        raise ConfigError(
            f"which model? --model 0.5b downloads FastVLM-0.5B (1.2 GB, Apple's licence for research); "
            f"a directory works as well, and {MODEL_VARIABLE} sets the default"
        )
    if sources.count("-") > 1:
        raise ConfigError("standard input (-) holds one picture; name the others")

    from .image import check_options, fetch, open_image

    check_options(STRIDE if image_size is None else image_size, "pad" if image_mode is None else image_mode)
    pictures = [open_image(fetch(source), reference=reference) for source in sources]

    from . import vlm as runtime
    from .generate import collect
    from .sampling import Options, Sampling

    sampling: Options = {
        "temperature": temperature,
        "top_p": top_p,
        "top_k": top_k,
        "min_p": min_p,
        "repetition_penalty": repetition_penalty,
        "seed": seed,
    }
    Sampling(**sampling)  # says what is wrong with them before a model is loaded
    vlm = runtime.load(model, dtype, revision=revision)
    question = vlm.prompt(
        prompt or DEFAULT_QUESTION,
        pictures,
        system,
        image_size=image_size,
        image_mode=image_mode,
        reference=reference,
    )
    events = vlm.stream(question, max_tokens=max_tokens, **sampling)
    answer = collect(events if as_json else tell.printed(events))
    if as_json:
        tell.print_line(json.dumps(tell.as_dict(answer, model), ensure_ascii=False))
    if stats:
        tell.say(tell.stats(answer))


@app.command(no_args_is_help=True)
def convert(
    source: Annotated[
        str, typer.Argument(metavar="SRC", help="A directory in any known layout, a hub id, 0.5b…")
    ],
    output: Annotated[Path, typer.Option("--output", "-o", "--mlx-path", help="The new directory.")],
    quantize: Annotated[bool, typer.Option("--quantize", "-q", help="Quantize the language model.")] = False,
    q_bits: Annotated[int | None, typer.Option(help="Bits a weight, 4 or 8; implies -q. Default: 4.")] = None,
    q_group_size: Annotated[int, typer.Option(help="Weights that share a scale: 32, 64 or 128.")] = 64,
    recipe: Annotated[
        str | None,
        typer.Option(metavar="4bit|8bit|mixed-4-8", help="A quantization recipe; implies -q."),
    ] = None,
    quantize_vision: Annotated[
        bool,
        typer.Option("--quantize-vision", help="Quantize the vision tower's and projector's matrices too."),
    ] = False,
    dtype: Annotated[
        str | None,
        typer.Option(
            metavar="float16|bfloat16|float32", help="Store floats in this type. Default: the source's."
        ),
    ] = None,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace the output directory.")] = False,
    verify: Annotated[
        bool,
        typer.Option(
            "--verify",
            help="Compare with the source (both in float32, in turn); the table goes to the model card.",
        ),
    ] = False,
    revision: Annotated[str | None, typer.Option(help="Branch, tag or commit on the hub.")] = None,
    upload_repo: Annotated[str | None, typer.Option(help="Upload the result to this hub repository.")] = None,
    hub_private: Annotated[bool, typer.Option("--hub-private", help="Make that repository private.")] = False,
) -> None:
    """Fuse, re-lay out and quantize a checkpoint into a new directory that loads fast.

    Reads Apple's checkpoints (fused or in training form), the transformers/timm ones and mlx-vlm's
    (float or quantized). The source is never changed; the result appears whole or not at all.

    \b
    Examples:
      fastvlm-mlx convert apple/FastVLM-0.5B -o FastVLM-0.5B-4bit -q
      fastvlm-mlx convert ./my-checkpoint -o out --dtype float16 --recipe mixed-4-8 --verify
    """
    from . import hub
    from .checkpoint import DTYPES
    from .config import Quantization

    if dtype is not None and dtype not in DTYPES:
        raise ConfigError(f"no dtype {dtype!r}; choose one of {', '.join(DTYPES)}")
    chosen = _recipe(quantize, q_bits, recipe, quantize_vision)
    Quantization(4, q_group_size)  # says what is wrong with it
    if hub_private and not upload_repo:
        raise ConfigError("--hub-private speaks of an upload; pass --upload-repo as well")
    if upload_repo:
        hub.require_token(upload_repo)

    from .atomic import refuse
    from .convert.run import convert as run

    refuse(output, overwrite)
    with _progress(f"writing {output.name}") as advance:
        done = run(
            hub.resolve(source, revision),
            output,
            recipe=chosen,
            group_size=q_group_size,
            dtype=DTYPES[dtype] if dtype else None,
            overwrite=overwrite,
            verify=verify,
            progress=advance,
        )
    tell.report(done)
    if upload_repo:
        tell.print_line(hub.upload(output, upload_repo, private=hub_private))


@app.command(no_args_is_help=True)
def doctor(
    path: Annotated[Path, typer.Argument(metavar="PATH", help="A model directory.")],
    quick: Annotated[
        bool, typer.Option("--quick", help="Headers only: do not look for NaN in the weights.")
    ] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object.")] = False,
) -> None:
    """Say what a model directory is, what is wrong with it, and how to repair it.

    Leaves with 1 if it will not load or would answer wrongly. Nothing is changed.

    \b
    Examples:
      fastvlm-mlx doctor ~/models/FastVLM-0.5B
      fastvlm-mlx doctor --quick --json ./downloaded
    """
    from .convert.doctor import examine

    with _progress("reading weights") as advance:
        report = examine(path, read_weights=not quick, progress=advance)
    if as_json:
        import dataclasses

        body = dataclasses.asdict(report) | {"healthy": report.healthy}
        tell.print_line(json.dumps(body, ensure_ascii=False, default=str))
    else:
        from .convert.report import print_report

        print_report(report)
    raise typer.Exit(0 if report.healthy else 1)


def _recipe(quantize: bool, bits: int | None, name: str | None, pictures: bool) -> Recipe | None:
    from .convert.quantize import RECIPES, uniform

    if name is not None and name not in RECIPES:
        raise ConfigError(f"no recipe {name!r}; choose one of {', '.join(RECIPES)}")
    if bits not in (None, 4, 8):
        raise ConfigError(f"--q-bits is {bits}; choose 4 or 8")
    if name and bits:
        raise ConfigError(f"--recipe {name} says the bits already; leave --q-bits out")
    if not (quantize or name or bits):
        if pictures:
            raise ConfigError("--quantize-vision says what else to quantize; pass -q or --recipe as well")
        return None
    recipe = RECIPES[name] if name else uniform(bits or 4)
    return recipe.with_pictures() if pictures else recipe


def _progress(what: str) -> AbstractContextManager[Callable[[int, int], None]]:
    from .progress import bar

    return bar(what)


def main() -> NoReturn:
    """Errors are one line on stderr; ctrl-C and a closed pipe are quiet."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):  # None where it was closed
            stream.reconfigure(errors="replace")  # a terminal of another encoding still gets its answer
    try:
        code = app(prog_name="fastvlm-mlx", standalone_mode=False)
        sys.stdout.flush()
        status = code if isinstance(code, int) else 0
    except FastVLMError as error:
        status = _failed(str(error), 1)
    except _UsageError as error:
        command = error.ctx.command_path if error.ctx else "fastvlm-mlx"
        text = error.format_message().rstrip(".")
        if text.startswith("Usage:"):  # asked for nothing: the help is the answer
            tell.print_line(text)
            status = 2
        else:
            status = _failed(f"{text}; try `{command} --help`", 2)
    except (KeyboardInterrupt, typer.Abort):
        status = _failed("", 130)
    except BrokenPipeError:
        status = _abandon_stdout(0)
    except OSError as error:
        if error.filename is not None:  # a file; a stream has no name
            raise
        _failed(f"standard output cannot be written ({error.strerror}); check the disk or the pipe", 1)
        status = _abandon_stdout(1)
    sys.exit(status)


def _failed(text: str, status: int) -> int:
    tell.say(f"fastvlm-mlx: {' '.join(text.splitlines())}" if text else "")
    return status


def _abandon_stdout(status: int) -> int:
    """So that the flush at exit does not fail once more."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    return status


if __name__ == "__main__":
    main()
