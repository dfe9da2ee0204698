"""A run's folder: the newest states, the log. A state appears whole or not at all."""

from __future__ import annotations

import dataclasses
import json
import shutil
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

import mlx.core as mx

from ..config import read_json
from ..errors import ConfigError
from ..files.atomic import new_directory

_KEPT = 2


@dataclass(frozen=True, order=True)
class Progress:
    stage: int
    step: int  # steps done in it


@dataclass(frozen=True)
class Logged:
    """What a stretch of steps amounted to."""

    stage: str
    step: int  # steps done
    steps: int
    loss: float
    rate: float
    gradient: float  # its norm before clipping
    s_per_step: float
    measures: Mapping[str, float]


@dataclass(frozen=True)
class State:
    folder: Path
    fingerprint: str  # of what the run is, so that another recipe does not continue it
    progress: Progress
    params: Mapping[str, mx.array]
    moments: Mapping[str, mx.array] = field(default_factory=dict)

    def at(
        self, progress: Progress, params: Mapping[str, mx.array], moments: Mapping[str, mx.array]
    ) -> State:
        return dataclasses.replace(self, progress=progress, params=params, moments=moments)

    def next_stage(self) -> State:
        return self.at(Progress(self.progress.stage + 1, 0), self.params, {})

    def save(self) -> None:
        states = self.folder / "states"
        name = f"{self.progress.stage:02}-{self.progress.step:07}"
        with new_directory(states / name, overwrite=True) as partial:
            about = {"fingerprint": self.fingerprint, **dataclasses.asdict(self.progress)}
            (partial / "config.json").write_text(json.dumps(about) + "\n", encoding="utf-8")
            mx.save_safetensors(str(partial / "params.safetensors"), dict(self.params))
            if self.moments:
                mx.save_safetensors(str(partial / "moments.safetensors"), dict(self.moments))
        for old in _saved(self.folder)[:-_KEPT]:
            shutil.rmtree(old)

    def log(self, logged: Logged) -> None:
        row = {f.name: getattr(logged, f.name) for f in dataclasses.fields(logged) if f.name != "measures"}
        with (self.folder / "log.jsonl").open("a", encoding="utf-8") as file:
            file.write(json.dumps(row | dict(logged.measures)) + "\n")


def make_folder(folder: Path) -> None:
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ConfigError(f"{folder}: cannot be made a folder ({error.strerror}); choose another") from None


def once(do: Callable[[], object]) -> None:
    """Only the first of several processes does this, and the others wait for it."""
    if mx.distributed.init().rank() == 0:
        do()
    mx.eval(mx.distributed.all_sum(mx.zeros(1)))


def _saved(folder: Path) -> list[Path]:
    return sorted(path for path in (folder / "states").glob("??-???????") if path.is_dir())


def resume(folder: Path, fingerprint: str) -> State | None:
    """The newest saved state; the log is cut back to it."""
    saved = _saved(folder)
    if not saved:
        return None
    about = read_json(saved[-1] / "config.json")
    if about.get("fingerprint") != fingerprint:
        raise ConfigError(
            f"{folder}: holds a run of another recipe, base model or data; choose another folder, or "
            "remove it"
        )
    progress = Progress(about["stage"], about["step"])
    params = mx.load(str(saved[-1] / "params.safetensors"))
    moments_file = saved[-1] / "moments.safetensors"
    moments = mx.load(str(moments_file)) if moments_file.exists() else {}
    return State(folder, fingerprint, progress, params, moments)  # type: ignore[arg-type]


def trim_log(folder: Path, stages: list[str], progress: Progress) -> None:
    """Forget what was logged after the state that the run continues from."""
    log = folder / "log.jsonl"
    if not log.exists():
        return
    kept: list[str] = []
    for line in log.read_text(encoding="utf-8").splitlines():
        try:
            row = json.loads(line)
            place = Progress(stages.index(row["stage"]), row["step"])
        except (json.JSONDecodeError, KeyError, ValueError):
            continue  # torn by a kill
        if place <= progress:
            kept.append(line)
    partial = log.with_suffix(".partial")
    partial.write_text("".join(line + "\n" for line in kept), encoding="utf-8")
    partial.replace(log)
