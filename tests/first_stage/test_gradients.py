"""Which term moves which part: the truth table of stage one."""

from functools import partial
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ddpm_jax import first_stage
from ddpm_jax.models.autoencoder import AutoencoderKL
from ddpm_jax.models.discriminator import PatchDiscriminator
from ddpm_jax.models.quantizers import FSQModel
from ddpm_jax.models.vq import VQModel
from tests.first_stage.small import moved
from tests.first_stage.small import small_halves as small_halves

SIZE = {"channels": 4, "channel_multipliers": (1, 1), "num_res_blocks": 1, "num_groups": 2, "out_channels": 2}
RNG = np.random.RandomState(0)
X = jnp.asarray(RNG.uniform(-1, 1, (2, 8, 8, 2)), jnp.float32)
EPS = jnp.asarray(RNG.randn(2, 4, 4, 2), jnp.float32)
PROBE = jnp.asarray(RNG.randn(3, 3, 2, 5), jnp.float32)
KINDS = {
    "kl": (AutoencoderKL, {}, partial(first_stage.of_kl, eps=EPS)),
    "vq": (VQModel, {"num_codes": 6}, partial(first_stage.of_codebook, commitment=0.25)),
    "averages": (VQModel, {"num_codes": 6}, partial(first_stage.of_codebook, commitment=0.25, learned=False)),
    "fsq": (FSQModel, {"levels": (4, 3)}, first_stage.of_levels),
}
PARTS = {"encoder": ("encoder", "quant_conv"), "decoder": ("decoder", "post_quant_conv"), "quantizer": ("codebook",)}
ENCODER_AND_DECODER, DISCRIMINATOR = {"encoder", "decoder"}, {"discriminator"}
TABLE = {
    "reconstruction": dict.fromkeys(KINDS, ENCODER_AND_DECODER),
    "perceptual": dict.fromkeys(KINDS, ENCODER_AND_DECODER),
    "penalty": {"kl": {"encoder"}, "vq": {"encoder", "quantizer"}, "averages": {"encoder"}, "fsq": set()},
    "generator": dict.fromkeys(KINDS, ENCODER_AND_DECODER),
    "discriminator": dict.fromkeys(KINDS, DISCRIMINATOR),
}
"""What each term moves; all else has a gradient of exactly 0."""


def perceptual(x, y):
    """A distance of features [B]: of one fixed convolution and a ReLU."""
    look = lambda x: jax.nn.relu(
        jax.lax.conv_general_dilated(x, PROBE, (1, 1), "SAME", dimension_numbers=("NHWC", "HWIO", "NHWC"))
    )
    return jnp.mean((look(x) - look(y)) ** 2, axis=(1, 2, 3))


@pytest.fixture(scope="module", params=KINDS)
def kind(request, small_halves):
    """A network none of whose parameters is as it starts, its discriminator, and its forward pass."""
    make, options, forward = KINDS[request.param]
    model = make(**SIZE, **options, latent_channels=2, z_channels=2)
    judge = PatchDiscriminator(channels=4, num_layers=1)
    params = {
        "autoencoder": moved(model.init(jax.random.key(0), X)["params"]),
        "discriminator": moved(judge.init(jax.random.key(1), X)["params"]),
    }
    return SimpleNamespace(name=request.param, params=params, judge=judge, forward=partial(forward, model))


def terms(kind, params):
    """The five terms, each as a step computes it, of parameters all of which could move."""
    (decoded, penalty), _ = kind.forward(params["autoencoder"], X)
    logits = lambda params, x: kind.judge.apply({"params": params}, x)
    constant = jax.lax.stop_gradient
    return {
        "reconstruction": first_stage.reconstruction(X, decoded).nll,
        "perceptual": jnp.mean(perceptual(X, decoded)),
        "penalty": penalty,
        "generator": first_stage.to_fool(logits(constant(params["discriminator"]), decoded)),
        "discriminator": first_stage.hinge(
            logits(params["discriminator"], X), logits(params["discriminator"], constant(decoded))
        ),
    }


def test_truth_table(kind):
    found = jax.jit(jax.jacrev(partial(terms, kind)))(kind.params)
    for term, grads in found.items():
        own = grads["autoencoder"]
        sizes = {part: size(tuple(own[name] for name in names if name in own)) for part, names in PARTS.items()}
        sizes["discriminator"] = size(grads["discriminator"])
        assert {part for part, value in sizes.items() if value > 0} == TABLE[term][kind.name], (term, sizes)


def test_two_gradients_of_a_step_are_those_of_its_terms(kind):
    """Reconstruction, perceptual distance and penalty with their weights; what fools the discriminator alone."""
    apart = jax.jit(jax.jacrev(partial(terms, kind)))(kind.params)
    reconstruct = lambda decoded: first_stage.reconstruction(X, decoded, perceptual(X, decoded), perceptual_weight=0.7)
    fool = lambda decoded: first_stage.to_fool(kind.judge.apply({"params": kind.params["discriminator"]}, decoded))

    @jax.jit
    def step(params):
        forward = lambda params: kind.forward(params, X)
        return first_stage.autoencoder_gradients(
            forward, params, reconstruct=reconstruct, penalty_weight=0.3, fool=fool
        )

    gradients, found = step(kind.params["autoencoder"])
    weights = {"reconstruction": 1.0, "perceptual": 0.7, "penalty": 0.3}
    expected = jax.tree.map(
        lambda *leaves: sum(w * leaf for w, leaf in zip(weights.values(), leaves, strict=True)),
        *(apart[term]["autoencoder"] for term in weights),
    )
    close(gradients.autoencoder, expected)
    close(gradients.generator, apart["generator"]["autoencoder"])
    total = first_stage.combined(gradients, 2.5)
    close(total, jax.tree.map(lambda a, b: a + 2.5 * b, expected, apart["generator"]["autoencoder"]))
    last = lambda tree: np.linalg.norm(tree["decoder"]["conv_out"]["kernel"])
    ratio = last(gradients.autoencoder) / (last(gradients.generator) + 1e-4)
    assert float(first_stage.weight_of(gradients)) == pytest.approx(ratio, rel=1e-5)
    assert found.decoded.shape == X.shape


def size(tree) -> float:
    return sum(float(jnp.abs(leaf).sum()) for leaf in jax.tree.leaves(tree))


def close(tree, expected):
    largest = max(float(jnp.abs(leaf).max()) for leaf in jax.tree.leaves(expected))
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=2e-6 * largest), tree, expected)
