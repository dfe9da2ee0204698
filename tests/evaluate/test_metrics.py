"""Metrics as tables: what was said, the answers, the score; each from its published definition."""

from __future__ import annotations

import random
from collections.abc import Sequence

import pytest

from fastvlm_mlx.evaluate.metrics import (
    METRICS,
    YesNo,
    anls,
    as_evalai,
    chosen,
    distance,
    plain,
    says_yes,
)


def people(**answers: int) -> list[str]:
    return [answer for answer, count in answers.items() for _ in range(count)]


TABLE: dict[str, list[tuple[str, Sequence[str], float]]] = {
    "exact": [
        ("cat", ["cat"], 1),
        (" The Cat.\n", ["cat"], 1),
        ("“Cat”!", ["a cat"], 1),
        ("cats", ["cat"], 0),
        ("cat", ["dog", "cat"], 1),
        ("a black cat", ["the black cat"], 1),
        ("black  cat", ["black cat"], 1),
        ("blackcat", ["black cat"], 0),
        ("", ["cat"], 0),
        ("", [""], 1),
        ("A", ["a"], 1),  # a choice's letter is no article
        ("(A)", ["A"], 1),
        ("B.", ["A"], 0),
        ("", ["A"], 0),
        ("the", ["a"], 0),
        ("-5", ["5"], 0),
        ("1,5", ["15"], 0),
        ("3.5", ["3.5."], 1),
        ("12%", ["12"], 0),
        ("Straße", ["straße"], 1),
    ],
    "vqa": [
        ("cat", people(cat=10), 1),
        ("cat", people(dog=10), 0),
        ("cat", people(cat=1, dog=9), 0.3),  # the one left out takes his word along
        ("cat", people(cat=2, dog=8), 0.6),
        ("cat", people(cat=3, dog=7), 0.9),
        ("cat", people(cat=4, dog=6), 1),
        ("The cat.", people(cat=4, dog=6), 1),
        ("two", ["2"] * 10, 1),
        ("cat", ["cat"], 1 / 3),  # fewer than ten: the plain form
        ("cat", people(cat=2, dog=1), 2 / 3),
        ("cat", people(cat=5), 1),
        ("dont", ["don't"] * 10, 1),
    ],
    "anls": [
        ("hello", ["hello"], 1),
        ("HELLO", ["hello"], 1),
        ("  hello   world ", ["hello world"], 1),
        ("helloworld", ["hello world"], 1 - 1 / 11),  # sensitive to spaces
        ("helo", ["hello"], 0.8),
        ("hexxo", ["hello"], 0.6),
        ("ab", ["abcd"], 0.5),  # the script keeps one half, the paper drops it
        ("abc", ["abcdefg"], 0),
        ("cat", ["dog", "cats"], 0.75),  # the nearest answer
        ("", ["cat"], 0),
        ("", [""], 1),
    ],
    "relaxed": [
        ("100", ["100"], 1),
        ("105", ["100"], 1),
        ("95", ["100"], 1),
        ("105.1", ["100"], 0),
        ("94.9", ["100"], 0),
        ("-100", ["100"], 0),
        ("-98", ["-100"], 1),
        ("12%", ["0.12"], 1),
        ("12%", ["12"], 0),
        ("12", ["12%"], 0),
        ("0", ["0"], 1),
        ("0.0", ["0"], 0),  # by the definition
        ("0.01", ["0"], 0),
        ("Cat ", ["cat"], 1),
        ("cats", ["cat"], 0),
        ("1,000", ["1000"], 0),
        ("2010", ["2012"], 1),  # a year is a number too
        ("nan", ["nan"], 1),
        ("inf", ["5"], 0),
        ("cat", ["5"], 0),
        ("5.0", ["cat", "5"], 1),
    ],
    "yesno": [
        ("yes", ["yes"], 1),
        ("Yes, there is a cat in the image.", ["yes"], 1),
        ("No, there is no cat.", ["no"], 1),
        ("There is not.", ["no"], 1),
        ("There is a cat. No dog.", ["yes"], 1),  # the first sentence alone
        ("I cannot say", ["no"], 0),
        ("", ["no"], 0),  # what says no no is a yes
        ("Nothing", ["yes"], 1),
        ("no", ["Yes"], 0),
        ("No", ["NO "], 1),
    ],
}
CASES = [(metric, *case) for metric, cases in TABLE.items() for case in cases]


@pytest.mark.parametrize(
    ("metric", "said", "answers", "score"), CASES, ids=[f"{name}: {said}" for name, said, *_ in CASES]
)
def test_metric(metric: str, said: str, answers: Sequence[str], score: float) -> None:
    assert METRICS[metric](said, answers) == pytest.approx(score)


def test_every_metric_has_a_table() -> None:
    assert TABLE.keys() == METRICS.keys()


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("Two cats", "2 cats"),
        ("none", "0"),
        ("the a an", ""),
        ("It's", "it 's"),
        ("arent", "aren't"),
        ("couldnt've", "couldn't've"),
        ("yall'd've", "y'all'd've"),
        ("red-ish", "red ish"),
        ("red - ish", "red ish"),
        ("red-ish ,no", "red ish no"),
        ("a/b (c)", "b c"),  # "(" has a space beside it and goes; "/" has none and becomes one
        ("1,000", "1000"),
        ("3.5", "3.5"),
        ("3.", "3"),
        ("U.S.A.", "usa"),
        ("line\nbreak\ttab", "line break tab"),
        ("What?!", "what"),
    ],
)
def test_normalisation_is_evalai_s(text: str, expected: str) -> None:
    assert as_evalai(text) == expected


def test_plain_keeps_what_is_within() -> None:
    assert plain("  'It's 3.5 m (long)...' ") == "it's 3.5 m (long"


def test_distance_is_levenshtein_s() -> None:
    def by_definition(one: str, other: str) -> int:
        if not one or not other:
            return len(one) + len(other)
        return min(
            by_definition(one[1:], other) + 1,
            by_definition(one, other[1:]) + 1,
            by_definition(one[1:], other[1:]) + (one[0] != other[0]),
        )

    random.seed(0)
    for _ in range(100):
        one, other = ("".join(random.choices("abc", k=random.randrange(6))) for _ in range(2))
        assert distance(one, other) == by_definition(one, other)
        longest = max(len(one), len(other))
        similar = 1 - distance(one, other) / longest if longest else 1
        assert anls(one, [other]) == (similar if similar >= 0.5 else 0)


def test_yes_and_no_are_counted_as_pope_does() -> None:
    said = ["yes"] * 3 + ["Yes, a cat."] + ["No."] * 2
    answers = ["yes", "yes", "no", "no", "yes", "no"]
    found = YesNo.of(zip(said, answers, strict=True))
    assert (found.accuracy, found.precision) == (0.5, 0.5)
    assert (found.recall, found.f1) == pytest.approx((2 / 3, 4 / 7))
    assert found.yes_share == pytest.approx(4 / 6)


def test_no_yes_at_all_divides_by_nothing() -> None:
    assert YesNo.of([("no", "no")]) == YesNo(1.0, 0.0, 0.0, 0.0, 0.0)


def test_the_first_sentence_decides() -> None:
    assert says_yes("Yes. No.")
    assert not says_yes("No, yes")


@pytest.mark.parametrize(
    ("answers", "metric"),
    [
        ([["a"], ["b"]], "exact"),
        ([["a"] * 10, ["b"] * 10], "vqa"),
        ([["a"] * 10, ["b"]], "exact"),
        ([["a", "b"]], "exact"),
    ],
)
def test_auto_goes_by_how_many_answered(answers: list[list[str]], metric: str) -> None:
    assert chosen(answers) == metric
