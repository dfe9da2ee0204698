"""How things are said: the wordings of every question, and a scene in words."""

from __future__ import annotations

from collections.abc import Sequence

from .scenes import Scene, Sign

# {c} is "colour" or "color", {side} a side of something; the other gaps are filled in order.
WORDINGS: dict[str, tuple[str, ...]] = {
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
    "find": (
        "Find everything.",
        "Say where everything is.",
        "Find all that is shown.",
        "In which cell is what?",
    ),
    "by shape": (
        "Sort by shape.",
        "Say what there is of every shape.",
        "Go through the shapes.",
        "Which shapes are where?",
    ),
    "by colour": (
        "Sort by {c}.",
        "Say what there is of every {c}.",
        "Go through the {c}s.",
        "Which {c}s are where?",
    ),
    "beside": (
        "Say what is beside everything.",
        "Name the neighbours of everything.",
        "What is next to what?",
        "Go through the neighbours.",
    ),
    "by height": (
        "Sort the bars by height.",
        "List the bars from the tallest to the shortest.",
        "Go through the bars from the highest to the lowest.",
        "Order the bars, the tallest first.",
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


def describe(scene: Scene) -> str:
    """A sentence that names everything, in reading order."""
    if scene.chart:
        text = f"a bar chart with the bars {_joined([bar.label.text for bar in scene.chart.bars])}"
    elif scene.sign:
        text = _described(scene.sign)
    else:
        in_order = sorted(scene.things, key=lambda thing: thing.cell)
        things = _joined([f"a {thing.size} {thing.colour} {thing.shape}" for thing in in_order])
        lines = _joined([f"the {_noun(line.text)} {line.text}" for line in scene.lines])
        text = ", with ".join(part for part in (things, lines) if part)
    return f"{text[0].upper()}{text[1:]}."


def _joined(parts: Sequence[str]) -> str:
    *others, last = parts or [""]
    return f"{', '.join(others)} and {last}" if others else last


def _noun(text: str) -> str:
    return "number" if text.isdigit() else "word"


def _described(sign: Sign) -> str:
    if sign.kind == "speed limit" and sign.line:
        return f"a speed limit sign that says {sign.line.text}"
    if sign.kind.startswith("one way"):
        return f"a one way sign that points {sign.kind.removeprefix('one way ')}"
    return f"a {sign.kind} sign"
