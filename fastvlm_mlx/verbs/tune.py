"""`fastvlm-mlx tune`"""

from __future__ import annotations

import os
from typing import Annotated

import typer

from ..errors import ConfigError
from ..terminal import output
from .bench_jobs import Asked, Files
from .kernel_jobs import try_out
from .options import MODEL_VARIABLE, Dtype, ImageSize, Revision, image_options


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
    """Find the fastest way to compute the vision tower on this machine, and use it from now on. Experimental.

    Each operation (depthwise convolution, attention, GELU) has several candidates. Each is checked against
    the plain definition; wrong ones, and ones that do not run here, are dropped. The others are timed in
    turns, at the model's own shapes. The choice is kept for this chip, version of MLX and type.

    Without this command a GPU uses MLX's own operations: our Metal and CUDA kernels were never run by us.
    --kernels stock, or FASTVLM_MLX_KERNELS=stock, ignores the choices.

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
        return output.say("What was chosen is forgotten." if had else "There was nothing to forget.")
    if model is not None and random is not None:
        raise ConfigError("--model and --random name two models; give one of them")
    options = image_options(image_size, None, None, None, reference=False)
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
        options=options,
    )
    try_out(asked, Files(None, None, None), keep=True, as_json=as_json)
