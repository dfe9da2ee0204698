"""`fastvlm-mlx models`"""

from __future__ import annotations

import json
from typing import Annotated

import typer

from .. import tell


def models(
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object a line.")] = False,
) -> None:
    """List the models known by a short name, and those in the Hugging Face cache, with their size on disk.

    Nothing is downloaded. A directory of your own needs no listing: give its path.

    \b
    Examples:
      fastvlm-mlx models
      fastvlm-mlx models --json
    """
    from .. import hub

    cached = hub.cached()
    short = {repo: name for name, repo in hub.ALIASES.items()}
    others = sorted(repo for repo in cached.keys() - short.keys() if "fastvlm" in repo.lower())
    for repo in (*short, *others):
        path, count = cached.get(repo, (None, 0))
        if as_json:
            row = {"name": short.get(repo), "repo": repo, "path": path and str(path), "bytes": count}
            tell.print_line(json.dumps(row))
        else:
            where = f"{count / 1e6:10,.1f} MB  {path}" if path else "not downloaded"
            tell.print_line(f"{short.get(repo, ''):<6}{repo:<28}{where}")
