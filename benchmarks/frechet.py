"""The Fréchet distance of D features from singular values, beside scipy's square root of the product of covariances.

Run:  OMP_NUM_THREADS=1 python -m benchmarks.frechet [--rounds 5] [--features 2048]

Both are given the same means and covariances, of 2 D samples whose deviations fall as 1 / k, as a network's do. "sqrtm"
is what pytorch-fid does: the trace of scipy.linalg.sqrtm(S_a S_b). Times are processor seconds of the process, which
other work on the machine changes least; the ratio is the median of interleaved rounds with the interval that holds the
true median.
"""

import argparse
import os
import time

import numpy as np
import scipy
from scipy.linalg import sqrtm

from ddpm_jax.evaluate.samples import frechet, moments
from ddpm_jax.evaluate.samples.moments import Gaussian
from ddpm_jax.tools.bench.interleave import interleaved, ratios, spread


def gaussian(dimension: int, seed: int) -> Gaussian:
    """Of 2 D samples whose axes and deviations are of chance."""
    rng = np.random.default_rng(seed)
    axes = np.linalg.qr(rng.standard_normal((dimension, dimension)))[0] / np.arange(1, dimension + 1)[:, None]
    return moments.of(rng.standard_normal((2 * dimension, dimension)) @ axes + 0.01 * seed).gaussian


def by_sqrtm(a: Gaussian, b: Gaussian) -> float:
    """The distance through a matrix square root of S_a S_b."""
    difference = a.mean - b.mean
    root = np.real(sqrtm(a.covariance @ b.covariance))
    return float(difference @ difference + np.trace(a.covariance) + np.trace(b.covariance) - 2 * np.trace(root))


def main(rounds: int, dimension: int) -> None:
    """Print both times, their ratio and by how much the distances differ."""
    a, b = gaussian(dimension, 0), gaussian(dimension, 1)
    ours, theirs = frechet.distance(a, b), by_sqrtm(a, b)
    print(f"D = {dimension}: {ours!r}, sqrtm {theirs!r}: {abs(ours / theirs - 1):.1e} apart")
    jobs = {"ours": lambda: frechet.distance(a, b), "sqrtm": lambda: by_sqrtm(a, b)}
    times = interleaved(jobs, rounds, clock=time.process_time)
    found = spread(ratios(times["sqrtm"], times["ours"]))
    seconds = {name: f"{spread(of).median:.2f} s" for name, of in times.items()}
    print(f"ours {seconds['ours']}, sqrtm {seconds['sqrtm']}: {found.median:.2f} [{found.low:.2f}, {found.high:.2f}] "
          f"x as fast, {found.n} rounds")  # fmt: skip
    threads, load = os.environ.get("OMP_NUM_THREADS", "all"), os.getloadavg()[0]
    print(f"numpy {np.__version__}, scipy {scipy.__version__}, threads {threads} of {os.cpu_count()}, load {load:.1f}")


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--features", type=int, default=2048)
    options = parser.parse_args()
    main(options.rounds, options.features)
