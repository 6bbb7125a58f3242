"""Images as the latents of an autoencoder, once and for all: what a diffusion model then trains on."""

import contextlib
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import IO, Literal, NamedTuple

import jax
import numpy as np

from ddpm_jax import data, images
from ddpm_jax.config.fields import at_least, check_batch_size
from ddpm_jax.data import latents
from ddpm_jax.data.records import CAPTION, IMAGE, LABEL, LATENT, LOG_VARIANCE, Source
from ddpm_jax.host.storage import make_directory, naming
from ddpm_jax.models.autoencoder import DiagonalGaussian
from ddpm_jax.runs import first_stage_weights
from ddpm_jax.trained import FirstStage

Scaling = Literal["one", "channels"]


class Moments(NamedTuple):
    """Of each channel of the latents, over all draws of the posteriors of all images, [D] float64."""

    mean: np.ndarray
    variance: np.ndarray


def encode(
    stage: FirstStage,
    source: Source,
    folder: Path,
    *,
    batch_size: int,
    scaling: Scaling,
    progress: Callable[[int], None] = lambda done: None,
) -> latents.Description:
    """q(z | x) of every image, in its order, in a folder that `data.load` opens; see `data.latents`.

    The folder appears when all is in it. Written are means and log variances, so that a training draws from the
    posterior at every step anew; of an autoencoder with a codebook, what was encoded, not quantized.

    Args:
      stage: the autoencoder; with scaling "one" its own scale is that of the latents.
      source: of images; labels and captions are taken along.
      folder: new.
      batch_size: images at once.
      scaling: "channels": each channel is shifted and scaled to mean 0 and variance 1, measured here.
      progress: is told how many images are done.

    Raises:
      ValueError: a folder that is there; images that the autoencoder cannot encode, or batches too large for XLA.
      FloatingPointError: latents that are not finite.
    """
    at_least("--batch-size", batch_size)
    size = min(batch_size, len(source))
    check_batch_size("--batch-size", size, source.image_shape)
    check_new(folder)
    source.images([0])  # it holds images
    stage.check_fits(source.image_shape)
    partial = folder.with_name(folder.name + ".partial")
    shutil.rmtree(partial, ignore_errors=True)  # of a call that was killed
    make_directory(partial)
    try:
        found = _encode(stage, source, partial, size, scaling, progress)
        partial.replace(folder)
    except BaseException:
        shutil.rmtree(partial, ignore_errors=True)
        raise
    return found


def check_new(folder: Path) -> None:
    """Raises ValueError: a folder that is there."""
    if folder.exists():
        raise ValueError(f"{folder} is there already: choose another --out, or delete it")


def _encode(
    stage: FirstStage, source: Source, partial: Path, size: int, scaling: Scaling, progress: Callable[[int], None]
) -> latents.Description:
    """All files of the folder."""
    moments = _write(stage, source, partial, size, progress)
    others = {
        name: source.read(np.arange(len(source)), (name,))[name] for name in (LABEL, CAPTION) if name in source.spec
    }
    latents.write_others(partial, others)
    if scaling == "channels":
        if not (moments.variance > 0).all():
            channel = int(np.argmin(moments.variance))
            raise ValueError(f"--scaling channels: channel {channel} of the latents is the same everywhere")
        shift, scale = moments.mean.tolist(), (1 / np.sqrt(moments.variance)).tolist()
        stage = FirstStage(stage.model, stage.params, tuple(scale), tuple(shift))
    weights = first_stage_weights.write(partial, stage)
    found = latents.Description(
        data=data.describe(source), fingerprint=data.fingerprint(source, (IMAGE,)), weights=weights,
        scale=stage.scale, shift=stage.shift, deviation=np.sqrt(moments.variance).tolist(), mean=moments.mean.tolist(),
        classes=None if source.classes is None else list(source.classes), seal=latents.sealed(partial),
    )  # fmt: skip
    latents.write_description(partial, found)
    return found


def _write(stage: FirstStage, source: Source, folder: Path, size: int, progress: Callable[[int], None]) -> Moments:
    """The arrays, a batch at a time; what was counted meanwhile."""
    run = jax.jit(lambda params, x: FirstStage(stage.model, params, 1.0).posterior(images.to_float(x)))
    params, count = jax.device_put(stage.params), len(source)
    sums: list[np.ndarray] = []

    def read(first: int) -> np.ndarray:
        return source.images(np.minimum(np.arange(first, first + size), count - 1))

    numbers = 0
    with contextlib.ExitStack() as stack:
        files: dict[str, IO[bytes]] = {}
        for first, pixels in zip(range(0, count, size), data.prefetch(read, range(0, count, size)), strict=True):
            parts = _parts(run(params, pixels), count - first)
            for name, values in parts.items():
                if not np.isfinite(values).all():
                    last = first + len(values) - 1
                    raise FloatingPointError(f"latents of the images {first} to {last} are not finite")
                path = folder / f"{name}.npy"
                with naming(path):  # appended: a page of a mapped file that the disk has no room for ends the process
                    if name not in files:
                        files[name] = stack.enter_context(open(path, "wb"))
                        header = {"descr": "<f4", "fortran_order": False, "shape": (count, *values.shape[1:])}
                        np.lib.format.write_array_header_1_0(files[name], header)
                    files[name].write(np.ascontiguousarray(values, "<f4").data)
            sums.append(_sums(parts))
            numbers += parts[LATENT][..., 0].size
            progress(min(first + size, count))
    of_latents, of_squares = np.sum(sums, axis=0) / numbers
    return Moments(of_latents, of_squares - of_latents**2)


def _parts(found: DiagonalGaussian | jax.Array, n: int) -> dict[str, np.ndarray]:
    if isinstance(found, DiagonalGaussian):
        return {LATENT: np.asarray(found.mean)[:n], LOG_VARIANCE: np.asarray(found.log_variance)[:n]}
    return {LATENT: np.asarray(found)[:n]}


def _sums(parts: dict[str, np.ndarray]) -> np.ndarray:
    """[2, D]: sum of E z and of E z^2 of each channel."""
    mean = parts[LATENT].astype(np.float64)
    squares = mean**2
    if LOG_VARIANCE in parts:
        squares = squares + np.exp(parts[LOG_VARIANCE].astype(np.float64))
    return np.stack([mean.sum(axis=(0, 1, 2)), squares.sum(axis=(0, 1, 2))])
