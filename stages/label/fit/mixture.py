"""Two Gaussians on cosines: the fit, its posterior, and whether to believe it. Arrays in, numbers out, no I/O.

Source: Yang, Gao, Mirzasoleiman, "Better Safe than Sorry", ICML 2024, section 4 (a two-component mixture of cosines).
Two things differ from the published code, which scikit-learn's defaults and the raw posterior stand for
(`published_mixture`): the fit runs to convergence, and the posterior is made monotone in the cosine, since with a
wide upper component the raw one calls the worst-matching pairs certain matches.
"""

import math
from dataclasses import dataclass
from typing import Final

import numpy as np
import numpy.typing as npt
from scipy.optimize import minimize
from sklearn.mixture import GaussianMixture

from stages.histogram import Histogram

Array = npt.NDArray[np.float64]

NUM_FIT_BINS: Final = 8192
MIN_STD: Final = 1e-3  # sklearn's reg_covar of 1e-6, as a floor: a spike of equal cosines must not have infinite likelihood
_START_QUANTILES: Final = (0.02, 0.1, 0.3, 0.5, 0.7, 0.9, 0.98)
_START_STEPS: Final = 60


@dataclass(frozen=True, slots=True)
class Mixture:
    """A mixture of two Gaussians; index 0 is the component of the lower mean (mismatched), 1 the upper (matching).

    Attributes:
        weights: Shares of the components, summing to 1.
        means: In cosine, ascending.
        stds: Standard deviations in cosine.
        log_likelihood: Mean over rows, in nats.
        num_rows: Rows the mixture was fitted to.
        bic_one: Bayesian information criterion of a single Gaussian on the same rows; lower is better.
        bic_two: That of this mixture.
        converged: Whether one more EM step moves no parameter by more than 1e-5.
    """

    weights: tuple[float, float]
    means: tuple[float, float]
    stds: tuple[float, float]
    log_likelihood: float
    num_rows: int
    bic_one: float
    bic_two: float
    converged: bool

    @property
    def ashman_d(self) -> float:
        """Distance of the means in common standard deviations; above 2 the components are clearly apart.

        Source: Ashman, Bird, Zepf, "Detecting bimodality in astronomical datasets", 1994, equation 3.
        """
        return math.sqrt(2.0) * (self.means[1] - self.means[0]) / math.hypot(*self.stds)

    def posterior(self, cosines: Array) -> Array:
        """Return the raw posterior of the upper component, in [0, 1]; need not be monotone."""
        low, high = (
            math.log(max(w, 1e-300)) - math.log(s) - 0.5 * ((cosines - m) / s) ** 2
            for w, m, s in zip(self.weights, self.means, self.stds, strict=True)
        )
        posterior: Array = 1.0 / (1.0 + np.exp(np.clip(low - high, -700.0, 700.0)))
        return posterior

    def monotone_posterior(self, cosines: Array) -> Array:
        """Return the posterior made non-decreasing in the cosine.

        The log odds are a parabola in the cosine. Beyond its vertex the raw posterior runs the wrong way; there it is
        held at its value at the vertex. With a wider upper component the vertex lies below the lower mean, so nothing
        changes where the components overlap.
        """
        (m0, m1), (v0, v1) = self.means, (self.stds[0] ** 2, self.stds[1] ** 2)
        if math.isclose(v0, v1, rel_tol=1e-12):
            return self.posterior(cosines)
        vertex = (m0 / v0 - m1 / v1) / (1.0 / v0 - 1.0 / v1)
        return self.posterior(np.maximum(cosines, vertex) if v1 > v0 else np.minimum(cosines, vertex))

    def cut(self, threshold: float, grid: Array) -> float | None:
        """Return the lowest grid point at or above the lower mean whose posterior reaches `threshold`, if any does.

        Args:
            threshold: In (0, 1).
            grid: Ascending cosines to choose from.
        """
        candidates = grid[grid >= self.means[0]]
        enough = self.monotone_posterior(candidates) >= threshold
        return float(candidates[int(np.argmax(enough))]) if enough.any() else None


def fit_mixture(histogram: Histogram) -> Mixture | None:
    """Fit two Gaussians to all counted cosines by maximum likelihood, to convergence; deterministic.

    Several EM starts on a coarsened histogram, the best one polished by L-BFGS with exact gradients: on overlapping
    components EM alone needs thousands of steps.

    Returns:
        The mixture; None where fewer than 10 rows or 3 distinct cosines leave nothing to fit.
    """
    values, counts = histogram.coarse(NUM_FIT_BINS)
    num_rows = int(counts.sum())
    if num_rows < 10 or len(values) < 3:
        return None
    centre = float(np.average(values, weights=counts))
    scale = max(float(np.sqrt(np.average((values - centre) ** 2, weights=counts))), MIN_STD)
    x, share = (values - centre) / scale, counts / num_rows
    best = max((_em(x, share, start, scale) for start in _starts(x, share, scale)), key=lambda p: _likelihood(p, x, share))
    best = _polish(best, x, share, scale)
    moved = np.abs(_em_step(best, x, share, scale) - best).max()
    order = np.argsort(best[1:3], kind="stable")
    likelihood = _likelihood(best, x, share) - math.log(scale)
    one = -0.5 * math.log(2 * math.pi * scale**2) - 0.5 * float(np.average(x**2, weights=share))
    weights = np.array([1.0 - best[0], best[0]])[order]
    return Mixture(
        weights=(float(weights[0]), float(weights[1])),
        means=_pair(best[1:3][order] * scale + centre),
        stds=_pair(best[3:5][order] * scale),
        log_likelihood=likelihood,
        num_rows=num_rows,
        bic_one=2 * math.log(num_rows) - 2 * num_rows * one,
        bic_two=5 * math.log(num_rows) - 2 * num_rows * likelihood,
        converged=bool(moved < 1e-5),
    )


def published_mixture(histogram: Histogram, seed: int) -> Mixture | None:
    """Fit as the published code does: scikit-learn's defaults on every row, stopping at its tolerance.

    For parity and the benchmark only: the fit often stops far from the optimum. Memory grows with the rows.
    """
    rows = histogram.rows().astype(np.float64)[:, None]
    if len(rows) < 10 or len(np.unique(rows)) < 3:
        return None
    model = GaussianMixture(n_components=2, random_state=seed).fit(rows)
    order = np.argsort(model.means_[:, 0])
    single = GaussianMixture(n_components=1, random_state=seed).fit(rows)
    return Mixture(
        weights=_pair(model.weights_[order]),
        means=_pair(model.means_[order, 0]),
        stds=_pair(np.sqrt(model.covariances_[order, 0, 0])),
        log_likelihood=float(model.score(rows)),
        num_rows=len(rows),
        bic_one=float(single.bic(rows)),
        bic_two=float(model.bic(rows)),
        converged=bool(model.converged_),
    )


def _pair(values: Array) -> tuple[float, float]:
    return float(values[0]), float(values[1])


# Parameters below are a vector: weight of component 1, mean 0, mean 1, std 0, std 1, in units of the data's own spread.


def _starts(x: Array, share: Array, scale: float) -> list[Array]:
    """Split at several quantiles; and one narrow component inside a wide one, for peaked or skewed shapes."""
    below = np.cumsum(share)
    starts = [np.array([0.5, 0.0, 0.0, 0.5, 1.5])]
    for quantile in _START_QUANTILES:
        split = int(np.clip(np.searchsorted(below, quantile), 1, len(x) - 1))
        sides = (slice(None, split), slice(split, None))
        means = [float(np.average(x[side], weights=share[side])) for side in sides]
        spread = [float(np.sqrt(np.average((x[s] - m) ** 2, weights=share[s]))) for s, m in zip(sides, means, strict=True)]
        floor = [max(s, MIN_STD / scale, 1e-2) for s in spread]
        starts.append(np.array([float(share[split:].sum()), *means, *floor]))
    return starts


def _em(x: Array, share: Array, start: Array, scale: float) -> Array:
    for _ in range(_START_STEPS):
        start = _em_step(start, x, share, scale)
    return start


def _em_step(p: Array, x: Array, share: Array, scale: float) -> Array:
    high, _ = _responsibility(p, x)
    weight = float(np.dot(share, high))
    result = np.empty(5)
    result[0] = weight
    for k, r in enumerate((share * (1.0 - high), share * high)):
        mass = max(float(r.sum()), 1e-300)
        mean = float(np.dot(r, x)) / mass
        result[1 + k] = mean
        result[3 + k] = max(math.sqrt(max(float(np.dot(r, (x - mean) ** 2)) / mass, 0.0)), MIN_STD / scale)
    return result


def _responsibility(p: Array, x: Array) -> tuple[Array, Array]:
    """Return the posterior of component 1 and the log density of the mixture, both (n,)."""
    weight = min(max(float(p[0]), 1e-12), 1.0 - 1e-12)
    log0 = math.log1p(-weight) - math.log(p[3]) - 0.5 * ((x - p[1]) / p[3]) ** 2
    log1 = math.log(weight) - math.log(p[4]) - 0.5 * ((x - p[2]) / p[4]) ** 2
    log_density = np.logaddexp(log0, log1) - 0.5 * math.log(2 * math.pi)
    return np.exp(log1 - 0.5 * math.log(2 * math.pi) - log_density), log_density


def _likelihood(p: Array, x: Array, share: Array) -> float:
    return float(np.dot(share, _responsibility(p, x)[1]))


def _polish(p: Array, x: Array, share: Array, scale: float) -> Array:
    """Climb from an EM solution to the optimum, in coordinates without constraints but for the floor of the stds."""

    def unpack(theta: Array) -> Array:
        return np.array([1.0 / (1.0 + math.exp(-theta[0])), theta[1], theta[2], math.exp(theta[3]), math.exp(theta[4])])

    def objective(theta: Array) -> tuple[float, Array]:
        q = unpack(theta)
        high, log_density = _responsibility(q, x)
        gradient = np.empty(5)
        gradient[0] = np.dot(share, high) - q[0]
        for k, r in enumerate((share * (1.0 - high), share * high)):
            z = (x - q[1 + k]) / q[3 + k]
            gradient[1 + k] = np.dot(r, z) / q[3 + k]
            gradient[3 + k] = np.dot(r, z**2 - 1.0)
        return -float(np.dot(share, log_density)), -gradient

    weight = min(max(float(p[0]), 1e-9), 1.0 - 1e-9)
    theta = np.array([math.log(weight / (1.0 - weight)), p[1], p[2], math.log(p[3]), math.log(p[4])])
    floor = math.log(MIN_STD / scale)
    bounds = [(-25.0, 25.0), (None, None), (None, None), (floor, None), (floor, None)]
    options = {"maxiter": 2000, "maxfun": 4000, "ftol": 1e-15, "gtol": 1e-9, "maxcor": 20}
    found = minimize(objective, theta, jac=True, method="L-BFGS-B", bounds=bounds, options=options)
    return unpack(found.x) if -found.fun >= _likelihood(p, x, share) else p
