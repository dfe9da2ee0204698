"""The question about each picture, from a template with fields.

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
    """The field names in a template; format specifications and attribute access are rejected."""
    found = set()
    try:
        parts = list(string.Formatter().parse(template))
    except ValueError as error:
        raise ConfigError(f"--template: {error}; write {{{{ and }}}} for literal braces") from None
    for _, name, form, conversion in parts:
        if name is None:
            continue
        if not name or form or conversion or set(name) & set(".[]"):
            raise ConfigError(
                f"--template: {{{name}}} is not a field; write {{name}} or a column, or {{{{ for a brace"
            )
        found.add(name)
    return frozenset(found)


def require(wanted: frozenset[str], items: Sequence[Item]) -> None:
    """Check that at least one item has each field, so that a misspelled field fails before any work."""
    left = set(wanted.difference(BUILT_IN))
    columns = {name for item in items for name in item.columns}
    left -= columns
    packed = next((item for item in items if isinstance(item.place, Span)), None)
    if left and packed:
        columns |= fields(packed).keys()
        left -= columns
    if left:
        known = ", ".join((*BUILT_IN, *sorted(columns.difference(BUILT_IN))))
        raise ConfigError(f"--template: no picture has the field {{{min(left)}}}; choose among {known}")


def worded(template: str, values: Mapping[str, Any]) -> str:
    try:
        return template.format_map({name: str(value) for name, value in values.items()})
    except KeyError as error:
        raise PromptError(
            f"has no field {error.args[0]!r} for the template; add it, or change --template"
        ) from None
