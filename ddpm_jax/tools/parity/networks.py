"""Every class of network that diffusers has and this package reads, tiny, with random weights, beside ours."""

from collections.abc import Callable, Iterator, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.flatten_util import ravel_pytree

from ddpm_jax.interop import autoencoder, diffusers, dit
from ddpm_jax.interop.diffusers import conditional
from ddpm_jax.tools.parity import configs
from ddpm_jax.tools.parity.results import Result, compared, not_compared, relative, without_steps
from ddpm_jax.tools.parity.search import explained
from ddpm_jax.tools.parity.theirs import Libraries, nchw, nhwc

GROUP = "networks"
TOLERANCE = 1e-4  # float32 on both sides

LEVELS = {"block_out_channels": (8, 16), "layers_per_block": 1, "norm_num_groups": 4}
PLAIN = LEVELS | {
    "sample_size": 8, "down_block_types": ("DownBlock2D", "AttnDownBlock2D"),
    "up_block_types": ("AttnUpBlock2D", "UpBlock2D"), "attention_head_dim": 8,
}  # fmt: skip
CONDITIONAL = LEVELS | {
    "sample_size": 8, "down_block_types": ("CrossAttnDownBlock2D", "DownBlock2D"),
    "up_block_types": ("UpBlock2D", "CrossAttnUpBlock2D"), "cross_attention_dim": 6,
}  # fmt: skip
STAGE = LEVELS | {
    "down_block_types": ("DownEncoderBlock2D", "DownEncoderBlock2D"),
    "up_block_types": ("UpDecoderBlock2D", "UpDecoderBlock2D"), "latent_channels": 3,
}  # fmt: skip

# Name: (class of diffusers, its settings).
NETWORKS: dict[str, tuple[str, dict[str, Any]]] = {
    "ddpm": (
        "UNet2DModel",
        PLAIN | {"attention_head_dim": None, "downsample_padding": 0, "flip_sin_to_cos": False, "freq_shift": 1},
    ),
    "adm": (
        "UNet2DModel",
        PLAIN
        | {"resnet_time_scale_shift": "scale_shift", "attn_norm_num_groups": 4, "num_class_embeds": 5}
        | {"downsample_type": "resnet", "upsample_type": "resnet", "out_channels": 6},
    ),
    "stable_diffusion_1": ("UNet2DConditionModel", CONDITIONAL | {"attention_head_dim": 2}),
    "stable_diffusion_2": (
        "UNet2DConditionModel",
        CONDITIONAL | {"attention_head_dim": (2, 4), "use_linear_projection": True},
    ),
    "dit": (
        "DiTTransformer2DModel",
        {"num_attention_heads": 2, "attention_head_dim": 8, "num_layers": 2, "sample_size": 8, "out_channels": 8},
    ),
    "kl": ("AutoencoderKL", STAGE | {"latent_channels": 4}),
    "vq": ("VQModel", STAGE | {"num_vq_embeddings": 7, "vq_embed_dim": 2}),
}
ELSEWHERE = {
    "U-ViT, and networks of OpenAI, DiT, GLIDE, DDIM and latent-diffusion": "in no installed package; against recorded "
    "outputs and gradients in tests/interop",
}
# Class of diffusers: (from_config, to parameters, back).
OURS = {
    "UNet2DModel": (diffusers.unet_from_config, diffusers.unet2d_to_params, diffusers.params_to_unet2d),
    "UNet2DConditionModel": (
        conditional.unet_from_config, conditional.unet2dcond_to_params, conditional.params_to_unet2dcond,
    ),
    "DiTTransformer2DModel": (
        dit.transformer2d_from_config, dit.transformer2d_to_params, dit.params_to_transformer2d,
    ),
    "AutoencoderKL": (autoencoder.kl_from_config, autoencoder.kl_to_params, autoencoder.params_to_kl),
    "VQModel": (autoencoder.vq_from_config, autoencoder.vq_to_params, autoencoder.params_to_vq),
}  # fmt: skip


def network(libraries: Libraries, name: str, seed: int = 0, **changes: Any) -> Any:
    """A network of NETWORKS in eval mode; no parameter is left as it starts, neither 0 nor 1."""
    torch = libraries.torch
    class_name, options = NETWORKS[name]
    torch.manual_seed(seed)
    net = getattr(libraries.diffusers, class_name)(**options | changes).eval()
    with torch.no_grad():
        for parameter in net.parameters():
            parameter += 0.1 * torch.randn(parameter.shape)
    return net


def weights(net: Any) -> dict[str, np.ndarray]:
    """The state dict of a network of PyTorch."""
    return {name: tensor.numpy() for name, tensor in net.state_dict().items()}


def compare(libraries: Libraries) -> Iterator[Result]:
    """Outputs and gradients of every network."""
    with jax.default_matmul_precision("highest"):
        for name, (class_name, _) in NETWORKS.items():
            if class_name in ("AutoencoderKL", "VQModel"):
                yield from _first_stage(libraries, name)
            else:
                yield from _denoiser(libraries, name)
    for name, reason in ELSEWHERE.items():
        yield not_compared(GROUP, name, "", reason)


def conditioning(name: str, net: Any, batch: int) -> dict[str, np.ndarray]:
    """Labels or context of a network beside image and time."""
    if getattr(net.config, "num_class_embeds", None) or name == "dit":
        return {"y": np.arange(batch) % 4 + 1}
    if getattr(net.config, "cross_attention_dim", None):
        shape = (batch, 3, net.config.cross_attention_dim)
        return {"context": np.random.default_rng(1).standard_normal(shape).astype(np.float32)}
    return {}


def their_output(libraries: Libraries, net: Any, x: Any, t: np.ndarray, given: Mapping[str, np.ndarray]) -> Any:
    """The tensor that a network of diffusers returns for the tensor x and times t."""
    names = {"y": "class_labels", "context": "encoder_hidden_states"}
    options = {names[key]: libraries.torch.from_numpy(value) for key, value in given.items()}
    return net(x, timestep=libraries.torch.from_numpy(t), **options).sample


def _denoiser(libraries: Libraries, name: str) -> Iterator[Result]:
    net = network(libraries, name)
    yield from compare_denoiser(libraries, name, net, dict(net.config))


def compare_denoiser(libraries: Libraries, name: str, net: Any, config: configs.Config) -> Iterator[Result]:
    """Output and gradients of a network of diffusers beside ours with its weights and this config."""
    generator = np.random.default_rng(0)
    x = generator.standard_normal((2, 8, 8, net.config.in_channels)).astype(np.float32)
    t, given = np.array([3.0, 770.0], np.float32), conditioning(name, net, 2)
    x_theirs = nchw(libraries.torch, x).requires_grad_(True)
    output = their_output(libraries, net, x_theirs, t, given)
    cotangent = generator.standard_normal((2, 8, 8, output.shape[1])).astype(np.float32)
    net.zero_grad()
    (output * nchw(libraries.torch, cotangent)).mean().backward()
    expected = {key: parameter.grad.numpy() for key, parameter in net.named_parameters() if parameter.grad is not None}
    class_name, found = type(net).__name__, {}

    def errors(config: configs.Config) -> tuple[float, ...]:
        if (key := repr(config)) not in found:
            slopes, slope, ours = ours_of(class_name, weights(net), config, x, t, given, cotangent)
            like = to_params_like(OURS[class_name][1], net, expected, config)
            # All gradients as one vector: a key's bias has a gradient of 0 and rounding, which alone says nothing.
            flat = [np.asarray(ravel_pytree(each)[0]) for each in (slopes, like)]
            found[key] = relative(ours, nhwc(output)), relative(slope, nhwc(x_theirs.grad)), relative(*flat)
        return found[key]

    against = f"{class_name}, {sum(p.numel() for p in net.parameters()):,} parameters"
    for index, what in enumerate(("output", "gradient of the input", "gradient of the parameters")):
        difference = lambda config, index=index: errors(config)[index]
        result = compared(GROUP, f"{name}: {what}", against, without_steps(difference(config), TOLERANCE), TOLERANCE)
        yield explained(result, config, configs.CONVENTIONS, difference)


def ours_of(
    class_name: str,
    arrays: Mapping[str, np.ndarray],
    config: configs.Config,
    x: np.ndarray,
    t: np.ndarray,
    given: Mapping[str, np.ndarray],
    cotangent: np.ndarray,
) -> tuple[Any, np.ndarray, np.ndarray]:
    """Gradients of mean(cotangent * output) with respect to parameters and x, and the output.

    Raises:
      ValueError: a config that our network has not, or that the arrays do not fit.
    """
    from_config, to_params, _ = OURS[class_name]
    model, params = from_config(config), to_params(arrays, config)
    ours_given = {key: jnp.asarray(v, jnp.int32 if key == "y" else jnp.float32) for key, v in given.items()}

    def loss(params: Any, x: jax.Array) -> tuple[jax.Array, jax.Array]:
        found = model.apply({"params": params}, x, jnp.asarray(t), **ours_given)
        assert isinstance(found, jax.Array)
        return jnp.mean(found * cotangent), found

    (_, found), (slopes, slope) = jax.jit(jax.value_and_grad(loss, (0, 1), has_aux=True))(params, x)
    return slopes, np.asarray(slope), np.asarray(found)


def to_params_like(to_params: Callable[..., Any], net: Any, gradients: Mapping[str, np.ndarray], config: Any) -> Any:
    """Gradients by their names in diffusers as a tree like our parameters; 0 where there is none."""
    state = {key: np.zeros_like(array) for key, array in weights(net).items()}
    constant = {key: array for key, array in weights(net).items() if key.startswith("pos_embed.pos")}
    return to_params({**state, **constant, **gradients}, config)


def _first_stage(libraries: Libraries, name: str) -> Iterator[Result]:
    net = network(libraries, name)
    from_config, to_params, _ = OURS[NETWORKS[name][0]]
    model, params = from_config(dict(net.config)), to_params(weights(net), dict(net.config))
    x = np.random.default_rng(0).standard_normal((2, 8, 8, 3)).astype(np.float32)
    with libraries.torch.no_grad():
        encoded = net.encode(nchw(libraries.torch, x))
        latents = encoded.latent_dist.mean if name == "kl" else encoded.latents
        decoded = net.decode(latents).sample

    @jax.jit
    def both(params: Any, x: jax.Array) -> tuple[Any, Any]:
        z = model.apply({"params": params}, x, method="encode")
        z = z.mean if name == "kl" else z  # pyright: ignore[reportAttributeAccessIssue]
        return z, model.apply({"params": params}, z, method="decode")

    z, images = both(params, x)
    against = f"{NETWORKS[name][0]}, {sum(p.numel() for p in net.parameters()):,} parameters"
    yield _line(f"{name}: encode", against, [(z, nhwc(latents))])
    yield _line(f"{name}: encode, then decode", against, [(images, nhwc(decoded))])


def _line(item: str, against: str, pairs: list[tuple[Any, Any]]) -> Result:
    difference = max(relative(np.asarray(ours), np.asarray(theirs)) for ours, theirs in pairs)
    found = without_steps(difference, TOLERANCE)
    return compared(GROUP, item, against, found, TOLERANCE)
