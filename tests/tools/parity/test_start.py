"""Begun in the middle: the sums that diffusers' own suite of schedulers has recorded, and its loops run live."""

from types import SimpleNamespace

import jax.numpy as jnp
import numpy as np
import pytest

from ddpm_jax import samplers
from ddpm_jax.samplers import from_diffusers_config
from ddpm_jax.samplers.configs import CLASSES
from ddpm_jax.tools.parity import double, mixture, ours, sweep, theirs
from ddpm_jax.tools.parity.draws import Case
from ddpm_jax.tools.parity.samplers import noise_of

BETAS = {"beta_start": 0.0001, "beta_end": 0.02, "beta_schedule": "linear"}
LONGER = {**BETAS, "num_train_timesteps": 1100}
TO_LOWEST = {**BETAS, "final_sigmas_type": "sigma_min"}
# Class, settings, steps, the step it begins at, the sum of |x_0|. Facts of diffusers 0.42.1.
RECORDED = [
    ("CMStochasticIterative", {"num_train_timesteps": 201}, 10, 8, 763.9186),
    ("DDIM", BETAS, 10, 8, 354.5418),
    ("DDIMParallel", BETAS, 10, 8, 354.5418),
    ("DDPM", BETAS, 1000, 998, 387.9466),
    ("DDPMParallel", BETAS, 1000, 998, 387.9466),
    ("DEISMultistep", BETAS, 10, 8, 315.3016),
    ("DPMSolverMultistep", {**TO_LOWEST, "lower_order_final": False}, 10, 5, 318.4111),
    ("DPMSolverSinglestep", TO_LOWEST, 10, 5, 269.2187),
    ("EDMDPMSolverMultistep", {"lower_order_final": False, "final_sigmas_type": "sigma_min"}, 10, 5, 8.1661),
    ("EulerDiscrete", LONGER, 10, 8, 57062.9297),
    ("EulerAncestralDiscrete", LONGER, 10, 8, 56163.0508),
    ("HeunDiscrete", LONGER, 10, 8, 75074.8906),
    ("KDPM2AncestralDiscrete", LONGER, 10, 8, 93087.3437),
    ("KDPM2Discrete", LONGER, 10, 8, 70408.4062),
    ("LMSDiscrete", LONGER, 10, 8, 27663.6895),
    ("UniPCMultistep", TO_LOWEST, 10, 8, 315.5757),
    ("UniPCMultistep", TO_LOWEST, 10, 8, 39.0870),  # of less pixels
]
SIGMA = ("EulerDiscrete", "EulerAncestralDiscrete", "HeunDiscrete", "KDPM2AncestralDiscrete", "KDPM2Discrete")
SIGMA += ("LMSDiscrete", "CMStochasticIterative")
# Of their float32: 1 - alphas_cumprod at the first two timesteps, and the root of a difference of squares.
ROUNDING = {"DDPM": 1e-4, "DDPMParallel": 1e-4, "KDPM2AncestralDiscrete": 5e-6}


def images(*shape):
    """0 to 1 in their order of pixels, the batch last of all, and the same backwards."""
    ramp = np.arange(4 * np.prod(shape)) / (4 * np.prod(shape))
    first = lambda flat: np.moveaxis(flat.reshape(*shape, 4), -1, 0)
    return first(ramp), first(ramp[::-1])


def network(x, t):
    return x * t / (t + 1)


def denoiser(name, preset):
    """Their network, called where they call it."""
    told = lambda t: t[0].astype(float)
    if name in SIGMA and name != "CMStochasticIterative":
        # What the scheduler steps there is what the network takes in, alpha times too small.
        at = lambda x: samplers.denoiser(lambda _, t: network(x, told(t)))
        return lambda x, row: at(x)(row.alpha * x, row)
    if name == "EDMDPMSolverMultistep":  # called at x_0 + sigma eps itself
        return preset.denoiser(lambda x, t: network(x * jnp.hypot(jnp.exp(4 * told(t)), 0.5), told(t)))
    return preset.denoiser(lambda x, t: network(x, told(t)))


@pytest.mark.parametrize(("name", "settings", "num_steps", "start", "expected"), RECORDED)
def test_recorded_sums(libraries, x64, name, settings, num_steps, start, expected):
    config = {"_class_name": f"{name}Scheduler", **settings}
    whole, preset = (from_diffusers_config(config, num_steps, start=k) for k in (0, start))
    x_0, eps = images(3, 8) if expected == 39.0870 else images(3, 8, 8)
    if name in SIGMA:
        x_0 = x_0 * whole.table.init / whole.table.rows.alpha[0]  # init_noise_sigma
    rows = preset.table.rows
    generator = libraries.torch.manual_seed(0)
    draw = lambda: libraries.torch.randn(x_0.shape, generator=generator).double().numpy()
    noise = np.stack([draw() for _ in rows.time])
    x_t = jnp.asarray(rows.alpha[0] * x_0 + rows.sigma[0] * eps)
    # The suite's axes are channels first; no pixel depends on another.
    found = samplers.sample(denoiser(name, preset), preset.table, None, x_0.shape, x_t=x_t, noise=jnp.asarray(noise))
    np.testing.assert_allclose(jnp.abs(found).sum(), expected, rtol=ROUNDING.get(name, 1e-6), atol=1e-4)


WITHOUT = {"DPMSolverSDEScheduler"}  # needs torchsde
LIVE = {
    "DPMSolverMultistepScheduler": {"solver_order": 3},
    "DPMSolverSinglestepScheduler": {"solver_order": 3, "lower_order_final": True},
    "EDMDPMSolverMultistepScheduler": {"solver_order": 3, "final_sigmas_type": "sigma_min"},
    "UniPCMultistepScheduler": {"solver_order": 3, "disable_corrector": [5]},
    "SASolverScheduler": {"predictor_order": 3, "corrector_order": 3},
    "DEISMultistepScheduler": {"solver_order": 3},
    "EulerDiscreteScheduler": {"use_karras_sigmas": True},
}
STEP = {"EulerDiscreteScheduler": {"s_churn": 2.0}, "EDMEulerScheduler": {"s_churn": 2.0}}


@pytest.mark.parametrize("name", sorted(set(CLASSES) - WITHOUT - {"UnCLIPScheduler", "ScoreSdeVeScheduler"}))
def test_live(libraries, name):
    """Of the first step of nine, of one in the middle and of the last; some classes have no such start."""
    for start in (1, 4, 8):
        line = sweep.judge(libraries, "", Case(name, LIVE.get(name, {}), 9, {}, STEP.get(name, {}), start))
        if name in ("DDIMInverseScheduler", "DPMSolverMultistepInverseScheduler", "PNDMScheduler", "RePaintScheduler"):
            assert line.note.startswith((f"only we refuse: unknown option of {name} 'start'", "both refuse"))
        else:
            assert line.verdict == "same" and line.difference is not None, line


@pytest.mark.parametrize("name", ["DPMSolverMultistep", "DPMSolverSinglestep", "HeunDiscrete", "DDPM", "EulerDiscrete"])
@pytest.mark.parametrize("flag", [None, "use_karras_sigmas", "use_exponential_sigmas", "use_beta_sigmas"])
def test_lists_of_timesteps(libraries, name, flag):
    """Where diffusers takes them, it does; where it raises, so do we."""
    if name == "DDPM" and flag:
        return
    settings = {} if flag is None else {flag: True}
    case = Case(f"{name}Scheduler", settings, None, {"timesteps": [900, 700, 480, 300, 120, 40]}, {})
    line = sweep.judge(libraries, "", case)
    assert line.verdict == "same"
    assert (line.difference is None) == (flag is not None)


class Bound:
    """What is stepped otherwise than by step(output, t, x), as its pipeline does it."""

    def __init__(self, scheduler, timesteps, step):
        self.timesteps, self.init_noise_sigma, self.order = timesteps, scheduler.init_noise_sigma, 1
        self.scale_model_input = scheduler.scale_model_input
        self.step = step


UNCLIP = [
    ({}, 10),
    ({"variance_type": "learned_range", "clip_sample_range": 2.0}, 7),
    ({"prediction_type": "sample", "clip_sample": False, "num_train_timesteps": 100}, 50),
    ({"num_train_timesteps": 30}, 30),
]


@pytest.mark.parametrize(("settings", "num_steps"), UNCLIP)
def test_unclip(libraries, settings, num_steps):
    """With float64 of their own table: at the end of a cosine schedule float32 is 5e-4 off."""
    torch, scheduler_class = libraries.torch, libraries.diffusers.UnCLIPScheduler
    x_T, noise = noise_of(num_steps)
    with double.widened(torch, scheduler_class):
        narrow, scheduler = libraries.diffusers.UnCLIPScheduler(**settings), scheduler_class(**settings)
        narrow.alphas_cumprod = narrow.alphas_cumprod.float()
        double.refine(torch, scheduler, narrow)
        scheduler.set_timesteps(num_steps)
        answer = mixture.at_table(
            narrow.alphas_cumprod.double().numpy(), "x_0" if "prediction_type" in settings else "eps"
        )
        if "variance_type" in settings:
            answer = mixture.with_variance(answer, lambda value: value)
        times = [*scheduler.timesteps.tolist(), None]
        step = lambda output, t, x: scheduler.step(output, t, x, prev_timestep=times[times.index(int(t)) + 1])
        expected = theirs.calls(
            torch, Bound(scheduler, scheduler.timesteps, step), answer, x_T, noise, None, np.float64
        )
    found = ours.calls(
        from_diffusers_config({"_class_name": "UnCLIPScheduler", **settings}, num_steps), answer, x_T, noise
    )
    assert sweep.apart(found, expected, 1e-4)[0] < 2e-5


@pytest.mark.parametrize(
    ("settings", "n"), [({}, 10), ({"sigma_max": 50.0, "sigma_min": 0.05, "sampling_eps": 1e-3}, 7)]
)
def test_the_predictor_of_score_sde(libraries, settings, n):
    scheduler = libraries.diffusers.ScoreSdeVeScheduler(correct_steps=0, **settings)
    scheduler.set_timesteps(n)
    scheduler.set_sigmas(n)
    left = list(scheduler.timesteps)

    def step(output, sigma, x):
        found = scheduler.step_pred(output, left.pop(0), x)
        return SimpleNamespace(prev_sample=found.prev_sample if left else found.prev_sample_mean)

    answer = lambda x, sigma: -mixture.exact(x / np.hypot(1, sigma), 1 / (1 + sigma**2)).eps / sigma
    x_T, noise = noise_of(n)
    expected = theirs.calls(libraries.torch, Bound(scheduler, scheduler.sigmas, step), answer, x_T, noise)
    config = {"_class_name": "ScoreSdeVeScheduler", "correct_steps": 0, **settings}
    found = ours.calls(from_diffusers_config(config, n), answer, x_T, noise)
    np.testing.assert_allclose(found.times, expected.times, rtol=1e-6)
    for x, other in zip(found.xs, expected.xs, strict=True):
        np.testing.assert_allclose(x, other, atol=1e-5 * np.abs(other).max())
    with pytest.raises(ValueError, match="correct_steps must be 0, got 1"):
        from_diffusers_config({**config, "correct_steps": 1}, n)
