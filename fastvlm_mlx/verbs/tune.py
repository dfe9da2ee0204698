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
            help=f"Model directory or hub id. Default: --random, else {MODEL_VARIABLE}, else --random 0.5b.",
        ),
    ] = None,
    random: Annotated[
        str | None,
        typer.Option(
            metavar="0.5b|1.5b|7b",
            help="Real sizes with random weights, no download; all three have the same tower.",
        ),
    ] = None,
    image_size: ImageSize = None,
    dtype: Dtype = None,
    runs: Annotated[int, typer.Option(min=1, help="Measured runs per candidate, after one warm-up run.")] = 5,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object.")] = False,
    forget: Annotated[
        bool, typer.Option("--forget", help="Measure nothing; delete the stored choices.")
    ] = False,
    revision: Revision = None,
) -> None:
    """Find the fastest way to compute the vision tower on this machine, and use it from now on. Experimental.

    Each operation (depthwise convolution, attention, GELU) has several candidates. Candidates that do not run
    here, or that differ from the plain definition, are dropped. The others are timed in turn at the model's
    own shapes. The choice is stored for this chip, MLX version and data type.

    Without this command, a GPU uses MLX's own operations: we never ran our Metal and CUDA kernels ourselves.
    --kernels stock, or FASTVLM_MLX_KERNELS=stock, ignores the choices.

    \b
    Examples:
      fastvlm-mlx tune
      fastvlm-mlx tune --model 0.5b --image-size 512
      fastvlm-mlx tune --forget
    """
    if forget:
        if model or random or as_json or image_size or dtype:
            raise ConfigError("--forget measures nothing; drop the other options")
        from ..kernels import choice

        had = choice.forget()
        return output.status("Deleted the stored choices." if had else "There were no stored choices.")
    if model is not None and random is not None:
        raise ConfigError("--model and --random exclude each other; give one of them")
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
