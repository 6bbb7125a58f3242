"""The autoencoder of diffusers' Flax classes under its old name, for code that was written for it.

    from ddpm_jax.interop.flax import FlaxAutoencoderKL      # was: from diffusers import FlaxAutoencoderKL
    vae, params = FlaxAutoencoderKL.from_pretrained(folder)
    latents = vae.apply({"params": params}, images, method=vae.encode).latent_dist.sample(key)
    images = vae.apply({"params": params}, latents, method=vae.decode).sample

diffusers had the class until 0.39. It computes what our AutoencoderKL does, whose parameters these are; what is here
are its names and its axes. Images are [B, C, H, W] on either side. Latents are [B, h, w, D] where they come out, and
[B, h, w, D] or [B, D, h, w] where they go in. Settings that it read past, such as another activation, and arguments
that it dropped, are refused.

Facts about diffusers 0.30.3, 0.35.2 and 0.39.0 only: no code of it.
"""

import os
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
from flax.typing import Dtype

from ddpm_jax.interop import autoencoder, flax_weights, hub
from ddpm_jax.interop.diffusers.load import Form
from ddpm_jax.interop.loading import load_first_stage
from ddpm_jax.models.autoencoder import AutoencoderKL, DiagonalGaussian
from ddpm_jax.names import unknown
from ddpm_jax.samplers.configs.reading import read_json

DTYPES = ("float32", "bfloat16", "float16")
CLASSES = ("AutoencoderKL", "FlaxAutoencoderKL")
# Arguments of the old from_pretrained, and what does the same for this one.
INSTEAD = {
    **dict.fromkeys(("cache_dir", "force_download", "local_files_only", "proxies", "token"), "environment variables "
                    "of huggingface_hub, such as HF_HOME, HF_TOKEN or HF_HUB_OFFLINE"),
    "use_safetensors": "nothing: safetensors are read where there are some",
    "config": "FlaxAutoencoderKL(**config), whose parameters are interop.autoencoder.kl_to_params(weights, config)",
}  # fmt: skip


class Settings(Mapping[str, Any]):
    """What config.json says of an autoencoder, as `config.scaling_factor` or `config["scaling_factor"]`."""

    def __init__(self, **settings: Any):
        self.__dict__.update(settings)

    def __getitem__(self, name: str) -> Any:
        return self.__dict__[name]

    def __getattr__(self, name: str) -> Any:  # what is not there
        raise AttributeError(f"the autoencoder has no setting {name!r} (there are: {', '.join(self.__dict__)})")

    def __iter__(self) -> Iterator[str]:
        return iter(self.__dict__)

    def __len__(self) -> int:
        return len(self.__dict__)

    def __repr__(self) -> str:
        return f"Settings({', '.join(f'{name}={value!r}' for name, value in self.items())})"


class LatentDist(NamedTuple):
    """N(mean, diag(exp(logvar))) over latents [B, h, w, D], under the names of the old class.

    Both in the dtype of the autoencoder; logvar was clipped to [-30, 20]. Unlike the old one this is a tree of arrays,
    which jitted functions return.
    """

    mean: jax.Array
    logvar: jax.Array

    @property
    def std(self) -> jax.Array:
        """exp(logvar / 2)."""
        return jnp.exp(0.5 * self.logvar)

    @property
    def var(self) -> jax.Array:
        """exp(logvar)."""
        return jnp.exp(self.logvar)

    def sample(self, key: jax.Array) -> jax.Array:
        """mean + std z, [B, h, w, D] float32, with z = jax.random.normal(key, mean.shape): one key for the batch."""
        z = jax.random.normal(key, self.mean.shape, jnp.float32)
        return self.mean.astype(jnp.float32) + self.std.astype(jnp.float32) * z

    def mode(self) -> jax.Array:
        """argmax p(z) = mean."""
        return self.mean

    def kl(self, other: "LatentDist | None" = None) -> jax.Array:
        """KL(N(mean, diag(var)) || other), or || N(0, I), in nats per image: [B]."""
        return self._gaussian.kl(None if other is None else other._gaussian)

    def nll(self, sample: jax.Array) -> jax.Array:
        """-log p(sample), in nats per image: [B]."""
        return self._gaussian.nll(sample)

    @property
    def _gaussian(self) -> DiagonalGaussian:
        return DiagonalGaussian(self.mean, self.logvar)


class Encoded(NamedTuple):
    """What `encode` returns."""

    latent_dist: LatentDist


class Decoded(NamedTuple):
    """What `decode` returns: [B, C, H, W]."""

    sample: jax.Array


class FlaxAutoencoderKL(nn.Module):
    """q(z | x) = N(mean(x), diag(var(x))) and decode(z), with the names and the axes of diffusers' Flax class.

    As there, `encode` takes images [B, C, H, W] in [-1, 1] and gives latents [B, h, w, D]; `decode` takes latents
    [B, h, w, D], or [B, D, h, w] where the last axis is not D long, and gives images [B, C, H, W]. So latents
    [B, D, h, w] that are as wide as they have channels, w = D, are taken for [B, h, w, D], as they were there. Latents
    are not scaled: a diffusion has `config.scaling_factor` times them. Results have the dtype of the computation, and
    draws are float32.

    Parameters are those of `models.autoencoder.AutoencoderKL`, by its names. Parameters that an old program has kept
    are `interop.autoencoder.kl_to_params(interop.flax_weights.to_state_dict(kept), vae.config)`.

    Source: Rombach et al. 2021 (arXiv:2112.10752), section 3.1; the conventions of diffusers 0.35.2.

    Attributes:
      in_channels, ..., scaling_factor: as in config.json, whose defaults these are; lists become tuples.
      sample_size: of the images in training, for who asks; nothing is computed from it.
      scaling_factor: 1 / standard deviation of latents, for who asks.
      dtype: of convolutions and matrix products, float32, bfloat16 or float16; not of parameters.

    Raises:
      ValueError: settings that no autoencoder here has, or another dtype. Raised when it is made.
    """

    in_channels: int = 3
    out_channels: int = 3
    down_block_types: Sequence[str] = ("DownEncoderBlock2D",)
    up_block_types: Sequence[str] = ("UpDecoderBlock2D",)
    block_out_channels: Sequence[int] = (64,)
    layers_per_block: int = 1
    act_fn: str = "silu"
    latent_channels: int = 4
    norm_num_groups: int = 32
    sample_size: int | Sequence[int] | None = 32
    scaling_factor: float = 0.18215
    dtype: Dtype = jnp.float32

    def __post_init__(self) -> None:
        for name in ("down_block_types", "up_block_types", "block_out_channels", "sample_size"):
            if isinstance(value := getattr(self, name), list):
                setattr(self, name, tuple(value))
        self.dtype = _checked_dtype(self.dtype)
        autoencoder.kl_settings(self.config)
        super().__post_init__()

    @property
    def config(self) -> Settings:
        """Its settings, all but dtype."""
        return Settings(**{name: getattr(self, name) for name in SETTINGS})

    def setup(self) -> None:
        self.network = AutoencoderKL(**autoencoder.kl_settings(self.config), dtype=self.dtype)
        nn.share_scope(self, self.network)  # its parameters have no name of ours before theirs

    def encode(self, sample: jax.Array, deterministic: bool = True, return_dict: bool = True) -> Encoded | tuple[Any]:
        """q(z | sample), its mean and log variance [B, h, w, D].

        Args:
          sample: images [B, C, H, W] in [-1, 1], H and W divisible by 2^(levels - 1).
          deterministic: True; there is no dropout.
          return_dict: False for a tuple of the distribution alone.

        Raises:
          ValueError: another shape, such as [B, H, W, C]; deterministic False. Raised while tracing.
        """
        _check_deterministic(deterministic)
        if sample.ndim != 4 or sample.shape[1] != self.in_channels:
            raise ValueError(f"images must be [B, {self.in_channels}, H, W], channels first, got shape {sample.shape}")
        found = self.network.encode(sample.transpose(0, 2, 3, 1))
        posterior = LatentDist(found.mean.astype(self.dtype), found.log_variance.astype(self.dtype))
        return Encoded(posterior) if return_dict else (posterior,)

    def decode(self, latents: jax.Array, deterministic: bool = True, return_dict: bool = True) -> Decoded | tuple[Any]:
        """The images [B, C, H, W] of latents, unscaled.

        Args:
          latents: [B, h, w, D]; or [B, D, h, w], where w is not D.
          deterministic: True; there is no dropout.
          return_dict: False for a tuple of the images alone.

        Raises:
          ValueError: another shape; deterministic False. Raised while tracing.
        """
        _check_deterministic(deterministic)
        channels = self.latent_channels
        if latents.ndim != 4 or channels not in (latents.shape[1], latents.shape[-1]):
            raise ValueError(
                f"latents must be [B, h, w, {channels}] or [B, {channels}, h, w], got shape {latents.shape}"
            )
        z = latents if latents.shape[-1] == channels else latents.transpose(0, 2, 3, 1)
        images = self.network.decode(z.astype(jnp.float32)).astype(self.dtype).transpose(0, 3, 1, 2)
        return Decoded(images) if return_dict else (images,)

    def __call__(
        self, sample: jax.Array, sample_posterior: bool = False, deterministic: bool = True, return_dict: bool = True
    ) -> Decoded | tuple[Any]:
        """decode(z) of z ~ q(z | sample), by the key "gaussian", or of the mode.

        Args:
          sample: as of `encode`.
          sample_posterior: whether z is drawn: `apply(..., rngs={"gaussian": key})`.
          deterministic: True; there is no dropout.
          return_dict: False for a tuple of the images alone.

        Raises:
          ValueError: as `encode`.
        """
        (posterior,) = self.encode(sample, deterministic)
        z = posterior.sample(self.make_rng("gaussian")) if sample_posterior else posterior.mode()
        return self.decode(z, deterministic, return_dict)

    def init_weights(self, rng: jax.Array) -> Any:
        """Parameters of an untrained autoencoder, drawn as ours are."""
        size = 2 ** (len(self.block_out_channels) - 1)
        return self.init(rng, jnp.zeros((1, self.in_channels, size, size)))["params"]

    @classmethod
    def from_pretrained(
        cls,
        pretrained_model_name_or_path: str | os.PathLike[str],
        dtype: Dtype = jnp.float32,
        *,
        from_pt: bool = False,
        subfolder: str | None = None,
        revision: str | None = None,
        **others: Any,
    ) -> "tuple[FlaxAutoencoderKL, Any]":
        """(autoencoder, its parameters, float32) of a folder of diffusers, or of a name on the Hugging Face Hub.

        Args:
          pretrained_model_name_or_path: a folder with config.json, and weights of Flax, diffusion_flax_model.msgpack,
            or of PyTorch, diffusion_pytorch_model.safetensors or .bin. Where there is no such folder, owner/name on the
            hub, with "hf:" before it or not, which needs huggingface_hub.
          dtype: of the computation.
          from_pt: True for PyTorch's weights; otherwise Flax's where there are some, and PyTorch's where not.
          subfolder: of it, such as "vae" of a pipeline's.
          revision: a branch, tag or commit on the hub.

        Raises:
          FileNotFoundError: no such folder or repository, no config.json, or no weights.
          ValueError: another class, such as VQModel; settings that are not known here; damaged weights, or some that
            are not finite; a revision of a folder; any other argument, which the error names.
          ImportError: huggingface_hub is needed and not installed.
        """
        for name, value in others.items():
            raise _refused(name, value)
        place = _place(pretrained_model_name_or_path, from_pt, subfolder, revision)
        if not (place / "config.json").is_file():
            hint = ": give subfolder='vae'" if (place / "vae" / "config.json").is_file() else ""
            raise FileNotFoundError(f"no config.json of an autoencoder in {place}{hint}")
        settings = read_json(place / "config.json")
        if settings.get("_class_name") not in CLASSES:
            raise ValueError(f"{place} must hold an {' or a '.join(CLASSES)}, got {settings.get('_class_name')!r}")
        form: Form | None = "pytorch" if from_pt else "flax" if (place / flax_weights.NAME).is_file() else None
        params = load_first_stage(place, form).params
        return cls(**{name: settings[name] for name in SETTINGS if name in settings}, dtype=dtype), params


# Those of config.json.
SETTINGS = tuple(name for name in FlaxAutoencoderKL.__dataclass_fields__ if name not in ("dtype", "parent", "name"))


def _checked_dtype(dtype: Dtype) -> Dtype:
    try:
        found = jnp.dtype(dtype)
    except TypeError as error:
        raise ValueError(f"dtype must be one of {', '.join(DTYPES)}, got {dtype!r}") from error
    if found.name not in DTYPES:
        raise ValueError(f"dtype must be one of {', '.join(DTYPES)}, got {dtype!r}")
    return found


def _check_deterministic(deterministic: bool) -> None:
    if deterministic is not True:
        raise ValueError(f"deterministic must be True, for there is no dropout, got {deterministic!r}")


def _refused(name: str, value: Any) -> ValueError:
    """The error for an argument of from_pretrained that has no effect here."""
    said = f"{name}={value!r} is no argument of from_pretrained here"
    if name in INSTEAD:
        return ValueError(f"{said}; in its place: {INSTEAD[name]}")
    if name in SETTINGS:
        return ValueError(f"{said}: settings are those of config.json; vae.clone({name}=...) is another autoencoder")
    return ValueError(f"{said}: {unknown('argument', name, ('dtype', 'from_pt', 'revision', 'subfolder', *INSTEAD))}")


def _place(path: str | os.PathLike[str], from_pt: bool, subfolder: str | None, revision: str | None) -> Path:
    """The folder of the autoencoder, fetched from the hub where it is none.

    Raises:
      FileNotFoundError, ValueError, ImportError: as from_pretrained.
    """
    place = Path(path)
    if place.is_dir():
        if revision is not None:
            raise ValueError(f"revision is of a name on the hub, and {place} is a folder, got {revision!r}")
    elif isinstance(path, str) and path.removeprefix("hf:").partition("@")[0].count("/") == 1 and path[0] not in "/.":
        name = path.removeprefix("hf:") + (f"@{revision}" if revision is not None else "")
        torch, flax = hub.OF_PROJECT["pytorch"], hub.OF_PROJECT["flax"]
        forms = torch if from_pt else (*flax, *torch)
        place = hub.fetch(name, (f"{subfolder}/" if subfolder else "",), forms)
    else:
        raise FileNotFoundError(f"no folder {place}, and no owner/name on the hub")
    return place / subfolder if subfolder else place
