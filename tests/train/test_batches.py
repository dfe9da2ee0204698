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
    second = Sample((4, 5, 6, 7), (False, False, True, True), ())
    (texts,) = collate(np.zeros((2, 64, 128, 3), np.uint8), [first, second], 2).texts
    assert texts.ids.tolist() == [[4, 5, 6, 0], [1, 0, 0, 2]]
    assert texts.rows.tolist() == [[NOTHING] * 4, [NOTHING, 2, 3, NOTHING]]
    assert texts.positions.tolist() == [1, 2, 6, 7]  # flat: the rows are 4 long
    assert texts.targets.tolist() == [6, 7, 2, 3]
    assert texts.owners.tolist() == [0, 0, 1, 1]


def test_long_samples_do_not_pad_short_ones() -> None:
    lengths = (12, 30, 10, 28, 11)
    samples = [Sample((1,) * length, (True,) * length, ()) for length in lengths]
    batch = collate(np.zeros((0, 64, 64, 3), np.uint8), samples, 1)
    assert [texts.ids.shape for texts in batch.texts] == [(3, 11), (2, 29)]
