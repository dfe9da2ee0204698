"""Make the built-in model's folders from a training run, and measure every form of it on held-out scenes.

    python benchmarks/ship_tiny.py runs/tiny --scenes 2000

Writes fastvlm_mlx/assets/tiny (float16) and tiny-4bit, with the table in tiny/MODEL_CARD.md. Every form
answers the same questions: as trained (every branch apart), fused, and stored with fewer bits.
"""

from __future__ import annotations

import argparse
import json
import platform
import shutil
import tempfile
from collections.abc import Sequence
from pathlib import Path

import fastvlm_mlx  # isort: skip  - prefers OpenBLAS before mlx loads
import mlx.core as mx
import mlx.nn as nn

from fastvlm_mlx import checkpoint
from fastvlm_mlx.convert import layouts, quantize
from fastvlm_mlx.convert.run import convert
from fastvlm_mlx.evaluate import data as datasets
from fastvlm_mlx.evaluate import report as reports
from fastvlm_mlx.evaluate.predictions import Predictions, Settings, described
from fastvlm_mlx.evaluate.run import ask
from fastvlm_mlx.train import album, form
from fastvlm_mlx.train import recipe as recipes
from fastvlm_mlx.vlm import VLM, load

ASSETS = Path(fastvlm_mlx.__file__).parent / "assets"
SEED, QUESTIONS = 2026, 3
Bits = quantize.Recipe | None
FORMS: tuple[tuple[str, mx.Dtype, Bits], ...] = (
    ("fused float32", mx.float32, None),
    ("float16", mx.float16, None),
    ("8 bit", mx.float16, quantize.uniform(8)),
    ("4 bit", mx.float16, quantize.uniform(4)),
    ("4 bit, vision too", mx.float16, quantize.uniform(4).with_pictures()),
)
SHIPPED = {"float16": "tiny", "4 bit": "tiny-4bit"}
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
        self._raw = layouts.rename(layouts.APPLE_LLAVA, checkpoint.lazy_weights(folder), folder)
        self._config = vlm.config

    def __call__(self, pixels: mx.array) -> mx.array:
        return form.features_of(self._raw, self._config, pixels)


def as_trained(folder: Path) -> VLM:
    vlm = load(folder, "float32")
    vlm.model.vision = Branches(folder, vlm)
    return vlm


def measure(name: str, vlm: VLM, data: datasets.DataSet, kept: Path) -> reports.Report:
    settings = Settings(
        model=name,
        dtype=str(vlm.dtype).rpartition(".")[2],
        quantization=described(vlm.quantization),
        data="held-out scenes",
        data_sha256=data.digest,
        metric="exact",
        image_size=vlm.config.image.size,
        max_tokens=96,
        prompt_suffix="",
        blind=False,
    )
    with Predictions(kept, settings) as predictions:
        ask(vlm, data, settings, predictions, batch=32)
        return reports.summed_up(settings, data.rows, predictions.said)


def table(found: dict[str, reports.Report]) -> str:
    names = list(found)
    categories = {name: score.rows for name, score in next(iter(found.values())).categories.items()}
    lines = ["| | questions | goal | " + " | ".join(names) + " |", "|---|--:|--:|" + "--:|" * len(names)]
    for category, rows in categories.items():
        cells = [f"{100 * found[name].categories[category].score:.1f}" for name in names]
        lines.append(f"| {category} | {rows} | {GOALS.get(category, '')} | " + " | ".join(cells) + " |")
    overall = [f"{100 * found[name].overall.score:.1f}" for name in names]
    total = next(iter(found.values())).overall.rows
    lines.append(f"| all | {total} | | " + " | ".join(overall) + " |")
    return "\n".join(lines)


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("run", type=Path, help="the folder of a finished `fastvlm-mlx train tiny`")
    parser.add_argument("--scenes", type=int, default=2000)
    parser.add_argument("--work", type=Path, help="keep pictures and answers here, and go on from them")
    parser.add_argument("--only", nargs="*", help="these forms alone; the card is left as it is")
    options = parser.parse_args(arguments)
    with tempfile.TemporaryDirectory() as temporary:
        work = options.work or Path(temporary)
        if not (work / "held-out").exists():
            album.write(work / "held-out", options.scenes, SEED, "test", QUESTIONS)
        data = datasets.located(datasets.read(work / "held-out" / "data.jsonl", None))
        trained = options.run / "model"
        found: dict[str, reports.Report] = {}
        for name, dtype, bits in FORMS:
            if options.only and name not in options.only:
                continue
            folder = work / name.replace(" ", "-").replace(",", "")
            convert(trained, folder, recipe=bits, group_size=GROUP, dtype=dtype, overwrite=True)
            found[name] = measure(name, load(folder), data, work / f"{folder.name}.jsonl")
            print(reports.as_text(found[name]), flush=True)
            if name in SHIPPED:
                ship(folder, ASSETS / SHIPPED[name])
        if not options.only:
            found = {
                "as trained": measure("as trained", as_trained(trained), data, work / "trained.jsonl"),
                **found,
            }
            print(table(found))
            card(options.run, found)


def ship(folder: Path, destination: Path) -> None:
    shutil.rmtree(destination, ignore_errors=True)
    shutil.copytree(folder, destination)
    (destination / "README.md").unlink()  # its table stands in MODEL_CARD.md


def card(run: Path, found: dict[str, reports.Report]) -> None:
    recipe = recipes.find("tiny")
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
        machine=f"{platform.system()} {platform.machine()}, {processors()}, MLX {mx.__version__}",
        scenes=SEED,
        table=table(found),
        **{f"{name.replace('-', '_')}_mb": f"{size / 1e6:.1f}" for name, size in sizes.items()},
    )
    (ASSETS / "tiny" / "MODEL_CARD.md").write_text(text, encoding="utf-8")


def processors() -> str:
    import os

    return f"{os.cpu_count()} CPU cores, no GPU" if not mx.metal.is_available() else "Metal GPU"


CARD = """# {recipe}

The model that comes with fastvlm-mlx: FastViTHD's five stages, projector and Qwen2 decoder, small. It knows
what it was shown: flat coloured shapes on plain or patterned grounds, capital letters and numbers in three
kinds of lettering, bar charts with 3 to 5 bars, seven road signs. It does not know photographs. Its own work
of generated pictures alone, under the package's licence (MIT); nothing of Apple's weights is in it.

- `tiny`: float16, {tiny_mb} MB; `tiny-4bit`: language model in 4 bit, {tiny_4bit_mb} MB
- pictures of 256 px, 16 visual tokens; context 1024
- trained by `fastvlm_mlx/train/recipes/tiny.toml` with seed {seed}, on {machine}:

{stages}

## Measured

`fastvlm-mlx scenes held-out` draws the pictures (seed {scenes}, split `test`: shape and colour combinations,
words and numbers that training never shows), `fastvlm-mlx eval tiny held-out/data.jsonl` asks. Exact match in
per cent; describing is right only if every object and word is, in reading order.

{table}

"as trained" keeps every branch and BatchNorm apart; the others are what `fastvlm-mlx convert` makes of it.
`python benchmarks/ship_tiny.py` makes folders and table.
"""


if __name__ == "__main__":
    main()
