"""What was trained, ready to be used: a network, its parameters, and all that drawing, measuring and converting need.

A run of ours and a checkpoint of another project are the same thing here; `opening.open` gives it for either.
"""

import inspect
import zlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn

from ddpm_jax.conditions import ClassLabel, Condition, parts
from ddpm_jax.config.fields import check_image_shape
from ddpm_jax.config.run import Config
from ddpm_jax.keys import example_keys, normals
from ddpm_jax.models import DiT, UNet, UViT, bind
from ddpm_jax.models.autoencoder import DiagonalGaussian
from ddpm_jax.models.clip import CLIPText, TextFeatures
from ddpm_jax.models.ldm_bert import LDMBert
from ddpm_jax.process import LEARNED, ModelFn, VarianceType
from ddpm_jax.reading import Reading, ReadingPrediction
from ddpm_jax.samplers import Denoise, from_diffusers_config
from ddpm_jax.samplers.catalogue import make_table
from ddpm_jax.samplers.configs import CLASSES
from ddpm_jax.samplers.configs.common import Preset
from ddpm_jax.schedules import Schedule


def checksum(arrays: Any) -> str:
    """CRC-32 of the numbers in a tree of arrays, in hexadecimal digits."""
    found = 0
    for leaf in jax.tree.leaves(arrays):
        found = zlib.crc32(np.ascontiguousarray(leaf).data, found)
    return f"{found:08x}"


def check_finite(parts: Mapping[str, Any]) -> None:
    """Whether all numbers in trees of arrays, by name, are finite.

    Raises:
      ValueError: some are NaN or infinite; says how many, and where.
    """
    leaves = jax.tree_util.tree_leaves_with_path(parts)
    bad = {
        jax.tree_util.keystr(path, simple=True, separator="/"): (count, leaf.size)
        for path, leaf in leaves
        if (count := leaf.size - int(np.count_nonzero(np.isfinite(leaf))))
    }
    if bad:
        first, (count, size) = next(iter(bad.items()))
        raise ValueError(
            f"weights must be finite, but NaN or infinity is in {len(bad)} of {len(leaves)} arrays: {count} of the "
            f"{size} numbers of {first}" + (", ..." if len(bad) > 1 else "")
        )


@dataclass(frozen=True)
class FirstStage:
    """The autoencoder in whose latents a model diffuses: image = decode(z / scale + shift).

    Source: Rombach et al. 2022 (arXiv:2112.10752), section 3.1 and appendix G.

    Attributes:
      model: the autoencoder.
      params: its parameters.
      scale: 1 / standard deviation of what it encodes, one number or one for each channel.
      shift: its mean, alike; 0 in the paper.
    """

    model: nn.Module
    params: Any
    scale: float | tuple[float, ...]
    shift: float | tuple[float, ...] = 0.0

    @property
    def weights(self) -> str:
        """The checksum of all that latents depend on: parameters, scale and shift."""
        return checksum((self.params, *(np.asarray(each, np.float32) for each in (self.scale, self.shift))))

    def check_fits(self, image_shape: tuple[int, int, int]) -> None:
        """Whether it encodes images [H, W, C].

        Raises:
          ValueError: other colours, or sides that its factor does not divide.
        """
        channels = self.params["encoder"]["conv_in"]["kernel"].shape[2]
        if image_shape[-1] != channels:
            raise ValueError(f"the autoencoder encodes images of {channels} channels, got {image_shape[-1]}")
        factor = 2 ** (len(self.model.channel_multipliers) - 1)  # type: ignore[reportAttributeAccessIssue]
        if image_shape[0] % factor or image_shape[1] % factor:
            raise ValueError(f"H and W must be divisible by {factor}, got {image_shape[0]} x {image_shape[1]}")

    def encode(self, images: jax.Array, key: jax.Array | None = None) -> jax.Array:
        """(z - shift) scale, [B, h, w, C], of images [B, H, W, 3] in [-1, 1]: what a latent diffusion model diffuses.

        Args:
          images: H and W divisible by the autoencoder's factor.
          key: of a draw from each image's posterior, by a key of its own; None for the mode. Of an autoencoder with a
            codebook the latents are those before quantization, which is the decoder's.
        """
        return self.encode_each(images, None if key is None else example_keys(key, 0, len(images)))

    def encode_each(self, images: jax.Array, keys: jax.Array | None) -> jax.Array:
        """As `encode`, by these keys [B]."""
        found = self.posterior(images)
        if isinstance(found, DiagonalGaussian):
            return self.scaled(found.mode() if keys is None else drawn(found, keys))
        return self.scaled(found)

    def posterior(self, images: jax.Array) -> DiagonalGaussian | jax.Array:
        """q(z | x), or what was encoded where a codebook quantizes it; without scale and shift."""
        return self.model.apply({"params": self.params}, images, method="encode")  # type: ignore[reportReturnType]

    def scaled(self, z: jax.Array) -> jax.Array:
        """(z - shift) scale: of variance 1."""
        return (z - _of_channels(self.shift)) * _of_channels(self.scale)

    def decode(self, z: jax.Array, at_once: int | None = None) -> jax.Array:
        """[B, H, W, 3] images in [-1, 1] from latents z [B, h, w, C].

        Args:
          z: latents.
          at_once: so many are decoded one after the other, in the memory of these; all by default.
        """
        if at_once is not None and at_once < len(z):
            # Whole batches, the last one filled up: vmap would undo what attention does to save memory.
            filled = jnp.concatenate([z, jnp.repeat(z[-1:], -len(z) % at_once, axis=0)])
            found = jax.lax.map(self.decode, filled.reshape(-1, at_once, *z.shape[1:]))
            return found.reshape(-1, *found.shape[2:])[: len(z)]
        unscaled = z / _of_channels(self.scale) + _of_channels(self.shift)
        images = self.model.apply({"params": self.params}, unscaled, method="decode")
        assert isinstance(images, jax.Array)
        return images


def drawn(posterior: DiagonalGaussian, keys: jax.Array) -> jax.Array:
    """z ~ N(mean, exp(log_variance)), [B, h, w, C], each image's by its own of the keys [B]."""
    return posterior.sample(normals(keys, posterior.mean.shape[1:]))


def _of_channels(value: float | tuple[float, ...]) -> float | jax.Array:
    return value if isinstance(value, float | int) else jnp.asarray(value, jnp.float32).reshape(1, 1, 1, -1)


class Tokens(NamedTuple):
    """Of n texts: int32 [n, L], and how many tokens of each did not fit."""

    ids: np.ndarray
    cut: tuple[int, ...]


@dataclass(frozen=True)
class TextEncoder:
    """From texts to the context of a network: what each of a text's tokens says.

    Attributes:
      model: the encoder.
      params: its parameters.
      tokens: the tokenizer.
    """

    model: CLIPText | LDMBert
    params: Any
    tokens: Callable[[Sequence[str]], Tokens]

    def contexts(self, ids: np.ndarray) -> np.ndarray:
        """[n, L, C] float32 of tokens [n, L]: one after the other, by one program for all."""

        def last(params: Any, ids: np.ndarray) -> jax.Array:
            found = self.model.apply({"params": params}, ids)
            return found.last_hidden if isinstance(found, TextFeatures) else found  # type: ignore[reportReturnType]

        encode, params = jax.jit(last), jax.device_put(self.params)
        return np.concatenate([np.asarray(encode(params, each[None])) for each in ids])


@dataclass(frozen=True)
class Conditions:
    """What a network is told beside x_t and t.

    Attributes:
      num_classes: y is one of so many labels; None for a network without classes.
      null_label: the y that stands for no class; None where there is none.
      others: what else it needs, in words: nothing that the command line can give.
      text: whether it needs a text.
    """

    num_classes: int | None = None
    null_label: int | None = None
    others: tuple[str, ...] = ()
    text: bool = False


@dataclass(frozen=True)
class Trained:
    """A network, its parameters, and how it was trained.

    Attributes:
      origin: what it is, in words: "a run of ddpm-jax, 6000 steps", "a diffusers folder (DDPMPipeline)".
      config: the settings of the network in the words of its origin, as the interop module of that family takes them.
      model: the network.
      params: its parameters: float32, on the host.
      schedule: of its training.
      reading: what its output means, and what samplers do to x_0.
      image_shape: (H, W, C) of what it denoises: images, or latents.
      sampler: the catalogue's name of its default sampler, where there is no scheduler_config.
      num_steps: of its default sampler.
      scheduler_config: diffusers' scheduler_config.json: its default sampler.
      first_stage: the autoencoder, if it denoises latents.
      run: the configuration of a run of ours; None of what another project trained.
      step: of the run's training that the parameters are from.
      condition: what a run's network is told; of what another project trained, the network says what it takes.
      classes: the names of its classes, where they are known.
      text: what makes a context of texts, where it was trained with one.
      no_text: why there is none, where what was opened has a text encoder.
    """

    origin: str
    config: Mapping[str, Any]
    model: nn.Module
    params: Any
    schedule: Schedule
    reading: Reading
    image_shape: tuple[int, int, int]
    sampler: str = "ddpm"
    num_steps: int = 50
    scheduler_config: Mapping[str, Any] | None = None
    first_stage: FirstStage | None = None
    run: Config | None = None
    step: int | None = None
    condition: Condition | None = None
    classes: tuple[str, ...] | None = None
    text: TextEncoder | None = None
    no_text: str = ""

    def __post_init__(self):
        check_image_shape("sample_size, image_size or input_size", self.image_shape)

    @property
    def picture_shape(self) -> tuple[int, int, int]:
        """(H, W, C) of the pictures that it draws: of what it denoises, or what that is decoded to."""
        if self.first_stage is None:
            return self.image_shape
        z = jax.ShapeDtypeStruct((1, *self.image_shape), jnp.float32)
        return jax.eval_shape(self.first_stage.decode, z).shape[1:]

    @property
    def prediction(self) -> ReadingPrediction:
        """What it predicts."""
        return self.reading.prediction

    @property
    def variance(self) -> VarianceType:
        """Of the reverse step, as process and the catalogue of samplers name it."""
        return self.reading.process_variance

    @property
    def clip(self) -> float | None:
        """x_0 is clipped to [-clip, clip] at each step of a sampler; None for no clipping."""
        return self.reading.clip

    @property
    def time_scale(self) -> float:
        """The network is told time_scale times the timestep of the schedule."""
        return self.reading.time_scale

    @property
    def channels_beside(self) -> int:
        """How many channels the network sees beside those of x_t, as low_res= or concat=."""
        return self.params["conv_in"]["kernel"].shape[2] - self.image_shape[-1] if isinstance(self.model, UNet) else 0

    @property
    def paints_latents(self) -> bool:
        """Whether it is like Stable Diffusion's network for in-painting, told a context, a mask and latents."""
        of_kind = self.run is None and self.first_stage is not None and isinstance(self.model, UNet)
        return of_kind and self.model.transformer_depth > 0 and self.channels_beside == self.image_shape[-1] + 1

    @property
    def conditions(self) -> Conditions:
        """What it needs beside x_t and t."""
        model = self.model
        if not isinstance(model, UNet | DiT | UViT):
            return Conditions(others=_required(model))
        others = []
        if isinstance(model, UNet):
            if model.transformer_depth and self.text is None:
                why = f"; {self.no_text}" if self.no_text else ""
                others.append(f"a context, such as the embedding of a text (context={why})")
            if model.class_embed_type is not None:
                others.append("an embedding or a number as its class (y=)")
            if self.channels_beside:
                others.append("images beside the noisy one (low_res= or concat=)")
        null = model.num_classes if isinstance(model, DiT) and model.null_label else None
        for label in (part for part in parts(self.condition) if isinstance(part, ClassLabel)):
            return Conditions(label.num_classes, label.num_classes if label.null_label else None, tuple(others))
        return Conditions(model.num_classes, null, tuple(others), self.text is not None)

    def model_fn(self, params: Any = None, **conditioning: Any) -> ModelFn:
        """model_fn(x_t, t), told the times of the schedule, with these parameters: by default the ones it came with."""
        return self.reading.model_fn(bind(self.model, self.params if params is None else params, **conditioning))

    def network(self, params: Any = None) -> Callable[[jax.Array, jax.Array, Mapping[str, Any]], jax.Array]:
        """(x_t, t, what it is told) -> its output, as `guidance.asked` asks it; told the times of the schedule."""
        return lambda x_t, t, told: self.model_fn(params, **told)(x_t, t)

    def told_nothing(self, told: Mapping[str, Any]) -> dict[str, Any]:
        """What it is told in the place of a class: the null label; all else that it is told stays.

        Raises:
          ValueError: it has no null label.
        """
        null = self.conditions.null_label
        if null is None:
            raise ValueError("the network has no label that stands for no class")
        return {**told, "y": jnp.full_like(told["y"], null)}

    def denoiser(self, model_fn: ModelFn) -> Denoise:
        """What samplers call: any of them then clips or thresholds as the own one does."""
        return self.reading.denoiser(self.schedule)(model_fn)

    def default_sampler(self, num_steps: int) -> Preset:
        """(table, denoiser) of the sampler it came with: samplers.sample(denoiser(model_fn), table, key, shape).

        Raises:
          ValueError: a number of steps that the sampler does not have.
        """
        if self.scheduler_config is None:
            return Preset(make_table(self.sampler, self.schedule, num_steps, variance=self.variance), self.denoiser)
        if not self.reading.learns_variance or _reads_variance(self.scheduler_config):
            return from_diffusers_config(self.scheduler_config, num_steps)
        # Schedulers that do not read a learned variance are given the prediction alone.
        config = {name: value for name, value in self.scheduler_config.items() if name != "variance_type"}
        preset = from_diffusers_config(config, num_steps)
        return preset._replace(denoiser=lambda model_fn: preset.denoiser(_prediction_of(model_fn)))

    @property
    def weights(self) -> str:
        """The checksum of all parameters: what tells two networks of the same kind apart."""
        scaling = [] if self.first_stage is None else [self.first_stage.scale, self.first_stage.shift]
        return checksum((*self._parts.values(), *(np.asarray(each, np.float32) for each in scaling)))

    @property
    def _parts(self) -> dict[str, Any]:
        """All parameters, by what they are of."""
        parts = {"params": self.params, "first_stage": self.first_stage and self.first_stage.params}
        return parts if self.text is None else {**parts, "text": self.text.params}

    def check_finite(self) -> None:
        """Whether all parameters are numbers: others make black pictures.

        Raises:
          ValueError: some are NaN or infinite; says how many, and where.
        """
        check_finite(self._parts)

    def check_conditions(self, use: str, *, labels: bool = False, texts: bool = False) -> None:
        """Whether it needs nothing beside x_t and t, or at most a label, or a text.

        Args:
          use: what it is needed for, in words.
          labels: whether that gives labels.
          texts: whether that gives texts.

        Raises:
          ValueError: it does.
        """
        needs, classes = self.conditions.others, self.conditions.num_classes
        if classes is not None and not labels:
            needs = (f"one of {classes} labels (y=)", *needs)
        if self.conditions.text and not texts:
            needs = ("a text (context=)", *needs)
        if needs:
            raise ValueError(
                f"this network needs {' and '.join(needs)}, which {use} does not give: in Python, "
                "ddpm_jax.opening.open(...).model_fn takes it"
            )


def _required(model: nn.Module) -> tuple[str, ...]:
    """What a network has to be told beside x_t and t, by name, such as a Glide's "tokens="."""
    told = [*inspect.signature(type(model).__call__).parameters.values()][3:]  # after self, x_t and t
    named = [each for each in told if each.kind is not inspect.Parameter.VAR_KEYWORD]
    return tuple(f"{each.name}=" for each in named if each.default is inspect.Parameter.empty)


def _reads_variance(scheduler_config: Mapping[str, Any]) -> bool:
    """Whether a scheduler steps with a variance that the network learned, as those of DDPM do."""
    of_ddpm = CLASSES[scheduler_config["_class_name"]][1].get("variance_type") is not None
    return of_ddpm and scheduler_config.get("variance_type") in LEARNED


def _prediction_of(model_fn: ModelFn) -> ModelFn:
    """The first half of the channels: of a network with a learned variance, what it predicts."""
    return lambda x_t, t: jnp.split(model_fn(x_t, t), 2, axis=-1)[0]
