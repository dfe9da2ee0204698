"""`fastvlm-mlx export`"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from ..errors import ConfigError
from ..terminal.output import status, upload
from .options import DryRun, HubPrivate, Revision, UploadRepo

if TYPE_CHECKING:
    from ..convert.export.steps import Exported

READERS = {
    "swift": "mlx-swift-lm and mlx-vlm",
    "apple-app": "Apple's FastVLM app",
    "coreml": "Core ML",
}
TOWER = ("apple-app", "coreml")  # targets that write a Core ML package


def export(
    model: Annotated[
        str | None,
        typer.Argument(metavar="MODEL", help="Model directory in any known layout, hub id, or 0.5b…"),
    ] = None,
    output: Annotated[Path | None, typer.Option("--output", "-o", help="The output directory.")] = None,
    target: Annotated[
        str,
        typer.Option(
            metavar="swift|apple-app|coreml",
            help="For mlx-swift-lm and mlx-vlm, for Apple's FastVLM app, or Core ML (the tower only).",
        ),
    ] = "swift",
    bits: Annotated[
        int | None,
        typer.Option(
            help="Bits per weight of the language model, 4 or 8. Default: the source's, usually floats."
        ),
    ] = None,
    dtype: Annotated[
        str, typer.Option(metavar="float16|bfloat16|float32", help="Data type for floats.")
    ] = "float16",
    image_size: Annotated[
        int | None,
        typer.Option(help="Core ML: the fixed image side. Default: the model's (1024)."),
    ] = None,
    precision: Annotated[
        str | None,
        typer.Option(
            metavar="float16|float32",
            help="Core ML: data type for computation. Default: float16, which the Neural Engine needs.",
        ),
    ] = None,
    weights: Annotated[
        str | None, typer.Option(metavar="int8|palettize6", help="Core ML: compress the tower's weights.")
    ] = None,
    projector: Annotated[
        bool, typer.Option("--projector", help="coreml target only: include the projector.")
    ] = False,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace the output directory.")] = False,
    revision: Revision = None,
    upload_repo: UploadRepo = None,
    hub_private: HubPrivate = False,
    dry_run: DryRun = False,
    check: Annotated[
        Path | None,
        typer.Option(metavar="DIR", help="Export nothing; check whether this directory would load."),
    ] = None,
) -> None:
    """Export a model for Swift apps.

    swift: the whole model for mlx-swift-lm and mlx-vlm. apple-app: language model and projector, with the
    vision tower as fastvithd.mlpackage. coreml: only that package (pip install 'fastvlm-mlx[coreml]').
    Training branches are fused; tower and projector stay in floats. The export ends with a check of what
    those programs require and an estimate of the memory an app needs; --check does the same for any
    directory. Exits with 1 if it would not load. Never changes the source. Writes the complete result or
    nothing.

    \b
    Examples:
      fastvlm-mlx export 0.5b -o FastVLM-0.5B-swift
      fastvlm-mlx export ./my-checkpoint --bits 4 -o FastVLM-4bit-swift --upload-repo me/FastVLM-4bit-swift
      fastvlm-mlx export 1.5b --target apple-app --bits 8 -o FastVLM-app
      fastvlm-mlx export 0.5b --target coreml --image-size 512 -o tower
      fastvlm-mlx export --check ./downloaded
    """
    if target not in READERS:
        raise ConfigError(f"no target {target!r}; choose one of {', '.join(READERS)}")
    if check is not None:
        if model is not None or output is not None:
            raise ConfigError("--check examines one directory and writes nothing; drop MODEL and --output")
        _check(check)
    if model is None or output is None:
        raise ConfigError("export needs a MODEL and --output DIR (or --check DIR alone)")
    if target not in TOWER and (image_size or precision or weights or projector):
        raise ConfigError(
            "--image-size, --precision, --weights and --projector need a Core ML package; "
            f"pass --target {' or '.join(TOWER)}"
        )
    if target == "coreml" and bits is not None:
        raise ConfigError(
            "--bits is for the language model, and --target coreml has none; use --weights int8"
        )
    from ..files.atomic import refuse
    from ..terminal import progress
    from ..weights import hub
    from ..weights.checkpoint import DTYPES

    if dtype not in DTYPES:
        raise ConfigError(f"no dtype {dtype!r}; choose one of {', '.join(DTYPES)}")
    hub.check_upload(upload_repo, private=hub_private, dry=dry_run)
    refuse(output, overwrite)
    from ..convert.export.coreml import Options
    from ..convert.export.coreml import export as export_coreml

    options = Options(image_size, precision or "float16", weights, projector)
    steps = "steps" if target == "coreml" else "bytes"
    done: Exported
    with progress.bar(f"writing {output.name}", of=steps) as advance:
        source = hub.resolve(model, revision)
        if target == "coreml":
            done = export_coreml(source, output, options, overwrite=overwrite, progress=advance)
        elif target == "apple-app":
            from ..convert.export.apple_app import export as export_apple

            done = export_apple(
                source, output, options, bits=bits, dtype=DTYPES[dtype], overwrite=overwrite, progress=advance
            )
        else:
            from ..convert.export.swift import export as export_swift

            done = export_swift(
                source, output, bits=bits, dtype=DTYPES[dtype], overwrite=overwrite, progress=advance
            )
    from ..convert.doctor.report import print_report

    print_report(done.report)
    status(f"{done.destination}: {done.bytes / 1e6:,.1f} MB for {READERS[target]}")
    if done.licence:
        status(done.licence)
    if upload_repo:
        upload(output, upload_repo, private=hub_private, dry=dry_run)


def _check(directory: Path) -> None:
    from ..convert.doctor.report import print_report
    from ..convert.export.check.entry import check

    report = check(directory)
    print_report(report)
    raise typer.Exit(0 if report.healthy else 1)
