"""How a first stage does on images of its data: reconstructions, the spread of its latents, what looks wrong."""

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property, partial
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn

from ddpm_jax import images, keys
from ddpm_jax.data import Source
from ddpm_jax.models import quantizers
from ddpm_jax.models.autoencoder import DiagonalGaussian
from ddpm_jax.runs import first_stage_file
from ddpm_jax.trained import checksum, drawn

LEAST_KL, MOST_KL = 1e-3, 100.0
"""In nats for each number of the latents: less, and they say nothing of the image; more, and they are not bounded."""
LEAST_DEVIATION, MOST_DEVIATION = 0.02, 50.0
LEAST_USE = 0.1
"""Of the codes, as perplexity."""
CONSTANT = 1e-3
"""Difference of the logits of data and reconstructions, on average, in units of their deviation."""
MEASURED, BATCH = 1024, 64
"""Images that the scale is measured on, at most; at once."""


class Look(NamedTuple):
    """Of some images: x, x^ [N, H, W, C] in [-1, 1], z [N, h, w, D]; kl [N] or (), codes [N, h, w] or ()."""

    x: jax.Array
    decoded: jax.Array
    z: jax.Array
    kl: Any
    codes: Any


@dataclass(frozen=True)
class Judged:
    """The first images of the data, and what an autoencoder makes of them.

    Attributes:
      model: the network.
      source: of the images.
      num_images: shown.
      logits: (params of the discriminator, images) -> logits; None without adversary.
    """

    model: nn.Module
    source: Source
    num_images: int
    logits: Callable[[Any, jax.Array], jax.Array] | None = None

    @cached_property
    def x(self) -> np.ndarray:
        """uint8 [N, H, W, C]."""
        return self.source.images(np.arange(min(self.num_images, len(self.source))))

    @cached_property
    def _look(self) -> Callable[..., Look]:
        return jax.jit(partial(look, self.model))

    def look(self, params: Any, key: jax.Array) -> Look:
        """What it makes of the shown images; those of a posterior are decoded from its mode."""
        return self._look(params["autoencoder"], images.to_float(self.x), key)

    def pictures(self, found: Look) -> np.ndarray:
        """uint8 [N, 2 H, W, C]: each image above its reconstruction."""
        return np.concatenate([self.x, images.to_uint8(found.decoded)], axis=1)

    def wrong(self, found: Look, params: Any) -> list[str]:
        """What usually goes wrong in practice, in a line each."""
        if len(bad := images.not_finite(found.decoded)):
            return [f"{len(bad)} of the {len(self.x)} reconstructions have NaN or infinity"]
        deviation, lines = float(found.z.std()), []
        if not LEAST_DEVIATION <= deviation <= MOST_DEVIATION:
            lines.append(f"the latents' standard deviation is {deviation:.2g}, and drifts where nothing bounds it")
        if isinstance(found.kl, jax.Array):
            kl = float(found.kl.mean()) / found.z[0].size
            if not LEAST_KL <= kl <= MOST_KL:
                side = "say nothing of the image: take less" if kl < LEAST_KL else "are hardly bounded: take more"
                lines.append(f"the latents have {kl:.2g} nats of KL a number, and {side} of --model.kl-weight")
        if isinstance(found.codes, jax.Array):
            lines += self._of_codes(found.codes)
        return lines + self._of_adversary(found, params)

    def _of_codes(self, codes: jax.Array) -> list[str]:
        num_codes: int = getattr(self.model, "num_codes")  # noqa: B009
        shares = quantizers.usage(codes, num_codes)
        could_be, used = min(num_codes, codes.size), int((shares > 0).sum())
        perplexity = float(quantizers.perplexity(shares))
        if perplexity >= LEAST_USE * could_be:
            return []
        return [
            f"{used} of {num_codes} codes are used on {len(codes)} images, with a perplexity of {perplexity:.1f}: "
            "the others are dead"
        ]

    def _of_adversary(self, found: Look, params: Any) -> list[str]:
        if self.logits is None or not _has_learned(params["discriminator"]):
            return []
        judge = jax.jit(self.logits)
        real, fake = (judge(params["discriminator"], x) for x in (found.x, found.decoded))
        spread = float(jnp.concatenate([real.ravel(), fake.ravel()]).std())
        if abs(float(real.mean() - fake.mean())) > CONSTANT * max(spread, 1e-6):
            return []
        return ["the discriminator says the same of images and reconstructions: it teaches nothing"]

    def finish(self, params: Any, workdir: Path, key: jax.Array) -> str:
        """Write first_stage.json; what it says, in a line."""
        own, rows = params["autoencoder"], np.arange(min(MEASURED, len(self.source)))
        parts = [rows[first : first + BATCH] for first in range(0, len(rows), BATCH)]
        at = lambda part: self._look(own, images.to_float(self.source.images(part)), jax.random.fold_in(key, part[0]))
        z, errors = [], []
        for part in parts:
            found = at(part)
            z.append(np.asarray(found.z, np.float64))
            wrong = (np.asarray(found.decoded, np.float64).clip(-1, 1) - np.asarray(found.x)) / 2
            errors += list((wrong**2).mean(axis=(1, 2, 3)))
        latents = np.concatenate(z)
        psnr = float(np.mean(-10 * np.log10(np.maximum(errors, 1e-10))))
        first_stage_file.write(workdir, first_stage_file.Facts(
            scale=1 / float(latents.std()), deviation=latents.std(axis=(0, 1, 2)).tolist(),
            mean=latents.mean(axis=(0, 1, 2)).tolist(), psnr=psnr, num_images=len(rows), weights=checksum(own),
        ))  # fmt: skip
        return (
            f"latents of {' x '.join(map(str, latents.shape[1:]))}, standard deviation {latents.std():.3g}, and "
            f"reconstructions with a PSNR of {psnr:.2f} dB, on {len(rows)} images that it was trained on"
        )


def look(model: nn.Module, params: Any, x: jax.Array, key: jax.Array) -> Look:
    """z is drawn from a posterior, by each image's own key, or what was encoded, not quantized."""
    found = model.apply({"params": params}, x, method="encode")
    decode = lambda z: model.apply({"params": params}, z, method="decode")
    if isinstance(found, DiagonalGaussian):
        z = drawn(found, keys.example_keys(key, 0, len(x)))
        return Look(x, decode(found.mode()), z, found.kl(), ())  # type: ignore[reportArgumentType]
    codes = model.apply({"params": params}, found, method="quantize").indices  # type: ignore[reportAttributeAccessIssue]
    return Look(x, decode(found), found, (), codes)  # type: ignore[reportArgumentType]


def _has_learned(params: Any) -> bool:
    """Whether a discriminator has been trained: its last bias begins at 0, and has a gradient from then on."""
    last = max(name for name in params if name.startswith("conv"))
    return bool(jnp.any(params[last]["bias"] != 0))
