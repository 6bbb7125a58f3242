"""Whole steps of latent-diffusion's and taming's first stages: losses, adaptive weight, both sides' gradients."""

from functools import partial
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ddpm_jax import first_stage
from ddpm_jax.interop import autoencoder
from ddpm_jax.interop.features.lpips import lpips_to_params
from ddpm_jax.models.lpips import LPIPS
from tests.evaluate.test_lpips import weights_of
from tests.first_stage.golden import discriminator, discriminator_arrays, discriminator_variables, nhwc, recorded, under
from tests.helpers import relative


def case_of(shared_golden, name, number):
    """The network, the discriminator and what was computed."""
    arrays, meta, tensors = recorded(shared_golden, name)
    case = meta["cases"][number]
    config = {**meta["ddconfig"], "embed_dim": meta["embed_dim"]}
    if name == "loss_vq":
        config["n_embed"] = meta["n_embed"]
    own = {key: array for key, array in tensors.items() if not key.startswith("loss.")}
    judge = discriminator(case["n_layers"])
    variables = discriminator_variables(under(tensors, f"loss.discriminator_l{case['n_layers']}."))
    return SimpleNamespace(
        case=case, model=autoencoder.ldm_from_config(config), params=autoencoder.ldm_to_params(own, config),
        to_arrays=lambda tree: autoencoder.params_to_ldm(tree, config), x=nhwc(arrays["in.x"]), judge=judge,
        variables=variables, arrays=under(arrays, f"c{number}."), names=meta["ae_param_names"],
    )  # fmt: skip


CASES = [f"{name} {number}" for name in ("loss_kl", "loss_vq") for number in range(4)]
SEEDS = range(8)


def moved(tree, seed):
    """Every number times 1 - 6e-8, 1 or 1 + 6e-8: by its last digit at most."""
    rng = np.random.RandomState(seed)
    factors = lambda leaf: (1 + 6e-8 * rng.choice([-1, 0, 1], np.shape(leaf))).astype(np.float32)
    return jax.tree.map(lambda leaf: np.asarray(leaf) * factors(leaf), tree)


def nearest_gradients(gradients, arrays, at_a_kink):
    """The gradients, and how far they are from recorded ones, at a point of which ours and theirs may be on two sides.

    In loss_vq 0 and 1 a ReLU of LPIPS is within the last digit of 0: with all weights moved by that, the gradient jumps
    between two values 1.5e-5 to 4.5e-5 apart (5 of 8 times the one, 3 times the other), and the recorded one is within
    5e-6 of one of them. So there, and in 2, it must be that of a point within the last digit.
    """
    for seed in (None, *(SEEDS if at_a_kink else ())):
        ours = gradients(seed)
        off = max(relative(ours[key], array) for key, array in arrays.items())
        if off < 1e-5:
            break
    return ours, off


@pytest.mark.slow
@pytest.mark.parametrize("which", CASES)
def test_a_step_as_recorded(which, shared_golden, highest):
    """3 is in eval mode without a perceptual distance; others with LPIPS, before and after the adversary's start."""
    name, number = which.split()
    found = case_of(shared_golden, name, int(number))
    case, arrays, x = found.case, found.arrays, found.x
    summed = name == "loss_kl"
    if summed:
        forward = partial(first_stage.of_kl, found.model, x=x, eps=nhwc(arrays["noise"][0]))
        weight, times = case["kl_weight"], x[0].size  # theirs sums over an image, as the reconstruction
    else:
        # Their class of latent-diffusion has taming's VectorQuantizer2 as it is by default.
        forward = partial(first_stage.of_codebook, found.model, x=x, commitment=0.25, beta_on="codebook")
        weight, times = case["codebook_weight"], 1
    train, perceptual_weight = "eval" not in case, case["perceptual_weight"]
    logits = lambda params, x: found.judge.apply({**found.variables, "params": params}, x, train, mutable=True)[0]
    judge = found.variables["params"]
    lpips = lpips_to_params("vgg", weights_of("vgg")) if perceptual_weight else None
    heard = case["disc_factor"] * (case["step"] >= case["disc_start"])

    @jax.jit
    def step(params, judge, lpips):
        distance = lambda decoded: LPIPS("vgg").apply({"params": lpips}, x, decoded) if perceptual_weight else None
        gradients, parts = first_stage.autoencoder_gradients(
            lambda params: forward(params=params),
            params,
            reconstruct=lambda decoded: first_stage.reconstruction(
                x,
                decoded,
                distance(decoded),
                pixel=case.get("pixel_loss", "l1"),
                perceptual_weight=perceptual_weight,
                log_variance=case.get("logvar", 0.0),
                summed=summed,
            ),
            penalty_weight=weight * times,
            fool=lambda decoded: first_stage.to_fool(logits(judge, decoded)),
        )
        adaptive = case["disc_weight"] * first_stage.weight_of(gradients)
        total = first_stage.combined(gradients, adaptive * heard)
        return total, adaptive, parts

    total, adaptive, parts = step(found.params, judge, lpips)
    log = under(arrays, "pass0.log.")
    rec_loss = parts.reconstructed.pixel + perceptual_weight * parts.reconstructed.perceptual
    values = {"nll_loss": parts.reconstructed.nll, "rec_loss": rec_loss, "d_weight": adaptive,
              "g_loss": parts.to_fool, ("kl_loss" if summed else "quant_loss"): times * parts.penalty}  # fmt: skip
    for key, value in values.items():
        assert float(value) == pytest.approx(float(log[key]), rel=1e-5, abs=1e-6), key
    point = found.params, judge, lpips
    at = lambda seed: total if seed is None else step(*(moved(part, seed) for part in point))[0]
    gradients = lambda seed: found.to_arrays(jax.device_get(at(seed)))
    # loss.logvar is in neither of their optimizers.
    of_theirs = {key: array for key, array in under(arrays, "pass0.grad.").items() if key != "loss.logvar"}
    ours, off = nearest_gradients(gradients, of_theirs, not summed and perceptual_weight > 0)
    assert off < 1e-5
    norms = np.array([np.linalg.norm(ours[key].astype(np.float64)) for key in found.names])
    clear = arrays["pass0.grad_norms"] > 1e-4 * arrays["pass0.grad_norms"].max()  # others are rounding
    np.testing.assert_allclose(norms[clear], arrays["pass0.grad_norms"][clear], rtol=1e-4)

    if summed:
        forward = partial(first_stage.of_kl, found.model, x=x, eps=nhwc(arrays["noise"][1]))
    decoded = jax.jit(lambda params: forward(params=params)[0][0])(found.params)
    loss = lambda judge: heard * first_stage.LOSSES[case["disc_loss"]](logits(judge, x), logits(judge, decoded))
    value, grads = jax.jit(jax.value_and_grad(loss))(judge)
    assert float(value) == pytest.approx(float(arrays["pass1.log.disc_loss"]), rel=1e-5)
    ours = discriminator_arrays(jax.device_get(grads))
    for key, array in under(arrays, "pass1.grad.").items():
        assert relative(ours[key], array) < 1e-5 if heard else not ours[key].any(), key
    assert float(jnp.mean(logits(judge, decoded))) == pytest.approx(float(arrays["pass1.log.logits_fake"]), rel=1e-4)
