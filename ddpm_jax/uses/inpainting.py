"""p(x_0 | known pixels): by a network that learned it, or more or less by one that knows nothing of masks.

A mask `known` is 1 where a pixel is known and 0 where it is painted anew; the command's --mask is white where it is
painted anew. Known pixels are in the result as they were given. Of a network of latents known latents are, and pixels
are what the autoencoder makes of them; of one that is told latents all is as it draws it, as in diffusers' pipelines.

  replacement    before each call, known pixels of x are drawn from q(x_t | x_0). Any sampler. What is painted fits the
                 known pixels as they were at each level, and is not the conditional law: nothing tells the others.
  blended        so, but from the second call on, and always with the noise that the sampler begins with.
  repaint        goes back and forth in time, so that known and new pixels agree: nearer to the law the more often.
  network        a network that is told the known pixels, as a run with --condition mask, or latents of them, as Stable
                 Diffusion's for in-painting. Any sampler.
"""

import jax
import jax.numpy as jnp
import numpy as np

from ddpm_jax import conditions, samplers
from ddpm_jax.keys import example_keys, folded
from ddpm_jax.names import choose
from ddpm_jax.samplers import Denoise, Denoised, Row, Table, from_diffusers_config
from ddpm_jax.samplers.catalogue import GRIDS
from ddpm_jax.samplers.configs.common import Preset
from ddpm_jax.trained import Trained
from ddpm_jax.uses.image_to_image import start_noise

KNOWN = np.uint32(2**32 - 2)  # the "row" whose key the noise of known pixels comes from; see samplers.run
MASKED = np.uint32(2**32 - 4)  # and that of the draw from the posterior of a picture without its unknown pixels
JUMP_LENGTH, JUMP_N_SAMPLE = 10, 10  # of the paper
OWN_GRID = "sections"


def repaint_preset(
    trained: Trained,
    num_steps: int | None = None,
    grid: str | None = None,
    *,
    jump_length: int = JUMP_LENGTH,
    jump_n_sample: int = JUMP_N_SAMPLE,
    eta: float = 1.0,
) -> Preset:
    """(table, denoiser) of RePaint on a network's schedule; of a folder with a RePaintScheduler, as that one steps.

    Source: Lugmayr et al. 2022 (arXiv:2201.09865), algorithm 1; diffusers' RePaintPipeline.

    Args:
      trained: the network.
      num_steps: N, of a way without jumps; None for the network's number.
      grid: a name of the catalogue; "sections" by default.
      jump_length: how many levels a jump goes back.
      jump_n_sample: how often each stretch is sampled.
      eta: of the steps, in [0, 1]; 1 is the paper's, 0 diffusers' default.

    Raises:
      ValueError: numbers out of range, an unknown grid, or one beside a scheduler of its own.
    """
    num_steps = trained.num_steps if num_steps is None else num_steps
    config = trained.scheduler_config
    if config is not None and config["_class_name"] == "RePaintScheduler":
        if grid is not None:
            raise ValueError(f"its own RePaintScheduler comes with its own steps, got --grid {grid}")
        return from_diffusers_config(config, num_steps, jump_length=jump_length, jump_n_sample=jump_n_sample, eta=eta)
    levels = choose("grid", OWN_GRID if grid is None else grid, GRIDS)(trained.schedule, num_steps)
    table = samplers.repaint(levels, jump_length=jump_length, num_visits=jump_n_sample, eta=eta)
    return Preset(table, trained.denoiser)


def replaced(
    denoise: Denoise, original: jax.Array, known: jax.Array, key: jax.Array, *, first_index: int | jax.Array = 0
) -> Denoise:
    """denoise at x with the known pixels of alpha original + sigma z, z fresh at each level: for any sampler.

    Source: Song et al. 2021 (arXiv:2011.13456), appendix I.2.

    Args:
      denoise: what to wrap.
      original: [B, ...] x_0, of which known pixels count.
      known: like original, 1 where a pixel is known and 0 elsewhere.
      key: of all samples.
      first_index: the index of the first one among all.
    """
    keys = folded(example_keys(key, first_index, len(original)), KNOWN)

    def wrapped(x: jax.Array, row: Row) -> Denoised:
        # A level is told from others by what the network is told.
        level = jax.lax.bitcast_convert_type(jnp.asarray(row.time, jnp.float32), jnp.uint32)
        draw = lambda key: jax.random.normal(jax.random.fold_in(key, level), x.shape[1:], x.dtype)
        return denoise(known * (row.alpha * original + row.sigma * jax.vmap(draw)(keys)) + (1 - known) * x, row)

    return wrapped


def replacement(
    denoise: Denoise,
    table: Table,
    key: jax.Array,
    original: jax.Array,
    known: jax.Array,
    *,
    x_t: jax.Array | None = None,
    first_index: int | jax.Array = 0,
) -> jax.Array:
    """x_0 [B, ...], the known pixels of it original's: the table run with `replaced`.

    Args:
      denoise: the network's.
      table: of any sampler.
      key: of all samples.
      original: [B, ...] images in [-1, 1], or latents.
      known: like original, 1 or 0.
      x_t: [B, ...] at the level of the first row, to begin with; by default noise.
      first_index: the index of the first one among all.
    """
    wrapped = replaced(denoise, original, known, key, first_index=first_index)
    return painted(wrapped, table, key, original, known, x_t=x_t, first_index=first_index)


def blend(denoise: Denoise, table: Table, original: jax.Array, known: jax.Array, z: jax.Array) -> Denoise:
    """denoise at x with the known pixels of alpha original + sigma z at each level below the first.

    Source: Avrahami et al. 2022 (arXiv:2206.02779), with one z for all levels, as in diffusers' pipelines.

    Args:
      denoise: what to wrap.
      table: that it is called along.
      original: [B, ...] x_0, of which known pixels count.
      known: like original, 1 where a pixel is known and 0 elsewhere.
      z: [B, ...] standard normal: the noise at the first level.
    """
    first = jax.tree.map(lambda part: part[0], table.rows)

    def wrapped(x: jax.Array, row: Row) -> Denoised:
        begins = (row.alpha == first.alpha) & (row.sigma == first.sigma)
        blended = known * (row.alpha * original + row.sigma * z) + (1 - known) * x
        return denoise(jnp.where(begins, x, blended), row)

    return wrapped


def blended(
    denoise: Denoise,
    table: Table,
    key: jax.Array,
    original: jax.Array,
    known: jax.Array,
    *,
    x_t: jax.Array | None = None,
    first_index: int | jax.Array = 0,
) -> jax.Array:
    """x_0 [B, ...], the known pixels of it original's: the table run with `blend`, z what the sampler begins with.

    Arguments are those of `replacement`.
    """
    wrapped = blend(denoise, table, original, known, start_noise(key, original.shape, first_index))
    return painted(wrapped, table, key, original, known, x_t=x_t, first_index=first_index)


def repaint(
    denoise: Denoise,
    table: Table,
    key: jax.Array,
    original: jax.Array,
    known: jax.Array,
    *,
    first_index: int | jax.Array = 0,
) -> jax.Array:
    """x_0 [B, ...], the known pixels of it original's: a table of `repaint_preset` or `samplers.repaint`.

    Arguments are those of `replacement`.
    """
    wrapped = samplers.known(denoise, original, known)
    return painted(wrapped, table, key, original, known, first_index=first_index)


def is_told(trained: Trained) -> bool:
    """Whether the network is told the known pixels, or latents of them."""
    of_mask = any(isinstance(part, conditions.Mask) for part in conditions.parts(trained.condition))
    return of_mask or trained.paints_latents


def check_network(trained: Trained) -> None:
    """Raises ValueError: a network that is not told the known pixels, or more than these and a label or a text."""
    if not is_told(trained):
        raise ValueError(
            "--method network is for networks that are told the known pixels, such as runs with --condition mask, and "
            "this one is not"
        )
    channels = trained.image_shape[-1]
    if (seen := trained.channels_beside) != channels + 1:
        raise ValueError(
            f"inpaint gives {channels + 1} channels beside the image, known pixels and mask, and the network needs "
            f"{seen}"
        )
    if len(others := trained.conditions.others) > 1:
        needs = " and ".join(others)
        raise ValueError(f"inpaint gives known pixels, a label and a text, and the network needs {needs}")


def known_to_network(original: jax.Array, known: jax.Array) -> dict[str, jax.Array]:
    """What a run with --condition mask is told: concat [B, H, W, C + 1].

    Args:
      original: [B, H, W, C] images in [-1, 1].
      known: like original, 1 or 0, the same in all channels.
    """
    return conditions.known(original, known[..., 0] == 1)


def known_latents_to_network(z: jax.Array, known: jax.Array) -> dict[str, jax.Array]:
    """What Stable Diffusion's network for in-painting is told: concat [B, h, w, 1 + C], 1 where it paints, then z.

    Source: Rombach et al. 2022 (arXiv:2112.10752), section 4.5; the order of diffusers' pipeline.

    Args:
      z: [B, h, w, C] latents of pictures whose unknown pixels are 0.
      known: like z, 1 or 0, the same in all channels.
    """
    return {"concat": jnp.concatenate([1 - known[..., :1], z], axis=-1)}


def of_latents(known: jax.Array, shape: tuple[int, ...]) -> jax.Array:
    """A mask [B, h, w, C] of latents of this shape: that of the pixel [B, H, W, ...] in each one's upper left corner.

    Source: as diffusers' pipelines do it, whose masks are resized to the nearest pixel.

    See check_paints for masks that leave nothing to paint.
    """
    rows, columns = (known.shape[axis] // shape[axis] for axis in (1, 2))
    return jnp.broadcast_to(known[:, ::rows, ::columns, :1], shape)


def check_paints(white: np.ndarray, latent_shape: tuple[int, int, int]) -> None:
    """Whether masks [N, H, W, 1], True where pixels are painted anew, have some latent [h, w, C] to paint.

    Raises:
      ValueError: one has none.
    """
    of_each = np.asarray(of_latents(jnp.asarray(white), (len(white), *latent_shape))).any(axis=(1, 2, 3))
    if len(none := np.flatnonzero(~of_each)):
        factor = white.shape[1] // latent_shape[0]
        raise ValueError(
            f"--mask of picture {none[0]} paints no latent: white must cover the upper left pixel of some block of "
            f"{factor} x {factor} pixels"
        )


def painted(
    denoise: Denoise,
    table: Table,
    key: jax.Array,
    original: jax.Array,
    known: jax.Array,
    *,
    x_t: jax.Array | None = None,
    first_index: int | jax.Array = 0,
) -> jax.Array:
    """x_0 [B, ...], the known pixels of it original's, the others as denoise says: of a network that is told
    `known_to_network`, x_0 ~ p(x_0 | known pixels) as it learned it.

    Arguments are those of `replacement`.

    Source: Nichol et al. 2021 (arXiv:2112.10741), section 4.3.
    """
    drawn = samplers.sample(denoise, table, key, original.shape, x_t=x_t, first_index=first_index)
    return kept(drawn, original, known)


def kept(x_0: jax.Array, original: jax.Array, known: jax.Array) -> jax.Array:
    """Where known is 1, original, bit for bit; elsewhere x_0."""
    return jnp.where(known == 1, original, x_0)


METHODS = {"replacement": replacement, "blended": blended, "repaint": repaint, "network": painted}
