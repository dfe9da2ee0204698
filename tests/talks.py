"""Questions in a row to a session, each answer held against a fresh run's."""

from typing import Any

from fastvlm_mlx import Session
from fastvlm_mlx.inference import generate

TOKENS = 12
FIRST, SECOND, THIRD = "What is in the picture?", "Which colour is it?", "Are you sure?"


def fresh(session: Session, text: str, images: Any = (), **options: Any) -> tuple[int, ...]:
    """What a run that knows nothing says."""
    prompt = session.prompt(text, images, TOKENS)
    return session.vlm.generate(prompt, max_tokens=TOKENS, **options).ids


def asked(session: Session, text: str, images: Any = (), **options: Any) -> generate.Answer:
    """Asks, having made sure that a fresh run says the same."""
    expected = fresh(session, text, images, **options)
    answer = session.generate(text, images, max_tokens=TOKENS, **options)
    assert answer.ids == expected
    return answer
