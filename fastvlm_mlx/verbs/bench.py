"""`fastvlm-mlx bench`"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Annotated

import typer

from ..errors import ConfigError
from ..terminal import output
from ..weights import hub
from . import bench_jobs as jobs
from .kernel_jobs import try_out
from .options import MODEL_VARIABLE, Dtype, GridOption, ImageMode, MaxTiles, Revision, image_options


def bench(
    model: Annotated[
        str | None,
        typer.Option(
            "--model",
            "-m",
            help=f"A directory or hub id. Default: --random, else {MODEL_VARIABLE}, else the built-in one; "
            "with --paper, --roofline, --against and --kernels, --random 0.5b.",
        ),
    ] = None,
    random: Annotated[
        str | None,
        typer.Option(metavar="0.5b|1.5b|7b", help="True sizes, random weights: nothing to download."),
    ] = None,
    sizes: Annotated[
        str | None,
        typer.Option(help="Sides in pixels, multiples of 64. Default: 256 to 1536, as far as there is room."),
    ] = None,
    image_mode: ImageMode = None,
    grid: GridOption = None,
    max_tiles: MaxTiles = None,
    batch: Annotated[int, typer.Option(min=1, help="So many questions at once, a picture each.")] = 1,
    runs: Annotated[int, typer.Option(min=1, help="Measured runs, after one that is not.")] = 5,
    tokens: Annotated[int, typer.Option(min=2, help="Tokens to decode in each run.")] = 32,
    cold: Annotated[
        bool, typer.Option("--cold/--no-cold", help="Time a fresh process too; not with --random.")
    ] = True,
    paper: Annotated[
        bool,
        typer.Option("--paper", help="Beside the times that the paper publishes, by its method."),
    ] = False,
    roofline: Annotated[
        bool,
        typer.Option("--roofline", help="Beside the least that Apple's chips can take; memory on iPhones."),
    ] = False,
    against: Annotated[
        str | None,
        typer.Option(
            metavar="NAME,…",
            help="Other encoders before the same language model: vit-l-14@336, siglip-so400m@384, "
            "convnext-l, convnext-xxl, fastvit, llava-onevision. Or mlx-vlm or transformers, with --model's "
            "weights.",
        ),
    ] = None,
    plan: Annotated[
        bool, typer.Option("--plan", help="Recommend model, bits and picture size for --ttft.")
    ] = False,
    ttft: Annotated[
        str | None, typer.Option(metavar="TIME", help="For --plan: the first token within 200ms, 1.5s…")
    ] = None,
    memory: Annotated[
        str | None, typer.Option(help="For --plan: at most so much, 4GB… Default: the machine's.")
    ] = None,
    kernels: Annotated[
        bool,
        typer.Option(
            "--kernels",
            help="Time the ways to compute each of the tower's operations instead, as `fastvlm-mlx tune` "
            "does, and keep nothing.",
        ),
    ] = False,
    json_file: Annotated[Path | None, typer.Option("--json", help="Write every run here.")] = None,
    markdown: Annotated[Path | None, typer.Option(help="Write the tables here.")] = None,
    plot: Annotated[
        Path | None, typer.Option(help="Draw the parts by picture size, or the plan: a .png or .svg.")
    ] = None,
    dtype: Dtype = None,
    revision: Revision = None,
) -> None:
    """Time every part of an answer on this machine, from the picture's file to the first token and on.

    Sizes are measured in turn, so that a machine that warms up slows all of them. Interrupted, what was
    measured is kept and marked.

    \b
    Examples:
      fastvlm-mlx bench
      fastvlm-mlx bench --sizes 1024 --image-mode tiles --grid 2x2
      fastvlm-mlx bench --model 0.5b --sizes 512,1024 --markdown bench.md --plot bench.png
      fastvlm-mlx bench --random 7b --runs 3 --json bench.json --paper --roofline
      fastvlm-mlx bench --against vit-l-14@336,llava-onevision
      fastvlm-mlx bench --model 0.5b --against transformers
      fastvlm-mlx bench --kernels --sizes 1024
      fastvlm-mlx bench --plan --ttft 200ms --memory 4GB
    """
    from ..files.atomic import require_writable

    if model is not None and random is not None:
        raise ConfigError("--model and --random name two models; give one of them")
    if kernels and (plan or against or paper or roofline or plot or batch > 1 or image_mode is not None):
        raise ConfigError(
            "--kernels times single operations of whole squares; leave --plan, --against, --paper, "
            "--roofline, --plot, --batch and --image-mode out"
        )
    if plan and (model or against or paper or roofline):
        raise ConfigError(
            "--plan makes up models of every size; leave --model, --against, --paper and --roofline out"
        )
    if against and (paper or roofline or plot):
        raise ConfigError("--against measures encoders alone; leave --paper, --roofline and --plot out")
    if plan != (ttft is not None) or (memory is not None and not plan):
        raise ConfigError("--plan needs --ttft, which like --memory is for --plan alone; give both or none")
    if batch > 1 and (plan or against):
        raise ConfigError(f"--batch {batch}: --plan and --against time one question; leave --batch out")
    if image_mode is not None and (plan or against or paper or roofline):
        raise ConfigError(
            "--plan, --against, --paper and --roofline are of whole squares; leave --image-mode out"
        )
    if model is None and random is None and not plan:
        model = os.environ.get(MODEL_VARIABLE) or None
    listed = list(dict.fromkeys(map(_number, sizes.split(",")))) if sizes else None
    for size in listed or (None,):
        options = image_options(size, image_mode, grid, max_tiles, reference=False)
    for file in (json_file, markdown):
        if file is not None:
            require_writable(file)
    if plot is not None:
        from ..bench import plot as drawing

        drawing.require(plot)
    if random is None and model is None and not plan:
        if against or paper or roofline or kernels:
            random = "0.5b"
        else:
            output.say(
                "timing the built-in model; --random 0.5b times FastVLM-0.5B's sizes without a download"
            )
            model = hub.DEFAULT
    asked = jobs.Asked(model, random, listed, batch, runs, tokens, cold, dtype, revision, options)
    files = jobs.Files(json_file, markdown, plot)
    if kernels:
        try_out(asked, files)
    elif plan:
        jobs.plan(asked, ttft or "", memory, files)
    elif against:
        jobs.against(asked, against, files)
    else:
        jobs.time(asked, paper, roofline, files)


def _number(text: str) -> int:
    try:
        return int(text)
    except ValueError:
        raise ConfigError(f"--sizes holds {text!r}; give numbers and commas, such as 512,1024") from None
