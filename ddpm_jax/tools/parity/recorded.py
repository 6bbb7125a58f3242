"""Networks that no installed package has, beside their recorded outputs: weights and inputs are in the recordings."""

from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from safetensors.numpy import load_file

from ddpm_jax.interop import autoencoder, clip, ddim, diffusers, dit, glide, ldm, openai
from ddpm_jax.interop.diffusers import conditional
from ddpm_jax.tools.parity import configs
from ddpm_jax.tools.parity.results import Result, compared, not_compared, relative, without_steps
from ddpm_jax.tools.parity.search import explained
from ddpm_jax.tools.parity.tables import load

GROUP = "networks"
TOLERANCE = 1e-4
Arrays = Mapping[str, np.ndarray]


class Recorded(NamedTuple):
    """How a recorded network is read and called.

    Attributes:
      family: (from_config, to_params) of an interop module.
      output: the recorded array that ours must be.
      call: (model, params, arrays) -> ours.
      changes: to the recorded settings.
      beside: another recording that has the rest of the weights.
    """

    family: tuple[Callable[..., Any], Callable[..., Any]]
    output: str = "out.sample"
    call: Callable[[Any, Any, Arrays], Any] | None = None
    changes: Mapping[str, Any] = {}
    beside: str | None = None


def nhwc(array: np.ndarray) -> jax.Array:
    """Images with channels last; anything else as it is."""
    return jnp.asarray(array.transpose(0, 2, 3, 1) if array.ndim == 4 else array)


def denoise(model: Any, params: Any, arrays: Arrays) -> Any:
    """The network at in.x and in.t, with all else that was put in."""
    given: dict[str, Any] = {}
    if "in.y" in arrays:
        labels = getattr(model, "num_classes", True)
        given["y"] = jnp.asarray(arrays["in.y"], jnp.int32 if labels else jnp.float32)
    if "in.low_res" in arrays:
        given["low_res"] = nhwc(arrays["in.low_res"])
    if "in.ctx" in arrays:
        given["context"] = jnp.asarray(arrays["in.ctx"])
    if "in.tokens" in arrays:
        given |= {"tokens": jnp.asarray(arrays["in.tokens"], jnp.int32), "mask": jnp.asarray(arrays["in.mask"])}
    return model.apply({"params": params}, nhwc(arrays["in.x"]), jnp.asarray(arrays["in.t"], jnp.float32), **given)


def _plain(*inputs: str, **options: Any) -> Callable[[Any, Any, Arrays], Any]:
    return lambda model, params, arrays: model.apply(
        {"params": params}, *(nhwc(arrays[name]) for name in inputs), **options
    )


def _text(model: Any, params: Any, arrays: Arrays) -> Any:
    return model.apply({"params": params}, jnp.asarray(arrays["in.ids"], jnp.int32)).last_hidden


def _moments(model: Any, params: Any, arrays: Arrays) -> Any:
    return jnp.concatenate(model.apply({"params": params}, nhwc(arrays["in.x"]), method="encode"), axis=-1)


UNET = (openai.unet_from_config, openai.unet_to_params)
CLASSIFIER = (openai.classifier_from_config, openai.classifier_to_params)
UNET2D = (diffusers.unet_from_config, diffusers.unet2d_to_params)
UNET2DCOND = (conditional.unet_from_config, conditional.unet2dcond_to_params)
DIT = (dit.dit_from_config, dit.dit_to_params)
GLIDE = (glide.glide_from_config, glide.glide_to_params)
LDM_KL = (autoencoder.ldm_from_config, autoencoder.ldm_to_params)
NETWORKS: dict[str, Recorded] = {
    **{name: Recorded(UNET) for name in ("guided_unet_adm", "guided_unet_legacy", "improved_unet")},
    # A SuperResModel's first convolution sees twice the channels of its config.
    "guided_superres": Recorded(UNET, changes={"in_channels": 6}),
    **{
        f"guided_encoder_{pool}": Recorded(CLASSIFIER, "out.logits")
        for pool in ("adaptive", "attention", "spatial", "spatial_v2")
    },
    "ddim_model": Recorded((ddim.unet_from_config, ddim.ddim_to_params)),
    **{name: Recorded(DIT) for name in ("dit_learn_sigma", "dit_plain")},
    "dit_transformer2d": Recorded((dit.transformer2d_from_config, dit.transformer2d_to_params)),
    "glide_text2im": Recorded(GLIDE, changes={"in_channels": 3}),
    "glide_superres": Recorded(GLIDE, changes={"in_channels": 6}),
    "clip_text": Recorded((clip.clip_from_config, clip.clip_to_params), "out.last_hidden_state", _text),
    "ldm_unet_spatial_transformer": Recorded((ldm.unet_from_config, ldm.unet_to_params)),
    "ldm_kl_encoder": Recorded(LDM_KL, "out.moments", _moments, beside="ldm_kl_decoder"),
    "ldm_kl_decoder": Recorded(LDM_KL, "out.decoded", _plain("in.x", method="decode"), beside="ldm_kl_encoder"),
    **{name: Recorded(UNET2D) for name in ("unet2d_ddpm_pad0", "unet2d_pad1_class_scaleshift", "unet2d_resnet_updown")},
    **{name: Recorded(UNET2DCOND) for name in ("unet2dcond_sd1", "unet2dcond_sd2_linear_class")},
    "transformer2d": Recorded(
        (conditional.transformer2d_from_config, conditional.transformer2d_to_params), call=_plain("in.x", "in.ctx")
    ),
    "autoencoder_kl": Recorded(
        (autoencoder.kl_from_config, autoencoder.kl_to_params), "out.decoded", _plain("in.x", "in.noise")
    ),
    "vqmodel": Recorded((autoencoder.vq_from_config, autoencoder.vq_to_params), "out.decoded", _plain("in.x")),
}
# Networks of the package that no recording has.
ELSEWHERE = {"uvit": "in neither diffusers nor --golden; against a recorded output in tests/interop/test_uvit.py"}


def compare_networks(golden: Path | None) -> Iterator[Result]:
    """Our output beside the recorded one of every network."""
    for name, how in NETWORKS.items():
        if golden is None:
            yield not_compared(GROUP, f"recorded {name}", "", "recorded in PyTorch: needs --golden")
        else:
            yield compare_one(golden, name, how)
    for name, reason in ELSEWHERE.items():
        yield not_compared(GROUP, name, "", reason)


def compare_one(golden: Path, name: str, how: Recorded) -> Result:
    """One of them; of a difference, the settings that would be right."""
    arrays, meta = load(golden, f"networks/{name}")
    weights = load_file(golden / "networks" / f"{name}.safetensors")
    if how.beside is not None:
        weights |= load_file(golden / "networks" / f"{how.beside}.safetensors")
    from_config, to_params = how.family
    config = meta["config"] | dict(how.changes)

    def difference(config: configs.Config) -> float:
        model, params = from_config(config), to_params(weights, config)
        found = np.asarray(jax.jit(lambda params: (how.call or denoise)(model, params, arrays))(params))
        return relative(found, np.asarray(nhwc(arrays[how.output])))

    upstream = meta["upstream"] if isinstance(meta["upstream"], list) else [meta["upstream"]]
    against = ", ".join(
        str(each.get("repo", each.get("package", each))) if isinstance(each, dict) else str(each) for each in upstream
    )
    line = without_steps(difference(config), TOLERANCE)
    result = compared(GROUP, f"recorded {name}: {how.output.removeprefix('out.')}", against, line, TOLERANCE)
    return explained(result, config, configs.CONVENTIONS, difference)
