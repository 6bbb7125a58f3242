"""Checkpoints of other projects, recognized by what is in them.

`load` takes a folder of diffusers, of PyTorch or of Flax, or one file with weights of
  OpenAI's improved-diffusion or guided-diffusion      input_blocks.0.0.weight     load_openai
  CompVis/latent-diffusion and Stable Diffusion        model.diffusion_model.      load_ldm
  facebookresearch/DiT                                 x_embedder.proj.weight      dit
  ermongroup/ddim, pesser/pytorch_diffusion            temb.dense.0.weight         load_ddim
in whatever a training has put around them: see contents.
"""

from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import jax
import numpy as np

from ddpm_jax import schedules
from ddpm_jax.interop import contents, dit, files, hub, kinds, layers
from ddpm_jax.interop.ddim.load import load_ddim
from ddpm_jax.interop.diffusers.load import Form, load_folder
from ddpm_jax.interop.diffusers.load import load_first_stage as load_folder_first_stage
from ddpm_jax.interop.ldm.load import UNET, load_latent_diffusion
from ddpm_jax.interop.openai.load import load_classifier as load_openai_classifier
from ddpm_jax.interop.openai.load import load_unet
from ddpm_jax.names import choose, unknown
from ddpm_jax.noisy_classifier import NoisyClassifier
from ddpm_jax.reading import Reading
from ddpm_jax.samplers.catalogue import ANCESTRAL
from ddpm_jax.trained import FirstStage, Trained, check_finite


def load(path: str | Path, config: Mapping[str, Any] | None = None) -> Trained:
    """A network of another project, its parameters, and what sampling from it needs.

    Args:
      path: a folder of diffusers, of a pipeline or one model; a file of one of the projects above: safetensors, .npz or
        PyTorch's, which needs torch; or "hf:owner/name" or "hf:owner/name@revision", a folder on the Hugging Face Hub,
        which needs huggingface_hub. Files are told apart by what is in them. Nothing in them is executed. Where a file
        has an average of the weights beside them, the average is taken; `origin` says so, and what was left.
      config: what the file does not say, in the words of its project. Published networks need none: what is not in
        their weights is known, and a file that looks like one of them is taken for it unless there is a config.
          diffusers           {"scheduler": scheduler_config.json}, for a folder without one
          OpenAI              flags: num_heads or num_head_channels, image_size, diffusion_steps, noise_schedule, ...
          latent-diffusion    model.params of its YAML file
          DiT                 arguments of the class, for those that do not show
          ddim                the sections data, model and diffusion of its YAML file, merged

    Raises:
      FileNotFoundError: no such file, folder or repository; or a part of it is missing.
      ValueError: a file that is damaged, has more in it than arrays, or is none of these; weights that are not finite;
        settings that are missing, not known here, or contradict the weights. Names the file.
      ImportError: torch or huggingface_hub is needed and not installed.
    """
    place, given = _place(path), _given(path, config)
    if not place.exists():
        raise FileNotFoundError(f"no file or folder {place}")
    try:
        loaded = load_folder(place, given) if place.is_dir() else _load_file(files.read(place), given)
        for part in (loaded, loaded.first_stage, loaded.text):
            _require_float32({} if part is None else part.params)
        loaded.check_finite()
        return loaded
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from error


def load_classifier(path: str | Path, config: Mapping[str, Any] | None = None) -> NoisyClassifier:
    """A classifier of noisy images of OpenAI's guided-diffusion, such as 64x64_classifier.pt.

    Args:
      path: a file: safetensors, .npz or PyTorch's, which needs torch. Nothing in it is executed.
      config: what the file does not say: arguments of EncoderUNetModel, diffusion_steps and noise_schedule. The
        published ones need none.

    Raises:
      FileNotFoundError: no such file.
      ValueError: as load; or a network that is no such classifier.
      ImportError: as load.
    """
    place, given = Path(path), _given(path, config)
    if not place.is_file():
        raise FileNotFoundError(f"no file {place} with a classifier, and no run of one")
    try:
        weights, said = contents.network_weights(files.read(place))
        layers.check_repeated(given, weights)
        if not _is_classifier(weights):
            raise ValueError("weights of no classifier of OpenAI's guided-diffusion")
        found = load_openai_classifier(weights, given)
        _require_float32(found.params)
        found.check_finite()
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from error
    return replace(found, origin=f"{found.origin}; {said}") if said else found


def load_first_stage(path: str | Path, form: Form | None = None) -> FirstStage:
    """The autoencoder of a latent diffusion model.

    Args:
      path: a folder of diffusers, of a pipeline with one or of one; or "hf:owner/name", as of `load`.
      form: whose weights, "pytorch" or "flax"; by default PyTorch's where there are some, otherwise Flax's.

    Raises:
      FileNotFoundError, ValueError, ImportError: as `load`; or a folder without one.
    """
    place = _place(path, hub.WEIGHTS if form is None else choose("form", form, hub.OF_PROJECT))
    if not place.is_dir():
        raise FileNotFoundError(f"no folder {place} with an autoencoder, and no run of one")
    try:
        found = load_folder_first_stage(place, form)
        _require_float32(found.params)
        check_finite({"params": found.params})
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from error
    return found


def _place(path: str | Path, forms: hub.Forms = hub.WEIGHTS) -> Path:
    """A path, or the folder that a name on the hub is fetched to, with one of these forms of weights."""
    return hub.fetch(str(path).removeprefix("hf:"), forms=forms) if str(path).startswith("hf:") else Path(path)


def _given(path: str | Path, config: Mapping[str, Any] | None) -> Mapping[str, Any]:
    given = {} if config is None else config
    if not isinstance(given, Mapping):
        raise ValueError(f"{path}: config must be a mapping, got {type(given).__name__}")
    return given


def _load_file(found: Any, config: Mapping[str, Any]) -> Trained:
    weights, said = contents.network_weights(found, use_average=config.get("use_ema", True) is not False)
    layers.check_repeated(config, weights)
    for recognized, load_weights in FAMILIES:
        if recognized(weights):
            loaded = load_weights(weights, config)
            return replace(loaded, origin=f"{loaded.origin}; {said}") if said else loaded
    raise ValueError(
        "weights of no network known here (OpenAI's U-Nets, latent-diffusion, DiT, ddim; diffusers' are read as "
        f"folders with their config.json); the first of {len(weights)} names: {', '.join(list(weights)[:3])}"
    )


def _require_float32(params: Any) -> None:
    for path, leaf in jax.tree_util.tree_leaves_with_path(params):
        if leaf.dtype != np.float32:
            name = jax.tree_util.keystr(path, simple=True, separator="/")
            raise ValueError(f"weights must be float32, float16 or bfloat16, got {leaf.dtype} for {name}")


def _load_dit(weights: Mapping[str, np.ndarray], config: Mapping[str, Any]) -> Trained:
    """facebookresearch/DiT: of latents, trained on linear betas of T = 1000 with a learned variance (or none)."""
    for name in config:
        if name not in kinds.DIT:
            raise unknown("setting of DiT", name, kinds.DIT)
    kinds.check(config, kinds.DIT)
    settings = dit.dit_config(weights, config.get("num_heads")) | dict(config)
    variance = "learned_range" if settings["learn_sigma"] else "fixed_large"
    size = settings["input_size"]
    return Trained(
        origin="facebookresearch/DiT",
        config=settings,
        model=dit.dit_from_config(settings),
        params=dit.dit_to_params(weights, settings),
        schedule=schedules.linear_rescaled(1000),
        reading=Reading("eps", variance),
        image_shape=(size, size, settings["in_channels"]),
        sampler=ANCESTRAL[variance],
    )


def _load_openai(weights: Mapping[str, np.ndarray], config: Mapping[str, Any]) -> Trained:
    if _is_classifier(weights):
        raise ValueError(
            "a noisy classifier of OpenAI's, which is no diffusion model but guides one: use opening.classifier"
        )
    return load_unet(weights, config)


def _is_classifier(weights: Mapping[str, np.ndarray]) -> bool:
    """Whether weights are of a way down without a way up."""
    return contents.INPUT in weights and not any(name.startswith("output_blocks.") for name in weights)


Family = tuple[
    Callable[[Mapping[str, np.ndarray]], bool], Callable[[Mapping[str, np.ndarray], Mapping[str, Any]], Trained]
]
FAMILIES: tuple[Family, ...] = (
    (lambda weights: any(name.startswith(UNET) for name in weights), load_latent_diffusion),
    (lambda weights: "x_embedder.proj.weight" in weights, _load_dit),
    (lambda weights: "temb.dense.0.weight" in weights, load_ddim),
    (lambda weights: "input_blocks.0.0.weight" in weights, _load_openai),
)
