"""`fastvlm-mlx doctor`"""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Annotated

import typer

from ..terminal import output


def doctor(
    path: Annotated[Path, typer.Argument(metavar="PATH", help="A model directory.")],
    quick: Annotated[
        bool, typer.Option("--quick", help="Read headers only; do not search the weights for NaN.")
    ] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object.")] = False,
) -> None:
    """Diagnose a model directory: what it is, what is wrong with it, and how to repair it.

    On a CPU, also report which BLAS and which of its kernels run.

    Exits with 1 if the model would not load or would answer wrongly. Changes nothing.

    \b
    Examples:
      fastvlm-mlx doctor ~/models/FastVLM-0.5B
      fastvlm-mlx doctor --quick --json ./downloaded
    """
    from ..convert.doctor.checks import examine, examine_blas
    from ..terminal import progress

    with progress.bar("reading weights") as advance:
        report = examine(path, read_weights=not quick, progress=advance)
    report = dataclasses.replace(report, findings=(*report.findings, *examine_blas()))
    if as_json:
        body = dataclasses.asdict(report) | {"healthy": report.healthy}
        output.print_line(json.dumps(body, ensure_ascii=False, default=str))
    else:
        from ..convert.doctor.report import print_report

        print_report(report)
    raise typer.Exit(0 if report.healthy else 1)
