"""`fastvlm-mlx bench`"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from .. import tell
from ..errors import ConfigError
from .options import MODEL_VARIABLE, Dtype, Revision

if TYPE_CHECKING:
    from ..vlm import VLM

SIZES = (256, 512, 768, 1024, 1536)
TEXT_POSITIONS = 64  # more than the question and the template take


def bench(
    model: Annotated[
        str | None,
        typer.Option(
            "--model", "-m", envvar=MODEL_VARIABLE, help="A directory or hub id. Default: --random 0.5b."
        ),
    ] = None,
    random: Annotated[
        str | None,
        typer.Option(metavar="0.5b|1.5b|7b", help="True sizes, random weights: nothing to download."),
    ] = None,
    sizes: Annotated[
        str | None,
        typer.Option(help="Sides in pixels, multiples of 64. Default: 256 to 1536, as far as it can read."),
    ] = None,
    batch: Annotated[int, typer.Option(min=1, help="So many questions at once, a picture each.")] = 1,
    runs: Annotated[int, typer.Option(min=1, help="Measured runs, after one that is not.")] = 5,
    tokens: Annotated[int, typer.Option(min=2, help="Tokens to decode in each run.")] = 32,
    cold: Annotated[
        bool, typer.Option("--cold/--no-cold", help="Time a fresh process too; not with --random.")
    ] = True,
    json_file: Annotated[Path | None, typer.Option("--json", help="Write every run here.")] = None,
    markdown: Annotated[Path | None, typer.Option(help="Write the table here.")] = None,
    dtype: Dtype = None,
    revision: Revision = None,
) -> None:
    """Time every part of an answer on this machine, from the picture's file to the first token and on.

    Sizes are measured in turn, so that a machine that warms up slows all of them. Interrupted, what was
    measured is kept and marked.

    \b
    Examples:
      fastvlm-mlx bench
      fastvlm-mlx bench --model 0.5b --sizes 512,1024 --markdown bench.md
      fastvlm-mlx bench --random 7b --runs 3 --json bench.json
    """
    from ..atomic import require_writable, write_file
    from ..image import check_options

    if model is not None and random is not None:
        raise ConfigError("--model and --random name two models; give one of them")
    if model is None:
        random = random or "0.5b"
    listed = [_number(size) for size in sizes.split(",")] if sizes else list(SIZES)
    for size in listed:
        check_options(size, "pad")
    for file in (json_file, markdown):
        if file is not None:
            require_writable(file)

    from .. import progress
    from ..bench import cost
    from ..bench import report as reports
    from ..bench.cold import cold_start
    from ..bench.machine import this_machine
    from ..bench.measure import Case, Run, interleaved, resident_bytes
    from ..evaluate.predictions import described

    name = model or f"random {random}"
    vlm, load_s = _random(random, max(listed), batch, dtype) if random else _stored(name, dtype, revision)
    room = vlm.config.text.context - tokens - TEXT_POSITIONS
    if sizes is None:
        listed = [size for size in listed if cost.tokens(size) <= room]
    elif cost.tokens(max(listed)) > room:
        raise ConfigError(
            f"{max(listed)} px make {cost.tokens(max(listed))} positions, and beside text and --tokens "
            f"the model has room for {room}; give smaller --sizes"
        )
    cold_s = cold_start(name, max(listed), dtype, revision) if cold and not random else None
    cases: dict[Case, list[Run]] = {Case(size, batch): [] for size in listed}
    complete, done, count = False, 0, (runs + 1) * len(cases)
    try:
        with progress.bar("measuring", "runs") as advance:
            for case, run in interleaved(vlm, list(cases), runs, tokens):
                cases[case] += [run] if run else []
                done += 1
                advance(done, count)
        complete = True
    finally:
        report = reports.Report(
            machine=this_machine(),
            model=name,
            dtype=str(vlm.dtype).rpartition(".")[2],
            quantization=described(vlm.quantization),
            load_s=load_s,
            cold_start_s=cold_s,
            resident_bytes=resident_bytes(),
            complete=complete,
            cases=cases,
        )
        if json_file:
            write_file(json_file, reports.as_json(report))
        if markdown:
            write_file(markdown, reports.as_markdown(report))
    tell.print_line(reports.as_text(report))


def _number(text: str) -> int:
    try:
        return int(text)
    except ValueError:
        raise ConfigError(f"--sizes holds {text!r}; give numbers and commas, such as 512,1024") from None


def _stored(name: str, dtype: str | None, revision: str | None) -> tuple[VLM, float]:
    import time

    from .. import vlm as runtime

    began = time.perf_counter()
    return runtime.load(name, dtype, revision=revision), time.perf_counter() - began


def _random(name: str, size: int, batch: int, dtype: str | None) -> tuple[VLM, None]:
    import mlx.core as mx

    from ..bench import untrained
    from ..bench.machine import memory_bytes
    from ..bench.variants import VARIANTS
    from ..checkpoint import DTYPES

    if name not in VARIANTS:
        raise ConfigError(f"no model {name!r} to make up; choose one of {', '.join(VARIANTS)}")
    on_gpu = mx.default_device() == mx.Device(mx.gpu)
    chosen = dtype or ("float16" if on_gpu else "float32")
    if chosen not in DTYPES:
        raise ConfigError(f"no dtype {chosen!r}; choose one of {', '.join(DTYPES)}")
    width = DTYPES[chosen].size
    untrained.refuse_beyond(VARIANTS[name], name, size, batch, width, memory_bytes())
    return untrained.build(VARIANTS[name], DTYPES[chosen]), None
