"""Fit the rational erf of `kernels/activation.py`: needs numpy alone, prints coefficients and the error."""

import math

import numpy as np

LIMIT, NUMERATOR, DENOMINATOR = 3.9, 5, 5  # |t|, degrees in t²


def fit(rounds: int = 200) -> tuple[float, np.ndarray, np.ndarray]:
    """erf(t)/t ≈ P(t²)/Q(t²) by least squares, reweighted towards the largest error."""
    t = LIMIT * (1 - np.cos(np.pi * (np.arange(4000) + 0.5) / 4000)) / 2
    u = (t / LIMIT) ** 2
    target = np.array([math.erf(value) for value in t]) / t
    powers, q_powers = u[:, None] ** np.arange(NUMERATOR + 1), u[:, None] ** np.arange(1, DENOMINATOR + 1)
    weight, q = np.ones_like(t), np.ones_like(t)
    best = (math.inf, np.zeros(0))
    for _ in range(rounds):
        scale = weight * t / np.abs(q)
        matrix = np.concatenate([powers, -target[:, None] * q_powers], axis=1) * scale[:, None]
        found, *_ = np.linalg.lstsq(matrix, target * scale, rcond=None)
        p, q = powers @ found[: NUMERATOR + 1], 1 + q_powers @ found[NUMERATOR + 1 :]
        error = np.abs(t * (p / q - target))
        best = min(best, (float(error.max()), found), key=lambda pair: pair[0])
        weight = weight * np.sqrt(error / error.max() + 1e-3)
        weight /= weight.max()
    error_max, found = best
    in_t = LIMIT ** (2.0 * np.arange(NUMERATOR + 1)), LIMIT ** (2.0 * np.arange(DENOMINATOR + 1))
    return error_max, found[: NUMERATOR + 1] / in_t[0], np.r_[1, found[NUMERATOR + 1 :]] / in_t[1]


if __name__ == "__main__":
    largest, p, q = fit()
    print("P =", tuple(float(f"{c:.9g}") for c in p))
    print("Q =", tuple(float(f"{c:.9g}") for c in q))
    print(f"largest error {largest:.2e}; 1 - erf({LIMIT}) = {math.erfc(LIMIT):.1e}")
