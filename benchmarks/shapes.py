"""What answers of a given form cost: python benchmarks/shapes.py [VOCABULARY]

A vocabulary of Qwen2's size: the tests' tokenizer and random joins of its tokens, up to 16 bytes long. Random
logits choose among what is allowed.
"""

from __future__ import annotations

import json
import random
import statistics
import sys
import tempfile
import time
from pathlib import Path

import numpy as np

from fastvlm_mlx.inputs.tokenizer import Tokenizer
from fastvlm_mlx.serve.json_schema import END, SchemaCompiler
from fastvlm_mlx.serve.request import ResponseFormat

SMALL = Path(__file__).parent.parent / "tests/golden/checkpoints/hf-timm-unfused/untied/tokenizer.json"
SCHEMA = {
    "type": "object",
    "properties": {
        "name": {"type": "string"},
        "age": {"type": "integer", "minimum": 0, "maximum": 150},
        "colours": {"type": "array", "items": {"enum": ["red", "green", "blue"]}, "maxItems": 3},
    },
    "required": ["name", "age", "colours"],
    "additionalProperties": False,
}
FORMS = {"any object": ResponseFormat(), "a schema": ResponseFormat(json.dumps(SCHEMA))}
TOKENS = 300


def state_of(size: int) -> str:
    """The tokenizer.json"""
    state = json.loads(SMALL.read_text(encoding="utf-8"))
    vocabulary, merges, chosen = state["model"]["vocab"], state["model"]["merges"], random.Random(0)
    known = list(vocabulary)
    while len(known) < size:
        left, right = chosen.choice(known), chosen.choice(known[:5000])
        if len(left + right) <= 16 and left + right not in vocabulary:
            vocabulary[left + right] = len(known)
            known.append(left + right)
            merges.append([left, right])
    for token_id, token in enumerate(state["added_tokens"], size):
        vocabulary.pop(token["content"], None)
        token["id"] = token_id
    return json.dumps(state)


def tokenizer_of(size: int) -> Tokenizer:
    with tempfile.TemporaryDirectory() as folder:
        (Path(folder) / "tokenizer.json").write_text(state_of(size), encoding="utf-8")
        return Tokenizer.load(Path(folder))


def main(size: int = 151_643) -> None:
    tokenizer = tokenizer_of(size)
    began, worked = time.perf_counter(), time.process_time()
    shapes = SchemaCompiler(tokenizer)
    took = f"{time.perf_counter() - began:.1f} s ({time.process_time() - worked:.1f} s of CPU)"
    print(f"{tokenizer.size} ids; once for a model {took}", flush=True)
    end, logits = tokenizer.id_of(END), np.random.default_rng(0)
    for name, form in FORMS.items():
        begun, asked = [], []
        while len(asked) < TOKENS:
            began = time.perf_counter()
            shape = shapes.begin(form)
            begun.append(time.perf_counter() - began)
            for _ in range(TOKENS):
                began = time.perf_counter()
                allowed = shape.allowed()
                asked.append(time.perf_counter() - began)
                token_id = int(logits.choice(np.flatnonzero(allowed)))
                shape.advance(token_id)
                if token_id == end:
                    break
        times = f"median {1000 * statistics.median(asked):.2f}, largest {1000 * max(asked):.1f} ms"
        print(f"{name:<10} an answer begun {1000 * statistics.median(begun):.1f} ms; a token {times}")


if __name__ == "__main__":
    main(*map(int, sys.argv[1:]))
