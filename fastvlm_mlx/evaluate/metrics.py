"""Published metrics, each a score from 0 to 1 for one answer.

exact     equals one of the answers, ignoring case, articles, spaces and surrounding punctuation. Unlike
          SQuAD's (Rajpurkar et al., 2016), it keeps inner punctuation: 1,5 is not 15, and -5 is not 5.
          For GQA, ScienceQA and multiple choice by letter.
vqa       VQA's soft accuracy (Antol et al., 2015): min(1, people with that answer / 3), averaged over the
          ten subsets of nine people, after EvalAI's normalization. Also for TextVQA and VizWiz.
anls      Average normalized Levenshtein similarity (Biten et al., 2019), as DocVQA's script computes it:
          best similarity to an answer in lower case, 0 below 0.5. (In the paper, 0.5 also counts as 0.)
relaxed   ChartQA's (Masry et al., 2022), as in pix2struct: numbers within 5%, where 12% is 0.12; other text
          equal ignoring case. Years count as numbers. Thousands separators are not supported.
yesno     POPE's (Li et al., 2023): no if the first sentence has the word No, no or not, else yes.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

Metric = Callable[[str, Sequence[str]], float]  # (generated, answers) -> 0 to 1

ANLS_THRESHOLD = 0.5
RELAXED_TOLERANCE = 0.05
PEOPLE = 10  # answers per question in VQA
ARTICLES = ("a", "an", "the")
_AROUND = " \t\n.,;:!?\"'`()[]{}“”‘’«»…"


def exact(generated: str, answers: Sequence[str]) -> float:
    return float(plain(generated) in map(plain, answers))


def plain(text: str) -> str:
    """
    >>> plain(" The  Cat. ")
    'cat'
    """
    words = text.lower().strip(_AROUND).split()
    return " ".join([word for word in words if word not in ARTICLES] or words)  # "A" stays "a"


def vqa(generated: str, answers: Sequence[str]) -> float:
    """With fewer than ten answers there are no subsets; with fewer than three the maximum is below 1."""
    generated = as_evalai(generated)
    count, same = len(answers), sum(as_evalai(answer) == generated for answer in answers)
    if count < PEOPLE:
        return min(1.0, same / 3)
    return (same * min(1.0, (same - 1) / 3) + (count - same) * min(1.0, same / 3)) / count


_NUMBERS = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten")
_DIGITS = {word: str(number) for number, word in enumerate(_NUMBERS)} | {"none": "0"}
_PUNCTUATION = ';/[]"{}()=+\\_-><@`,?!'
_CONTRACTIONS = """
    ain't aren't can't could've couldn't couldn't've didn't doesn't don't hadn't hadn't've hasn't haven't
    he'd he'd've he's how'd how'll how's isn't it'd it'd've it'll ma'am mightn't mightn't've might've
    mustn't must've needn't not've o'clock oughtn't 'ow's'at shan't she'd've should've shouldn't
    shouldn't've somebody'd've somebody'll somebody's someone'd someone'd've someone'll someone's
    something'd something'd've something'll that's there'd there'd've there're there's they'd they'd've
    they'll they're they've 'twas wasn't we'd've we've weren't what'll what're what's what've when's where'd
    where's where've who'd who'd've who'll who's who've why'll why're why's won't would've wouldn't
    wouldn't've y'all y'all'll y'all'd've you'd you'd've you'll you're you've
"""
_CONTRACTED = {  # the word without one of its apostrophes -> the word
    word[: mark.start()] + word[mark.end() :]: word
    for word in _CONTRACTIONS.split()
    for mark in re.finditer("'", word)
}


def as_evalai(text: str) -> str:
    """EvalAI's normalization, oddities included: a punctuation mark is removed if it occurs next to a space
    anywhere in the text, else it becomes a space; a period stays before a digit.

    >>> as_evalai("Two red-ish cats, isnt it?")
    "2 red ish cats isn't it"
    """
    text = text.lower().replace(",", "").replace("?", "").replace("'s", " 's")
    text = text.replace("\n", " ").replace("\t", " ").strip()
    given = text
    for sign in _PUNCTUATION:
        beside_space = f"{sign} " in given or f" {sign}" in given
        text = text.replace(sign, "" if beside_space else " ")
    words = [_DIGITS.get(word, word) for word in re.sub(r"\.(?!\d)", "", text).split()]
    return " ".join(_CONTRACTED.get(word, word) for word in words if word not in ARTICLES)


def anls(generated: str, answers: Sequence[str]) -> float:
    generated = " ".join(generated.lower().split())
    best = max(_similarity(generated, " ".join(answer.lower().split())) for answer in answers)
    return best if best >= ANLS_THRESHOLD else 0.0


def _similarity(one: str, other: str) -> float:
    longest = max(len(one), len(other))
    if not longest:
        return 1.0
    if min(len(one), len(other)) < ANLS_THRESHOLD * longest:  # already too far apart
        return 0.0
    return 1 - distance(one, other) / longest


def distance(one: str, other: str) -> int:
    """Levenshtein distance: characters to insert, delete or replace."""
    row = list(range(len(other) + 1))
    for i, a in enumerate(one, 1):
        before, row[0] = row[0], i
        for j, b in enumerate(other, 1):
            before, row[j] = row[j], min(row[j] + 1, row[j - 1] + 1, before + (a != b))
    return row[-1]


def relaxed(generated: str, answers: Sequence[str]) -> float:
    return float(any(_within_tolerance(generated.strip(), answer.strip()) for answer in answers))


def _within_tolerance(generated: str, answer: str) -> bool:
    found, wanted = _number(generated), _number(answer)
    if found is not None and wanted:  # an answer of 0 has to match as text
        return abs(found - wanted) / abs(wanted) <= RELAXED_TOLERANCE
    return generated.lower() == answer.lower()


def _number(text: str) -> float | None:
    try:
        value = float(text.rstrip("%")) / 100 if text.endswith("%") else float(text)
    except ValueError:
        return None
    return value if math.isfinite(value) else None


def yesno(generated: str, answers: Sequence[str]) -> float:
    return float(says_yes(generated) == says_yes(answers[0].strip().lower()))


def says_yes(text: str) -> bool:
    words = text.split(".")[0].replace(",", "").split()
    return not {"No", "no", "not"} & set(words)


METRICS: dict[str, Metric] = {"exact": exact, "vqa": vqa, "anls": anls, "relaxed": relaxed, "yesno": yesno}
AUTO = "auto"


def is_yes_or_no(answers: Sequence[str]) -> bool:
    return len(answers) == 1 and answers[0].strip().lower() in ("yes", "no")


def chosen(answers: Sequence[Sequence[str]]) -> str:
    """The metric for `auto`: vqa if every question has ten answers, else exact."""
    return "vqa" if all(len(each) == PEOPLE for each in answers) else "exact"


@dataclass(frozen=True, slots=True)
class YesNo:
    """POPE's scores, with yes as the positive class."""

    accuracy: float
    precision: float
    recall: float
    f1: float
    yes_share: float  # share of yes among generated answers

    @classmethod
    def of(cls, pairs: Iterable[tuple[str, str]]) -> YesNo:
        """Score pairs of (generated, answer)."""
        counts = {(generated, true): 0 for generated in (True, False) for true in (True, False)}
        for generated, answer in pairs:
            counts[says_yes(generated), says_yes(answer)] += 1
        right, wrong, missed = counts[True, True], counts[True, False], counts[False, True]
        total = sum(counts.values())
        precision, recall = _share(right, right + wrong), _share(right, right + missed)
        return cls(
            accuracy=_share(right + counts[False, False], total),
            precision=precision,
            recall=recall,
            f1=_share(2 * precision * recall, precision + recall),
            yes_share=_share(right + wrong, total),
        )


def _share(part: float, whole: float) -> float:
    return part / whole if whole else 0.0
