"""Shared by `tune` and `bench --kernels`: measures, prints and stores kernel candidates."""

from __future__ import annotations

from typing import TYPE_CHECKING

from ..terminal import output
from .bench_jobs import Asked, Files, dtype_named, variant_named

if TYPE_CHECKING:
    from ..config import VisionConfig


def try_out(asked: Asked, files: Files, *, keep: bool = False, as_json: bool = False) -> None:
    """Measure every candidate; with `keep`, store the best for later runs."""
    from ..bench import kernels, report
    from ..bench.machine import this_machine
    from ..kernels import choice
    from ..terminal import progress
    from ..weights.checkpoint import DTYPES

    tower, sizes, name = _tower(asked)
    dtype = DTYPES[name]
    work = [(size, problem) for size in sizes for problem in kernels.problems(tower, size, dtype)]
    found: dict[int, list[kernels.Tried]] = {size: [] for size in sizes}
    kept, complete = True, False
    try:
        with progress.bar("measuring", "operations") as advance:
            for done, (size, problem) in enumerate(work, 1):
                found[size].append(each := kernels.tried(problem, dtype, asked.runs))
                if keep:
                    kept = choice.keep(problem, dtype, each.best) and kept
                advance(done, len(work))
        complete = True
    finally:
        setting = report.Setting(
            this_machine(), asked.name, name, "none", None, None, output.resident_bytes(), complete
        )
        tables = [kernels.table(some, size) for size, some in found.items()]
        rows = [row for size, some in found.items() for row in kernels.records(some, size)]
        place = str(choice.path()) if keep and kept and choice.path() else None
        told = files.write(setting, tables, {"kernels": rows, "kept": place})
        output.print_line(
            report.as_json(setting, {"kernels": rows, "kept": place}).rstrip() if as_json else told
        )
        if keep:
            where = f"stored in {place}" if place else "not stored, because no file could be written"
            output.status(f"The choices are {where}; `fastvlm-mlx tune --forget` deletes them.")


def _tower(asked: Asked) -> tuple[VisionConfig, list[int], str]:
    """The tower's config, the picture sizes and the name of the data type."""
    if asked.random:
        config = variant_named(asked.random)
        return config.vision, asked.sizes or [config.image.size], dtype_named(asked.dtype)

    from .. import vlm as runtime

    vlm = runtime.load(asked.name, asked.dtype, revision=asked.revision)
    return vlm.config.vision, asked.sizes or [vlm.config.image.size], str(vlm.dtype).rpartition(".")[2]
