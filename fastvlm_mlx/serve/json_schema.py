"""Constrained decoding: the tokens that keep an answer JSON, or JSON of a schema. Uses llguidance.

shapes = Shapes(tokenizer)      once for a model
shape = shapes.begin(form)      once for an answer
shape.allowed()                 (vocabulary,) of bool; then
shape.said(id)                  the chosen token; `<|im_end|>` ends the answer
shape.done                      whether only `<|im_end|>` may follow
"""

from __future__ import annotations

import json
from typing import Any

import numpy as np
import numpy.typing as npt

from ..errors import CheckpointError, ConfigError
from ..inputs.tokenizer import Tokenizer
from .request import RequestError, ResponseFormat

END = "<|im_end|>"
# Whitespace between the parts of JSON: enough to indent, but a weak model cannot emit it for ever.
_SPACES = r"[\x20\x0A\x0D\x09]{1,32}"
_OPTIONS = {"whitespace_pattern": _SPACES, "json_allow_general_unicode_escapes": True}
_ANY_OBJECT = '{"type": "object"}'


class SchemaCompiler:
    """Tables that all answers of a model share. Building them for Qwen2's vocabulary takes seconds."""

    def __init__(self, tokenizer: Tokenizer) -> None:
        self._library = _library()
        end = tokenizer.id_of(END)
        if end is None:
            raise CheckpointError(f"the tokenizer has no {END}; copy its files again from the model's page")
        self._tokens = self._library.LLTokenizer(_of_text(tokenizer), n_vocab=tokenizer.size, eos_token=end)

    def begin(self, form: ResponseFormat) -> SchemaConstraint:
        """Start an answer of this form. Raises Refused if the schema cannot be enforced."""
        matcher = self._library.LLMatcher
        schema = json.loads(form.schema or _ANY_OBJECT)
        schema.pop("x-guidance", None)  # the library's settings; `lenient` would ignore parts of the schema
        try:
            grammar = matcher.grammar_from_json_schema(schema, overrides=_OPTIONS)
        except ValueError as error:
            raise _refused(str(error)) from None
        limits = self._library.LLParserLimits(verbose_errors=False)
        return SchemaConstraint(
            matcher(self._tokens, grammar, log_level=0, limits=limits), self._tokens.vocab_size
        )


class SchemaConstraint:
    """The state of one answer."""

    def __init__(self, matcher: Any, vocabulary: int) -> None:
        self._matcher = matcher
        self._vocabulary = vocabulary
        self._check()
        self.allowed()  # some unsatisfiable schemas fail only here

    @property
    def done(self) -> bool:
        stopped: bool = self._matcher.is_stopped()
        return stopped

    def allowed(self) -> npt.NDArray[np.bool_]:
        """Return which ids may come next: bool, (vocabulary,)."""
        bits = np.frombuffer(self._matcher.compute_bitmask(), np.uint8)
        self._check()
        return np.unpackbits(bits, count=self._vocabulary, bitorder="little").view(np.bool_)

    def advance(self, token_id: int) -> None:
        """Advance by an allowed id."""
        self._matcher.consume_token(token_id)
        self._check()

    def _check(self) -> None:
        if self._matcher.is_error():
            raise _refused(self._matcher.get_error())


def _of_text(tokenizer: Tokenizer) -> str:
    """Return a tokenizer.json whose tokens spell exactly the text that they encode.

    The library offers tokens by their text and must accept them afterwards. With the normalizer, a decomposed
    é would become a token of another text; `<|im_end|>` in a schema's string would become the end. So the
    normalizer is removed, and added tokens get private names that no text contains. Ids without a token get
    such names as well, because the library needs a name for every id.
    """
    state = json.loads(tokenizer.to_json())
    state["normalizer"] = None
    vocabulary = state["model"]["vocab"]
    for token in state["added_tokens"]:
        vocabulary.pop(token["content"], None)
    plain = dict.fromkeys(("single_word", "lstrip", "rstrip", "normalized"), False)
    unnamed = sorted(set(range(tokenizer.size)) - set(vocabulary.values()))
    names = {token_id: f"\ue000{token_id}\ue000" for token_id in unnamed}
    vocabulary |= {name: token_id for token_id, name in names.items()}
    state["added_tokens"] = [
        {"id": token_id, "content": name, "special": True} | plain for token_id, name in names.items()
    ]
    return json.dumps(state)


def _refused(reason: str) -> RequestError:
    reason = " ".join(reason.split())[:200]
    found = f"response_format cannot be enforced ({reason}); send a simpler schema"
    return RequestError(found, param="response_format", code="invalid_json_schema")


def _library() -> Any:
    try:
        import llguidance
    except ImportError:
        raise ConfigError("response_format needs llguidance; run pip install 'fastvlm-mlx[serve]'") from None
    return llguidance
