"""What the metrics say of real images, and of real images with noise: CIFAR-10's test set at four levels.

Run:       python experiments/metrics_report.py --tfds-data-dir DIR
           --features components (of --components principal axes of the training images, no network), efficientnet,
           inception, or a file of their weights; -n 2000; --levels 8 16 32 64; --out report.json
Prints:    of N test images against N others: every metric with its standard error, first as they are, then with normal
           noise of each level (grey levels, rounded and clipped), and whether the metric moves one way only;
           then real against real by N: the floor below which a distance says nothing, and where N is too small for it.
           CMMD is of the features at unit length, not of CLIP; PSNR and SSIM are of an image and itself without noise.
Expect:    KID within 3 standard errors of 0 for real images at every N, where the Frechet distance is all bias
Measured:  docs/metrics.md
"""

import argparse
import json
from collections.abc import Callable
from pathlib import Path

import numpy as np

from ddpm_jax import data
from ddpm_jax.evaluate import features
from ddpm_jax.evaluate.samples import (
    cmmd,
    density_coverage,
    frechet,
    infinity,
    kid,
    moments,
    precision_recall,
    psnr,
    ssim,
    two_sample,
)
from ddpm_jax.evaluate.samples.points import Estimate
from ddpm_jax.host.storage import write_atomically
from ddpm_jax.tools.bench import components

FLOOR = (100, 200, 400, 1000, 2000, 5000)
TRAINING = 5000  # images that principal axes are of
Extract = Callable[[np.ndarray], np.ndarray]


def extractor(name: str, count: int, data_dir: Path) -> Extract:
    """Features [N, D] of images uint8 [N, H, W, C]."""
    if name == "components":
        source = data.load("cifar10", data_dir=data_dir, split="train", labels="none", say=print)
        axes = components.projection(source.images(np.arange(TRAINING)), count)
        return lambda images: components.flat(images) @ axes
    network = features.of_name(name)

    def of(images: np.ndarray) -> np.ndarray:
        pieces = features.extract(network, [images], [network.default])
        return np.concatenate([piece[network.default] for piece in pieces])

    return of


def measured(drawn: np.ndarray, reference: np.ndarray) -> dict[str, Estimate]:
    """Every metric of features against features."""
    within = precision_recall.of(drawn, reference)
    around = density_coverage.of(drawn, reference)
    unit = lambda x: x / np.linalg.norm(x, axis=1, keepdims=True)
    return {
        "Frechet": frechet.estimate(drawn, reference),
        "KID": kid.distance(drawn, reference),
        "CMMD": cmmd.distance(unit(drawn), unit(reference), sigma=1.0),
        "precision": within.precision,
        "recall": within.recall,
        "density": around.density,
        "coverage": around.coverage,
        "1-NN": two_sample.accuracy(drawn, reference),
    }


def noised(images: np.ndarray, level: float) -> np.ndarray:
    """With independent normal noise, the same draws at every level."""
    noise = np.random.default_rng(0).standard_normal(images.shape, np.float32)
    return np.clip(np.round(images + level * noise), 0, 255).astype(np.uint8)


def say_table(rows: dict[str, dict[str, Estimate]]) -> None:
    """A line a row, and whether each column goes one way."""
    names = list(dict.fromkeys(name for row in rows.values() for name in row))
    print(f"{'':12}" + "".join(f"{name:>20}" for name in names))
    for title, row in rows.items():
        cells = (f"{row[n].value:.4g} ± {row[n].standard_error:.1g}" if n in row else "" for n in names)
        print(f"{title:12}" + "".join(f"{cell:>20}" for cell in cells), flush=True)
    ways = []
    for name in names:
        steps = np.diff([row[name].value for row in rows.values() if name in row])
        ways.append("rises" if (steps > 0).all() else "falls" if (steps < 0).all() else "NEITHER")
    print(f"{'with noise':12}" + "".join(f"{way:>20}" for way in ways))


def main(name: str, count: int, data_dir: Path, n: int, levels: list[float], out: Path | None) -> None:
    """Measure and print."""
    extract = extractor(name, count, data_dir)
    source = data.load("cifar10", data_dir=data_dir, split="test", labels="none", say=print)
    chosen = np.random.default_rng(0).permutation(len(source))
    clean = source.images(np.sort(chosen[n : 2 * n]))
    reference, plain = extract(source.images(np.sort(chosen[:n]))), extract(clean)
    print(f"features {name}, D = {reference.shape[1]}, N = {n}")
    rows = {"as they are": measured(plain, reference)}
    for level in levels:
        noisy = noised(clean, level)
        pairs = {"PSNR": psnr.of(noisy, clean), "SSIM": ssim.of(noisy, clean)}
        rows[f"noise {level:g}"] = measured(extract(noisy), reference) | pairs
    say_table(rows)
    print("\nreal against real")
    floor = {}
    for few in [few for few in FLOOR if few <= n]:
        a, b = plain[:few], reference[:few]
        floor[few] = {"Frechet": frechet.estimate(a, b), "KID": kid.distance(a, b)}
        note = frechet.note(moments.of(a).gaussian, moments.of(b).gaussian)
        line = "  ".join(f"{key} {value:.4g} ± {error:.1g}" for key, (value, error) in floor[few].items())
        print(f"N = {few:5}  {line}" + (f"  [{note}]" if note else ""), flush=True)
    smallest = max(n // 2, reference.shape[1] + 1)
    if smallest < n:
        limit = infinity.frechet_distance(plain, moments.of(reference).gaussian, smallest=smallest)
        print(f"Frechet at infinitely many samples against {n}: {limit.value:.4g} ± {limit.standard_error:.1g}")
    if out is not None:
        write_atomically(out, json.dumps({"features": name, "n": n, "rows": rows, "floor": floor}, indent=1) + "\n")


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("--features", default="components")
    parser.add_argument("--components", type=int, default=512)
    parser.add_argument("--tfds-data-dir", type=Path)
    parser.add_argument("-n", type=int, default=2000)
    parser.add_argument("--levels", type=float, nargs="+", default=[8.0, 16.0, 32.0, 64.0])
    parser.add_argument("--out", type=Path)
    options = parser.parse_args()
    main(options.features, options.components, options.tfds_data_dir, options.n, options.levels, options.out)
