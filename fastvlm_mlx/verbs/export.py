"""`fastvlm-mlx export`"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from .. import tell
from ..errors import ConfigError
from .options import Revision

TARGETS = ("swift",)


def export(
    model: Annotated[
        str | None, typer.Argument(metavar="MODEL", help="A directory in any known layout, a hub id, 0.5b…")
    ] = None,
    output: Annotated[Path | None, typer.Option("--output", "-o", help="The new directory.")] = None,
    target: Annotated[
        str, typer.Option(metavar="swift", help="Who will read it: mlx-swift-lm and mlx-vlm (swift).")
    ] = "swift",
    bits: Annotated[
        int | None,
        typer.Option(
            help="Bits a weight of the language model, 4 or 8. Default: as the source, mostly floats."
        ),
    ] = None,
    dtype: Annotated[
        str, typer.Option(metavar="float16|bfloat16|float32", help="Store floats in this type.")
    ] = "float16",
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace the output directory.")] = False,
    revision: Revision = None,
    check: Annotated[
        Path | None,
        typer.Option(metavar="DIR", help="Export nothing: say whether this directory would load."),
    ] = None,
) -> None:
    """Write the directory that mlx-swift-lm (iPhone, iPad, Mac apps) and mlx-vlm load unchanged.

    Training branches are fused; tower and projector stay in floats. What those programs require is checked
    at the end, or by --check for any directory, with an estimate of the memory an app needs. Leaves with 1 if
    it would not load. The source is never changed; the result appears whole or not at all.

    \b
    Examples:
      fastvlm-mlx export 0.5b -o FastVLM-0.5B-swift
      fastvlm-mlx export ./my-checkpoint --bits 4 -o FastVLM-4bit-swift
      fastvlm-mlx export --check ./downloaded
    """
    if target not in TARGETS:
        raise ConfigError(f"no target {target!r}; choose one of {', '.join(TARGETS)}")
    if check is not None:
        if model is not None or output is not None:
            raise ConfigError(
                "--check looks at one directory and writes nothing; leave MODEL and --output out"
            )
        _check(check)
    if model is None or output is None:
        raise ConfigError("export needs a MODEL and --output DIR (or --check DIR alone)")
    from .. import hub, progress
    from ..atomic import refuse
    from ..checkpoint import DTYPES

    if dtype not in DTYPES:
        raise ConfigError(f"no dtype {dtype!r}; choose one of {', '.join(DTYPES)}")
    refuse(output, overwrite)
    from ..convert.export_swift import export as run

    with progress.bar(f"writing {output.name}") as advance:
        done = run(
            hub.resolve(model, revision),
            output,
            bits=bits,
            dtype=DTYPES[dtype],
            overwrite=overwrite,
            progress=advance,
        )
    from ..convert.report import print_report

    print_report(done.report)
    tell.say(f"{done.destination}: {done.bytes / 1e6:,.1f} MB for mlx-swift-lm and mlx-vlm")
    if done.licence:
        tell.say(done.licence)


def _check(directory: Path) -> None:
    from ..convert.report import print_report
    from ..convert.swift_check import check

    report = check(directory)
    print_report(report)
    raise typer.Exit(0 if report.healthy else 1)
