"""The least time that a model can take on a chip beside what it took; the memory it takes on a telephone."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from ..config import ModelConfig, Quantization
from ..convert.export.check import device_memory
from ..convert.export.check.device_memory import ALIVE, DEVICES, POSITIONS, SHARE
from . import cost
from .chips import CHIPS, Work, least_s
from .machine import Machine
from .measure import Case
from .report import Cases, median
from .table import Table, ms
from .variants import VARIANTS

STAGES = ("vision", "projector", "prefill", "a token")
_PHONE_SIZE = 1024
_PACKED = {"float16": None, "8 bit": Quantization(8, 64), "4 bit": Quantization(4, 64)}


@dataclass(frozen=True, slots=True)
class Limit:
    size: int
    batch: int
    stage: str
    macs: int
    bytes: int
    least_s: float | None  # None where the chip is not in the table
    measured_s: float

    @property
    def reached(self) -> float | None:
        """The share of the chip's limit."""
        return None if self.least_s is None else self.least_s / self.measured_s


def works(
    config: ModelConfig,
    case: Case,
    positions: int,
    tokens: int,
    width: int,
    packed: Quantization | None = None,
) -> dict[str, Work]:
    """By stage, of all prompts of the case. Weights are read once for all of them.

    A token is one in the middle of `tokens` after `positions`; `packed` is how the language model is.
    """
    tower = cost.total(op for ops in cost.vision(config.vision, case.size).values() for op in ops)
    projector = cost.total(cost.projector(config, cost.tokens(case.size)))
    reading = cost.total(cost.language(config.text, positions))
    saying = cost.total(cost.language(config.text, 1, positions + tokens // 2))
    return {
        name: Work(
            case.batch * total.macs,
            cost.weight_bytes(total, width, how) + case.batch * total.cached * width,
        )
        for name, total, how in zip(
            STAGES, (tower, projector, reading, saying), (None, None, packed, packed), strict=True
        )
    }


def limits(config: ModelConfig, cases: Cases, width: int, machine: Machine) -> list[Limit]:
    chip = CHIPS.get(machine.chip) if machine.device == "gpu" else None
    rows = []
    for case, runs in cases.items():
        if not runs:
            continue
        run = runs[0]
        measured = {
            "vision": median(runs, "vision_s"),
            "projector": median(runs, "projector_s"),
            "prefill": median(runs, "prefill_s"),
            "a token": median(runs, "decode_s") / (run.tokens - 1),
        }
        positions = run.image_tokens + run.text_tokens
        for stage, work in works(config, case, positions, run.tokens, width, cost.packed_as(config)).items():
            least = None if chip is None else least_s(work, chip, machine.gpu_cores)
            rows.append(Limit(case.size, case.batch, stage, work.macs, work.bytes, least, measured[stage]))
    return rows


def limit_table(rows: Sequence[Limit], machine: Machine) -> Table:
    known = machine.device == "gpu" and machine.chip in CHIPS
    told = [
        (
            *(str(row.size), str(row.batch), row.stage, f"{row.macs / 1e9:.2f}", f"{row.bytes / 1e6:.1f}"),
            *map(ms, (row.least_s, row.measured_s)),
            "" if row.reached is None else f"{100 * row.reached:.0f}%",
        )
        for row in rows
    ]
    heads = ("px", "batch", "stage", "G multiply-adds", "MB", "at least ms", "measured ms", "of the limit")
    unknown = f"No limit is told: {machine.chip} ({machine.device}) is not in the table of Apple's GPUs."
    return Table("How near to the limit", heads, told, (_WHAT if known else unknown,))


_WHAT = (
    "At least: every multiply-add at the GPU's full rate, or weights, keys and values read once at the "
    "memory's full rate, whichever takes longer; activations are taken to stay in caches."
)


def chip_table(config: ModelConfig, sizes: Sequence[int], text: int, tokens: int) -> Table:
    """The least time to the first token on each chip, in halves."""
    packed = cost.packed_as(config)
    done = [works(config, Case(size, 1), cost.tokens(size) + text, tokens, 2, packed) for size in sizes]
    rows = [
        (
            *(chip.name, str(chip.cores), f"{chip.tflops:g}", f"{chip.gb_s:g}" if chip.gb_s else ""),
            *(ms(sum(least_s(work[stage], chip) for stage in STAGES[:3])) for work in done),
            f"{1 / least_s(done[0]['a token'], chip):.0f}" if chip.gb_s else "",
            chip.source,
        )
        for chip in CHIPS.values()
    ]
    heads = ("chip", "GPU cores", "TFLOPS", "GB/s", *(f"{size} px, ms" for size in sizes), "tokens/s")
    return Table(
        "Lower bounds of the time to the first token, by chip",
        (*heads, "source"),
        rows,
        (
            f"In halves{', packed matrices as they are' if packed else ''}; largest GPU of each chip; source "
            "of the TFLOPS; bandwidths are Apple's, where there is none the bound is of arithmetic alone.",
            _WHAT,
        ),
    )


@dataclass(frozen=True, slots=True)
class OnDevice:
    variant: str
    weights: str
    bytes: int
    fits: dict[str, str]  # device -> verdict


def on_devices() -> list[OnDevice]:
    """Every variant and width, one picture of 1024 px, tower and projector in halves."""
    rows = []
    for name, config in VARIANTS.items():
        for weights, packed in _PACKED.items():
            held = cost.held(config, _PHONE_SIZE, 0, 2, packed)
            need = device_memory.need(held.tower + held.language, config.vision, config.text, _PHONE_SIZE)
            rows.append(OnDevice(name, weights, need.bytes, need.verdicts))
    return rows


def device_table(rows: Sequence[OnDevice]) -> Table:
    heads = ("model", "language model", "GB", *DEVICES)
    told = [(row.variant, row.weights, f"{row.bytes / 1e9:.2f}", *row.fits.values()) for row in rows]
    return Table(
        "Memory on iPhone and iPad, estimated",
        heads,
        told,
        (
            f"Estimated from sizes, not measured, as by `export --check`: weights, {POSITIONS} positions, "
            f"{ALIVE} of the tower's largest arrays at {_PHONE_SIZE} px. An app is taken to get {SHARE:.0%} "
            "of the memory, more only with the increased-memory entitlement.",
        ),
    )
