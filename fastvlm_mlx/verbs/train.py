"""`fastvlm-mlx train`"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from ..terminal.output import status


def train(
    recipe: Annotated[Path, typer.Argument(metavar="RECIPE", help="The training recipe, a TOML file.")],
    output: Annotated[
        Path, typer.Option("--output", "-o", help="The run's folder; an existing run resumes.")
    ],
    minutes: Annotated[
        float | None, typer.Option(min=0.01, help="Save and stop after N minutes; the same command resumes.")
    ] = None,
    processes: Annotated[
        int, typer.Option(min=1, help="Split every batch across N processes; on CPUs, use one per core.")
    ] = 1,
    workers: Annotated[int, typer.Option(min=0, help="Prepare pictures in N more processes; for GPUs.")] = 0,
) -> None:
    """Fine-tune a model by a recipe.

    A recipe lists stages, each with its trained parts, length and learning rate. After an interruption, the
    same command resumes from the last saved step and reaches the same weights. OUTPUT contains the saved
    states, log.jsonl, curve.png and, at the end, the model or the adapter.

    \b
    Examples:
      fastvlm-mlx train finetune.toml -o runs/mine --minutes 30
    """
    from ..blas import keep_freed_memory
    from ..train import ranks
    from ..train import recipe as recipes

    planned = recipes.read(recipe)
    if processes > 1 and not ranks.is_one():
        raise typer.Exit(ranks.supervise(processes, "fastvlm_mlx"))
    keep_freed_memory()

    from ..terminal import progress
    from ..train.finetune import finetune

    with progress.bar(f"training {planned.name}", "steps") as advance:
        done = finetune(planned, output, minutes=minutes, workers=workers, progress=advance, say=status)
    status(done)
