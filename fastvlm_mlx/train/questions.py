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

from .scenes import (
    CELL,
    GRID,
    HELD_OUT,
    KINDS,
    LIMITS,
    NAMES,
    SHAPES,
    SIGNS,
    SIZES,
    SPLITS,
    Bar,
    Chart,
    Line,
    Scene,
    Sign,
    Thing,
    held_out_number,
    pick,
    sample,
)
from .words import TEST_WORDS, TRAIN_WORDS

_TEST_SET = frozenset(TEST_WORDS)
CANT_TELL = "I can't tell."
TRAINING_ONLY = frozenset({"list"})


@dataclass(frozen=True)
class Question:
    category: str
    text: str
    answer: str


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

    def one(self, noun: str = "thing") -> str:
        return " ".join(word for word in (self.size, self.colour, self.shape or noun) if word)

    def many(self, noun: str = "things") -> str:
        plural = f"{self.shape}es" if self.shape == "cross" else f"{self.shape}s"
        return " ".join(word for word in (self.size, self.colour, plural if self.shape else noun) if word)


_TEMPLATES: dict[str, tuple[str, ...]] = {
    "describe": (
        "Describe the picture.",
        "Describe this image.",
        "What is in the picture?",
        "What do you see?",
        "What does this image show?",
    ),
    "list": (
        "List the cells.",
        "List what is in each cell.",
        "Go through the cells.",
        "What is in every cell?",
    ),
    "count all": (
        "How many shapes are there?",
        "How many shapes can you see?",
        "Count the shapes.",
        "How many shapes does the picture show?",
    ),
    "count": (
        "How many {} are there?",
        "How many {} can you see?",
        "Count the {}.",
        "How many {} does the picture show?",
    ),
    "colour": (
        "What {c} is the {}?",
        "Which {c} is the {}?",
        "What is the {c} of the {}?",
        "Name the {c} of the {}.",
    ),
    "shape": (
        "What shape is the {}?",
        "Which shape is the {}?",
        "What is the shape of the {}?",
        "Name the shape of the {}.",
    ),
    "size": (
        "Is the {} big or small?",
        "What size is the {}, big or small?",
        "Is the {} small or big?",
        "How large is the {}, big or small?",
    ),
    "position": (
        "Where is the {}?",
        "Which corner is the {} nearest to?",
        "In which quarter of the picture is the {}?",
        "Where in the picture is the {}?",
    ),
    "relation": (
        "What is {side} the {}?",
        "What lies {side} the {}?",
        "Which shape is {side} the {}?",
        "What can you see {side} the {}?",
    ),
    "read": (
        "What does the text say?",
        "Read the text.",
        "What is written here?",
        "What does it say in the picture?",
        "Which text is shown?",
    ),
    "number": (
        "What number is shown?",
        "Which number is in the picture?",
        "Read the number.",
        "What is the number?",
    ),
    "tallest": (
        "Which bar is the tallest?",
        "Which bar is tallest?",
        "Which bar is the highest?",
        "What is the label of the tallest bar?",
        "Name the tallest bar.",
    ),
    "shortest": (
        "Which bar is the shortest?",
        "Which bar is shortest?",
        "Which bar is the lowest?",
        "What is the label of the shortest bar?",
        "Name the shortest bar.",
    ),
    "sign": (
        "What sign is this?",
        "Which road sign is shown?",
        "What does this road sign mean?",
        "Name the road sign.",
    ),
    "limit": (
        "What is the speed limit?",
        "Which speed limit is shown?",
        "How fast may one drive?",
        "What limit does the sign give?",
    ),
    "sign says": (
        "What does the sign say?",
        "Read the sign.",
        "What is written on the sign?",
        "Which text is on the sign?",
    ),
    "is there": ("Is there {}?", "Can you see {}?", "Does the picture show {}?", "Is {} in the picture?"),
    "any text": (
        "Is there any text?",
        "Can you see any text?",
        "Does the picture show any text?",
        "Is anything written here?",
    ),
    "left": (
        "Is the {} to the left of the {}?",
        "Is the {} left of the {}?",
        "Does the {} lie to the left of the {}?",
        "Is the {} further left than the {}?",
    ),
    "above": (
        "Is the {} above the {}?",
        "Is the {} higher up than the {}?",
        "Does the {} lie above the {}?",
        "Is the {} further up than the {}?",
    ),
    "more": (
        "Are there more {} than {}?",
        "Does the picture show more {} than {}?",
        "Can you see more {} than {}?",
        "Does the image contain more {} than {}?",
    ),
    "is it": (
        "Is the {} {}?",
        "Would you say the {} is {}?",
        "Is it true that the {} is {}?",
        "Is the {} really {}?",
    ),
    "word": ("Does the text say {}?", "Is the text {}?", "Is {} written here?", "Does it say {}?"),
    "taller": (
        "Is bar {} taller than bar {}?",
        "Is the bar {} higher than the bar {}?",
        "Is {} taller than {}?",
        "Does bar {} reach higher than bar {}?",
    ),
    "is sign": (
        "Is this a {} sign?",
        "Is the road sign a {} sign?",
        "Does the picture show a {} sign?",
        "Can you see a {} sign?",
    ),
}
_SIDES = {"to the left of": (0, -1), "to the right of": (0, 1), "above": (-1, 0), "below": (1, 0)}
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
        *(_about_things(scene, rng) if scene.things else _without_things(scene, rng)),
        *(_about_lines(scene.lines, rng) if scene.lines else ()),
        *(() if scene.lettering() else _unknown(rng, ("read", "number"))),
        *(_about_chart(scene.chart, rng) if scene.chart else _without_chart(rng)),
        *(
            _about_sign(scene.sign, rng)
            if scene.sign
            else _unknown(rng, (pick(rng, ("sign", "limit", "sign says")),))
        ),
        *_presence(scene, rng),
    ]


def corpus(rng: np.random.Generator, count: int) -> Iterator[str]:
    """Questions and answers of training scenes, `count` strings, for a tokenizer to learn from."""
    while count > 0:
        for question in ask(sample(rng, SPLITS[0]), rng):
            for text in (question.text, question.answer)[:count]:
                count -= 1
                yield text


def describe(scene: Scene) -> str:
    """A sentence that names everything, in reading order."""
    if scene.chart:
        return f"A bar chart with the bars {_joined([bar.label.text for bar in scene.chart.bars])}."
    if scene.sign:
        return _sentence(_described(scene.sign))
    things = _joined([f"a {thing.size} {thing.colour} {thing.shape}" for thing in _in_order(scene)])
    lines = _joined([f"the {_noun(line.text)} {line.text}" for line in scene.lines])
    return _sentence(", with ".join(part for part in (things, lines) if part))


def listing(scene: Scene) -> str:
    """What is in each of the 16 cells, row by row."""
    grid = [["-"] * GRID for _ in range(GRID)]
    for thing in scene.things:
        grid[thing.cell[0]][thing.cell[1]] = f"{thing.colour} {thing.shape}"
    if scene.sign:
        grid[int(scene.sign.y // CELL)][int(scene.sign.x // CELL)] = "sign"
    for row, column in (
        (int(b.top // CELL), int(b.x // CELL)) for b in (scene.chart.bars if scene.chart else ())
    ):
        grid[row][column] = "bar" if grid[row][column] == "-" else f"{grid[row][column]} bar"
    for line in scene.lettering():
        row = int(line.y // CELL)
        for letter, x in line.letters():
            before = grid[row][int(x // CELL)]
            grid[row][int(x // CELL)] = (before if before.isupper() or before.isdigit() else "") + letter
    return " / ".join(" ".join(row) for row in grid)


def corner(thing: Thing) -> str:
    """The quarter of the picture that a thing lies in."""
    row, column = thing.cell
    return f"{'top' if row < GRID // 2 else 'bottom'} {'left' if column < GRID // 2 else 'right'}"


def matching(scene: Scene, clue: Clue) -> tuple[Thing, ...]:
    """The things that a description fits."""
    return tuple(thing for thing in scene.things if clue.fits(thing))


def _say(rng: np.random.Generator, key: str, *words: str, **named: str) -> str:
    text = pick(rng, _TEMPLATES[key])
    colour = "colour" if rng.random() < 0.5 else "color"
    return text.format(*words, c=colour, **named)


def _unknown(rng: np.random.Generator, keys: Sequence[str], *words: str) -> list[Question]:
    return [Question("unknown", _say(rng, key, *words), CANT_TELL) for key in keys]


def _yesno(rng: np.random.Generator, truth: bool, key: str, *words: str) -> Question:
    return Question("yesno", _say(rng, key, *words), "yes" if truth else "no")


def _coin(rng: np.random.Generator) -> bool:
    return bool(rng.random() < 0.5)


def _a(noun: str) -> str:
    return f"{'an' if noun[0] in 'aeiou' else 'a'} {noun}"


def _joined(parts: Sequence[str]) -> str:
    return parts[0] if len(parts) == 1 else f"{', '.join(parts[:-1])} and {parts[-1]}" if parts else ""


def _sentence(text: str) -> str:
    return f"{text[0].upper()}{text[1:]}."


def _noun(text: str) -> str:
    return "number" if text.isdigit() else "word"


def _in_order(scene: Scene) -> list[Thing]:
    return sorted(scene.things, key=lambda thing: thing.cell)


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
    for clue in (_counted(scene, rng) for _ in range(3)):
        yield Question("count", _say(rng, "count", clue.many()), str(len(matching(scene, clue))))
    for thing in scene.things:
        for category, property_, key in (
            ("colour", "colour", "colour"),
            ("shape", "shape", "shape"),
            ("size", "size", "size"),
        ):
            if clues := _told_apart(scene, thing, property_):
                yield Question(category, _say(rng, key, pick(rng, clues).one()), getattr(thing, property_))
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
    row, column = thing.cell
    for side, (down, across) in _SIDES.items():
        if down and scene.lines:  # a line may lie between them
            continue
        there = [
            other
            for other in scene.things
            if (r := other.cell[0] - row) * down + (c := other.cell[1] - column) * across > 0
            and (c == 0 if down else r == 0)
        ]
        if len(there) == 1:
            text = _say(rng, "relation", clue.one(), side=side)
            yield Question("position", text, f"{there[0].colour} {there[0].shape}")


def _present(scene: Scene, rng: np.random.Generator) -> Clue:
    thing = pick(rng, scene.things)
    return pick(
        rng, (Clue(None, thing.colour, thing.shape), Clue(None, thing.colour, thing.shape), *_clues(thing))
    )


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
    yield from _unknown(rng, ["colour"], Clue(size, None, pick(rng, shapes)).one())
    yield from _unknown(rng, ["shape"], Clue(size, pick(rng, colours)).one())
    pairs = [
        clue
        for shape, colour in product(SHAPES, NAMES)
        if (shape not in shapes or colour not in colours)
        and not matching(scene, clue := Clue(None, colour, shape))
        and _fair(scene, clue)
    ]
    for key in ("size", "position"):
        yield from _unknown(
            rng,
            [key],
            pick(
                rng, [pick(rng, pairs), Clue(shape=pick(rng, shapes)), Clue(colour=pick(rng, colours))]
            ).one(),
        )
    side = pick(rng, tuple(_SIDES))
    yield Question("unknown", _say(rng, "relation", pick(rng, pairs).one(), side=side), CANT_TELL)


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
            yield _yesno(
                rng, truth, key, *(pick(rng, _told_apart(scene, one)).one() for one in (first, second))
            )
    for name, values in (("colour", NAMES), ("shape", SHAPES)):
        clues = [Clue(**{name: value}) for value in values]
        counts = {clue: len(matching(scene, clue)) for clue in clues}
        unlike = [(a, b) for a, b in permutations(clues, 2) if counts[a] > counts[b]]
        likely = [pair for pair in unlike if counts[pair[1]]] or unlike
        truth = _coin(rng)
        more, fewer = pick(rng, likely)
        yield _yesno(
            rng, truth, "more", *(clue.many() for clue in ((more, fewer) if truth else (fewer, more)))
        )
    thing = pick(rng, scene.things)
    for name, options in (("colour", NAMES), ("size", tuple(SIZES))):
        if clues := _told_apart(scene, thing, name):
            truth, value = _coin(rng), getattr(thing, name)
            others = [option for option in options if option != value]
            yield _yesno(rng, truth, "is it", pick(rng, clues).one(), value if truth else pick(rng, others))


def _without_things(scene: Scene, rng: np.random.Generator) -> Iterator[Question]:
    shape, colour = pick(rng, _FOREIGN[scene.kind]), pick(rng, NAMES)
    pair = Clue(None, colour, shape)
    clue = pick(rng, (Clue(shape=shape), pair if _fair(scene, pair) else Clue(shape=shape)))
    yield from _unknown(rng, ["colour"], Clue(shape=shape).one())
    yield from _unknown(rng, [pick(rng, ("size", "position"))], clue.one())
    yield Question("count", _say(rng, "count", clue.many()), "0")


def _about_lines(lines: Sequence[Line], rng: np.random.Generator) -> Iterator[Question]:
    text = " ".join(line.text for line in lines)
    digits = all(line.text.isdigit() for line in lines)
    yield Question("number" if digits else "read", _say(rng, "read"), text)
    if not any(line.text.isdigit() for line in lines):
        yield from _unknown(rng, ["number"])
    elif len(lines) == 1:
        yield Question("number", _say(rng, "number"), text)
    if len(lines) == 1:
        truth = _coin(rng)
        yield _yesno(rng, truth, "word", text if truth else _mistaken(text, rng))


def _held_out(text: str) -> bool:
    return held_out_number(int(text)) if text.isdigit() else text in _TEST_SET


def _mistaken(text: str, rng: np.random.Generator) -> str:
    """Another word or number, often just one character away."""
    while True:
        if rng.random() < 0.3 and not text.isdigit():
            made = pick(rng, TRAIN_WORDS)
        else:
            at = int(rng.integers(len(text)))
            signs = string.digits[1:] if text.isdigit() else string.ascii_uppercase
            made = text[:at] + pick(rng, signs) + text[at + 1 :]
        leaks = _held_out(made) and not _held_out(text)
        if made != text and not leaks:
            return made


def _about_chart(chart: Chart, rng: np.random.Generator) -> Iterator[Question]:
    order = sorted(chart.bars, key=lambda bar: bar.top)
    yield Question("tallest", _say(rng, "tallest"), order[0].label.text)
    yield Question("shortest", _say(rng, "shortest"), order[-1].label.text)
    yield Question("count", _say(rng, "count", "bars"), str(len(order)))
    bar = pick(rng, order)
    where, asked = pick(
        rng, (("tallest bar", order[0]), ("shortest bar", order[-1]), (f"bar {bar.label.text}", bar))
    )
    yield Question("colour", _say(rng, "colour", where), asked.colour)
    others = [letter for letter in string.ascii_uppercase if letter not in {one.label.text for one in order}]
    yield from _unknown(rng, ["colour"], f"bar {pick(rng, others)}")
    for _ in range(2):
        pairs = [(a, b) for a, b in permutations(order, 2) if b.top - a.top >= 8]
        truth = _coin(rng)
        first, second = pick(rng, pairs)[:: 1 if truth else -1]
        yield _yesno(rng, truth, "taller", first.label.text, second.label.text)
    truth = _coin(rng)
    yield _bar_named(rng, truth, order, others)


def _bar_named(rng: np.random.Generator, truth: bool, bars: Sequence[Bar], others: Sequence[str]) -> Question:
    return _yesno(
        rng, truth, "is there", f"a bar {pick(rng, bars).label.text if truth else pick(rng, others)}"
    )


def _without_chart(rng: np.random.Generator) -> Iterator[Question]:
    yield from _unknown(rng, [pick(rng, ("tallest", "shortest"))])
    if rng.random() < 0.3:
        yield from _unknown(rng, ["colour"], pick(rng, ("tallest bar", "shortest bar")))


def _named(sign: Sign) -> str:
    return f"speed limit {sign.line.text}" if sign.kind == "speed limit" and sign.line else sign.kind


def _described(sign: Sign) -> str:
    if sign.kind == "speed limit" and sign.line:
        return f"a speed limit sign that says {sign.line.text}"
    if sign.kind.startswith("one way"):
        return f"a one way sign that points {sign.kind.removeprefix('one way ')}"
    return f"a {sign.kind} sign"


def _about_sign(sign: Sign, rng: np.random.Generator) -> Iterator[Question]:
    yield Question("sign", _say(rng, "sign"), _named(sign))
    for _ in range(2):
        truth = _coin(rng)
        name = sign.kind if truth else pick(rng, [kind for kind in SIGNS if kind != sign.kind])
        yield _yesno(rng, truth, "is sign", name)
    if sign.kind == "speed limit" and sign.line:
        text = sign.line.text
        yield Question("number", _say(rng, "limit"), text)
        yield Question("number", _say(rng, "sign says"), text)
        truth = _coin(rng)
        limits = [n for n in map(str, LIMITS) if n != text and (_held_out(text) or not _held_out(n))]
        yield _yesno(rng, truth, "is it", "speed limit", text if truth else pick(rng, limits))
        return
    yield from _unknown(rng, ["limit"])
    if sign.line:
        yield Question("read", _say(rng, "sign says"), sign.line.text)
    else:
        yield from _unknown(rng, ["sign says"])


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
