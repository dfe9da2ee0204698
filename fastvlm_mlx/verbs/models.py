"""`fastvlm-mlx models`"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import typer

from ..terminal import output


def models(
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object per line.")] = False,
) -> None:
    """List built-in models, short names and FastVLM models in the Hugging Face cache.

    Shows each model's size on disk and downloads nothing. For a directory of your own, pass its path to
    --model.

    \b
    Examples:
      fastvlm-mlx models
      fastvlm-mlx models --json
    """
    from ..weights import hub

    cached = hub.cached()
    short = {repo: name for name, repo in hub.ALIASES.items()}
    others = sorted(repo for repo in cached.keys() - short.keys() if "fastvlm" in repo.lower())
    rows: list[tuple[str | None, str | None, Path | None, int]] = [
        (name, None, path, sum(size for _, size in hub.listing(path))) for name, path in hub.BUILT_IN.items()
    ]
    rows += [(short.get(repo), repo, *cached.get(repo, (None, 0))) for repo in (*short, *others)]
    for name, repo, path, count in rows:
        if as_json:
            output.print_line(
                json.dumps({"name": name, "repo": repo, "path": path and str(path), "bytes": count})
            )
        else:
            where = f"{count / 1e6:10,.1f} MB  {path}" if path else "not downloaded"
            output.print_line(f"{name or '':<11}{repo or 'in the package':<28}{where}")
