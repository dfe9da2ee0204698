"""`export --target coreml`: the vision tower, alone or with its projector, as fastvithd.mlpackage."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import mlx.core as mx

from ... import __version__
from ...config import ModelConfig
from ...errors import ConfigError
from ...files import atomic
from ...inputs.image import check_options
from ...inputs.tokenizer import Tokenizer
from ...weights import checkpoint
from .. import card
from ..run import read
from . import app_card, coreml_program, steps
from .check import apple_app
from .steps import Exported


@dataclass(frozen=True)
class Options:
    """How the program is built; `size` None is the model's own picture size."""

    size: int | None = None
    precision: str = "float16"
    weights: str | None = None
    projector: bool = False

    def __post_init__(self) -> None:
        if self.size is not None:
            check_options(self.size, "pad")
        if self.precision not in coreml_program.PRECISIONS:
            raise ConfigError(
                f"no precision {self.precision!r}; choose one of {', '.join(coreml_program.PRECISIONS)}"
            )
        if self.weights not in (None, *coreml_program.WEIGHTS):
            raise ConfigError(
                f"no weights {self.weights!r}; choose one of {', '.join(coreml_program.WEIGHTS)}"
            )

    @property
    def told(self) -> str:
        return f"{self.precision}, weights in {self.weights}" if self.weights else self.precision


def export(
    source: Path,
    destination: Path,
    options: Options,
    *,
    overwrite: bool = False,
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> Exported:
    """The result whole or absent. `progress` counts steps. The source is only read."""
    steps.refuse(source, destination, None, overwrite)
    tower = tower_of(source, Tokenizer.load(source))
    coreml_program.require()
    licences = card.licences(source)
    notice = card.notice(licences)
    needed = package_bytes(tower, options)
    with atomic.new_directory(destination, overwrite=overwrite, needs_bytes=needed) as folder:
        for name, content in licences.items():
            (folder / name).write_bytes(content)
        write_package(tower, folder, options, notice, progress)
        report = apple_app.check_package(folder)
        facts = app_card.Facts(
            source.name, tower.layout, __version__, tower.config.text.hidden_size, options.told
        )
        page = app_card.render(facts, app_card.TARGETS["coreml"], report, notice)
        (folder / "README.md").write_text(page, encoding="utf-8")
        steps.require_healthy(report, source)
        written = steps.bytes_of(folder)
    return Exported(destination, written, report, notice)


@dataclass(frozen=True)
class Tower:
    """The run form without its language model, dense."""

    layout: str
    config: ModelConfig
    weights: dict[str, mx.array]  # not read yet


def tower_of(source: Path, tokenizer: Tokenizer) -> Tower:
    layout, config, weights = read(source, tokenizer)
    config, dense = checkpoint.dequantize(config, weights)
    return Tower(layout, config, {n: array for n, array in dense.items() if not n.startswith("language.")})


def write_package(
    tower: Tower,
    folder: Path,
    options: Options,
    notice: str | None,
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> None:
    """Its weights are let go of on the way."""
    size = options.size or tower.config.image.size
    progress(0, 3)
    built = coreml_program.program(tower.weights, tower.config.vision, size, options.projector)
    tower.weights.clear()
    progress(1, 3)
    notes = {"picture": f"{size} px, RGB in [0, 1]", "precision": options.told}
    model = coreml_program.package(built, options.precision, options.weights, notes)
    model.license = notice or ""
    del built
    progress(2, 3)
    coreml_program.save(model, folder)
    progress(3, 3)


def package_bytes(tower: Tower, options: Options) -> int:
    """At most, as packing makes it smaller."""
    names = ("vision.", "projector.") if options.projector else ("vision.",)
    count = sum(array.size for name, array in tower.weights.items() if name.startswith(names))
    return count * (4 if options.precision == "float32" else 2)
