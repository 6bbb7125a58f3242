"""Objectives against the numbers of OpenAI's code and of the DDIM repository, in float32 and in float64.

The decoder at t = 0 is where float32 matters: these toy networks are so bad that many pixels lie in the tails of p,
where the reference takes the difference of two float32 distribution functions: gaussians.discretized_log_likelihood.
"""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ddpm_jax import objectives, process, schedules
from tests.helpers import golden, relative

SCHEDULES = {"linear": schedules.linear_rescaled, "cosine": schedules.cosine}
MEANS = {"EPSILON": "eps", "START_X": "x_0", "PREVIOUS_X": "x_prev"}
VARIANCES = ("FIXED_SMALL", "FIXED_LARGE", "LEARNED", "LEARNED_RANGE")
LOSSES = ("MSE", "RESCALED_MSE", "KL", "RESCALED_KL")


@pytest.fixture(params=["float32", "float64"])
def tolerance(request):
    with jax.enable_x64(request.param == "float64"), jax.default_matmul_precision("highest"):
        yield {"float32": 1e-4, "float64": 1e-5}[request.param]


def nhwc(array):
    return jnp.asarray(np.moveaxis(array, 1, -1), float)


def load(name):
    """Schedule, x_0, t, eps, arrays, and affine(params) -> model_fn: the network the file was made with."""
    arrays, meta = golden(f"openai/{name}")
    schedule = SCHEDULES[meta["schedule"]](meta["T"])
    if "timestep_map" in arrays:
        schedule = schedules.respace(schedule, arrays["timestep_map"])
    scale = (1000 / meta["T"] if meta["rescale_timesteps"] else 1) / 1000

    def affine(params):
        def model_fn(x, t):
            time = t.astype(x.dtype).reshape(-1, 1, 1, 1) * scale
            row = lambda name: params[name].reshape(1, 1, 1, -1)
            return jnp.einsum("oc,nhwc->nhwo", params["M"], x) + time * row("u") + row("b")

        return model_fn

    t = jnp.asarray(arrays["t"], jnp.int32)
    return schedule, nhwc(arrays["x_start"]), t, nhwc(arrays["noise"]), arrays, affine


def parameters(arrays, key, channels):
    outputs = channels * (2 if "LEARNED" in key else 1)
    return {name: jnp.asarray(arrays[f"{key}.{name}"][:outputs], float) for name in "Mub"}


def losses_of(model_fn, schedule, x_0, t, eps, prediction, variance):
    """OpenAI's loss types; their MSE ones add the bound if the variance is learned."""
    args, options = (model_fn, schedule, x_0, t, eps), {"prediction": prediction, "variance": variance}
    vlb = objectives.vlb(*args, **options)
    if variance in process.LEARNED:
        mse = objectives.hybrid(*args, vlb_weight=1.0, **options), objectives.hybrid(*args, **options)
    else:
        mse = (objectives.simple(*args, **options),) * 2
    return jnp.stack([*mse, vlb, schedule.num_timesteps * vlb])


@pytest.mark.parametrize(
    "tolerance, name",
    [
        ("float32", "linear1000"),
        *(("float64", name) for name in ("linear1000", "cosine200_rescaled", "spaced_linear25")),
    ],
    indirect=["tolerance"],
)
@pytest.mark.parametrize("mean", MEANS)
@pytest.mark.parametrize("variance", VARIANCES)
def test_openai_training_losses_and_gradients(name, mean, variance, tolerance):
    schedule, x_0, t, eps, arrays, affine = load(f"training_losses_{name}")
    key = f"{mean}.{variance}"
    params = parameters(arrays, key, x_0.shape[-1])

    @jax.jit
    def run(params):
        found = losses_of(affine(params), schedule, x_0, t, eps, MEANS[mean], variance.lower())
        return found.mean(axis=1), found

    gradients, found = jax.jit(jax.jacrev(run, has_aux=True))(params)
    for i, loss in enumerate(LOSSES):
        assert relative(found[i], arrays[f"{key}.{loss}.loss"]) < tolerance / 10, loss
        # One gradient, of all parameters: that of one of them may be a small difference of large terms.
        expected = [arrays[f"{key}.{loss}.grad_{name}"][: len(params[name])] for name in "Mub"]
        flat = lambda parts: np.concatenate([np.asarray(part).ravel() for part in parts])
        assert relative(flat([gradients[name][i] for name in "Mub"]), flat(expected)) < tolerance, loss


@pytest.mark.parametrize("name", ["linear1000", "cosine200_rescaled"])
@pytest.mark.parametrize("mean", MEANS)
@pytest.mark.parametrize("variance", VARIANCES)
def test_openai_vb_terms(name, mean, variance, tolerance):
    schedule, x_0, t, eps, arrays, affine = load(f"vb_terms_{name}")
    key = f"{mean}.{variance}"
    x_t = nhwc(arrays["x_t"])
    assert relative(process.q_sample(schedule, x_0, t, eps), x_t) < 1e-6
    output = affine(parameters(arrays, key, x_0.shape[-1]))(x_t, schedule.timesteps[t])
    for clip in (None, 1.0):
        found = objectives.vlb_term(
            schedule, x_0, x_t, t, output, prediction=MEANS[mean], variance=variance.lower(), clip=clip
        )
        which = f"{key}.clip{int(clip is not None)}"
        assert relative(found.bits_per_dim, arrays[f"{which}.output"]) < tolerance / 10
        # x_0 from eps divides by sqrt(ac), x_0 from x_prev by coef1, down to 6e-3 and 1e-4 here: that much larger is
        # the reference's rounding in what clipping leaves.
        size = {"EPSILON": 10, "START_X": 1, "PREVIOUS_X": 100}[mean]
        assert relative(found.pred_x_0, nhwc(arrays[f"{which}.pred_xstart"])) < size * tolerance / 10


@pytest.mark.parametrize("name", ["linear1000", "cosine200_rescaled"])
def test_openai_prior(name, tolerance):
    arrays, meta = golden(f"openai/forward_{name}")
    schedule = SCHEDULES[meta["schedule"]](meta["T"])
    found = objectives.prior_bits_per_dim(schedule, nhwc(arrays["x_start"]))
    # Of 4e-5 and less, what float32's log(1 - ac_T) leaves: half an ulp of 1 of ours, 3e-9 of the reference's.
    rounding = 6e-8 if found.dtype == jnp.float32 else 3e-9
    expected = arrays["prior_bpd"]
    assert np.abs(np.asarray(found) - expected).max() < tolerance * np.abs(expected).max() + rounding


def test_ddim_repository_sums_over_pixels(tolerance):
    arrays, _ = golden("other/ddim_loss_ema")
    schedule = schedules.from_betas(arrays["betas"].astype(np.float64))
    x_0, eps, t = nhwc(arrays["x0"]), nhwc(arrays["e"]), jnp.asarray(arrays["t"], jnp.int32)
    weights = jnp.asarray(arrays["W"], float)

    def model_fn(x, t):
        return jnp.einsum("oc,nhwc->nhwo", weights, x) + (t.astype(x.dtype) / 1000).reshape(-1, 1, 1, 1)

    found = objectives.simple(model_fn, schedule, x_0, t, eps) * x_0[0].size
    assert relative(found, arrays["loss_keepdim"]) < tolerance
    assert relative(found.mean(), arrays["loss"]) < tolerance
