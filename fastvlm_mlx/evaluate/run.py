"""Answers every row of a data set, in batches, and writes each answer at once."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from functools import cache
from itertools import groupby
from pathlib import Path

import mlx.core as mx
import numpy as np
import numpy.typing as npt

from ..config import STRIDE
from ..errors import ConfigError
from ..inputs import prefetch as threads
from ..inputs.image import preprocess_all, stored_size
from ..inputs.prompt import Picture, Prompt, positions
from ..inputs.tiling import ImageOptions, grid_name
from ..vlm import VLM
from ..weights import checkpoint
from .data import DataSet, EvalRow
from .metrics import AUTO, METRICS, chosen, is_yes_or_no
from .predictions import EvalSettings, Predictions, described

Pixels = npt.NDArray[np.float32]
_DEFAULT = ImageOptions()


def metric_of(name: str, data: DataSet) -> str:
    """Resolve `auto`, and reject rows that the metric cannot score."""
    if name == AUTO:
        return chosen([row.answers for row in data.rows])
    if name == "yesno":
        for row in data.rows:
            if not is_yes_or_no(row.answers):
                found = f"its answer is {row.answers[0]!r}; yesno scores only yes and no; change --metric"
                raise data.error(row, found)
    return name


def check_metric(name: str) -> None:
    if name not in (AUTO, *METRICS):
        raise ConfigError(f"no metric {name!r}; choose one of {', '.join((AUTO, *METRICS))}")


def settings_of(
    vlm: VLM,
    name: str,
    data: DataSet,
    metric: str,
    *,
    max_tokens: int = 64,
    prompt_suffix: str = "",
    blind: bool = False,
    options: ImageOptions = _DEFAULT,
) -> EvalSettings:
    size, mode = options.filled(vlm.config.image.size, vlm.config.image.mode).size_and_mode
    return EvalSettings(
        model=name,
        weights=checkpoint.fingerprint(vlm.model),
        dtype=str(vlm.dtype).rpartition(".")[2],
        quantization=described(vlm.quantization),
        data=data.path.name,
        data_sha256=data.digest,
        metric=metric,
        image_size=size,
        max_tokens=max_tokens,
        prompt_suffix=prompt_suffix,
        blind=blind,
        image_mode=mode,
        grid=grid_name(options.grid) if options.grid else None,
        max_tiles=options.max_tiles,
    )


def ask(
    vlm: VLM,
    data: DataSet,
    settings: EvalSettings,
    predictions: Predictions,
    *,
    batch: int = 16,
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> None:
    """Add the missing rows to `predictions`. `progress` counts rows."""
    score = METRICS[settings.metric]
    order = [row for row in batch_order(vlm, data, settings) if row.line not in predictions.said]
    done = len(data.rows) - len(order)
    progress(done, len(data.rows))
    prompts = _prompts(vlm, order, settings, batch)
    answers = vlm.answers(prompts, batch=batch, max_tokens=settings.max_tokens)
    for row, answer in zip(order, answers, strict=True):
        generated = answer.text.strip()
        predictions.add(row, generated, score(generated, row.answers))
        done += 1
        progress(done, len(data.rows))


def batch_order(vlm: VLM, data: DataSet, settings: EvalSettings) -> list[EvalRow]:
    """Sort rows by pictures, then by length; `VLM.answers` shares work between neighbors."""
    options = settings.options

    @cache
    def blank(path: Path) -> tuple[Picture, ...]:
        """Placeholders with as many positions as the picture; never evaluated."""
        sides = options.sides(*(stored_size(path) if options.by_picture else (1, 1)))
        return tuple(Picture(mx.broadcast_to(mx.zeros(()), (1, height, width, 3))) for width, height in sides)

    lengths: dict[int, int] = {}
    first: dict[object, tuple[int, int]] = {}
    for row in data.rows:
        length = positions(_prompt(vlm, row, [blank(path) for path in row.pictures], settings))
        if length > vlm.config.text.context:
            raise data.error(
                row,
                f"takes {length} positions but the model's context is {vlm.config.text.context}; "
                f"use a smaller --image-size: a picture or tile takes (size ÷ {STRIDE})²",
            )
        lengths[row.line] = length
        first.setdefault(row.pictures, (length, row.line))
    return sorted(data.rows, key=lambda row: (first[row.pictures], lengths[row.line], row.line))


def _prompts(vlm: VLM, order: Sequence[EvalRow], settings: EvalSettings, ahead: int) -> Iterator[Prompt]:
    groups = [list(rows) for _, rows in groupby(order, key=lambda row: row.pictures)]

    def read(rows: list[EvalRow]) -> list[list[Pixels]]:
        return [preprocess_all(path, settings.options) for path in rows[0].pictures]

    for rows, read_ones in zip(groups, threads.map_ahead(read, groups, ahead), strict=True):
        pictures = [tuple(Picture(mx.array(piece[None])) for piece in one) for one in read_ones]
        for row in rows:
            yield _prompt(vlm, row, pictures, settings)


def _prompt(
    vlm: VLM, row: EvalRow, pictures: Sequence[tuple[Picture, ...]], settings: EvalSettings
) -> Prompt:
    suffix = f"\n{settings.prompt_suffix}" if settings.prompt_suffix else ""
    return vlm.prompt(row.question + suffix, pictures, row.system)
