"""What is asked about each picture: one text for all, or a template over what is known of each.

>>> worded("What is {name}?", {"name": "cat"})
'What is cat?'
"""

from __future__ import annotations

import string
from collections.abc import Mapping, Sequence
from typing import Any

from ..errors import ConfigError, PromptError
from .items import Item, Span, fields

BUILT_IN = ("name", "folder", "key")


def names(template: str) -> frozenset[str]:
    """The fields of a template. Names alone: what formats or looks into values is refused."""
    found = set()
    try:
        parts = list(string.Formatter().parse(template))
    except ValueError as error:
        raise ConfigError(f"--template: {error}; write {{{{ and }}}} for braces that are meant") from None
    for _, name, form, conversion in parts:
        if name is None:
            continue
        if not name or form or conversion or set(name) & set(".[]"):
            raise ConfigError(
                f"--template: {{{name}}} is no field's name; write {{name}} or a column, {{{{ for a brace"
            )
        found.add(name)
    return frozenset(found)


def require(wanted: frozenset[str], items: Sequence[Item]) -> None:
    """Every field is one of some item at least, so that a misspelt one is told before any work."""
    left = set(wanted.difference(BUILT_IN))
    columns = {name for item in items for name in item.columns}
    left -= columns
    packed = next((item for item in items if isinstance(item.place, Span)), None)
    if left and packed:
        columns |= fields(packed).keys()
        left -= columns
    if left:
        known = ", ".join((*BUILT_IN, *sorted(columns.difference(BUILT_IN))))
        raise ConfigError(f"--template: nothing has a {{{min(left)}}}; known are {known}")


def worded(template: str, told: Mapping[str, Any]) -> str:
    try:
        return template.format_map({name: str(value) for name, value in told.items()})
    except KeyError as error:
        raise PromptError(f"has no {error.args[0]!r} for the template") from None
