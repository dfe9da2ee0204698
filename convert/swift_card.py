"""The model card of an export for Swift."""

from __future__ import annotations

from dataclasses import dataclass

import mlx.core as mx

from .card import NOTICE
from .doctor import ORIGINALS, Report


@dataclass(frozen=True)
class Facts:
    source: str
    layout: str
    version: str
    hidden_size: int
    dtype: mx.Dtype
    bits: int | None


def render(facts: Facts, report: Report, notice: str | None) -> str:
    head = ["---", "library_name: mlx", "pipeline_tag: image-text-to-text", "tags: [mlx, fastvlm, swift]"]
    if notice == NOTICE:
        head += ["license: other", "license_name: apple-amlr"]
        head += [f"base_model: {name}" for name in [ORIGINALS.get(facts.hidden_size)] if name]
    kind = f"{facts.bits} bits in groups of 64; vision tower and projector " if facts.bits else ""
    rows = {
        "exported from": f"`{facts.source}` ({facts.layout} layout) by fastvlm-mlx {facts.version}",
        "weights": kind + str(facts.dtype).rpartition(".")[2],
        **report.facts,
    }
    table = "\n".join(["| | |", "|---|---|", *(f"| {name} | {value} |" for name, value in rows.items())])
    parts = [
        "\n".join([*head, "---"]),
        f"# {facts.source} for mlx-swift-lm and mlx-vlm",
        table,
        "Memory is estimated from sizes, not measured on a device.",
        "In an app: add the directory as it is, load it as a vision language model of mlx-swift-lm, and call "
        "`model.train(false)` once after loading. Versions of mlx-swift-lm that do not do so themselves run "
        "BatchNorm on the picture's own statistics, and answer wrongly.",
        "One picture in a question: both programs misplace a second one.",
    ]
    return "\n\n".join([*parts, *([f"## Licence\n\n{notice}"] if notice else [])]) + "\n"
