"""What guidance gains and costs: pictures of a class-conditional run at several scales, against real ones.

Run:       ddpm-jax train --condition class
           python experiments/class_report.py runs/digits
Prints:    for each guidance scale, of N images of the classes in turn
             judged      the share that a judge takes for the class that was asked for: a support vector machine
                         (C = 10, radial kernel) on the pixels of real images, whose accuracy on others is printed
             1-nn        1-nearest-neighbour two-sample accuracy within a class (see digits_report.py), the mean over
                         the classes: 0.5 is perfect
             precision, recall   of Kynkaanniemi et al. 2019 (arXiv:1904.06991), k = 3, on pixels: the share of
                         images within the real ones' manifold, and the other way round
           and, in RUN/classes or --out, the table as CSV, its plot, and ten images a class at each scale.
Options:   --scales 0 1 1.5 2 3    -n 1000    --num-steps 50    --interval 0.2 0.8    --seed 0    --out FOLDER
"""

import argparse
import csv
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
from sklearn.svm import SVC

from ddpm_jax import data, opening, pictures
from ddpm_jax.evaluate.samples import precision_recall, two_sample
from ddpm_jax.host.picture_files import save_grid

MOST_REAL = 5000
"""Real images that the judge sees: its time grows with their square."""
COLUMNS = ("scale", "judged", "1-nn", "precision", "recall")


def flat(images: np.ndarray) -> np.ndarray:
    """uint8 [N, ...] as points in [-1, 1]."""
    return images.reshape(len(images), -1) / 127.5 - 1


def real_images(run: Path) -> tuple[np.ndarray, np.ndarray]:
    """Points and labels of the run's data, in an order of chance."""
    config = opening.open(run, print).run
    assert config is not None
    source = data.load(config.data.name, **config.data.arguments(), say=print)
    rows = np.random.default_rng(0).permutation(len(source))[: MOST_REAL + MOST_REAL // 4]
    record = source.read(rows, ("image", "label"))
    return flat(record["image"]), record["label"]


def row_of(points: np.ndarray, asked: np.ndarray, judge: SVC, real: np.ndarray, labels: np.ndarray) -> list[float]:
    """What is printed of one scale."""
    nearest = []
    for label in np.unique(asked):
        ours, theirs = points[asked == label], real[labels == label]
        n = min(len(ours), len(theirs))
        nearest.append(two_sample.accuracy(ours[:n], theirs[:n]).value)
    manifolds = precision_recall.of(points, real[: len(points)])
    judged = float(np.mean(judge.predict(points) == asked))
    return [judged, float(np.mean(nearest)), manifolds.precision.value, manifolds.recall.value]


def main(run: Path, scales: list[float], n: int, num_steps: int, interval: tuple[float, float] | None, seed: int,
         out: Path) -> None:  # fmt: skip
    """Draw, judge, write."""
    trained = opening.open(run, print)
    real, labels = real_images(run)
    fitted = min(MOST_REAL, len(real) * 1400 // 1797)
    width = 0.02 if real.shape[1] == 64 else 1 / (real.shape[1] * real.var())  # of the kernel; scikit-learn's "scale"
    judge = SVC(C=10, gamma=width).fit(real[:fitted], labels[:fitted])  # type: ignore[reportArgumentType]
    share = judge.score(real[fitted:], labels[fitted:])
    print(f"judge: right about {share:.1%} of {len(real) - fitted} real images, from {fitted} others")
    print("  ".join(f"{name:>9}" for name in COLUMNS))
    preset, rows = pictures.preset(trained, "ddim", num_steps, None, None), []
    out.mkdir(parents=True, exist_ok=True)
    for scale in scales:
        chosen = pictures.labels(trained, (), pictures.Guidance(scale, interval))
        drawn = np.concatenate(list(pictures.pictures(trained, preset, chosen, n, min(n, 500), seed)))
        asked = chosen.of(0, n)
        assert asked is not None
        rows.append([scale, *row_of(flat(drawn), asked, judge, real, labels)])
        print("  ".join(f"{value:9.3f}" for value in rows[-1]), flush=True)
        save_grid(out / f"scale_{scale:g}.png", drawn[: 10 * len(np.unique(asked))])
    with (out / "classes.csv").open("w", newline="") as file:
        csv.writer(file).writerows([COLUMNS, *rows])
    plot(out / "classes.png", np.array(rows))


def plot(path: Path, rows: np.ndarray) -> None:
    """Every column over the scale."""
    figure, axes = plt.subplots(figsize=(5, 3.5), layout="constrained")
    for name, values in zip(COLUMNS[1:], rows.T[1:], strict=True):
        axes.plot(rows[:, 0], values, "o-", markersize=4, label=name)
    axes.axhline(0.5, color="grey", linewidth=0.5)
    axes.set(xlabel="guidance scale", ylim=(0, 1.02))
    axes.legend()
    figure.savefig(path, dpi=120)


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("run", type=Path)
    parser.add_argument("--scales", type=float, nargs="+", default=[0.0, 1.0, 1.5, 2.0, 3.0, 5.0])
    parser.add_argument("-n", type=int, default=1000)
    parser.add_argument("--num-steps", type=int, default=50)
    parser.add_argument("--interval", type=float, nargs=2)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path)
    options = parser.parse_args()
    interval = None if options.interval is None else tuple(options.interval)
    out = options.out or options.run / "classes"
    main(options.run, options.scales, options.n, options.num_steps, interval, options.seed, out)
