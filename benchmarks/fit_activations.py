"""Fit the rational erf and tanh of `kernels/activation.py`, and the polynomial of which GELU takes a power:
numpy alone; prints coefficients and errors."""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np

FITS = (("erf", math.erf, 3.9, 5), ("tanh", math.tanh, 9.0, 4))  # function, |t| up to, degree in t²
_FAR, _POWER, _DEGREE = 6.0, 16, 6  # the bell's tail beyond a up to so far as 1/P(a)^16, P of degree 6


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


def fit_tail() -> tuple[float, np.ndarray]:
    """P, of which 1/P(a)^16 ≈ the bell's tail beyond a, by least squares, reweighted towards the largest
    error of a times it."""
    a = np.linspace(0, _FAR, 4001)
    tail = np.array([math.erfc(v / math.sqrt(2)) / 2 for v in a])
    root = tail ** (-1 / _POWER)
    slope = a * _POWER * tail / root  # what an error of P becomes
    powers = (a / _FAR)[:, None] ** np.arange(_DEGREE + 1)
    weight, best = np.ones_like(a), (math.inf, np.zeros(0))
    for _ in range(300):
        scale = slope * weight
        found, *_ = np.linalg.lstsq(powers * scale[:, None], root * scale, rcond=None)
        error = np.abs(a * (tail - (powers @ found) ** -float(_POWER)))
        best = min(best, (float(error.max()), found), key=lambda pair: pair[0])
        weight = weight * (error / error.max() + 1e-3) ** 0.3
        weight /= weight.max()
    largest, found = best
    return largest, found / _FAR ** np.arange(_DEGREE + 1)


if __name__ == "__main__":
    largest, p = fit_tail()
    print(f"the bell's tail as 1/P^{_POWER}: error {largest:.1e}")
    print("  P =", tuple(float(f"{c:.9g}") for c in p))
    for name, function, limit, degree in FITS:
        largest, p, q = fit(function, limit, degree)
        print(f"{name} up to {limit}: error {largest:.1e}, and {1 - function(limit):.1e} beyond")
        print("  P =", tuple(float(f"{c:.9g}") for c in p))
        print("  Q =", tuple(float(f"{c:.9g}") for c in q))
