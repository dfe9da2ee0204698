"""Conversations to arrays: what is learned, and where pictures stand."""

import numpy as np

from fastvlm_mlx.train.batches import NOTHING, Sample, collate, conversation


def spelled(text: str) -> list[int]:
    return [ord(letter) for letter in text]


def test_only_the_models_own_words_are_learned() -> None:
    sample = conversation([("ab<image>c", False), ("de", True)], [0], 2, spelled, "<image>")
    assert sample.ids == (97, 98, NOTHING, NOTHING, 99, 100, 101)
    assert sample.said == (False,) * 5 + (True, True)


def test_every_target_follows_its_position() -> None:
    first = Sample((1, NOTHING, NOTHING, 2, 3), (False, False, False, True, True), (1,))
    second = Sample((4, 5, 6), (False, False, True), ())
    batch = collate(np.zeros((2, 64, 128, 3), np.uint8), [first, second], 2)
    assert batch.ids.tolist() == [[1, 0, 0, 2], [4, 5, 0, 0]]
    assert batch.rows.tolist() == [[NOTHING, 2, 3, NOTHING], [NOTHING] * 4]
    assert batch.positions.tolist() == [2, 3, 5]  # flat: the rows are 4 long
    assert batch.targets.tolist() == [2, 3, 6]
    assert batch.owners.tolist() == [0, 0, 1]
