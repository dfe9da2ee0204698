"""`fastvlm-mlx scenes`"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

import typer

from .. import progress, tell


def scenes(
    output: Annotated[Path, typer.Argument(metavar="OUT", help="A new folder for pictures and data.jsonl.")],
    count: Annotated[int, typer.Option(min=1, help="So many pictures.")] = 2000,
    questions: Annotated[int, typer.Option(min=1, help="So many questions about each, at most.")] = 3,
    split: Annotated[
        Literal["train", "test"],
        typer.Option(help="What training may see, or the words, numbers and combinations it never does."),
    ] = "test",
    seed: Annotated[int, typer.Option(min=0, help="Another seed, other pictures.")] = 2026,
) -> None:
    """Draw pictures with questions and answers, as the built-in model was trained and is measured on.

    \b
    Examples:
      fastvlm-mlx scenes held-out
      fastvlm-mlx eval tiny held-out/data.jsonl
    """
    from ..train import album

    with progress.bar("drawing", "pictures") as advance:
        asked = album.write(output, count, seed, split, questions, advance)
    tell.say(f"{output}: {count} pictures, {sum(asked.values())} questions")
    for category, number in sorted(asked.items()):
        tell.say(f"  {category:<10} {number}")
