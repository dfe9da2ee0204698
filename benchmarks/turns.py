"""The second question about a picture against the first: python benchmarks/turns.py [SIZE] [VARIANT]

A model of true size (0.5b) with random weights in float32, a picture of SIZE pixels (1024), greedy answers.
The second answer is held against a fresh run's, token for token.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Iterator
from pathlib import Path

from fastvlm_mlx import Event, ImageOptions, Prefilled, Session, Token
from fastvlm_mlx.bench import measure, untrained
from fastvlm_mlx.bench.machine import this_machine
from fastvlm_mlx.bench.variants import VARIANTS
from fastvlm_mlx.inputs.tokenizer import Tokenizer

import mlx.core as mx  # isort: skip  - after fastvlm_mlx, which prefers OpenBLAS

TOKENIZER = Path(__file__).parent.parent / "tests" / "golden" / "checkpoints" / "apple-fused" / "untied"
TOKENS = 8


def main(size: str = "1024", variant: str = "0.5b") -> int:
    print(f"{this_machine().words}; {variant}, {size} px", flush=True)
    vlm = untrained.build(VARIANTS[variant], mx.float32)
    vlm.tokenizer = Tokenizer.load(TOKENIZER)  # one that tells words apart
    picture = vlm.picture(measure.picture(), ImageOptions(int(size)))
    session = Session(vlm)
    first, _ = told("turn 1", session.stream("What is in the picture?", [picture], max_tokens=TOKENS))
    prompt = session.prompt("Which colour is it?")
    second, ids = told("turn 2", session.stream("Which colour is it?", max_tokens=TOKENS))
    fresh, expected = told("turn 2 afresh", vlm.stream(prompt, max_tokens=TOKENS))
    print(
        f"turn 2 is {first / second:.1f}× as fast as turn 1 and {fresh / second:.1f}× as fast as afresh;",
        end=" ",
    )
    print(f"answers {'the same' if ids == expected else 'DIFFER'}: {ids}")
    return 0 if ids == expected else 1


def told(what: str, events: Iterator[Event]) -> tuple[float, list[int]]:
    """Seconds to the first token, and the answer."""
    began, first_s, ids = time.perf_counter(), 0.0, list[int]()
    for event in events:
        if isinstance(event, Prefilled):
            now = f"{event.image_tokens} picture and {event.text_tokens} text positions"
            known = (
                f"{event.cached_tokens} known; vision {event.vision_s:.2f} s, prefill {event.prefill_s:.2f} s"
            )
        elif isinstance(event, Token):
            first_s = first_s or time.perf_counter() - began
            ids.append(event.id)
    print(f"{what:<14} first token after {first_s:6.2f} s: {now}, {known}", flush=True)
    return first_s, ids


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
