"""JSON or TOML values to frozen dataclasses; anything unknown, missing or of the wrong kind is an error."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from pathlib import Path
from types import NoneType, UnionType
from typing import Any, Literal, TypeVar, get_args, get_origin, get_type_hints

from ..errors import ConfigError

T = TypeVar("T")


def parse(cls: type[T], raw: Any, where: Path, *, repair: str, at: str = "") -> T:
    """Build `cls` from a parsed file. `repair` ends every error; `at` is the value's place in the file."""
    parsed: T = _Parser(where, repair).parse(cls, raw, at)
    return parsed


@dataclasses.dataclass(frozen=True, slots=True)
class _Parser:
    where: Path
    repair: str

    def parse(self, hint: Any, raw: Any, at: str) -> Any:
        if dataclasses.is_dataclass(hint) and isinstance(hint, type):
            return self._object(hint, raw, at)
        origin, inner = get_origin(hint), get_args(hint)
        if origin is UnionType:  # X | None
            return None if raw is None else self.parse(next(x for x in inner if x is not NoneType), raw, at)
        if origin is tuple:
            if isinstance(raw, list):
                return tuple(self.parse(inner[0], value, f"{at}[{n}]") for n, value in enumerate(raw))
        elif origin is not None and origin is not Literal:
            if isinstance(raw, Mapping):
                return {key: self.parse(inner[1], value, f"{at}.{key}") for key, value in raw.items()}
        elif origin is Literal:
            if raw in inner:
                return raw
            hint = " or ".join(map(repr, inner))
        elif hint is float:
            if type(raw) in (int, float):
                return float(raw)
        elif type(raw) is hint:
            return raw
        raise self._wrong(f"{at} is {raw!r}, not of the kind {getattr(hint, '__name__', hint)}")

    def _object(self, cls: type[T], raw: Any, at: str) -> T:
        if not isinstance(raw, Mapping):
            raise self._wrong(f"{at or 'the file'} should be an object, not {raw!r}")
        fields = {f.name: f for f in dataclasses.fields(cls)}  # type: ignore[arg-type]
        hints = get_type_hints(cls)
        dot = f"{at}." if at else ""
        if unknown := sorted(set(raw) - set(fields)):
            known = ", ".join(fields)
            raise ConfigError(
                f"{self.where}: unknown key {dot}{unknown[0]!r}; remove it, or upgrade fastvlm-mlx "
                f"(known: {known})"
            )
        for name, f in fields.items():
            if name not in raw and f.default is f.default_factory is dataclasses.MISSING:
                raise self._wrong(f"key {dot}{name!r} is missing")
        values = {name: self.parse(hints[name], value, f"{dot}{name}") for name, value in raw.items()}
        try:
            return cls(**values)
        except ConfigError as error:
            raise self._wrong(str(error)) from None

    def _wrong(self, what: str) -> ConfigError:
        return ConfigError(f"{self.where}: {what}; {self.repair}")
