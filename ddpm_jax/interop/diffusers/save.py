"""A folder that diffusers loads, and `load` too.

    model_index.json                               the pipeline and the class of every part
    unet/ or transformer/, vqvae/ or vae/          config.json, diffusion_pytorch_model.safetensors
    scheduler/scheduler_config.json
    text_encoder/ or bert/, tokenizer/             of networks with a text encoder: see texts.py
    ddpm_jax.json                                  of networks with classes, for `load`: see classes.py

Facts about diffusers 0.42.1 only: no code of it.
"""

import json
import tempfile
from collections.abc import Mapping
from math import inf
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from ddpm_jax.host.storage import make_directory
from ddpm_jax.interop import autoencoder, diffusers, dit
from ddpm_jax.interop.diffusers import classes, conditional, texts, to_diffusers
from ddpm_jax.models.autoencoder import AutoencoderKL
from ddpm_jax.models.dit import DiT
from ddpm_jax.models.skip_unet import SkipUNet
from ddpm_jax.models.unet import UNet
from ddpm_jax.models.vq import VQModel
from ddpm_jax.samplers.configs import float32
from ddpm_jax.samplers.configs.common import PREDICTIONS
from ddpm_jax.schedules import Schedule
from ddpm_jax.trained import FirstStage, Trained

VERSION = "0.42.1"
WEIGHTS = "diffusion_pytorch_model.safetensors"


class Part(NamedTuple):
    """A folder inside the folder; weights are None for a scheduler."""

    class_name: str
    config: Mapping[str, Any]
    weights: Mapping[str, np.ndarray] | None


# (class of the network, class of the first stage): (pipeline of diffusers, name of the network, of the first stage).
# A scheduler of DDIM makes a DDIMPipeline of the first.
PIPELINES = {
    ("UNet2DModel", None): ("DDPMPipeline", "unet", ""),
    ("UNet2DModel", "VQModel"): ("LDMPipeline", "unet", "vqvae"),
    ("UNet2DModel", "AutoencoderKL"): ("LDMPipeline", "unet", "vqvae"),
    ("UNet2DConditionModel", "AutoencoderKL"): ("StableDiffusionPipeline", "unet", "vae"),
    ("DiTTransformer2DModel", "AutoencoderKL"): ("DiTPipeline", "transformer", "vae"),
}
# The same of networks with a text encoder, by the name of its part.
WITH_TEXT = {
    "text_encoder": PIPELINES,
    "bert": {
        ("UNet2DConditionModel", "AutoencoderKL"): ("LDMTextToImagePipeline", "unet", "vqvae"),
        ("UNet2DConditionModel", "VQModel"): ("LDMTextToImagePipeline", "unet", "vqvae"),
    },
}
# What a pipeline needs beside a network, a first stage and a scheduler: absent, so that prompts are given as
# embeddings; and what else its model_index.json says.
ABSENT: dict[str, tuple[str, ...]] = dict.fromkeys(
    ("StableDiffusionPipeline", "StableDiffusionInpaintPipeline"),
    ("feature_extractor", "image_encoder", "safety_checker", "text_encoder", "tokenizer"),
)
SETTINGS = {name: {"requires_safety_checker": False} for name in ABSENT}
PAINTED = 4
"""Channels of latents in StableDiffusionInpaintPipeline, which takes networks of 4 or 9 only."""
# Predictions that only networks of ours have, as the settings of a run by which they come about.
OURS_ONLY = {"edm": "loss 'edm'", "x_prev": "prediction 'x_prev'"}


def save_diffusers(path: str | Path, trained: Trained) -> None:
    """The folder from which diffusers, and `load`, make the same network with the same sampler.

    Written whole or not at all. The sampler is its scheduler_config; without one it is DDPM's on this schedule. Of a
    network steered by text whose encoder is not known here the pipeline takes prompts as embeddings. A network with
    classes but no first stage is a DDPMPipeline that asks for labels: call its unet with class_labels.

    Args:
      path: a new or empty directory.

    Raises:
      FileExistsError: there is something.
      ValueError: lists what diffusers cannot express.
    """
    path = Path(path).absolute()
    if path.exists() and not (path.is_dir() and not any(path.iterdir())):
        raise FileExistsError(f"{path} exists and is not empty; nothing was written")
    folders, index = parts(trained)
    make_directory(path.parent)
    with tempfile.TemporaryDirectory(prefix=f".{path.name}.partial", dir=path.parent) as partial:
        whole = Path(partial) / path.name
        whole.mkdir()
        for name, part in folders.items():
            _write(whole / name, part)
        if trained.text is not None:
            texts.write(whole, trained.text)
        _write_json(whole / "model_index.json", index)
        if (said := classes.said(trained)) is not None:
            _write_json(whole / classes.FILE, said)
        whole.replace(path)


def parts(trained: Trained) -> tuple[dict[str, Part], dict[str, Any]]:
    """What save_diffusers writes: the folders by name, and model_index.json.

    Raises:
      ValueError: lists what diffusers cannot express.
    """
    if trained.prediction in OURS_ONLY:
        name = OURS_ONLY[trained.prediction]
        raise ValueError(f"other projects have no networks of objective.{name}; sample it as a run")
    network, scheduler = _network(trained), _scheduler(trained)
    first_stage = None if trained.first_stage is None else _first_stage(trained.first_stage, trained.image_shape)
    kinds = network.class_name, first_stage and first_stage.class_name
    pipelines = PIPELINES if trained.text is None else WITH_TEXT[texts.written_as(trained.text)[0]]
    if kinds not in pipelines:
        alone = "without a first stage" if kinds[1] is None else f"with a {kinds[1]}"
        raise ValueError(f"diffusers has no pipeline for a {kinds[0]} {alone}")
    pipeline, network_name, first_stage_name = pipelines[kinds]
    if pipeline == "DDPMPipeline" and scheduler.class_name == "DDIMScheduler":
        pipeline = "DDIMPipeline"
    if network.config["in_channels"] != trained.image_shape[-1]:
        if pipeline != "StableDiffusionPipeline":
            raise ValueError(f"diffusers has no {pipeline} of {network.config['in_channels']} channels")
        pipeline = "StableDiffusionInpaintPipeline"
    folders = {network_name: network, "scheduler": scheduler}
    folders |= {first_stage_name: first_stage} if first_stage else {}
    index: dict[str, Any] = {"_class_name": pipeline, "_diffusers_version": VERSION} | SETTINGS.get(pipeline, {})
    index |= {name: [None, None] for name in ABSENT.get(pipeline, ())}
    index |= {} if trained.text is None else texts.index_of(trained.text)
    return folders, index | {name: ["diffusers", part.class_name] for name, part in folders.items()}


def _network(trained: Trained) -> Part:
    model, shape = trained.model, trained.image_shape
    if type(model) is DiT and model.num_classes is None:
        raise ValueError("diffusers has no DiT without classes: every DiTTransformer2DModel embeds a label")
    if type(model) is DiT:
        config = to_diffusers.dit_to_config(model, shape)
        return Part("DiTTransformer2DModel", config, dit.params_to_transformer2d(trained.params, config))
    if not isinstance(model, UNet) or type(model) not in (UNet, SkipUNet):
        raise ValueError(f"diffusers has no class for a {type(model).__name__}: a UNet or a DiT can be written")
    in_channels = shape[-1] + trained.channels_beside
    if in_channels != shape[-1] and not (trained.paints_latents and shape[-1] == PAINTED):
        raise ValueError(f"diffusers has no pipeline for a network of {in_channels} channels on {shape[-1]} of images")
    if not model.transformer_depth:
        config = to_diffusers.unet_to_config(model, shape)
        return Part("UNet2DModel", config, diffusers.params_to_unet2d(trained.params, config))
    context_dim = trained.params["mid_attention"]["block_0"]["cross_attention"]["key"]["kernel"].shape[0]
    # Dense or 1x1 convolution is no setting of ours: as it came, in the words of diffusers or of latent-diffusion.
    linear = trained.config.get("use_linear_projection", trained.config.get("use_linear_in_transformer", False))
    config = to_diffusers.conditional_unet_to_config(model, shape, context_dim, linear=linear)
    config["in_channels"] = in_channels
    return Part("UNet2DConditionModel", config, conditional.params_to_unet2dcond(trained.params, config))


def _first_stage(first_stage: FirstStage, latent_shape: tuple[int, int, int]) -> Part:
    model = first_stage.model
    if not isinstance(first_stage.scale, float | int) or first_stage.shift != 0:
        raise ValueError("diffusers scales latents by one number, and this first stage has one for each channel")
    if not isinstance(model, AutoencoderKL | VQModel):
        raise ValueError(f"diffusers has no first stage of class {type(model).__name__}")
    factor = 2 ** (len(model.channel_multipliers) - 1)
    shape = (latent_shape[0] * factor, latent_shape[1] * factor, model.out_channels)
    if isinstance(model, VQModel):
        config = to_diffusers.vq_to_config(model, shape, first_stage.scale)
        return Part("VQModel", config, autoencoder.params_to_vq(first_stage.params, config))
    config = to_diffusers.kl_to_config(model, shape, first_stage.scale)
    return Part("AutoencoderKL", config, autoencoder.params_to_kl(first_stage.params, config))


# -------------------------------------------------------------------------------------------------------- scheduler


def _scheduler(trained: Trained) -> Part:
    reading, schedule = trained.reading, trained.schedule
    predictions = {ours: theirs for theirs, ours in PREDICTIONS.items()}
    problems = []
    if reading.time_scale != 1:
        problems.append(f"time_scale={reading.time_scale!r}")
    if trained.scheduler_config is not None and not problems:
        config = {
            name: value
            for name, value in trained.scheduler_config.items()
            if name != "_class_name" and value not in (inf, -inf)  # no JSON; where it is allowed it is the default
        }
        return Part(trained.scheduler_config["_class_name"], config, None)
    if reading.prediction not in predictions:
        problems.append(f"prediction={reading.prediction!r}")
    if reading.variance == "learned":  # the logarithm, where "learned" there is the variance itself
        problems.append(f"variance={reading.variance!r}")
    if not np.array_equal(schedule.timesteps, np.arange(schedule.num_timesteps)):
        problems.append("timesteps of the schedule that are not 0, 1, 2, ...")
    if problems:
        raise ValueError("DDPMScheduler of diffusers cannot express " + ", ".join(problems))
    ratio, most = reading.threshold or (0.995, 1.0)
    config = _betas(schedule) | {
        "clip_sample": reading.clip is not None,
        "clip_sample_range": 1.0 if reading.clip is None else reading.clip,
        "num_train_timesteps": schedule.num_timesteps,
        "prediction_type": predictions[reading.prediction],
        "rescale_betas_zero_snr": False,
        "steps_offset": 0,
        "thresholding": reading.threshold is not None,
        "dynamic_thresholding_ratio": ratio,
        "sample_max_value": most,
        # DDIM there goes from t to t - T // N, whatever the spacing: with this one that is the next t.
        "timestep_spacing": "leading",
        "variance_type": "learned" if reading.variance == "learned_variance" else reading.variance,
    }
    return Part("DDPMScheduler", config, None)


def _betas(schedule: Schedule) -> dict[str, Any]:
    """The betas by name where they are those of that name to 1e-6, and one by one otherwise.

    diffusers makes float32 tables of either, in which 1 - alphas_cumprod is off by 1e-4 at the first timesteps.
    """
    betas = schedule.betas_float64
    start, end = (float(f"{beta:.12g}") for beta in betas[[0, -1]])  # 0.02 again where it was squared
    for name in ("linear", "scaled_linear", "squaredcos_cap_v2"):
        if np.allclose(float32.BETAS[name](len(betas), start, end), betas, rtol=1e-6, atol=0):
            ends = {} if name == "squaredcos_cap_v2" else {"beta_start": start, "beta_end": end}
            return {"beta_schedule": name, "trained_betas": None, **ends}
    return {"beta_schedule": "linear", "trained_betas": betas.tolist()}


# ------------------------------------------------------------------------------------------------------------ files


def _write(folder: Path, part: Part) -> None:
    folder.mkdir()
    config = {"_class_name": part.class_name, "_diffusers_version": VERSION, **part.config}
    if part.weights is None:
        _write_json(folder / "scheduler_config.json", config)
        return
    _write_json(folder / "config.json", config)
    from safetensors.numpy import save_file  # here, so that name maps work where it is not installed

    save_file(dict(part.weights), folder / WEIGHTS, metadata={"format": "pt"})


def _write_json(path: Path, content: Mapping[str, Any]) -> None:
    path.write_text(json.dumps(content, indent=2) + "\n")
