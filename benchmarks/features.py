"""Pictures a second through FID's Inception: ours, torch-fidelity's and pytorch-fid's, on the same cores.

Run:  pip install torch-fidelity==0.4.0 pytorch-fid==0.3.0
      python -m benchmarks.features [--batches 4 16] [--rounds 5]

Each contestant has uint8 pictures of 32 x 32 on the host, the same random weights, and ends with features [B, 2048] on
the host. Every one runs once a round for each batch; its best batch is compared. Seconds are of the clock and of the
processor (all threads), the second because cores may be shared. The largest difference of the features is said first.

Measured:  docs/metrics.md
"""

import argparse
import dataclasses
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from ddpm_jax.evaluate import features
from ddpm_jax.interop import layers
from ddpm_jax.models.inception import Inception
from ddpm_jax.tools.bench.interleave import interleaved, ratios, spread

SIZE = 32
NORM = {"weight": 1.0, "bias": 0.0, "running_mean": 0.0, "running_var": 1.0}


def weights() -> dict[str, np.ndarray]:
    """Random arrays by the names of FID's files."""
    random, found = np.random.default_rng(0), {}
    shapes = layers.param_shapes(Inception(), jax.ShapeDtypeStruct((1, 75, 75, 3), jnp.float32))
    for path, shape in shapes.items():
        layer, leaf = path.rpartition("/")[0].replace("/", "."), path.rpartition("/")[2]
        if leaf == "kernel":
            *_, inputs, outputs = shape
            theirs = (outputs, inputs, *shape[:-2])
            scale = np.sqrt(2 / np.prod(theirs[1:]))
            found[f"{layer}.weight"] = (scale * random.standard_normal(theirs)).astype(np.float32)
        elif layer == "fc":
            found["fc.bias"] = np.zeros(shape, np.float32)
        else:
            norm = layer.removesuffix("conv") + "bn"
            found |= {f"{norm}.{part}": np.full(shape, value, np.float32) for part, value in NORM.items()}
    return found


def contestants(given: dict[str, np.ndarray]) -> dict[str, Callable[[np.ndarray], np.ndarray]]:
    """features [B, 2048] of uint8 [B, H, W, 3], by name; ours with each input."""
    import pytorch_fid.inception as pytorch_fid  # pyright: ignore[reportMissingImports]
    import torch  # pyright: ignore[reportMissingImports]
    from torch_fidelity.feature_extractor_inceptionv3 import (  # pyright: ignore[reportMissingImports]
        FeatureExtractorInceptionV3,
    )

    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "weights.pth"
        torch.save({name: torch.tensor(array) for name, array in given.items()}, path)
        fidelity = FeatureExtractorInceptionV3("inception", ["2048"], feature_extractor_weights_path=str(path)).eval()
        pytorch_fid.load_state_dict_from_url = lambda *_, **__: torch.load(path)
        fid = pytorch_fid.InceptionV3([3]).eval()
    nchw = lambda images: torch.from_numpy(np.ascontiguousarray(images.transpose(0, 3, 1, 2)))

    def of_torch_fidelity(images: np.ndarray) -> np.ndarray:
        with torch.no_grad():
            return fidelity(nchw(images))[0].numpy()

    def of_pytorch_fid(images: np.ndarray) -> np.ndarray:
        with torch.no_grad():
            return fid(nchw(images).float() / 255)[0][..., 0, 0].numpy()

    def ours(inputs: str) -> Callable[[np.ndarray], np.ndarray]:
        network = features.of_inception_weights(given, inputs=inputs)

        def run(images: np.ndarray) -> np.ndarray:
            (found,) = features.extract(dataclasses.replace(network, batch=len(images)), [images], ["2048"])
            return found["2048"]

        return run

    return {
        "ddpm_jax": ours("tensorflow"),
        "torch-fidelity": of_torch_fidelity,
        "ddpm_jax, pytorch-fid's input": ours("pytorch-fid"),
        "pytorch-fid": of_pytorch_fid,
    }


def main(batches: list[int], rounds: int) -> None:
    """Prints images a second and the ratios."""
    runners = contestants(weights())
    jobs: dict[str, Callable[[], Any]] = {}
    processor: dict[str, list[float]] = {}
    for batch in batches:
        images = np.random.default_rng(1).integers(0, 256, (batch, SIZE, SIZE, 3), np.uint8)
        found = [run(images) for run in runners.values()]  # compiles, too
        worst = [float(np.abs(a - b).max()) for a, b in (found[:2], found[2:])]
        print(f"batch {batch}: from torch-fidelity {worst[0]:.1e}, from pytorch-fid {worst[1]:.1e}, "
              f"of features up to {found[0].max():.1f}")  # fmt: skip
        for name, run in runners.items():
            key = f"{name} {batch}"
            processor[key] = []

            def job(run=run, images=images, key=key) -> None:
                start = time.process_time()
                run(images)
                processor[key].append(time.process_time() - start)

            jobs[key] = job
    wall = interleaved(jobs, rounds)
    for clock, seconds in (("clock", wall), ("processor", processor)):
        each = {key: [one / int(key.split()[-1]) for one in times] for key, times in seconds.items()}
        best = {name: min((spread(each[f"{name} {batch}"]).median, batch) for batch in batches) for name in runners}
        for name, (median, batch) in best.items():
            print(f"{clock}: {name}: {1 / median:.2f} images/s, at batch {batch}, the best of {batches}")
        for ours, theirs in (("ddpm_jax", "torch-fidelity"), ("ddpm_jax, pytorch-fid's input", "pytorch-fid")):
            keys = [f"{name} {best[name][1]}" for name in (theirs, ours)]
            if clock == "clock":
                found = spread(ratios(each[keys[0]], each[keys[1]]))
                print(f"{clock}: {found.median:.2f} [{found.low:.2f}, {found.high:.2f}] x {theirs}'s, {found.n} rounds")
            else:
                print(f"{clock}: {best[theirs][0] / best[ours][0]:.2f} x {theirs}'s")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--batches", type=int, nargs="+", default=[4, 16])
    parser.add_argument("--rounds", type=int, default=5)
    options = parser.parse_args()
    main(options.batches, options.rounds)
