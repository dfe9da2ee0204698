"""`fastvlm-mlx tune`"""

from __future__ import annotations

import os
from typing import Annotated

import typer

from .. import tell
from ..errors import ConfigError
from .bench_jobs import Asked, Files
from .kernel_jobs import try_out
from .options import MODEL_VARIABLE, Dtype, ImageSize, Revision, checked_grid


def tune(
    model: Annotated[
        str | None,
        typer.Option(
            "--model",
            "-m",
            help=f"A directory or hub id. Default: --random, else {MODEL_VARIABLE}, else --random 0.5b.",
        ),
    ] = None,
    random: Annotated[
        str | None,
        typer.Option(metavar="0.5b|1.5b|7b", help="True sizes, nothing to download; all three see alike."),
    ] = None,
    image_size: ImageSize = None,
    dtype: Dtype = None,
    runs: Annotated[int, typer.Option(min=1, help="Measured runs of each, after one that is not.")] = 5,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object.")] = False,
    forget: Annotated[
        bool, typer.Option("--forget", help="Measure nothing: forget what was chosen before.")
    ] = False,
    revision: Revision = None,
) -> None:
    """Find out which way of computing the vision tower is the fastest on this machine, and keep to it.

    For each operation (depthwise convolutions, two in a row, attention, GELU) there are several ways. Each
    is checked against the plain definition first, and dropped if it is wrong or does not run here; those that
    are right are timed in turns, at the model's own shapes. The choice is kept for this chip, version of MLX
    and type.

    On a GPU the first answer does this by itself, in about a second and more coarsely. On a CPU only this
    command does. FASTVLM_MLX_KERNELS=stock, or --kernels stock where it is offered, leaves all of it alone
    and takes MLX's own operations.

    \b
    Examples:
      fastvlm-mlx tune
      fastvlm-mlx tune --model 0.5b --image-size 512
      fastvlm-mlx tune --forget
    """
    if forget:
        if model or random or as_json or image_size or dtype:
            raise ConfigError("--forget measures nothing; leave the other options out")
        from ..kernels import choice

        had = choice.forget()
        return tell.say("What was chosen is forgotten." if had else "There was nothing to forget.")
    if model is not None and random is not None:
        raise ConfigError("--model and --random name two models; give one of them")
    checked_grid(image_size, None, None, None)
    if random is None:
        model = model or os.environ.get(MODEL_VARIABLE) or None
    asked = Asked(
        model=model,
        random=random or (None if model else "0.5b"),
        sizes=[image_size] if image_size else None,
        batch=1,
        runs=runs,
        tokens=2,
        cold=False,
        dtype=dtype,
        revision=revision,
    )
    try_out(asked, Files(None, None, None), keep=True, as_json=as_json)
