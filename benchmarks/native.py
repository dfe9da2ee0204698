"""What a picture's own shape costs or saves in answers: python benchmarks/native.py MODEL [--scenes 500]

Scenes of 256 px stand in wide pictures of 448×256, the ground beside them drawn on. They are read as padded
squares of 448 px and in their own shape, which is as large and has 21 tokens fewer; beside them the scenes
themselves. Prints Markdown.
"""

from __future__ import annotations

import argparse
import shutil
import tempfile
from collections.abc import Sequence
from pathlib import Path

import fastvlm_mlx  # isort: skip  - prefers OpenBLAS before mlx loads
import numpy as np
from PIL import Image

from fastvlm_mlx.bench.machine import this_machine
from fastvlm_mlx.evaluate import data as datasets
from fastvlm_mlx.evaluate import report as reports
from fastvlm_mlx.evaluate.predictions import Predictions
from fastvlm_mlx.evaluate.run import ask, settings_of
from fastvlm_mlx.inputs.tiling import ImageOptions
from fastvlm_mlx.vlm import VLM
from tiny import album

SEED, SIDE, WIDE = 2028, 256, 448
WAYS = (("the scene itself", SIDE, "pad"), ("wide, padded", WIDE, "pad"), ("wide, native", WIDE, "native"))


def widened(source: Path, folder: Path) -> None:
    """The same questions about the same scenes in the middle of wide pictures."""
    (folder / "pictures").mkdir(parents=True)
    shutil.copy(source / "data.jsonl", folder)
    beside = (WIDE - SIDE) // 2
    for file in sorted((source / "pictures").iterdir()):
        scene = np.asarray(Image.open(file))
        wide = np.pad(scene, [(0, 0), (beside, beside), (0, 0)], mode="edge")
        Image.fromarray(wide).save(folder / "pictures" / file.name)


def measured(vlm: VLM, data: datasets.DataSet, size: int, mode: str) -> reports.Report:
    settings = settings_of(vlm, "", data, "exact", max_tokens=96, options=ImageOptions(size, mode))
    with Predictions(None, settings) as predictions:
        ask(vlm, data, settings, predictions, batch=32)
        return reports.summarize(settings, data.rows, predictions.said)


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("model")
    parser.add_argument("--scenes", type=int, default=500)
    options = parser.parse_args(arguments)
    vlm = fastvlm_mlx.load(options.model)
    with tempfile.TemporaryDirectory() as folder:
        plain, wide = Path(folder) / "plain", Path(folder) / "wide"
        album.write(plain, options.scenes, SEED, "test", 3)
        widened(plain, wide)
        found = {}
        for name, size, mode in WAYS:
            data = datasets.locate_pictures(datasets.read((plain if size == SIDE else wide) / "data.jsonl"))
            found[name] = measured(vlm, data, size, mode)
    print(f"{this_machine().words}; {options.model}, {options.scenes} scenes\n")
    print(f"| | questions | {' | '.join(found)} |\n|---|--:|{'--:|' * len(found)}")
    first = next(iter(found.values()))
    for category, score in {**first.categories, reports.ALL: first.overall}.items():
        of = [{**one.categories, reports.ALL: one.overall}[category].score for one in found.values()]
        print(f"| {category} | {score.rows:,} | {' | '.join(f'{100 * one:.1f}' for one in of)} |")


if __name__ == "__main__":
    main()
