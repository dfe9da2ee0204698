"""Options that several verbs take."""

from __future__ import annotations

from typing import Annotated

import typer

MODEL_VARIABLE = "FASTVLM_MLX_MODEL"

ImageSize = Annotated[
    int | None,
    typer.Option(help="Side in pixels, a multiple of 64; more is sharper and slower. Default: the model's."),
]
Dtype = Annotated[
    str | None,
    typer.Option(metavar="float16|bfloat16|float32", help="Compute in this type. Default: as stored."),
]
UploadRepo = Annotated[str | None, typer.Option(help="Upload the result to this hub repository.")]
HubPrivate = Annotated[bool, typer.Option("--hub-private", help="Make that repository private.")]
DryRun = Annotated[
    bool, typer.Option("--dry-run", help="Upload nothing: list the files and sizes that would be.")
]
Revision = Annotated[str | None, typer.Option(help="Branch, tag or commit on the hub.")]
