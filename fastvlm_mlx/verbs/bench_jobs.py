"""The jobs of `fastvlm-mlx bench`: time a model, compare it with others, or plan a choice."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

from ..errors import ConfigError
from ..terminal import output
from ..terminal.units import parse_bytes, parse_seconds

if TYPE_CHECKING:
    from types import ModuleType

    from ..bench.measure import Case, Run, Turn
    from ..bench.peer import Peer
    from ..bench.planning import Choice, Measured, Point
    from ..bench.report import Setting
    from ..bench.table import Table
    from ..config import ModelConfig
    from ..inputs.tiling import ImageOptions, Sides
    from ..vlm import VLM

_Key = TypeVar("_Key")


@dataclass(frozen=True, slots=True)
class Asked:
    model: str | None
    random: str | None
    sizes: list[int] | None
    batch: int
    runs: int
    tokens: int
    cold: bool
    dtype: str | None
    revision: str | None
    options: ImageOptions  # `case` replaces the size

    @property
    def name(self) -> str:
        return self.model or f"random {self.random}"

    def case(self, size: int) -> Case:
        from ..bench.measure import Case

        how = self.options
        return Case(size, self.batch, True, how.mode, how.grid, how.max_tiles)


@dataclass(frozen=True, slots=True)
class Files:
    json: Path | None
    markdown: Path | None
    plot: Path | None

    def write(self, setting: Setting, tables: list[Table], sections: Mapping[str, object]) -> str:
        """Write the requested files and return the text for the terminal."""
        from ..bench import report
        from ..files.atomic import write_file

        if self.json:
            write_file(self.json, report.as_json(setting, sections))
        if self.markdown:
            write_file(self.markdown, report.as_markdown(setting, tables))
        return report.as_text(setting, tables)


def time(asked: Asked, paper: bool, roofline: bool, files: Files) -> None:
    from ..bench import fitting, limits, report
    from ..bench import paper as published
    from ..bench.cold import cold_start
    from ..bench.measure import Case
    from ..inference.allocator import memory_bytes

    vlm, load_s, sizes = _model(asked, paper)
    variant = published.variant_of(vlm.config)
    if paper and variant is None:
        raise ConfigError(f"{asked.name}: the paper has no times for such a model; drop --paper")
    cold_s = None
    if asked.cold and not asked.random:
        cold_s = cold_start(asked.name, asked.case(max(sizes)), asked.dtype, asked.revision)
    measured: dict[Case, list[Run]] = {asked.case(size): [] for size in sizes}
    for size in published.sizes(variant) if paper and variant else ():
        if fitting.needed(vlm.config, size, 1, vlm.dtype.size) <= memory_bytes():
            measured[Case(size, 1, asks=False)] = []
    complete = False
    try:
        _measure({case: (vlm, case) for case in measured}, asked.runs, asked.tokens, measured)
        complete = True
    finally:
        cases = {case: runs for case, runs in measured.items() if case.asks}
        alone = {case: runs for case, runs in measured.items() if not case.asks}
        setting = _setting(asked.name, vlm, load_s, cold_s, complete)
        tables = [report.table(cases)]
        sections: dict[str, object] = {"cases": report.records(cases)}
        if paper:
            compared = published.compare(variant, alone)
            tables.append(published.table(compared, f"{setting.machine.chip}, {setting.dtype}"))
            sections |= {"paper": [asdict(row) for row in compared], "paper_cases": report.records(alone)}
        if roofline:
            bounds = limits.limits(vlm.config, cases, vlm.dtype.size, setting.machine)
            phones = limits.on_devices()
            text = max((runs[0].text_tokens for runs in cases.values() if runs), default=0)
            tables += [
                limits.limit_table(bounds, setting.machine),
                limits.chip_table(vlm.config, sizes, text, asked.tokens),
                limits.device_table(phones),
            ]
            sections["roofline"] = [asdict(row) | {"reached": row.reached} for row in bounds]
            sections["devices"] = [asdict(row) for row in phones]
        told = files.write(setting, tables, sections)
        if files.plot:
            from ..bench import plot

            plot.breakdown(setting, cases, files.plot)
    output.print_line(told)


def against(asked: Asked, names: str, files: Files) -> None:
    from ..bench import against as rivalry
    from ..bench import fitting, peer_mlx_vlm, peer_transformers
    from ..inference.allocator import memory_bytes
    from ..weights.checkpoint import DTYPES

    for peer in (peer_mlx_vlm, peer_transformers):
        if names == peer.NAME:
            return against_peer(asked, peer, files)
    pairs = rivalry.pairs_of(rivalry.named(names), asked.sizes)
    ours = sorted({size for sizes in pairs.values() for size, _ in sizes})
    if asked.random:
        width, config = DTYPES[dtype_named(asked.dtype)].size, variant_named(asked.random)
        extra = rivalry.weight_bytes(list(pairs), width)
        need = fitting.needed(config, max(ours), 1, width) + extra
        if need > memory_bytes():
            raise ConfigError(
                f"{asked.name} and the other encoders need {need / 1e9:.2f} GB ({extra / 1e9:.2f} for the "
                f"encoders), but this machine has {memory_bytes() / 1e9:.2f}; choose fewer, a smaller model "
                "or a smaller --dtype"
            )
    vlm, load_s, _ = _model(replace(asked, sizes=ours), paper=False)
    turns = rivalry.turns(vlm, pairs)
    measured: dict[tuple[str, int], list[Run]] = {key: [] for key in turns}
    complete = False
    try:
        _measure(turns, asked.runs, 2, measured)
        complete = True
    finally:
        rows = rivalry.side_by_side(pairs, measured)
        claims = rivalry.claim_table(rows)
        told = files.write(
            _setting(asked.name, vlm, load_s, None, complete),
            [rivalry.table(rows), *([claims] if claims.rows else [])],
            {
                "against": [asdict(row) | {"time": row.time, "token": row.token} for row in rows],
                "runs": {
                    f"{name} {px}": [asdict(run) for run in runs] for (name, px), runs in measured.items()
                },
            },
        )
    output.print_line(told)


def against_peer(asked: Asked, module: ModuleType, files: Files) -> None:
    from ..bench import peer
    from ..weights import hub

    peer.require(f"--against {module.NAME}", module.PACKAGES, module.INSTALL)
    if asked.model is None:
        raise ConfigError(f"--against {module.NAME} compares answers and needs trained weights; give --model")
    vlm, load_s, sizes = _model(asked, paper=False)
    theirs: Peer = module.load(hub.resolve(asked.model, asked.revision), vlm)
    agreed = peer.agreement(vlm, theirs, sizes[0])
    turns = {
        (who, size): (one, theirs.case(size))
        for size in sizes
        for who, one in (("ours", vlm), ("theirs", theirs.timed))
    }
    measured: dict[tuple[str, int], list[Run]] = {key: [] for key in turns}
    complete = False
    try:
        _measure(turns, asked.runs, asked.tokens, measured)
        complete = True
    finally:
        rows = [
            row
            for size in sizes
            for row in peer.compare(size, measured["ours", size], measured["theirs", size])
        ]
        told = files.write(
            _setting(asked.name, vlm, load_s, None, complete),
            [peer.table(rows, agreed, theirs, asked.tokens - 1)],
            {
                "peer": {"name": theirs.name, "how": theirs.how, "versions": theirs.versions},
                "agreement": asdict(agreed),
                "against": [asdict(row) | {"ratio": row.ratio} for row in rows],
                "runs": {
                    f"{who} {size}": [asdict(run) for run in runs] for (who, size), runs in measured.items()
                },
            },
        )
    output.print_line(told)


def plan(asked: Asked, ttft: str, memory: str | None, files: Files) -> None:
    import mlx.core as mx

    from ..bench import fitting, planning, untrained
    from ..bench.machine import this_machine
    from ..bench.measure import Case, interleaved
    from ..bench.report import Setting, median
    from ..bench.variants import VARIANTS
    from ..inference.allocator import memory_bytes
    from ..terminal import progress
    from ..weights.checkpoint import DTYPES

    budget_s, machine = parse_seconds(ttft, "--ttft"), this_machine()
    room = min(parse_bytes(memory, "--memory") if memory else float(memory_bytes()), float(memory_bytes()))
    dtype = dtype_named(asked.dtype)
    variants = [asked.random] if asked.random else list(VARIANTS)
    for variant in variants:
        variant_named(variant)
    # On the CPU packed matrices are dequantized on load: no faster and no smaller.
    bits: list[int | None] = [None, 8, 4] if _on_gpu() else [None]
    choices = planning.choices(variants, bits, asked.sizes or fitting.SIZES, DTYPES[dtype].size)
    made: dict[tuple[str, int | None], VLM] = {}

    def measure(choice: Choice) -> Measured:
        key = choice.variant, choice.bits
        if key not in made:
            made.clear()  # one model in memory at a time
            mx.clear_cache()
            config = VARIANTS[choice.variant]
            packed = untrained.packed(config, choice.bits) if choice.bits else config
            made[key] = untrained.build(packed, DTYPES[dtype])
        turn = made[key], Case(choice.size, 1)
        found = [run for _, run in interleaved([turn], asked.runs, 2) if run]
        vision = median(found, "vision_s") + median(found, "projector_s")
        return vision, median(found, "prefill_s"), median(found, "ttft_s")

    rows: list[tuple[Choice, Point | None]] = []
    complete = False
    try:
        with progress.bar("measuring", "choices") as advance:
            for row in planning.measured(choices, budget_s, room, measure):
                rows.append(row)
                advance(len(rows), len(choices))
        complete = True
    finally:
        points = [point for _, point in rows if point]
        best = planning.recommended(points, budget_s)
        name = "random " + ", ".join(variants)
        setting = Setting(machine, name, dtype, "as listed", None, None, output.resident_bytes(), complete)
        told = files.write(
            setting,
            [planning.table(rows, budget_s, room, machine)],
            {
                "ttft_s": budget_s,
                "memory_bytes": room,
                "recommended": best and asdict(best),
                "plan": [asdict(choice) | {"measured": point and asdict(point)} for choice, point in rows],
            },
        )
        if files.plot:
            from ..bench import plot

            plot.plan(points, budget_s, f"{machine.chip} ({machine.device}), {dtype}", files.plot)
    output.print_line(told)


def _measure(turns: Mapping[_Key, Turn], runs: int, tokens: int, measured: Mapping[_Key, list[Run]]) -> None:
    from ..bench.measure import interleaved
    from ..terminal import progress

    keys, count = list(turns), (runs + 1) * len(turns)
    with progress.bar("measuring", "runs") as advance:
        for done, (index, run) in enumerate(interleaved(list(turns.values()), runs, tokens), 1):
            measured[keys[index]].extend([run] if run else [])
            advance(done, count)


# --- models ---


def _setting(name: str, vlm: VLM, load_s: float | None, cold_s: float | None, complete: bool) -> Setting:
    from ..bench.machine import this_machine
    from ..bench.report import Setting
    from ..evaluate.predictions import described

    return Setting(
        machine=this_machine(),
        model=name,
        dtype=str(vlm.dtype).rpartition(".")[2],
        quantization=described(vlm.quantization),
        load_s=load_s,
        cold_start_s=cold_s,
        resident_bytes=output.resident_bytes(),
        complete=complete,
    )


def _model(asked: Asked, paper: bool) -> tuple[VLM, float | None, list[int]]:
    """The model, its load time in seconds, and the sizes to measure."""
    from time import perf_counter

    from .. import vlm as runtime
    from ..bench import fitting, untrained
    from ..bench import paper as published
    from ..bench.measure import SIDES
    from ..inference.allocator import memory_bytes
    from ..weights.checkpoint import DTYPES

    def sizes(config: ModelConfig, width: int) -> list[int]:
        variant = published.variant_of(config) if paper else None
        defaults = published.sizes(variant) if variant else fitting.SIZES
        return fitting.chosen(
            asked.sizes,
            defaults,
            config,
            asked.name.removeprefix("random "),
            batch=asked.batch,
            tokens=asked.tokens,
            width=width,
            memory=memory_bytes(),
            sides=sides,
        )

    def sides(size: int) -> tuple[Sides, ...]:
        return asked.case(size).options().sides(*SIDES)

    if asked.random:
        config, dtype = variant_named(asked.random), DTYPES[dtype_named(asked.dtype)]
        listed = sizes(config, dtype.size)
        return untrained.build(config, dtype), None, listed
    began = perf_counter()
    vlm = runtime.load(asked.name, asked.dtype, revision=asked.revision)
    load_s = perf_counter() - began
    return vlm, load_s, sizes(vlm.config, vlm.dtype.size)


def variant_named(name: str) -> ModelConfig:
    from ..bench.variants import VARIANTS

    if name not in VARIANTS:
        raise ConfigError(f"no model {name!r} to bench; choose one of {', '.join(VARIANTS)}")
    return VARIANTS[name]


def dtype_named(asked: str | None) -> str:
    from ..weights.checkpoint import DTYPES

    chosen = asked or ("float16" if _on_gpu() else "float32")
    if chosen not in DTYPES:
        raise ConfigError(f"no dtype {chosen!r}; choose one of {', '.join(DTYPES)}")
    return chosen


def _on_gpu() -> bool:
    import mlx.core as mx

    return mx.default_device() == mx.Device(mx.gpu)
