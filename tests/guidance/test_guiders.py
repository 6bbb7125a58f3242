"""diffusers' guiders, recorded over ten steps: each config's method and numbers give the same answers.

The recorded predictions have channels first, ours last.
"""

import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ddpm_jax import guidance, samplers, schedules
from ddpm_jax.guidance.method import ASKED, TOGETHER
from ddpm_jax.samplers.denoise import remembering
from ddpm_jax.samplers.grids import leading
from tests.helpers import relative

N = 10
TABLE = samplers.ddim(leading(schedules.linear(1000), N))
CASES = 22
INSIDE = range(16, 20)  # skip-layer, perturbed attention, smoothed energy
# How diffusers makes the worse network of one: not part of how the answers are combined.
OF_THE_NETWORK = ("auto_guidance_layers", "dropout")


@pytest.fixture(scope="module")
def recorded(shared_golden):
    with np.load(shared_golden / "guidance" / "diffusers_guiders.npz", allow_pickle=False) as file:
        return {name: file[name] for name in file.files if name != "meta"}, json.loads(str(file["meta"]))


def nhwc(array):
    return jnp.asarray(np.moveaxis(array.reshape(N, 2, 4, 8, 8), 2, -1))


def answered(method, numbers, c, u):
    """[N, B, H, W, C] that the method makes of recorded answers, row by row, and how many answers it asked for."""
    table = guidance.on(TABLE, method, **numbers)
    make_denoise = lambda model_fn: lambda x, row: samplers.Denoised(model_fn(x, row.time), x)

    def denoiser(c, u):
        return remembering(guidance.guided(guidance.of_each(lambda x, t: c, lambda x, t: u), make_denoise, method))

    call = jax.jit(lambda row, memory, c, u: denoiser(c, u).denoise(jnp.zeros_like(c), row, memory))
    memory, found = denoiser(c[0], u[0]).start(c[0]), []
    for k in range(N):
        row = jax.tree.map(lambda leaf, k=k: jnp.float32(leaf[k]), table.rows)
        denoised, memory = call(row, memory, c[k], u[k])
        found.append(denoised.x_0)
    return np.stack(found), 1 + (table.rows.guidance[ASKED] == TOGETHER)


def config_of(case):
    config = {name: value for name, value in case["config"].items() if name not in OF_THE_NETWORK}
    return {"_class_name": case["cls"], **config}


@pytest.mark.parametrize("index", [k for k in range(CASES) if k not in INSIDE])
def test_guider(index, recorded):
    arrays, meta = recorded
    case = meta["cases"][index]
    assert len(meta["cases"]) == CASES and case["key"] == f"g{index}"
    c, u = nhwc(arrays["pred_cond"]), nhwc(arrays["pred_uncond"])
    found, asked = answered(*guidance.from_diffusers_guider(config_of(case), TABLE), c, u)
    expected = np.array(nhwc(arrays[f"g{index}.pred"]))
    if not np.isfinite(expected).all():
        # Theirs rescales an answer that is 0 in the first zero_init_steps rows by 0 / 0; ours stays 0.
        rows = case["config"]["zero_init_steps"]
        assert case["config"]["guidance_rescale"] > 0 and np.isfinite(expected[rows:]).all()
        expected[:rows] = 0
    for k in range(N):
        if expected[k].any():
            assert relative(found[k], expected[k]) < 1e-5, k
        else:
            np.testing.assert_array_equal(found[k], 0)
    np.testing.assert_array_equal(asked, arrays[f"g{index}.num_conditions"])


def test_rescale(recorded):
    arrays, _ = recorded
    c, guided = nhwc(arrays["pred_cond"])[0], np.moveaxis(arrays["rescale.noise_cfg"], 1, -1)
    method = guidance.rescaled(guidance.Method(lambda answers, numbers: answers[1]))
    for phi, expected in zip(arrays["rescale.phi"], arrays["rescale.out"], strict=True):
        numbers = {"scale": jnp.float32(3), "rescale": jnp.float32(phi)}
        assert relative(method.combine((c, guided), numbers), np.moveaxis(expected, 1, -1)) < 1e-6


def test_those_that_reach_inside_a_network_are_refused(recorded):
    for index in INSIDE:
        with pytest.raises(ValueError, match="cannot be: it changes layers inside of the network"):
            guidance.from_diffusers_guider(config_of(recorded[1]["cases"][index]), TABLE)


CFG = {"_class_name": "ClassifierFreeGuidance", "_diffusers_version": "0.42.1"}


def test_a_guider_that_is_not_enabled_asks_one_answer():
    for config in (CFG, {"_class_name": "ClassifierFreeZeroStarGuidance"}):
        method, numbers = guidance.from_diffusers_guider({**config, "enabled": False}, TABLE)
        assert guidance.on(TABLE, method, **numbers).rows.guidance[ASKED].tolist() == [1] * N
        method, numbers = guidance.from_diffusers_guider(config, TABLE)
        assert guidance.on(TABLE, method, **numbers).rows.guidance[ASKED].tolist() == [TOGETHER] * N


@pytest.mark.parametrize(
    "config, message",
    [
        ({}, "unknown guider None"),
        ({"_class_name": "ClassifierFree"}, "unknown guider 'ClassifierFree'; did you mean 'ClassifierFreeGuidance'"),
        ({**CFG, "eta": 1.0}, "unknown setting of ClassifierFreeGuidance 'eta'"),
        ({**CFG, "start": [0.1, 0.2]}, r"start must be one number, got \[0.1, 0.2\]"),
        ({"_class_name": "AutoGuidance", "dropout": 0.1}, "unknown setting of AutoGuidance 'dropout'"),
        (
            {"_class_name": "AdaptiveProjectedGuidance", "adaptive_projected_guidance_norm_dim": 0},
            r"adaptive_projected_guidance_norm_dim must name axes of \[B, C, H, W\] but the first, got \(0,\)",
        ),
        (
            {"_class_name": "FrequencyDecoupledGuidance", "guidance_scales": [3.0, 2.0, 1.0]},
            "guidance_scales and parallel_weights must be two numbers",
        ),
        (
            {"_class_name": "FrequencyDecoupledGuidance", "guidance_scales": [3.0, 1.0]},
            "one guides and one does not",
        ),
        (
            {"_class_name": "FrequencyDecoupledGuidance", "guidance_rescale_space": "freq"},
            "guidance_rescale_space must be 'data', got 'freq'",
        ),
    ],
)
def test_refused(config, message):
    with pytest.raises(ValueError, match=message):
        guidance.from_diffusers_guider(config, TABLE)
