"""How good are a run's digits? Samples against scikit-learn's 1797 real ones.

Run:       ddpm-jax sample runs/digits -n 1000 --seed 0 --out samples.npz
           python experiments/digits_report.py samples.npz
Prints:    1-nearest-neighbour two-sample accuracy (Lopez-Paz & Oquab 2017, arXiv:1610.06545): each of N samples and N
           real digits is classified as real or sampled by its nearest neighbour among the others. 0.5 is perfect; 1
           means samples that look like nothing real, or one real digit repeated.
           Shares of the ten digits and the mean confidence of a judge: logistic regression fitted on the real digits.
Measured:  MEASURED
"""

import sys

import numpy as np
from sklearn.datasets import load_digits
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import cross_val_predict
from sklearn.neighbors import NearestNeighbors
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler


def two_sample_accuracy(a: np.ndarray, b: np.ndarray) -> float:
    """Share of points in a and b (of equal number) whose nearest other point is of their own kind."""
    points = np.concatenate([a, b])
    kind = np.arange(len(points)) < len(a)
    nearest = NearestNeighbors(n_neighbors=2).fit(points).kneighbors(points, return_distance=False)
    # A point is its own neighbour, but not always the first: a sample may equal a real digit.
    other = np.where(nearest[:, 0] == np.arange(len(points)), nearest[:, 1], nearest[:, 0])
    return float(np.mean(kind[other] == kind))


def main(path: str) -> None:
    """Print the report of the `images` in an .npz file."""
    with np.load(path) as file:
        samples = file["images"].reshape(len(file["images"]), -1) / 255.0
    real, labels = load_digits(return_X_y=True)
    real = real / 16.0
    n = min(len(samples), len(real))
    chosen = np.random.default_rng(0).permutation(len(real))[:n]
    accuracy = two_sample_accuracy(samples[:n], real[chosen])
    print(f"{n} samples, {n} real digits")
    print(f"1-nearest-neighbour two-sample accuracy: {accuracy:.3f} (0.5 is perfect)")
    judge = make_pipeline(StandardScaler(), LogisticRegression(max_iter=1000))
    held_out = np.asarray(cross_val_predict(judge, real, labels, cv=5, method="predict_proba"))
    found = judge.fit(real, labels).predict_proba(samples)
    shares = np.bincount(found.argmax(1), minlength=10) / len(found)
    print(f"judge's mean confidence: {found.max(1).mean():.3f} on samples, {held_out.max(1).mean():.3f} on real ones")
    print("shares of the digits: " + ", ".join(f"{digit}: {share:.1%}" for digit, share in enumerate(shares)))


if __name__ == "__main__":
    main(*sys.argv[1:])
