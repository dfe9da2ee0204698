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
            help=f"Model directory or hub id. Default: --random, {MODEL_VARIABLE}, or the built-in model; "
            "with --paper, --roofline, --against and --kernels, --random 0.5b.",
        ),
    ] = None,
    random: Annotated[
        str | None,
        typer.Option(metavar="0.5b|1.5b|7b", help="Real sizes with random weights; no download."),
    ] = None,
    sizes: Annotated[
        str | None,
        typer.Option(help="Image sides in pixels, multiples of 64. Default: 256 to 1536, as memory allows."),
    ] = None,
    image_mode: ImageMode = None,
    grid: GridOption = None,
    max_tiles: MaxTiles = None,
    batch: Annotated[int, typer.Option(min=1, help="Questions per batch, with one picture each.")] = 1,
    runs: Annotated[int, typer.Option(min=1, help="Measured runs, after one warm-up run.")] = 5,
    tokens: Annotated[int, typer.Option(min=2, help="Tokens to decode per run.")] = 32,
    cold: Annotated[
        bool, typer.Option("--cold/--no-cold", help="Also time a fresh process; not with --random.")
    ] = True,
    paper: Annotated[
        bool,
        typer.Option("--paper", help="Compare with the times in the paper, by its method."),
    ] = False,
    roofline: Annotated[
        bool,
        typer.Option(
            "--roofline", help="Compare with the lower bounds of Apple's chips; estimate memory on iPhones."
        ),
    ] = False,
    against: Annotated[
        str | None,
        typer.Option(
            metavar="NAME,…",
            help="Compare with other encoders for the same language model: vit-l-14@336, "
            "siglip-so400m@384, convnext-l, convnext-xxl, fastvit, llava-onevision. Or with mlx-vlm or "
            "transformers, on --model's weights.",
        ),
    ] = None,
    plan: Annotated[
        bool, typer.Option("--plan", help="Recommend model, bits and picture size for --ttft.")
    ] = False,
    ttft: Annotated[
        str | None,
        typer.Option(
            metavar="TIME", help="For --plan: limit for the time to first token, such as 200ms or 1.5s."
        ),
    ] = None,
    memory: Annotated[
        str | None, typer.Option(help="For --plan: memory limit, such as 4GB. Default: the machine's.")
    ] = None,
    kernels: Annotated[
        bool,
        typer.Option(
            "--kernels",
            help="Time the candidates for the tower's operations instead, as `fastvlm-mlx tune` does, but "
            "store nothing.",
        ),
    ] = False,
    json_file: Annotated[Path | None, typer.Option("--json", help="Write every run to this file.")] = None,
    markdown: Annotated[Path | None, typer.Option(help="Write the tables to this file.")] = None,
    plot: Annotated[
        Path | None, typer.Option(help="Plot the times by picture size, or the plan, to a .png or .svg file.")
    ] = None,
    dtype: Dtype = None,
    revision: Revision = None,
) -> None:
    """Benchmark every part of an answer on this machine, from opening the picture to decoding.

    Runs alternate between sizes, so that thermal throttling affects all of them. An interrupted benchmark
    keeps its measurements, marked as incomplete.

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
        raise ConfigError("--model and --random exclude each other; give one of them")
    if kernels and (plan or against or paper or roofline or plot or batch > 1 or image_mode is not None):
        raise ConfigError(
            "--kernels times single operations on whole squares; drop --plan, --against, --paper, "
            "--roofline, --plot, --batch and --image-mode"
        )
    if plan and (model or against or paper or roofline):
        raise ConfigError(
            "--plan uses random weights of every size; drop --model, --against, --paper and --roofline"
        )
    if against and (paper or roofline or plot):
        raise ConfigError("--against measures only encoders; drop --paper, --roofline and --plot")
    if plan != (ttft is not None) or (memory is not None and not plan):
        raise ConfigError("--plan needs --ttft, and --ttft and --memory need --plan; give both or neither")
    if batch > 1 and (plan or against):
        raise ConfigError(f"--batch {batch}: --plan and --against time one question; drop --batch")
    if image_mode is not None and (plan or against or paper or roofline):
        raise ConfigError(
            "--plan, --against, --paper and --roofline measure whole squares; drop --image-mode"
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
            output.status(
                "benchmarking the built-in model; --random 0.5b measures FastVLM-0.5B's sizes, no download"
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
