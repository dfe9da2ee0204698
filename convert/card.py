"""The model card and the licence that travel with converted weights."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from .verify import Verification

APPLE = b"Apple"  # whose licence it is
NOTICE = (
    "Apple's FastVLM weights are licensed for research only. This is a modified version of them (fused and "
    "re-laid out for MLX, perhaps quantized); the licence beside it applies and must travel with every copy."
)

MEASURES = (
    "All sides are computed in float32. Features and logits: the largest difference over the largest value."
)


@dataclass(frozen=True)
class Facts:
    source: str
    layout: str
    version: str
    dtype: str
    recipe: str | None
    bytes: int
    bits_per_weight: float
    remarks: Sequence[str]


def licences(source: Path) -> dict[str, bytes]:
    """Licence and acknowledgement files by name, to be carried along."""
    wanted = ("LICEN", "NOTICE", "ACKNOWLEDGEMENTS")
    return {
        path.name: path.read_bytes()
        for path in sorted(source.iterdir())
        if path.is_file() and path.name.upper().startswith(wanted)
    }


def notice(found: Mapping[str, bytes]) -> str | None:
    """What to say about licence files that came along."""
    if not found:
        return None
    apples = any(APPLE in content for content in found.values())
    return NOTICE if apples else f"The source's licence applies: {', '.join(found)}."


def render(facts: Facts, notice: str | None, verification: Verification | None) -> str:
    rows = [
        ("converted from", f"`{facts.source}` ({facts.layout} layout)"),
        ("by", f"fastvlm-mlx {facts.version}"),
        ("dtype", facts.dtype),
        (
            "quantization",
            f"{facts.recipe or 'none'}; language model {facts.bits_per_weight:.2f} bits per weight",
        ),
        ("weights", f"{facts.bytes / 1e6:,.1f} MB"),
    ]
    problem = verification.problem if verification else None
    parts = [
        "---\nlibrary_name: fastvlm-mlx\npipeline_tag: image-text-to-text\ntags: [mlx, fastvlm]\n"
        + ("license: other\nlicense_name: apple-amlr\n" if notice == NOTICE else "")
        + "---\n",
        f"# {facts.source} for fastvlm-mlx{' (not verified)' if problem else ''}\n",
        *([f"**This result failed its verification.** {problem}\n"] if problem else []),
        "```\npip install fastvlm-mlx\nfastvlm-mlx generate picture.jpg --model PATH --prompt "
        '"Describe the image."\n```\n',
        _table(("", ""), rows),
    ]
    if facts.remarks:
        parts.append("Not as asked, because a width does not divide:\n")
        parts.append("\n".join(f"- {remark}" for remark in facts.remarks) + "\n")
    if verification:
        parts.append(f"## Verification\n\n{MEASURES}\n")
        parts.append(_table(("comparison", "result"), verification.rows()))
    if notice:
        parts.append(f"## Licence\n\n{notice}\n")
    return "\n".join(parts)


def _table(head: tuple[str, str], rows: Sequence[tuple[str, str]]) -> str:
    lines = [f"| {head[0]} | {head[1]} |", "|---|---|", *(f"| {a} | {b} |" for a, b in rows)]
    return "\n".join(lines) + "\n"
