"""Fit the rational erf and tanh of `kernels/activation.py`, and the polynomials of which GELU and attention
take powers (there and in `kernels/attention.py`): numpy alone; prints coefficients and errors."""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np

FITS = (("erf", math.erf, 3.9, 5), ("tanh", math.tanh, 9.0, 4))  # function, |t| up to, degree in t²
# What 1/P(a)^N is to be, by what an error there is multiplied, a up to, N, degree of P, whether P(0) is 1.
POWERS = (
    ("the bell's tail", lambda a: math.erfc(a / math.sqrt(2)) / 2, lambda a: a, 6.0, 16, 6, False),
    ("e^-a", lambda a: math.exp(-a), lambda a: 1.0, 24.0, 8, 6, True),
)


def fit(
    function: Callable[[float], float], limit: float, degree: int
) -> tuple[float, np.ndarray, np.ndarray]:
    """f(t)/t ≈ P(t²)/Q(t²) by least squares, reweighted towards the largest error."""
    t = limit * (1 - np.cos(np.pi * (np.arange(4000) + 0.5) / 4000)) / 2
    target = np.array([function(value) for value in t]) / t
    powers = (t / limit)[:, None] ** (2 * np.arange(degree + 1))
    weight, q = np.ones_like(t), np.ones_like(t)
    best = (math.inf, np.zeros(0))
    for _ in range(300):
        scale = weight * t / np.abs(q)
        matrix = np.concatenate([powers, -target[:, None] * powers[:, 1:]], axis=1) * scale[:, None]
        found, *_ = np.linalg.lstsq(matrix, target * scale, rcond=None)
        p, q = powers @ found[: degree + 1], 1 + powers[:, 1:] @ found[degree + 1 :]
        error = np.abs(t * (p / q - target))
        best = min(best, (float(error.max()), found), key=lambda pair: pair[0])
        weight = weight * np.sqrt(error / error.max() + 1e-3)
        weight /= weight.max()
    largest, found = best
    unscaled = limit ** (2.0 * np.arange(degree + 1))
    return largest, found[: degree + 1] / unscaled, np.r_[1, found[degree + 1 :]] / unscaled


def fit_power(
    function: Callable[[float], float],
    matters: Callable[[float], float],
    limit: float,
    power: int,
    degree: int,
    from_one: bool,
) -> tuple[float, np.ndarray]:
    """P, of which 1/P(a)^power ≈ function, by least squares, reweighted towards the largest error."""
    a = np.linspace(0, limit, 4001)
    target, factor = np.array([function(v) for v in a]), np.array([matters(v) for v in a])
    root = target ** (-1 / power)
    slope = factor * power * target / root  # what an error of P becomes
    powers = (a / limit)[:, None] ** np.arange(degree + 1)
    known, free = (1.0, powers[:, 1:]) if from_one else (0.0, powers)
    weight, best = np.ones_like(a), (math.inf, np.zeros(0))
    for _ in range(300):
        scale = slope * weight
        found, *_ = np.linalg.lstsq(free * scale[:, None], (root - known) * scale, rcond=None)
        error = np.abs(factor * (target - (known + free @ found) ** -float(power)))
        best = min(best, (float(error.max()), found), key=lambda pair: pair[0])
        weight = weight * (error / error.max() + 1e-3) ** 0.3
        weight /= weight.max()
    largest, found = best
    return largest, np.r_[[1.0] * from_one, found] / limit ** np.arange(degree + 1)


if __name__ == "__main__":
    for what, tail, matters, limit, power, degree, from_one in POWERS:
        largest, p = fit_power(tail, matters, limit, power, degree, from_one)
        print(f"{what} as 1/P^{power}: error {largest:.1e}")
        print("  P =", tuple(float(f"{c:.9g}") for c in p))
    for name, function, limit, degree in FITS:
        largest, p, q = fit(function, limit, degree)
        print(f"{name} up to {limit}: error {largest:.1e}, and {1 - function(limit):.1e} beyond")
        print("  P =", tuple(float(f"{c:.9g}") for c in p))
        print("  Q =", tuple(float(f"{c:.9g}") for c in q))
