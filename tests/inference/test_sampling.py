import mlx.core as mx
import numpy as np
import pytest

from fastvlm_mlx.errors import ConfigError
from fastvlm_mlx.inference.sampling import Sampler, Sampling, filter_logits

LOGITS = mx.log(mx.array([0.05, 0.4, 0.15, 0.3, 0.1]))


def allowed(**how: float) -> set[int]:
    kept = np.array(filter_logits(LOGITS, Sampling(temperature=1.0, **how)))  # type: ignore[arg-type]
    return {i for i, value in enumerate(kept) if np.isfinite(value)}


@pytest.mark.parametrize(
    ("how", "kept"),
    [
        ({}, {0, 1, 2, 3, 4}),
        ({"top_k": 1}, {1}),
        ({"top_k": 3}, {1, 2, 3}),
        ({"top_k": 99}, {0, 1, 2, 3, 4}),
        ({"top_p": 0.01}, {1}),
        ({"top_p": 0.69}, {1, 3}),
        ({"top_p": 0.71}, {1, 2, 3}),
        ({"min_p": 0.5}, {1, 3}),
        ({"min_p": 1.0}, {1}),
        ({"top_k": 4, "top_p": 0.8, "min_p": 0.5}, {1, 3}),
    ],
)
def test_filters_keep_what_they_say(how: dict[str, float], kept: set[int]) -> None:
    assert allowed(**how) == kept


def test_greedy_takes_the_likeliest_whatever_the_filters() -> None:
    assert int(Sampler(Sampling(top_k=3, seed=1), 5)(LOGITS)) == 1


def test_sampling_follows_the_probabilities() -> None:
    sampler = Sampler(Sampling(temperature=1.0, seed=0), 5)
    drawn = [int(sampler(LOGITS)) for _ in range(4000)]
    shares = np.bincount(drawn, minlength=5) / len(drawn)
    np.testing.assert_allclose(shares, np.exp(np.array(LOGITS)), atol=0.03)


def test_a_seed_repeats_and_seeds_differ() -> None:
    def draw(seed: int | None) -> list[int]:
        sampler = Sampler(Sampling(temperature=1.0, seed=seed), 5)
        return [int(sampler(LOGITS)) for _ in range(40)]

    assert draw(3) == draw(3)
    assert draw(3) != draw(4)
    assert draw(None) != draw(None)


def test_repetition_penalty_turns_away_from_what_was_said() -> None:
    logits = mx.array([1.0, 1.2, -1.0])
    sampler = Sampler(Sampling(repetition_penalty=2.0), 3)
    assert [int(sampler(logits)) for _ in range(3)] == [1, 0, 1]


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("temperature", -0.1),
        ("temperature", float("nan")),
        ("top_p", 0.0),
        ("top_p", 1.1),
        ("top_k", -1),
        ("min_p", 1.5),
        ("repetition_penalty", 0.0),
        ("seed", -1),
    ],
)
def test_settings_out_of_range_are_refused_by_name(name: str, value: float) -> None:
    with pytest.raises(ConfigError, match=name):
        Sampling(**{name: value})  # type: ignore[arg-type]
