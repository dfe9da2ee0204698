"""A small byte-level BPE tokenizer of the same make as Qwen2's, learned from texts."""

from __future__ import annotations

import json
from collections.abc import Iterable
from pathlib import Path

import tokenizers
from tokenizers import AddedToken, Regex, decoders, models, normalizers, pre_tokenizers, trainers

from fastvlm_mlx.files.atomic import new_directory
from fastvlm_mlx.inputs.tokenizer import SPLIT, Tokenizer

SPECIAL = ("<|endoftext|>", "<|im_start|>", "<|im_end|>")


def learn(texts: Iterable[str], size: int, context: int, folder: Path) -> Tokenizer:
    """At most `size` ids, the special ones included; written to `folder` as tokenizer files."""
    backend = tokenizers.Tokenizer(models.BPE())
    backend.normalizer = normalizers.NFC()
    split = pre_tokenizers.Split(Regex(SPLIT), behavior="isolated")
    as_bytes = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    backend.pre_tokenizer = pre_tokenizers.Sequence([split, as_bytes])
    backend.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=size - len(SPECIAL),
        min_frequency=2,
        show_progress=False,
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
    )
    backend.train_from_iterator(texts, trainer)
    backend.add_special_tokens([AddedToken(text, special=True, normalized=False) for text in SPECIAL])
    about = {
        "tokenizer_class": "Qwen2Tokenizer",
        "eos_token": SPECIAL[-1],
        "model_max_length": context,
        "clean_up_tokenization_spaces": False,
    }
    with new_directory(folder) as partial:
        (partial / "tokenizer.json").write_text(backend.to_str(), encoding="utf-8")
        (partial / "tokenizer_config.json").write_text(json.dumps(about, indent=2) + "\n", encoding="utf-8")
    return Tokenizer.load(folder)
