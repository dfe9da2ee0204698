"""The model cards of exports for apps."""

from __future__ import annotations

from dataclasses import dataclass

from ..card import NOTICE
from ..doctor.checks import ORIGINALS
from ..doctor.inspect import Report


@dataclass(frozen=True)
class Target:
    reader: str
    library: str
    tags: str
    paragraphs: tuple[str, ...]


ESTIMATED = "Memory is estimated from sizes, not measured on a device."
TOWER = (
    "fastvithd.mlpackage is the vision tower as a Core ML program of one picture size. It was built without "
    "Core ML at hand; nothing was timed on a device."
)
TARGETS = {
    "swift": Target(
        "mlx-swift-lm and mlx-vlm",
        "mlx",
        "mlx, fastvlm, swift",
        (
            ESTIMATED,
            "In an app: add the directory as it is, load it as a vision language model of mlx-swift-lm, "
            "and call `model.train(false)` once after loading. Versions of mlx-swift-lm that do not do so "
            "themselves run BatchNorm on the picture's own statistics, and answer wrongly.",
            "One picture in a question: both programs misplace a second one.",
        ),
    ),
    "apple-app": Target(
        "Apple's FastVLM app",
        "mlx",
        "mlx, coreml, fastvlm, swift",
        (
            TOWER,
            "In Xcode: put the files of this directory into the app's `app/FastVLM/model` folder, in place "
            "of those there, and build.",
        ),
    ),
    "coreml": Target("Core ML", "coreml", "coreml, fastvlm", (TOWER,)),
}


@dataclass(frozen=True)
class Facts:
    source: str
    layout: str
    version: str
    hidden_size: int
    weights: str


def render(facts: Facts, target: Target, report: Report, notice: str | None) -> str:
    head = ["---", f"library_name: {target.library}", "pipeline_tag: image-text-to-text"]
    head.append(f"tags: [{target.tags}]")
    if notice == NOTICE:
        head += ["license: other", "license_name: apple-amlr"]
        head += [f"base_model: {name}" for name in [ORIGINALS.get(facts.hidden_size)] if name]
    rows = {
        "exported from": f"`{facts.source}` ({facts.layout} layout) by fastvlm-mlx {facts.version}",
        "weights": facts.weights,
        **report.facts,
    }
    table = "\n".join(["| | |", "|---|---|", *(f"| {name} | {value} |" for name, value in rows.items())])
    parts = ["\n".join([*head, "---"]), f"# {facts.source} for {target.reader}", table, *target.paragraphs]
    return "\n\n".join([*parts, *([f"## Licence\n\n{notice}"] if notice else [])]) + "\n"


def kind(dtype: object, bits: int | None) -> str:
    dense = str(dtype).rpartition(".")[2]
    return f"{bits} bits in groups of 64; vision tower and projector {dense}" if bits else dense
