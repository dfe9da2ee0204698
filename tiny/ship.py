"""Make the built-in model's folders from a training run, and measure every form of it on held-out scenes.

    python -m tiny.ship runs/tiny --scenes 2000

Writes fastvlm_mlx/assets/tiny (float16) and tiny-4bit, with the table in tiny/MODEL_CARD.md. Every form
answers the same questions: as trained (every branch apart), fused, stored with fewer bits, exported for Swift
and read back; and float16 about other pictures.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import shutil
import tempfile
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path

from fastvlm_mlx.convert import quantize
from fastvlm_mlx.convert.export.swift import export as export_swift
from fastvlm_mlx.convert.fuse import reference
from fastvlm_mlx.convert.read import tensor_names
from fastvlm_mlx.convert.run import convert
from fastvlm_mlx.evaluate import data as datasets
from fastvlm_mlx.evaluate import report as reports
from fastvlm_mlx.evaluate.predictions import Predictions
from fastvlm_mlx.evaluate.run import ask, settings_of
from fastvlm_mlx.vlm import VLM, load
from fastvlm_mlx.weights import checkpoint

import mlx.core as mx  # isort: skip  - after fastvlm_mlx, which prefers OpenBLAS
import mlx.nn as nn  # isort: skip

from . import album, elsewhere
from . import recipe as recipes

ASSETS = Path(__file__).parent.parent / "fastvlm_mlx" / "assets"
SEED, QUESTIONS = 2026, 3
Bits = quantize.Recipe | None
TRAINED, FUSED, HALF, SWIFT, BLIND = "as trained", "fused float32", "float16", "swift export", "blind"
FORMS: tuple[tuple[str, mx.Dtype, Bits], ...] = (
    (FUSED, mx.float32, None),
    (HALF, mx.float16, None),
    ("8 bit", mx.float16, quantize.uniform(8)),
    ("4 bit", mx.float16, quantize.uniform(4)),
    ("4 bit, vision too", mx.float16, quantize.uniform(4).with_pictures()),
)
SHIPPED = {HALF: "tiny", "4 bit": "tiny-4bit"}
GROUP = 64
GOALS = {
    "yesno": 97,
    "colour": 97,
    "shape": 97,
    "count": 92,
    "position": 92,
    "describe": 85,
    "read": 85,
    "tallest": 90,
}


class Branches(nn.Module):
    """The tower as it was trained, in place of the one that runs."""

    def __init__(self, folder: Path, vlm: VLM):
        super().__init__()
        self._raw = tensor_names.rename(tensor_names.APPLE_LLAVA, checkpoint.lazy_weights(folder), folder)
        self._config = vlm.config

    def __call__(self, pixels: mx.array) -> mx.array:
        return reference.features_of(self._raw, self._config, pixels)


def as_trained(folder: Path) -> VLM:
    vlm = load(folder, "float32")
    vlm.model.vision = Branches(folder, vlm)  # type: ignore[assignment]
    return vlm


@dataclass(frozen=True, slots=True)
class Measured:
    report: reports.Report
    said: dict[int, str]

    def otherwise(self, other: Measured) -> int:
        """How many questions the two answer differently."""
        return sum(other.said[line] != text for line, text in self.said.items())


def filed(form: str) -> str:
    return form.replace(" ", "-").replace(",", "")


def measure(name: str, vlm: VLM, data: datasets.DataSet, kept: Path) -> Measured:
    blind = name == BLIND
    settings = settings_of(vlm, name, data, "exact", max_tokens=96, blind=blind)
    with Predictions(kept / f"{filed(name)}.jsonl", settings) as predictions:
        ask(vlm, datasets.shuffle_pictures(data) if blind else data, settings, predictions, batch=32)
        report = reports.summarize(settings, data.rows, predictions.said)
        print(reports.as_text(report), flush=True)
        return Measured(report, dict(predictions.said))


def forms(run: Path, work: Path) -> Iterator[tuple[str, Callable[[], VLM]]]:
    """Every form by name, made and loaded when it is called for."""
    trained = run / "model"
    yield TRAINED, lambda: as_trained(trained)
    for name, dtype, bits in FORMS:
        folder = work / filed(name)

        def made(folder: Path = folder, dtype: mx.Dtype = dtype, bits: Bits = bits) -> VLM:
            convert(trained, folder, recipe=bits, group_size=GROUP, dtype=dtype, overwrite=True)
            return load(folder)

        yield name, made
    half, swift = work / HALF, work / "swift"

    def exported() -> VLM:
        convert(trained, half, group_size=GROUP, dtype=mx.float16, overwrite=True)
        export_swift(half, swift, overwrite=True)
        return load(swift)

    yield SWIFT, exported
    yield BLIND, lambda: load(half)


def table(found: dict[str, Measured], goals: dict[str, int]) -> str:
    scores = {name: {**one.report.categories, reports.ALL: one.report.overall} for name, one in found.items()}
    aim, line = ("goal | ", "--:|") if goals else ("", "")
    lines = [f"| | questions | {aim}{' | '.join(found)} |", f"|---|--:|{line}" + "--:|" * len(found)]
    for category, score in next(iter(scores.values())).items():
        goal = f"{goals.get(category, '')} | " if goals else ""
        cells = " | ".join(f"{100 * own[category].score:.1f}" for own in scores.values())
        lines.append(f"| {category} | {score.rows:,} | {goal}{cells} |")
    return "\n".join(lines)


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("run", type=Path, help="the folder of a finished `python -m tiny.train`")
    parser.add_argument("--scenes", type=int, default=2000)
    parser.add_argument("--work", type=Path, help="keep pictures and answers here, and go on from them")
    parser.add_argument("--only", nargs="*", help="these forms alone, and nothing shipped")
    parser.add_argument("--note", default="", help="a remark for the card on how the run went")
    options = parser.parse_args(arguments)
    with tempfile.TemporaryDirectory() as temporary:
        work = options.work or Path(temporary)
        if not (work / "held-out").exists():
            album.write(work / "held-out", options.scenes, SEED, "test", QUESTIONS)
        if not (work / "elsewhere").exists():
            elsewhere.write(work / "elsewhere", elsewhere.COUNT, elsewhere.SEED)
        data, other = (
            datasets.locate_pictures(datasets.read(work / name / "data.jsonl", None))
            for name in ("held-out", "elsewhere")
        )
        found = {
            name: measure(name, make(), data, work)
            for name, make in forms(options.run, work)
            if not options.only or name in options.only
        }
        if options.only:
            return
        answers = work / "elsewhere-answers"
        answers.mkdir(exist_ok=True)
        half = load(work / HALF)
        others = {name: measure(name, half, other, answers) for name in (HALF, BLIND)}
        for name, destination in SHIPPED.items():
            ship(work / filed(name), ASSETS / destination)
        card(options.run, found, others, options.note)


def ship(folder: Path, destination: Path) -> None:
    shutil.rmtree(destination, ignore_errors=True)
    shutil.copytree(folder, destination)
    (destination / "README.md").unlink()  # its table stands in MODEL_CARD.md


def card(run: Path, found: dict[str, Measured], others: dict[str, Measured], note: str) -> None:
    recipe = recipes.read()
    rows = [json.loads(line) for line in (run / "log.jsonl").read_text(encoding="utf-8").splitlines()]
    stages = []
    for number, stage in enumerate(recipe.stages, 1):
        own = [row for row in rows if row["stage"] == stage.name]
        minutes = sum(row["s_per_step"] for row in own) * recipe.log_every / 60
        stages.append(
            f"{number}. {stage.name}: {stage.steps} steps of {stage.batch} "
            + ("scenes in symbols" if stage.kind == "symbols" else "pictures")
            + (f", {stage.pages} of them pages of letters" if stage.pages else "")
            + (f", {stage.questions} questions about each" if stage.kind in ("symbols", "answers") else "")
            + f"; loss {own[-1]['loss']:.3f}; {minutes:.0f} minutes"
        )
    sizes = {
        name: sum(file.stat().st_size for file in (ASSETS / name).iterdir()) for name in SHIPPED.values()
    }
    text = CARD.format(
        recipe=recipe.name,
        seed=recipe.seed,
        stages="\n".join(stages),
        machine=f"{platform.system()} {platform.machine()}, {processors()}, MLX {version('mlx')}",
        scenes=SEED,
        note=f"\n{note}\n" if note else "",
        elsewhere=table(others, {}),
        other_count=others[HALF].report.overall.rows,
        table=table(found, GOALS),
        fused=found[TRAINED].otherwise(found[FUSED]),
        swift=found[HALF].otherwise(found[SWIFT]),
        count=f"{found[HALF].report.overall.rows:,}",
        **{f"{name.replace('-', '_')}_mb": f"{size / 1e6:.1f}" for name, size in sizes.items()},
    )
    (ASSETS / "tiny" / "MODEL_CARD.md").write_text(text, encoding="utf-8")


def processors() -> str:
    return f"{os.cpu_count()} CPU cores, no GPU" if not mx.metal.is_available() else "Metal GPU"


CARD = """# {recipe}

The model that comes with fastvlm-mlx: FastViTHD's five stages, projector and Qwen2 decoder, small. It knows
what it was shown: flat coloured shapes on plain or patterned grounds, capital letters and numbers in three
kinds of lettering, bar charts with 3 to 5 bars, seven road signs. It does not know photographs. Its own work
of generated pictures alone, under the package's licence (MIT); nothing of Apple's weights is in it.

- `tiny`: float16, {tiny_mb} MB; `tiny-4bit`: language model in 4 bit, {tiny_4bit_mb} MB
- pictures of 256 px, 16 visual tokens; context 1024
- trained by `tiny/recipe.toml` with seed {seed}, on {machine}:

{stages}
{note}
## Measured on pictures drawn elsewhere

{other_count} questions as newcomers type them (`python -m tiny.elsewhere elsewhere`) about pictures that
matplotlib, cairo and a browser drew: shapes of any size anywhere, words and numbers in other
typefaces, ordinary bar charts, photographs. Exact match in per cent.

{elsewhere}

## Measured on its own kind of pictures

`python -m tiny.scenes held-out` draws the pictures (seed {scenes}, split `test`: shape and colour
combinations, words and numbers that training never shows), `fastvlm-mlx eval tiny held-out/data.jsonl` asks.
Exact match in per cent; describing is right only if every object and word is, in reading order. Where a
figure is below its goal, the model is not there yet: at least half of the things shown are pairs of shape
and colour that training never showed, and these it believes least.

{table}

"as trained" keeps every branch and BatchNorm apart; the others are what `fastvlm-mlx convert` makes of it,
and what `export --target swift` makes of float16, read back; "blind" is float16 asked about other pictures.
Of {count} answers, the fused form gives {fused} otherwise than the trained one, the export {swift} otherwise
than float16. `python -m tiny.ship` makes folders and table.
"""


if __name__ == "__main__":
    main()
