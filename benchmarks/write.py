"""Run the fixed set of benchmarks and put what they print into docs/benchmarks.md.

`python benchmarks/write.py [NAME …]`: all, or some of the names below. What stands between a section's
marks, `<!-- NAME -->` and `<!-- end of NAME -->`, is replaced: command, date and output. A section
that is not there yet goes to the end; one whose peers are not installed is left as it is.
"""

from __future__ import annotations

import argparse
import datetime
import re
import shlex
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path

import peers

ROOT = Path(__file__).parent.parent
PAGE = ROOT / "docs" / "benchmarks.md"
SMALL = "tests/golden/checkpoints/apple-fused/untied"
THEIRS = "tests/golden/checkpoints/hf-timm-unfused/untied"


@dataclass(frozen=True)
class Section:
    title: str
    command: str
    note: str
    needs: tuple[str, ...] = ()  # packages


_FILE = "bench.md"
_BENCH, _TOLD = "python -m fastvlm_mlx bench", f"--markdown {_FILE}"
SECTIONS = {
    "time": Section(
        "Time to the first token",
        f"{_BENCH} --random 0.5b --sizes 256,512 --runs 3 --roofline {_TOLD}",
        "A model of true size with random weights; what Apple's chips need at least for the same work.",
    ),
    "small": Section(
        "Time to the first token of a small model",
        f"{_BENCH} -m {SMALL} --sizes 256,512 {_TOLD}",
        "Where the model is small, what is around it counts.",
    ),
    "encoders": Section(
        "Against other encoders",
        f"{_BENCH} --against fastvit,vit-l-14@336,convnext-l --sizes 256 --runs 3 {_TOLD}",
        "True sizes, random weights, one language model. On a CPU our kernels for it are part of the ratios.",
    ),
    "peers": Section(
        "Against mlx-vlm and mlx-lm",
        "python benchmarks/against_mlx_vlm.py --sizes 256 512 1024",
        "Full size, float32, random weights, in alternation in one process, medians.",
        ("mlx_vlm", "mlx_lm"),
    ),
    "torch": Section(
        "Against PyTorch",
        "python benchmarks/against_torch.py --sizes 256 512 1024 1536",
        "The tower alone against timm's, eager, full size, float32, random weights, in alternation in one "
        "process, medians.",
        ("torch", "timm"),
    ),
    "growth": Section(
        "Growth with the picture",
        "python benchmarks/growth.py",
        "The tower alone, full size, float32, random weights: what a megapixel takes, attention apart, the "
        "sizes in turn, medians.",
    ),
    "cold": Section(
        "Cold start",
        "python benchmarks/cold_start.py",
        "From the start of a process to its end with one token: the 0.5B's size, and the built-in model. "
        "BENCH_PEER is the Python of an environment with mlx-vlm and all that it needs.",
    ),
    "operations": Section(
        "Operations and bytes",
        "python benchmarks/operations.py",
        "Graphs of the 0.5B as a GPU takes them, exported and counted; nothing is computed. Views only look "
        "at their input otherwise; bytes are the inputs and outputs of all other operations.",
        ("mlx_vlm", "mlx_lm"),
    ),
    "transformers": Section(
        "Against transformers in PyTorch",
        f"{_BENCH} -m {THEIRS} --against transformers --sizes 256 --tokens 17 {_TOLD}",
        "A model of the tests' size with random weights: what is around it counts.",
        ("torch", "transformers", "timm"),
    ),
    "coreml": Section(
        "Core ML",
        "python benchmarks/coreml.py",
        "The saved package, read back and run in numpy, against the tower in MLX.",
        ("coremltools",),
    ),
    "kv": Section(
        "Packed keys and values",
        "python benchmarks/kv_cache.py",
        "A decoder of the 0.5B's size, random weights, float32; the memory is that of a model in float16.",
    ),
    "memory": Section(
        "Memory of an answer",
        "python benchmarks/memory.py",
        "The 0.5B's size, each answer in a process of its own. Computed as stored is as on a GPU.",
    ),
    "conversion": Section(
        "Conversion memory",
        "python benchmarks/convert_memory.py 0.5b 7b",
        "Checkpoints of zeros at full size in Apple's layout, each converted in a process of its own.",
    ),
}


def printed(section: Section) -> str:
    """What the command prints, or writes where it writes Markdown."""
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / _FILE
        instead = {"python": sys.executable, _FILE: str(file)}
        command = [instead.get(word, word) for word in shlex.split(section.command)]
        said = subprocess.run(command, cwd=ROOT, check=True, stdout=subprocess.PIPE, text=True).stdout
        return (file.read_text(encoding="utf-8") if file.exists() else said).strip()


def put(page: str, name: str, section: Section, body: str) -> str:
    """Between the section's marks; a section that is not on the page goes to its end."""
    first, last = f"<!-- {name} -->", f"<!-- end of {name} -->"
    if first not in page:
        page = f"{page.rstrip()}\n\n## {section.title}\n\n{section.note}\n\n{first}\n{last}\n"
    between = re.compile(f"{first}\n.*{last}", re.DOTALL)
    return between.sub(lambda _: f"{first}\n{body}\n{last}", page)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("names", nargs="*", metavar="NAME", help=", ".join(SECTIONS))
    names = parser.parse_args().names or list(SECTIONS)
    for name in names:
        if name not in SECTIONS:
            parser.error(f"no section {name!r}; choose from {', '.join(SECTIONS)}")
        section = SECTIONS[name]
        if missing := [package for package in section.needs if not peers.installed(package)]:
            print(f"{name}: left as it is, {', '.join(missing)} not installed", file=sys.stderr)
            continue
        print(f"{name}: {section.command}", file=sys.stderr)
        told = printed(section)
        print(told, flush=True)
        head = f"`{section.command}`, {datetime.date.today()}:"
        page = put(PAGE.read_text(encoding="utf-8"), name, section, f"{head}\n\n{told}")
        PAGE.write_text(page, encoding="utf-8")


if __name__ == "__main__":
    main()
