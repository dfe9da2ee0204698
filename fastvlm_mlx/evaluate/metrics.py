"""How good an answer is, from 0 to 1: one table of published definitions.

exact     equal to one of the answers once case, articles, spaces and punctuation around it are gone. Unlike
          SQuAD's (Rajpurkar et al., 2016) it keeps punctuation within: 1,5 is not 15, and -5 not 5. For GQA,
          ScienceQA, multiple choice by letter.
vqa       VQA's soft accuracy (Antol et al., 2015): min(1, people who said so / 3), averaged over leaving each
          of ten people out, after EvalAI's normalisation, as TextVQA and VizWiz use it too.
anls      Average normalised Levenshtein similarity (Biten et al., 2019) as DocVQA's script computes it: over
          lower-case text, the nearest answer, 0 below one half. (The paper has 0 at one half as well.)
relaxed   ChartQA's (Masry et al., 2022), in pix2struct's form: numbers within 5 %, 12 % being 0.12, other
          text equal but for case. A year is a number too. Thousands separators are not understood.
yesno     POPE's (Li et al., 2023): the first sentence says no if No, no or not is a word of it, else yes.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

Metric = Callable[[str, Sequence[str]], float]  # (said, answers) -> 0 to 1

ANLS_THRESHOLD = 0.5
RELAXED_TOLERANCE = 0.05
PEOPLE = 10  # who answered each question of VQA
ARTICLES = ("a", "an", "the")
_AROUND = " \t\n.,;:!?\"'`()[]{}“”‘’«»…"


def exact(said: str, answers: Sequence[str]) -> float:
    return float(plain(said) in map(plain, answers))


def plain(text: str) -> str:
    """
    >>> plain(" The  Cat. ")
    'cat'
    """
    words = text.lower().strip(_AROUND).split()
    return " ".join([word for word in words if word not in ARTICLES] or words)  # "A" may be the choice


def vqa(said: str, answers: Sequence[str]) -> float:
    """With fewer than ten answers nobody is left out; fewer than three cannot earn full marks."""
    said = as_evalai(said)
    count, same = len(answers), sum(as_evalai(answer) == said for answer in answers)
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
_CONTRACTED = {  # each with one of its apostrophes forgotten -> as it should be
    word[: mark.start()] + word[mark.end() :]: word
    for word in _CONTRACTIONS.split()
    for mark in re.finditer("'", word)
}


def as_evalai(text: str) -> str:
    """The server's normalisation, oddities included: punctuation is dropped where a space is beside it
    somewhere in the text, and else becomes a space; a full stop stays before a digit.

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


def anls(said: str, answers: Sequence[str]) -> float:
    said = " ".join(said.lower().split())
    best = max(_similarity(said, " ".join(answer.lower().split())) for answer in answers)
    return best if best >= ANLS_THRESHOLD else 0.0


def _similarity(one: str, other: str) -> float:
    longest = max(len(one), len(other))
    if not longest:
        return 1.0
    if min(len(one), len(other)) < ANLS_THRESHOLD * longest:  # already too far apart
        return 0.0
    return 1 - distance(one, other) / longest


def distance(one: str, other: str) -> int:
    """Levenshtein's: characters to insert, take out or change."""
    row = list(range(len(other) + 1))
    for i, a in enumerate(one, 1):
        before, row[0] = row[0], i
        for j, b in enumerate(other, 1):
            before, row[j] = row[j], min(row[j] + 1, row[j - 1] + 1, before + (a != b))
    return row[-1]


def relaxed(said: str, answers: Sequence[str]) -> float:
    return float(any(_within_tolerance(said.strip(), answer.strip()) for answer in answers))


def _within_tolerance(said: str, answer: str) -> bool:
    found, wanted = _number(said), _number(answer)
    if found is not None and wanted:  # 0 has to be said as it is written
        return abs(found - wanted) / abs(wanted) <= RELAXED_TOLERANCE
    return said.lower() == answer.lower()


def _number(text: str) -> float | None:
    try:
        value = float(text.rstrip("%")) / 100 if text.endswith("%") else float(text)
    except ValueError:
        return None
    return value if math.isfinite(value) else None


def yesno(said: str, answers: Sequence[str]) -> float:
    return float(says_yes(said) == says_yes(answers[0].strip().lower()))


def says_yes(text: str) -> bool:
    words = text.split(".")[0].replace(",", "").split()
    return not {"No", "no", "not"} & set(words)


METRICS: dict[str, Metric] = {"exact": exact, "vqa": vqa, "anls": anls, "relaxed": relaxed, "yesno": yesno}
AUTO = "auto"


def is_yes_or_no(answers: Sequence[str]) -> bool:
    return len(answers) == 1 and answers[0].strip().lower() in ("yes", "no")


def chosen(answers: Sequence[Sequence[str]]) -> str:
    """What `auto` stands for: vqa where every question has ten answers, else exact."""
    return "vqa" if all(len(each) == PEOPLE for each in answers) else "exact"


@dataclass(frozen=True, slots=True)
class YesNo:
    """Of the answer yes, as POPE reports it."""

    accuracy: float
    precision: float
    recall: float
    f1: float
    yes_share: float  # of what was said

    @classmethod
    def of(cls, pairs: Iterable[tuple[str, str]]) -> YesNo:
        """(said, answer) each"""
        counts = {(said, true): 0 for said in (True, False) for true in (True, False)}
        for said, answer in pairs:
            counts[says_yes(said), says_yes(answer)] += 1
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
