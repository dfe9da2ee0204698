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
    first = Sample((1, 2, 3, 4), (False, False, True, True), ())
    second = Sample((5, 6, 7, 8, 9), (False, False, True, False, True), ())
    (texts,) = collate(np.zeros((0, 64, 64, 3), np.uint8), [first, second], 2).texts
    assert texts.heads is None
    assert texts.tails.ids.tolist() == [[1, 2, 3, 0], [5, 6, 7, 8]]
    assert texts.positions.tolist() == [1, 2, 5, 7]  # flat: the rows are 4 long
    assert texts.targets.tolist() == [3, 4, 7, 9]
    assert texts.owners.tolist() == [0, 0, 1, 1]


def test_what_several_begin_with_is_there_once() -> None:
    def asked(picture: int, question: int) -> Sample:
        ids = (1, NOTHING, NOTHING, question, 3, 4)
        return Sample(ids, (False, False, False, False, True, True), (picture,))

    samples = [asked(0, 7), asked(1, 8), asked(0, 9)]
    (texts,) = collate(np.zeros((2, 64, 128, 3), np.uint8), samples, 2).texts
    assert texts.heads
    assert texts.heads.ids.tolist() == [[1, 0, 0]] * 2
    assert texts.heads.pictures.tolist() == [[NOTHING, 0, 1], [NOTHING, 2, 3]]
    assert texts.head_of.tolist() == [0, 1, 0]
    assert texts.tails.ids.tolist() == [[7, 3], [8, 3], [9, 3]]
    assert texts.positions.tolist() == [0, 1, 2, 3, 4, 5]
    assert texts.targets.tolist() == [3, 4] * 3


def test_words_of_the_model_are_never_in_a_head() -> None:
    sample = Sample((1, 2, NOTHING, 3, 4), (False, True, False, False, True), (0,))
    (texts,) = collate(np.zeros((1, 64, 64, 3), np.uint8), [sample], 1).texts
    assert texts.heads is None
    assert texts.tails.pictures.tolist() == [[NOTHING, NOTHING, 0, NOTHING]]
    assert texts.targets.tolist() == [2, 4]


def test_long_samples_do_not_pad_short_ones() -> None:
    lengths = (12, 30, 10, 28, 11)
    samples = [Sample((1,) * length, (True,) * length, ()) for length in lengths]
    batch = collate(np.zeros((0, 64, 64, 3), np.uint8), samples, 1)
    assert [texts.tails.ids.shape for texts in batch.texts] == [(3, 11), (2, 29)]
