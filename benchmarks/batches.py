"""Several prompts side by side against one after another: python benchmarks/batches.py [PROMPTS] [POSITIONS]

A decoder of FastVLM-0.5B's size with random weights (and a small vocabulary), prompts of text alone.
"""

from __future__ import annotations

import random
import sys
from pathlib import Path

from fastvlm_mlx import Text
from fastvlm_mlx.config import ModelConfig, TextConfig, VisionConfig
from fastvlm_mlx.inference import generate
from fastvlm_mlx.inputs.tokenizer import Tokenizer
from fastvlm_mlx.models.fastvlm import FastVLM

import mlx.core as mx  # isort: skip  - after fastvlm_mlx, which prefers OpenBLAS
from mlx.utils import tree_map

TOKENIZER = Path(__file__).parent.parent / "tests" / "golden" / "checkpoints" / "apple-fused" / "untied"
TOKENS = 12


def main(count: int = 8, length: int = 300) -> None:
    tokenizer = Tokenizer.load(TOKENIZER)
    tower = VisionConfig((1,) * 5, (32, 32, 32, 32, 32))
    model = FastVLM(ModelConfig(tower, TextConfig(896, 24, 14, 2, 4864, tokenizer.size, tied=True)))
    model.update(tree_map(lambda array: 0.02 * mx.random.normal(array.shape), model.parameters()))
    mx.eval(model.parameters())
    prompts = [(Text(tuple(random.choices(range(tokenizer.size), k=length))),) for _ in range(count)]
    for name, batches in (("together", [prompts]), ("alone", [[prompt] for prompt in prompts])):
        prefill_s = decode_s = 0.0
        for batch in batches:
            answer, *_ = generate.answer_batch(
                model, tokenizer, batch, stop_ids=(), context=32_768, max_tokens=TOKENS
            )
            prefill_s, decode_s = prefill_s + answer.prefill_s, decode_s + answer.decode_s
        print(f"{name:<9} prefill {prefill_s:7.2f} s   decode {decode_s:7.2f} s", flush=True)


if __name__ == "__main__":
    main(*map(int, sys.argv[1:]))
