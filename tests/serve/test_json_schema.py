"""Constrained answers match their JSON schema for any logits."""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from fastvlm_mlx.errors import CheckpointError, ConfigError
from fastvlm_mlx.inputs.tokenizer import Tokenizer
from fastvlm_mlx.serve.json_schema import END, SchemaCompiler, SchemaConstraint
from fastvlm_mlx.serve.request import RequestError, ResponseFormat

pytest.importorskip("llguidance")

CHECKPOINTS = Path(__file__).parent.parent / "golden" / "checkpoints"
MOST = 600  # tokens; longer answers are cut
CAT = {
    "type": "object",
    "properties": {
        "name": {"type": "string", "maxLength": 8},
        "age": {"type": "integer", "minimum": 0, "maximum": 30},
        "colours": {"type": "array", "items": {"enum": ["red", "grün", "<|im_end|>"]}, "maxItems": 3},
        "owner": {"anyOf": [{"type": "null"}, {"$ref": "#/$defs/person"}]},
    },
    "required": ["name", "age", "colours", "owner"],
    "additionalProperties": False,
    "$defs": {
        "person": {"type": "object", "properties": {"tall": {"type": "boolean"}}, "required": ["tall"]}
    },
}


def is_cat(value: Any) -> bool:
    owner = value["owner"]
    return (
        list(value) == ["name", "age", "colours", "owner"]
        and len(value["name"]) <= 8
        and type(value["age"]) is int
        and 0 <= value["age"] <= 30
        and len(value["colours"]) <= 3
        and set(value["colours"]) <= {"red", "grün", "<|im_end|>"}
        and (owner is None or type(owner["tall"]) is bool)
    )


SCHEMAS: dict[str, tuple[Any, Callable[[Any], bool]]] = {
    "a cat": (CAT, is_cat),
    "a number": ({"type": "number", "minimum": -1, "maximum": 2.5}, lambda value: -1 <= value <= 2.5),
    "true or false": ({"type": "boolean"}, lambda value: type(value) is bool),
    "one of some": ({"enum": ["a", 3, None, {"b": []}]}, lambda value: value in ["a", 3, None, {"b": []}]),
    "a decomposed letter": ({"const": "e\u0301"}, lambda value: value == "e\u0301"),
    "marks": ({"const": "<|im_start|><|endoftext|>"}, lambda value: value == "<|im_start|><|endoftext|>"),
    "what JSON escapes": ({"const": 'a"\\\n\u0000🐕'}, lambda value: value == 'a"\\\n\u0000🐕'),
    "a pattern": (
        {"type": "string", "pattern": "^[A-Z]{2}-[0-9]{3}$"},
        lambda value: bool(re.fullmatch("[A-Z]{2}-[0-9]{3}", value)),
    ),
    "a date": (
        {"type": "string", "format": "date"},
        lambda value: bool(re.fullmatch(r"\d{4}-\d\d-\d\d", value)),
    ),
    "numbers": (
        {"type": "array", "items": {"type": "integer"}, "minItems": 2, "maxItems": 4},
        lambda value: 2 <= len(value) <= 4 and all(type(one) is int for one in value),
    ),
    "a tree": (
        {
            "type": "object",
            "properties": {"left": {"$ref": "#"}, "leaf": {"type": "boolean"}},
            "required": ["leaf"],
            "additionalProperties": False,
        },
        lambda value: type(value["leaf"]) is bool and set(value) <= {"left", "leaf"},
    ),
}
OBJECTS = [
    '{"a": 1}',
    '{"a": "\\ud83d\\udc15"}',
    '{\n  "a": [1, -2.5e3],\n  "b": {"c": null, "ü": "\\u00fc🐕"}\n}',
    "{}",
]


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    return Tokenizer.load(CHECKPOINTS / "apple-fused" / "untied")


@pytest.fixture(scope="module")
def shapes(tokenizer: Tokenizer) -> SchemaCompiler:
    return SchemaCompiler(tokenizer)


def end_of(tokenizer: Tokenizer) -> int:
    end = tokenizer.id_of(END)
    assert end is not None
    return end


def chosen(shape: SchemaConstraint, logits: np.ndarray) -> int:
    allowed = shape.allowed()
    assert allowed.shape == logits.shape
    assert allowed.any()
    token_id = int(np.where(allowed, logits, -np.inf).argmax())
    shape.advance(token_id)
    return token_id


def random_answer(tokenizer: Tokenizer, shape: SchemaConstraint, seed: int) -> str | None:
    """Decode random logits; return None if the answer does not end."""
    random, end, ids = np.random.default_rng(seed), end_of(tokenizer), list[int]()
    for _ in range(MOST):
        token_id = chosen(shape, random.normal(size=tokenizer.size))
        if token_id == end:
            assert shape.done
            return tokenizer.decode(ids)
        ids.append(token_id)
    return None


@pytest.mark.parametrize("schema", SCHEMAS.values(), ids=SCHEMAS)
def test_random_logits_match_the_schema(
    schema: tuple[Any, Callable[[Any], bool]], tokenizer: Tokenizer, shapes: SchemaCompiler
) -> None:
    form = ResponseFormat(json.dumps(schema[0]))
    answers = [random_answer(tokenizer, shapes.begin(form), seed) for seed in range(20)]
    finished = [answer for answer in answers if answer is not None]
    assert len(finished) >= 15
    for answer in finished:
        assert schema[1](json.loads(answer)), answer


@pytest.mark.parametrize("checkpoint", ["apple-train", "hf-timm-unfused", "mlx-vlm-f32"])
def test_without_a_schema_the_answer_is_any_object(checkpoint: str) -> None:
    tokenizer = Tokenizer.load(CHECKPOINTS / checkpoint / "untied")
    shapes = SchemaCompiler(tokenizer)
    answers = [random_answer(tokenizer, shapes.begin(ResponseFormat()), seed) for seed in range(20)]
    finished = [json.loads(answer) for answer in answers if answer is not None]
    assert len(finished) >= 5
    assert all(type(value) is dict for value in finished)


@pytest.mark.parametrize("text", OBJECTS)
def test_valid_json_is_unchanged(text: str, tokenizer: Tokenizer, shapes: SchemaCompiler) -> None:
    shape = shapes.begin(ResponseFormat())
    ids = [*tokenizer.encode(text), end_of(tokenizer)]
    for token_id in ids:
        assert chosen(shape, np.eye(tokenizer.size)[token_id]) == token_id
    assert shape.done


def test_only_the_end_follows_complete_json(tokenizer: Tokenizer, shapes: SchemaCompiler) -> None:
    shape = shapes.begin(ResponseFormat())
    for token_id in tokenizer.encode('{"a": 1}'):
        assert not shape.done
        shape.advance(token_id)
    assert shape.done
    assert np.flatnonzero(shape.allowed()).tolist() == [end_of(tokenizer)]


def test_the_end_is_refused_before_json_is_complete(tokenizer: Tokenizer, shapes: SchemaCompiler) -> None:
    shape = shapes.begin(ResponseFormat())
    assert not shape.allowed()[end_of(tokenizer)]
    with pytest.raises(RequestError):
        shape.advance(end_of(tokenizer))


def test_whitespace_is_limited(tokenizer: Tokenizer, shapes: SchemaCompiler) -> None:
    shape, (space,) = shapes.begin(ResponseFormat()), tokenizer.encode(" ")
    text = tokenizer.decode(chosen(shape, np.eye(tokenizer.size)[space]) for _ in range(100))
    assert text[0] == "{"
    assert len(text[1:]) - len(text[1:].lstrip()) == 32


def test_answers_are_independent(tokenizer: Tokenizer, shapes: SchemaCompiler) -> None:
    form, other = ResponseFormat(json.dumps(CAT)), ResponseFormat('{"type": "boolean"}')
    alone = random_answer(tokenizer, shapes.begin(form), 1)
    first, second = shapes.begin(form), shapes.begin(other)
    second.advance(tokenizer.encode("true")[0])
    assert random_answer(tokenizer, first, 1) == alone


def test_added_tokens_are_never_allowed(tmp_path: Path) -> None:
    source = CHECKPOINTS / "hf-timm-unfused" / "untied"
    state = json.loads((source / "tokenizer.json").read_text(encoding="utf-8"))
    state["added_tokens"].append({"id": 500, "content": "<tool>", "special": False})
    (tmp_path / "tokenizer.json").write_text(json.dumps(state), encoding="utf-8")
    tokenizer = Tokenizer.load(tmp_path)
    assert tokenizer.size == 501
    shapes = SchemaCompiler(tokenizer)
    shape = shapes.begin(ResponseFormat())
    shape.advance(tokenizer.encode('{"')[0])
    allowed = np.flatnonzero(shape.allowed())
    assert len(allowed) > 300
    assert allowed.max() < 480
    assert random_answer(tokenizer, shapes.begin(ResponseFormat('{"const": "a<tool>b"}')), 0) == '"a<tool>b"'


@pytest.mark.parametrize(
    ("schema", "says"),
    [
        ({"type": "cat"}, "Invalid type: cat"),
        ({"not": {}}, "not"),
        ({"uniqueItems": True}, "uniqueItems"),
        ({"not": {}, "x-guidance": {"lenient": True}}, "not"),
        ({"type": "string", "format": "cat"}, "Unknown format: cat"),
        ({"type": "string", "pattern": "(?=a)"}, "look-around"),
        ({"type": "integer", "minimum": 3, "maximum": 1}, "minimum"),
        ({"enum": []}, "Unsatisfiable"),
        ({"$ref": "#"}, "cannot be enforced"),
        ({"$ref": "https://example.com/cat.json"}, "Resource"),
        ({"$ref": "#/$defs/none"}, "does not exist"),
        ({"type": "string", "maxLength": -1}, "maxLength"),
        ({"type": "string", "maxLength": 10**30}, "cannot be enforced"),
    ],
)
def test_unenforceable_schema_is_refused(schema: Any, says: str, shapes: SchemaCompiler) -> None:
    with pytest.raises(RequestError, match=says) as caught:
        shapes.begin(ResponseFormat(json.dumps(schema)))
    error = caught.value
    assert (error.status, error.param, error.code) == (400, "response_format", "invalid_json_schema")
    assert len(str(error).splitlines()) == 1
    assert len(str(error)) < 400


def test_tokenizer_without_an_end_is_refused(tokenizer: Tokenizer, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Tokenizer, "id_of", lambda *_: None)
    with pytest.raises(CheckpointError, match="no <|im_end|>".replace("|", r"\|")):
        SchemaCompiler(tokenizer)


def test_missing_llguidance_is_named(tokenizer: Tokenizer, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "llguidance", None)
    with pytest.raises(ConfigError, match=r"pip install 'fastvlm-mlx\[serve\]'"):
        SchemaCompiler(tokenizer)
