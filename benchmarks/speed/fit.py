"""The mixture fit against scikit-learn's default fit on all rows: time and log-likelihood.

python -m benchmarks.speed.fit [--rows 10_000_000]
"""

import argparse
import time

import numpy as np

from benchmarks.common import header
from stages.histogram import Histogram, count, on_grid
from stages.label.fit.mixture import fit_mixture, published_mixture


def main() -> None:
    """Fit both ways on skewed cosines with 5 % mismatched rows and print the ratios."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rows", type=int, default=10_000_000)
    rows = parser.parse_args().rows
    header("speed.fit")
    rng = np.random.default_rng(0)
    num_bad = rows // 20
    cosines = on_grid(np.r_[0.15 + rng.gamma(4.0, 0.04, rows - num_bad), rng.normal(0.06, 0.04, num_bad)])
    histogram = Histogram()
    start = time.perf_counter()
    histogram.add(count(cosines))
    counted = time.perf_counter() - start
    fits = []
    for _ in range(3):
        start = time.perf_counter()
        ours = fit_mixture(histogram)
        fits.append(time.perf_counter() - start)
    start = time.perf_counter()
    theirs = published_mixture(histogram, 0)
    default = time.perf_counter() - start
    assert ours is not None
    assert theirs is not None
    fit = sorted(fits)[1]
    print(f"{rows:,} cosines: fit {fit:.3f} s, counting {counted:.3f} s, scikit-learn defaults {default:.2f} s")
    print(f"ratio scikit-learn / fit: {default / fit:.0f}; / (counting + fit): {default / (fit + counted):.0f}")
    print(f"mean log-likelihood: ours {ours.log_likelihood:.6f}, scikit-learn defaults {theirs.log_likelihood:.6f}")


if __name__ == "__main__":
    main()
