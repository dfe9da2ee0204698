"""Which candidate of a table is taken: what `tune` measured on this machine, or what is known to be safe.

On a GPU that is MLX's own operation: nothing that was never run there runs unasked.
"""

from __future__ import annotations

import json
import logging
import os
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import mlx.core as mx

from ..config import KERNELS_VARIABLE, kernel_mode
from ..errors import DataError
from ..files.atomic import write_file
from .candidates import CPU, Candidate, Problem, able, device

FOLDER_VARIABLE = "FASTVLM_MLX_CACHE"

_LOG = logging.getLogger(__name__)
_Marks = dict[str, str]  # a problem's key -> the mark of the candidate that was best

_mode: str | None = None  # what `use` said
_known: dict[str, _Marks] = {}  # by `_setting`
_watchers: list[dict[str, Problem]] = []


def use(mode: str) -> None:
    """Whether this process takes what `tune` chose ("tuned") or MLX's own operations ("stock")."""
    global _mode
    _mode = kernel_mode(mode)


def choose(problem: Problem, dtype: mx.Dtype) -> Candidate:
    where = device()
    entrants = able(problem, where, dtype)
    if _watchers:
        _watchers[-1].setdefault(problem.key, problem)
        return entrants[0]
    if len(entrants) == 1 or _mode_now() == "stock":
        return entrants[0]
    mark = _marks(where, dtype).get(problem.key)
    for candidate in entrants:
        if candidate.mark == mark:
            return candidate
    usual = problem.on_cpu if where == CPU else None
    return next((candidate for candidate in entrants if candidate.name == usual), entrants[0])


def deferred(problem: Callable[[mx.array], Problem], dtype: mx.Dtype, *weights: object) -> Callable[..., Any]:
    """A layer whose candidate is chosen when it first sees something, and prepares its weights then."""
    prepared: Callable[..., Any] | None = None

    def layer(x: mx.array, *more: mx.array) -> Any:
        nonlocal prepared
        if prepared is None:
            prepared = choose(problem(x), dtype).make(*weights)
        return prepared(x, *more)

    return layer


@contextmanager
def watch() -> Iterator[dict[str, Problem]]:
    """What layers ask for meanwhile, by key. They get the stock candidate, and nothing is measured."""
    seen: dict[str, Problem] = {}
    _watchers.append(seen)
    try:
        yield seen
    finally:
        _watchers.remove(seen)


def keep(problem: Problem, dtype: mx.Dtype, candidate: Candidate) -> bool:
    """For this and later processes; whether the file could be written."""
    where = device()
    _marks(where, dtype)[problem.key] = candidate.mark
    file = path()
    if file is None:
        return False
    setting = _setting(where, dtype)
    stored = _stored()
    stored[setting] = stored.get(setting, {}) | _known[setting]
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        write_file(file, json.dumps(stored, indent=1) + "\n")
    except (OSError, DataError) as error:
        _LOG.debug("kernels: %s", error)
        return False
    return True


def forget() -> bool:
    """Whether there was anything to forget."""
    _known.clear()
    file = path()
    try:
        if file is not None:
            file.unlink()
            return True
    except FileNotFoundError:
        pass
    except OSError as error:
        raise DataError(f"{file}: cannot be removed ({error.strerror}); remove it yourself") from None
    return False


def path() -> Path | None:
    """None: nothing is kept."""
    named = os.environ.get(FOLDER_VARIABLE)
    try:
        if named is not None:
            return Path(named).expanduser() / "kernels.json" if named else None
        usual = "~/Library/Caches" if sys.platform == "darwin" else "~/.cache"
        return Path(os.environ.get("XDG_CACHE_HOME") or usual).expanduser() / "fastvlm-mlx" / "kernels.json"
    except RuntimeError:  # nobody's home
        return None


def _mode_now() -> str:
    return _mode or kernel_mode(os.environ.get(KERNELS_VARIABLE) or "tuned")


def _marks(where: str, dtype: mx.Dtype) -> _Marks:
    setting = _setting(where, dtype)
    if setting not in _known:
        _known[setting] = _stored().get(setting, {})
    return _known[setting]


def _setting(where: str, dtype: mx.Dtype) -> str:
    chip = mx.device_info().get("device_name", "unknown")
    version: str = mx.__version__  # type: ignore[attr-defined]
    return f"{chip}, {where}, MLX {version}, {str(dtype).rpartition('.')[2]}"


def _stored() -> dict[str, _Marks]:
    """What the file holds; nothing if there is none, or if it is not what `keep` writes."""
    file = path()
    try:
        stored = json.loads(file.read_text(encoding="utf-8")) if file else {}
        return {
            str(setting): {str(key): str(mark) for key, mark in marks.items()}
            for setting, marks in stored.items()
        }
    except FileNotFoundError:
        return {}
    except (OSError, ValueError, AttributeError, RecursionError) as error:
        _LOG.debug("%s: ignored (%s)", file, error)
        return {}
