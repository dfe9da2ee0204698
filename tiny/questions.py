"""Everything that can be asked about a scene, with the one right answer.

A yes/no question draws its truth first and then looks for a question that has it, so that neither answer is
the likelier one. Whatever is asked of a picture that shows it is sometimes asked of one that does not, where
the answer is that one can't tell.
"""

from __future__ import annotations

import string
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import permutations, product

import numpy as np

from .composing import pick, sample
from .exercises import beside, by_colour, by_height, by_shape, finding, listing, neighbours
from .scenes import (
    GRID,
    HELD_OUT,
    KINDS,
    LIMITS,
    NAMES,
    SHAPES,
    SIDES,
    SIGNS,
    SIZES,
    Chart,
    Line,
    Scene,
    Sign,
    Thing,
    held_out,
)
from .wordings import WORDINGS, describe
from .words import TRAIN_WORDS

CANT_TELL = "I can't tell."
CATEGORIES = (
    *("describe", "list", "find", "count", "colour", "shape", "size", "position", "yesno"),
    *("read", "number", "tallest", "shortest", "sign", "unknown"),
)
OF_EVERY_SCENE = CATEGORIES[:3]
TRAINING_ONLY = frozenset({"list", "find"})  # dense: what most answers rest on, asked for by itself
# Within "position" and "yesno": some are far harder to learn, and a mixture may weigh each by itself.
FINER = ("relation", "left", "above", "more", "taller", "word", "is it", "is there", "is sign", "any text")


@dataclass(frozen=True)
class Question:
    category: str
    text: str
    answer: str
    kind: str = ""  # of `FINER`, where there are several in a category


@dataclass(frozen=True)
class Clue:
    """A description of things, as much as is said of them."""

    size: str | None = None
    colour: str | None = None
    shape: str | None = None

    def fits(self, thing: Thing) -> bool:
        return (
            self.shape in (None, thing.shape)
            and self.colour in (None, thing.colour)
            and self.size in (None, thing.size)
        )

    def one(self) -> str:
        return " ".join(word for word in (self.size, self.colour, self.shape or "thing") if word)

    def many(self) -> str:
        return f"{self.one()}{'es' if self.shape == 'cross' else 's'}"


_TELLING = 16  # px between the tops of two bars that are compared
# Shapes that nothing in a picture without things could be taken for.
_FOREIGN = {
    "text": ("circle", "triangle", "diamond", "star", "heart"),
    "chart": ("circle", "triangle", "diamond", "star", "heart"),
    "sign": ("star", "heart"),
}


def ask(scene: Scene, rng: np.random.Generator) -> list[Question]:
    """The questions that suit a scene, each kind once or a few times, worded by lot."""
    return [
        Question("describe", _say(rng, "describe"), describe(scene)),
        Question("list", _say(rng, "list"), listing(scene)),
        _find(scene, rng),
        *(_about_things(scene, rng) if scene.things else _without_things(scene, rng)),
        *(_about_lines(scene.lines, rng) if scene.lines else ()),
        *(() if scene.lettering() else (_unknown(rng, "read"), _unknown(rng, "number"))),
        *(_about_chart(scene.chart, rng) if scene.chart else _without_chart(rng)),
        *(_about_sign(scene.sign, rng) if scene.sign else _without_sign(rng)),
        *_presence(scene, rng),
    ]


def corpus(rng: np.random.Generator, count: int) -> Iterator[str]:
    """Questions and answers of training scenes, `count` strings, for a tokenizer to learn from."""
    while count > 0:
        for question in ask(sample(rng, "train"), rng):
            for text in (question.text, question.answer)[:count]:
                count -= 1
                yield text


def corner(thing: Thing) -> str:
    """The quarter of the picture that a thing lies in."""
    row, column = thing.cell
    return f"{'top' if row < GRID // 2 else 'bottom'} {'left' if column < GRID // 2 else 'right'}"


def matching(scene: Scene, clue: Clue) -> tuple[Thing, ...]:
    """The things that a description fits."""
    return tuple(thing for thing in scene.things if clue.fits(thing))


def _say(rng: np.random.Generator, key: str, *words: str, **named: str) -> str:
    text = pick(rng, WORDINGS[key])
    colour = "colour" if rng.random() < 0.5 else "color"
    return text.format(*words, c=colour, **named)


def _find(scene: Scene, rng: np.random.Generator) -> Question:
    """All there is, by what one kind of question looks up."""
    keys = ("by shape", "by shape", "by colour", "beside") if scene.things else ("find",)
    key = pick(rng, ("find", "by height") if scene.chart else keys)
    match key:
        case "by shape":
            told = by_shape(scene, int(rng.integers(len(SHAPES))))
        case "by colour":
            told = by_colour(scene, int(rng.integers(len(NAMES))))
        case "beside":
            told = beside(scene)
        case "by height":
            told = by_height(scene)
        case _:
            told = finding(scene, rng.random(GRID**2).tolist())
    return Question("find", _say(rng, key), told)


def _unknown(rng: np.random.Generator, key: str, *words: str, **named: str) -> Question:
    return Question("unknown", _say(rng, key, *words, **named), CANT_TELL)


def _yesno(rng: np.random.Generator, truth: bool, key: str, *words: str) -> Question:
    return Question("yesno", _say(rng, key, *words), "yes" if truth else "no", key)


def _coin(rng: np.random.Generator) -> bool:
    return bool(rng.random() < 0.5)


def _a(noun: str) -> str:
    return f"{'an' if noun[0] in 'aeiou' else 'a'} {noun}"


def _clues(thing: Thing) -> list[Clue]:
    """Every way to describe one thing, from the shortest."""
    return [
        Clue(shape=thing.shape),
        Clue(colour=thing.colour),
        Clue(colour=thing.colour, shape=thing.shape),
        Clue(size=thing.size, shape=thing.shape),
        Clue(size=thing.size, colour=thing.colour),
        Clue(thing.size, thing.colour, thing.shape),
    ]


def _told_apart(scene: Scene, thing: Thing, without: str = "") -> list[Clue]:
    """Descriptions that fit this thing alone and do not mention the property `without`."""
    return [
        clue
        for clue in _clues(thing)
        if not (without and getattr(clue, without)) and len(matching(scene, clue)) == 1
    ]


def _about_things(scene: Scene, rng: np.random.Generator) -> Iterator[Question]:
    yield Question("count", _say(rng, "count all"), str(len(scene.things)))
    for _ in range(3):
        clue = _counted(scene, rng)
        yield Question("count", _say(rng, "count", clue.many()), str(len(matching(scene, clue))))
    for thing in scene.things:
        for name in ("colour", "shape", "size"):
            if clues := _told_apart(scene, thing, name):
                yield Question(name, _say(rng, name, pick(rng, clues).one()), getattr(thing, name))
        if clues := _told_apart(scene, thing):
            yield Question("position", _say(rng, "position", pick(rng, clues).one()), corner(thing))
            yield from _neighbours(scene, thing, pick(rng, clues), rng)
    yield from _absent(scene, rng)
    for _ in range(2):
        truth = _coin(rng)
        asked = _present(scene, rng) if truth else _missing(scene, rng)
        yield _yesno(rng, truth, "is there", _a(asked.one()))
    yield from _compared(scene, rng)


def _counted(scene: Scene, rng: np.random.Generator) -> Clue:
    """Something to count: mostly what is there, and what several share more often than not."""
    if rng.random() < 0.25:
        return Clue(colour=pick(rng, NAMES)) if _coin(rng) else Clue(shape=pick(rng, SHAPES))
    thing = pick(rng, scene.things)
    options = [
        Clue(colour=thing.colour),
        Clue(shape=thing.shape),
        Clue(size=thing.size),
        Clue(thing.size, None, thing.shape),
    ]
    several = [clue for clue in options if len(matching(scene, clue)) > 1]
    return pick(rng, several if several and _coin(rng) else options)


def _neighbours(scene: Scene, thing: Thing, clue: Clue, rng: np.random.Generator) -> Iterator[Question]:
    for side, there in neighbours(scene, thing):
        text = _say(rng, "relation", clue.one(), side=side)
        yield Question("position", text, f"{there.colour} {there.shape}", "relation")


def _present(scene: Scene, rng: np.random.Generator) -> Clue:
    thing = pick(rng, scene.things)
    pair = Clue(None, thing.colour, thing.shape)
    return pick(rng, (pair, pair, *_clues(thing)))


def _missing(scene: Scene, rng: np.random.Generator) -> Clue:
    """Something that is not there, mostly one property away from something that is."""
    while True:
        near, other = _present(scene, rng), pick(rng, scene.things)
        said = [name for name in ("size", "colour", "shape") if getattr(near, name)]
        changed = pick(rng, said)
        options = {"size": tuple(SIZES), "colour": NAMES, "shape": SHAPES}[changed]
        value = getattr(other, changed) if len(said) > 1 and rng.random() < 0.4 else pick(rng, options)
        words = {name: getattr(near, name) for name in said} | {changed: value}
        clue = Clue(**words)
        if not matching(scene, clue) and _fair(scene, clue):
            return clue


def _fair(scene: Scene, clue: Clue) -> bool:
    """Asked of training scenes, a held-out combination would always be absent, and that would be learnt."""
    shown = any((thing.shape, thing.colour) in HELD_OUT for thing in scene.things)
    return shown or (clue.shape, clue.colour) not in HELD_OUT


def _absent(scene: Scene, rng: np.random.Generator) -> Iterator[Question]:
    """Questions about a thing that is not there, the wording chosen like that of the answerable ones."""
    shapes = [shape for shape in SHAPES if not matching(scene, Clue(shape=shape))]
    colours = [colour for colour in NAMES if not matching(scene, Clue(colour=colour))]
    size = pick(rng, (None, None, *SIZES))
    yield _unknown(rng, "colour", Clue(size, None, pick(rng, shapes)).one())
    yield _unknown(rng, "shape", Clue(size, pick(rng, colours)).one())
    pairs = [
        clue
        for shape, colour in product(SHAPES, NAMES)
        if (shape not in shapes or colour not in colours)
        and not matching(scene, clue := Clue(None, colour, shape))
        and _fair(scene, clue)
    ]
    for key in ("size", "position"):
        options = pick(rng, pairs), Clue(shape=pick(rng, shapes)), Clue(colour=pick(rng, colours))
        yield _unknown(rng, key, pick(rng, options).one())
    side = pick(rng, tuple(SIDES))
    yield _unknown(rng, "relation", pick(rng, pairs).one(), side=side)


def _compared(scene: Scene, rng: np.random.Generator) -> Iterator[Question]:
    """Yes/no questions about the order, the number and the properties of things."""
    for key, axis in (("left", 1), ("above", 0)):
        pairs = [
            (a, b)
            for a, b in permutations(scene.things, 2)
            if a.cell[axis] < b.cell[axis] and _told_apart(scene, a) and _told_apart(scene, b)
        ]
        if pairs:
            truth = _coin(rng)
            first, second = pick(rng, pairs)[:: 1 if truth else -1]
            words = (pick(rng, _told_apart(scene, one)).one() for one in (first, second))
            yield _yesno(rng, truth, key, *words)
    for name, values in (("colour", NAMES), ("shape", SHAPES)):
        clues = [Clue(**{name: value}) for value in values]
        counts = {clue: len(matching(scene, clue)) for clue in clues}
        unlike = [(a, b) for a, b in permutations(clues, 2) if counts[a] > counts[b]]
        likely = [pair for pair in unlike if counts[pair[1]]] or unlike
        truth = _coin(rng)
        more, fewer = pick(rng, likely)[:: 1 if truth else -1]
        yield _yesno(rng, truth, "more", more.many(), fewer.many())
    thing = pick(rng, scene.things)
    for name, options in (("colour", NAMES), ("size", tuple(SIZES))):
        if clues := _told_apart(scene, thing, name):
            truth, value = _coin(rng), getattr(thing, name)
            others = [option for option in options if option != value]
            yield _yesno(rng, truth, "is it", pick(rng, clues).one(), value if truth else pick(rng, others))


def _without_things(scene: Scene, rng: np.random.Generator) -> Iterator[Question]:
    shape, colour = pick(rng, _FOREIGN[scene.kind]), pick(rng, NAMES)
    alone, pair = Clue(shape=shape), Clue(None, colour, shape)
    clue = pick(rng, (alone, pair if _fair(scene, pair) else alone))
    yield _unknown(rng, "colour", alone.one())
    yield _unknown(rng, pick(rng, ("size", "position")), clue.one())
    yield Question("count", _say(rng, "count", clue.many()), "0")


def _about_lines(lines: Sequence[Line], rng: np.random.Generator) -> Iterator[Question]:
    text = " ".join(line.text for line in lines)
    digits = all(line.text.isdigit() for line in lines)
    yield Question("number" if digits else "read", _say(rng, "read"), text)
    if not any(line.text.isdigit() for line in lines):
        yield _unknown(rng, "number")
    elif len(lines) == 1:
        yield Question("number", _say(rng, "number"), text)
    if len(lines) == 1:
        truth = _coin(rng)
        yield _yesno(rng, truth, "word", text if truth else _mistaken(text, rng))


def _leaks(asked: str, shown: str) -> bool:
    """Whether naming this in a question about that would show training what is held out."""
    return held_out(asked) and not held_out(shown)


def _mistaken(text: str, rng: np.random.Generator) -> str:
    """Another word or number, often just one character away."""
    while True:
        if rng.random() < 0.3 and not text.isdigit():
            made = pick(rng, TRAIN_WORDS)
        else:
            at = int(rng.integers(len(text)))
            signs = string.digits[1:] if text.isdigit() else string.ascii_uppercase
            made = text[:at] + pick(rng, signs) + text[at + 1 :]
        if made != text and not _leaks(made, text):
            return made


def _about_chart(chart: Chart, rng: np.random.Generator) -> Iterator[Question]:
    order = sorted(chart.bars, key=lambda bar: bar.top)
    yield Question("tallest", _say(rng, "tallest"), order[0].label.text)
    yield Question("shortest", _say(rng, "shortest"), order[-1].label.text)
    yield Question("count", _say(rng, "count", "bars"), str(len(order)))
    bar = pick(rng, order)
    named = ("tallest bar", order[0]), ("shortest bar", order[-1]), (f"bar {bar.label.text}", bar)
    where, asked = pick(rng, named)
    yield Question("colour", _say(rng, "colour", where), asked.colour)
    labels = [one.label.text for one in order]
    others = [letter for letter in string.ascii_uppercase if letter not in labels]
    yield _unknown(rng, "colour", f"bar {pick(rng, others)}")
    pairs = [(a, b) for a, b in permutations(order, 2) if b.top - a.top >= _TELLING]
    for _ in range(2):
        truth = _coin(rng)
        first, second = pick(rng, pairs)[:: 1 if truth else -1]
        yield _yesno(rng, truth, "taller", first.label.text, second.label.text)
    truth = _coin(rng)
    yield _yesno(rng, truth, "is there", f"a bar {pick(rng, labels if truth else others)}")


def _without_chart(rng: np.random.Generator) -> Iterator[Question]:
    yield _unknown(rng, pick(rng, ("tallest", "shortest")))
    if rng.random() < 0.3:
        yield _unknown(rng, "colour", pick(rng, ("tallest bar", "shortest bar")))


def _about_sign(sign: Sign, rng: np.random.Generator) -> Iterator[Question]:
    limit = sign.line.text if sign.line and sign.kind == "speed limit" else None
    yield Question("sign", _say(rng, "sign"), f"speed limit {limit}" if limit else sign.kind)
    for _ in range(2):
        truth = _coin(rng)
        name = sign.kind if truth else pick(rng, [kind for kind in SIGNS if kind != sign.kind])
        yield _yesno(rng, truth, "is sign", name)
    if limit:
        yield Question("number", _say(rng, "limit"), limit)
        yield Question("number", _say(rng, "sign says"), limit)
        truth = _coin(rng)
        others = [other for other in LIMITS if other != limit and not _leaks(other, limit)]
        yield _yesno(rng, truth, "is it", "speed limit", limit if truth else pick(rng, others))
        return
    yield _unknown(rng, "limit")
    if sign.line:
        yield Question("read", _say(rng, "sign says"), sign.line.text)
    else:
        yield _unknown(rng, "sign says")


def _without_sign(rng: np.random.Generator) -> Iterator[Question]:
    yield _unknown(rng, pick(rng, ("sign", "limit", "sign says")))


def _presence(scene: Scene, rng: np.random.Generator) -> Iterator[Question]:
    """Whether there is text, a chart, a sign: "no" only as often as "yes", by the share of such scenes."""
    written = KINDS["text"] + KINDS["mixed"]
    for key, words, truth, fair in (
        ("any text", (), bool(scene.lines), written / KINDS["objects"] if scene.kind == "objects" else 0),
        ("is there", ("a bar chart",), scene.chart is not None, KINDS["chart"] / (1 - KINDS["chart"])),
        ("is there", ("a road sign",), scene.sign is not None, KINDS["sign"] / (1 - KINDS["sign"])),
    ):
        if truth or rng.random() < fair:
            yield _yesno(rng, truth, key, *words)
