"""Euler, Heun, DPM-2, LMS, iPNDM and their grids: identities between tables, closed forms, and recorded traces."""

import json
from math import inf, log, sqrt

import jax.numpy as jnp
import numpy as np
import pytest

from ddpm_jax import samplers, schedules
from ddpm_jax.samplers import grids
from ddpm_jax.samplers.configs import from_diffusers_config
from ddpm_jax.samplers.families.ablation import edm_ode, vp_betas
from ddpm_jax.samplers.families.euler import euler, euler_ancestral
from ddpm_jax.samplers.families.heun import heun
from ddpm_jax.samplers.families.ipndm import ipndm
from ddpm_jax.samplers.families.kdpm2 import kdpm2, kdpm2_ancestral
from ddpm_jax.samplers.families.late_churn import euler_late_churn
from ddpm_jax.samplers.families.lms import adams_weights, lms
from ddpm_jax.samplers.grids import Grid, Level, sigma_grids
from tests.helpers import GOLDEN, golden, mixture_model, relative, trace, traces_of
from tests.samplers.test_distribution import MEAN, VARIANCE, denoise

S = schedules.linear()
AT = sigma_grids.discrete(S)
GRIDS = {
    "leading": grids.leading(S, 10),
    "linspace": sigma_grids.linspace(S, 7),
    "karras": sigma_grids.karras(S, 10),
    "edm": sigma_grids.edm(10),
    "one": grids.trailing(S, 1),
}
MINE = {
    "EulerDiscreteScheduler",
    "EulerAncestralDiscreteScheduler",
    "HeunDiscreteScheduler",
    "KDPM2DiscreteScheduler",
    "KDPM2AncestralDiscreteScheduler",
    "DPMSolverSDEScheduler",
    "LMSDiscreteScheduler",
    "EDMEulerScheduler",
    "IPNDMScheduler",
}
TRACES = traces_of(MINE)


def assert_same_table(found, expected, atol=1e-14):
    for name in ("time", "alpha", "sigma", "update"):
        np.testing.assert_allclose(getattr(found.rows, name), getattr(expected.rows, name), atol=atol, rtol=atol)
    assert found.init == pytest.approx(expected.init, abs=1e-14)


# Identities, in normal form.


@pytest.mark.parametrize("grid", GRIDS.values(), ids=GRIDS)
def test_first_order_members_are_ddim(grid):
    ddim = samplers.ddim(grid)
    assert_same_table(euler(grid), ddim)
    assert_same_table(lms(grid, order=1), ddim)
    assert_same_table(ipndm(grid, order=1), ddim)
    assert_same_table(euler_ancestral(grid, eta=0), ddim)
    assert_same_table(edm_ode(grid, lambda sigma: AT(sigma), inner=None), euler(_exploding(grid)))


@pytest.mark.parametrize("name", ["leading", "linspace", "karras", "one"])
def test_euler_ancestral_is_ddim_and_ddpm(name):
    grid = GRIDS[name]  # variance preserving
    assert_same_table(euler_ancestral(grid), samplers.ddim(grid, eta=1.0))
    assert_same_table(euler_ancestral(grid), samplers.ddpm(grid, variance="fixed_small"), atol=1e-13)
    assert_same_table(euler_ancestral(grid, eta=0.3), samplers.ddim(grid, eta=0.3))


def _exploding(grid):
    """The same grid with X = x_0 + sigma eps."""
    told = [AT(sigma_grids.ratio(s)).time for s in grid.levels[:-1]]
    levels = [Level(t, 1.0, sigma_grids.ratio(s)) for t, s in zip(told, grid.levels, strict=False)]
    return Grid((*levels, Level(0.0, 1.0, 0.0)))


@pytest.mark.parametrize("grid", GRIDS.values(), ids=GRIDS)
def test_two_stage_members(grid):
    assert heun(grid).num_calls == 2 * grid.num_steps - 1
    assert_same_table(edm_ode(grid, AT), heun(_exploding(grid)))
    assert_same_table(kdpm2_ancestral(grid, AT, eta=0), kdpm2(grid, AT))
    last = Grid(grid.levels[-2:])
    for build in (heun, lms, ipndm, lambda g: kdpm2(g, AT), lambda g: kdpm2_ancestral(g, AT)):
        (update,) = build(last).rows.update  # the history that it keeps is of no use
        np.testing.assert_allclose(update[0, -3:], euler(last).rows.update[0, 0, -3:], rtol=1e-14, atol=1e-14)
        assert not update[0, :-3].any()


@pytest.mark.parametrize("prediction", ["eps", "x_0", "v", "edm"])
def test_no_churn_is_euler(prediction):
    grid, data = (GRIDS["edm"], 0.5) if prediction == "edm" else (GRIDS["karras"], 1.0)
    late = euler_late_churn(grid, s_churn=0, prediction=prediction, sigma_data=data)
    assert_same_table(late, euler(grid), atol=1e-13)
    hat = sigma_grids.churned(grid, AT, s_churn=10, s_tmin=1e9)
    assert_same_table(heun(grid, hat=hat), heun(grid))


def test_adams_weights_integrate_polynomials():
    nodes, end = [3.0, 4.5, 7.0, 20.0, 21.0, 25.0], 1.0
    for order in range(1, 7):
        weights = adams_weights(nodes[:order], end)
        for degree in range(order):
            exact = (end ** (degree + 1) - nodes[0] ** (degree + 1)) / (degree + 1)
            terms = [w * node**degree for w, node in zip(weights, nodes, strict=False)]
            assert sum(terms) == pytest.approx(exact, abs=1e-14 * sum(map(abs, terms)))
    np.testing.assert_allclose(adams_weights([0, -1, -2, -3], 1), np.array([55, -59, 37, -9]) / 24, rtol=1e-13)


# Closed forms.


def responses(table, slope):
    """X after every row as a linear map of (x_T, z_1, .., z_N), for the linear denoiser x_0 = slope(row) X."""
    rows, size = table.rows, table.rows.update.shape[1]
    registers = np.zeros((size, table.num_calls + 1))
    registers[0, 0] = table.init
    found = []
    for k, update in enumerate(rows.update):
        x = registers[0]
        x_0 = slope(rows.sigma[k] / rows.alpha[k]) * x / rows.alpha[k]
        eps = (x - rows.alpha[k] * x_0) / rows.sigma[k]
        registers = update @ np.stack([*registers, x_0, eps, np.eye(table.num_calls + 1)[k + 1]])
        found.append(registers[0])
    return np.array(found)


@pytest.mark.parametrize("build, order", [(euler, 1), (heun, 2), (lambda g: kdpm2(g, AT), 2)], ids=["1", "2", "2k"])
def test_order_of_convergence(build, order):
    # Data of variance 0.25: x_0 = 0.25 x / (0.25 + sigma^2) and x runs with sqrt(0.25 + sigma^2).
    errors = []
    for n in (200, 400):
        sigmas = sigma_grids.karras_sigmas(n + 1, 0.02, 20)
        grid = sigma_grids.from_sigmas(AT, sigmas)
        table = build(grid)
        found = responses(table, lambda sigma: 0.25 / (0.25 + sigma**2))[-1, 0] / table.rows.alpha[0]
        errors.append(abs(found - sqrt((0.25 + 0.02**2) / (0.25 + 20**2)) / table.rows.alpha[0] ** 2))
    assert log(errors[0] / errors[1], 2) == pytest.approx(order, abs=0.15)


@pytest.mark.parametrize("order", [1, 2, 3, 4])
def test_order_of_lms(order):
    errors = []
    for n in (400, 800):
        sigmas = sigma_grids.karras_sigmas(n + 1, 0.5, 5)
        table = lms(sigma_grids.from_sigmas(AT, sigmas), order=order)
        found = responses(table, lambda sigma: 0.25 / (0.25 + sigma**2))[-1, 0] * table.rows.alpha[0] ** -1
        errors.append(abs(found - sqrt((0.25 + 0.5**2) / (0.25 + 5**2)) / table.rows.alpha[0] ** 2))
    # The very first step has order 1, an error of h^2, which higher orders do not mend.
    found = log(errors[0] / errors[1], 2)
    assert found == pytest.approx(order, abs=0.1) if order <= 2 else found > 2


@pytest.mark.parametrize("build", [euler, heun], ids=["euler", "heun"])
def test_churn_keeps_the_noise_level(build):
    # Data that is all 0: X must have standard deviation sigma at every call that starts a step, exactly.
    for grid, at in ((GRIDS["karras"], AT), (GRIDS["edm"], sigma_grids.continuous())):
        hat = sigma_grids.churned(grid, at, s_churn=5, s_tmax=30)
        table = build(grid, hat=hat)
        table = table._replace(init=table.rows.sigma[0])
        std = np.sqrt((responses(table, lambda sigma: 0.0) ** 2).sum(1))
        np.testing.assert_allclose(std[:-1], table.rows.sigma[1:], rtol=1e-12)
        assert (table.rows.update[:, 0, -1] > 0).sum() == sum(
            h != s for h, s in zip(hat[1:], grid.levels[1:], strict=False)
        )


@pytest.mark.parametrize("eta", [0.4, 1.0])
def test_ancestral_steps_keep_the_noise_level(eta):
    for table in (euler_ancestral(GRIDS["karras"], eta=eta), kdpm2_ancestral(GRIDS["karras"], AT, eta=eta)):
        table = table._replace(init=table.rows.sigma[0])
        std = np.sqrt((responses(table, lambda sigma: 0.0) ** 2).sum(1))
        np.testing.assert_allclose(std[:-1], table.rows.sigma[1:], rtol=1e-12)


@pytest.mark.parametrize("sigma_data", [0.5, 1.0, 2.0])
def test_edm_wrapper_is_the_preconditioning(sigma_data, x64):
    model_fn = lambda x, t: jnp.tanh(x) + t.reshape(-1, 1).astype(x.dtype)
    x = jnp.linspace(-3.0, 3.0, 7)[:, None]  # x_0 + s eps
    for s in (0.002, 0.7, 80.0):
        std = sqrt(s**2 + sigma_data**2)
        time = np.float32(log(s) / 4)
        output = model_fn(x / std, jnp.full(7, time))
        expected = sigma_data**2 / std**2 * x + s * sigma_data / std * output
        for scale in (1.0, 1 / std, 1 / sqrt(1 + s**2)):
            row = samplers.row(Level(log(s) / 4, scale, scale * s))
            found = samplers.preconditioned(model_fn, sigma_data)(scale * x, row)
            np.testing.assert_allclose(found.x_0, expected, rtol=1e-12, atol=1e-12)
            np.testing.assert_allclose(found.eps, (x - expected) / s, rtol=1e-9, atol=1e-9)
            opposite = samplers.preconditioned(lambda x, t: -model_fn(x, t), sigma_data, "v")(scale * x, row)
            np.testing.assert_array_equal(opposite.x_0, found.x_0)


# Grids.


def test_sigma_grids():
    sigmas = sigma_grids.of_schedule(S)
    assert sigmas[-1] == pytest.approx(157.4072, rel=1e-5) and (np.diff(sigmas) > 0).all()
    assert sigma_grids.of_schedule(schedules.zero_terminal_snr(S))[-1] == pytest.approx(4096, rel=1e-6)
    for t in (0, 1, 500, 999):
        assert AT(sigmas[t]) == pytest.approx(grids.from_timesteps(S, [t]).levels[0], rel=1e-12, abs=1e-12)
    assert AT(1e4).time == 999 and AT(1e-4).time == 0  # the network knows no others
    half = sqrt(sigmas[10] * sigmas[11])
    assert AT(half).time == pytest.approx(10.5) and sigma_grids.ratio(AT(half)) == pytest.approx(half)

    levels = sigma_grids.edm(18).levels
    assert [sigma_grids.ratio(s) for s in levels[:2]] == pytest.approx([80, 57.58598472])
    assert levels[0].time == pytest.approx(log(80) / 4) and 1 / levels[0].alpha == pytest.approx(sqrt(6400.25))
    assert levels[-1] == (0, 1, 0)
    assert [s.time for s in sigma_grids.linspace(S, 7).levels[:3]] == [999, 832.5, 666]
    middle = sigma_grids.beta_sigmas(3, 0.0, 2.0)  # the Beta(0.6, 0.6) law is symmetric
    np.testing.assert_allclose(middle, [2, 1, 0], atol=1e-12)
    np.testing.assert_allclose(sigma_grids.exponential_sigmas(3, 0.1, 10), [10, 1, 0.1])
    for make in (sigma_grids.karras, sigma_grids.exponential, sigma_grids.beta, sigma_grids.linspace):
        assert make(S, 10).num_steps == 10


def cases_of_timestep_grids():
    with np.load(GOLDEN / "diffusers" / "timestep_grids.npz") as file:
        return [case for case in json.loads(str(file["meta"]))["cases"] if case["cls"] in MINE]


def test_timesteps_and_sigmas_of_diffusers():
    file = np.load(GOLDEN / "diffusers" / "timestep_grids.npz")
    checked = 0
    for case in cases_of_timestep_grids():
        config = {**case["config"], "_class_name": case["cls"]}
        rows = from_diffusers_config(config, case["N"], **case["set_timesteps_kwargs"]).table.rows
        times = file[f"{case['key']}.timesteps"]
        # log sigma is float32 there: a few 1e-7 where it changes by 1e-3 a timestep.
        np.testing.assert_allclose(rows.time, times, atol=1e-3, err_msg=str(case))
        if case["config"].get("use_karras_sigmas") and case["cls"].startswith("KDPM2"):
            np.testing.assert_array_equal(rows.time[::2], times[::2])  # rounded to whole numbers
        if case["cls"] not in ("IPNDMScheduler", "KDPM2DiscreteScheduler", "KDPM2AncestralDiscreteScheduler"):
            expected = file[f"{case['key']}.sigmas"][: len(times)]
            np.testing.assert_allclose(rows.sigma / rows.alpha, expected, rtol=1e-6, err_msg=str(case))
        checked += 1
    assert checked == 220


# Recorded traces.


def preconditioned_model(arrays, sigma_data=0.5, prediction_type="epsilon"):
    """F of the exact denoiser, as a function of its input and time log(sigma) / 4."""
    denoise, sign = exact_denoiser(arrays), {"epsilon": 1, "v_prediction": -1}[prediction_type]

    def model_fn(x, t):
        sigma = jnp.exp(4 * t.astype(float)).reshape(-1, 1, 1, 1)
        std = jnp.sqrt(sigma**2 + sigma_data**2)
        x_0 = denoise(x * std, sigma)
        return (x_0 - sigma_data**2 / std * x) / (sign * sigma * sigma_data / std)

    return model_fn


def exact_denoiser(arrays):
    mu, s, w = (jnp.asarray(arrays[f"gmm_{name}"], float) for name in ("mu", "s", "w"))
    size = mu[0].size

    def denoise(x, sigma):
        variance = s.reshape(1, -1) ** 2 + sigma.reshape(-1, 1) ** 2
        residual = x.reshape(len(x), 1, size) - mu.reshape(1, len(w), size)
        log_r = jnp.log(w).reshape(1, -1) - size / 2 * jnp.log(variance) - (residual**2).sum(-1) / (2 * variance)
        r = jnp.exp(log_r - log_r.max(1, keepdims=True))
        r = (r / r.sum(1, keepdims=True))[:, :, None]
        shrink = (s.reshape(1, -1) ** 2 / variance)[:, :, None]
        return (r * (mu.reshape(1, len(w), size) + shrink * residual)).sum(1).reshape(x.shape)

    return denoise


def model_of(arrays, meta):
    config = meta["config"]
    if meta["cls"] == "EDMEulerScheduler":
        return preconditioned_model(arrays, config["sigma_data"], config["prediction_type"])
    levels = {
        "1/(1+exp(8*t)) (t = 0.25*ln sigma)": lambda t: 1 / (1 + jnp.exp(8 * t)),
        "cos(pi*t/2)^2": lambda t: jnp.cos(jnp.pi * t / 2) ** 2,
    }
    output = {"eps": "eps", "x0": "x_0", "v": "v"}[meta["output"]]
    return mixture_model(arrays, output, alphas_cumprod=levels.get(meta["abar"]))


@pytest.mark.parametrize("name", TRACES)
def test_diffusers_traces(name, x64):
    arrays, meta = golden(f"diffusers/{name}")
    options = {**meta["set_timesteps_kwargs"], **meta["step_kwargs"]}
    config = {**meta["config"], "_class_name": meta["cls"]}
    table, denoiser = from_diffusers_config(config, meta["num_inference_steps"], **options)
    noise = np.zeros((table.num_calls, *arrays["x_init"].shape))
    noise[arrays["noise_count"] == 1] = arrays["noise"]
    found = trace(denoiser(model_of(arrays, meta)), table, jnp.asarray(arrays["noise_init"], float), jnp.asarray(noise))
    # diffusers keeps x / alpha; iPNDM alone keeps x, as here.
    keeps_x = meta["cls"] == "IPNDMScheduler"
    scale = np.ones(table.num_calls + 1) if keeps_x else np.append(table.rows.alpha, 1)
    assert relative(table.init * arrays["noise_init"], scale[0] * arrays["x_init"]) < 1e-5
    assert relative(found, scale[1:].reshape(-1, 1, 1, 1, 1) * arrays["samples"]) < 5e-5
    assert relative(found[-1], arrays["samples"][-1]) < 5e-5


def edm_trace(table, arrays, noise=None):
    """x / alpha at every call, then the result; X starts at sigma_T z."""
    table = table._replace(init=table.rows.sigma[0])
    latents = jnp.asarray(arrays["latents"], float)
    noise = np.zeros((table.num_calls, *latents.shape)) if noise is None else noise
    denoise = samplers.preconditioned(preconditioned_model(arrays))
    found = trace(denoise, table, latents, jnp.asarray(noise))
    scale = np.append(table.rows.alpha[1:], 1).reshape(-1, 1, 1, 1, 1)
    return np.concatenate([table.init * latents[None] / table.rows.alpha[0], found / scale])


def assert_same_calls(table, arrays, noise=None):
    np.testing.assert_allclose(table.rows.sigma / table.rows.alpha, arrays["call_sigma"], rtol=1e-12)
    found = edm_trace(table, arrays, noise)
    # Times are told in float32: sigma = exp(4 time) is good to 1e-6.
    for k, expected in enumerate([*arrays["call_x"], arrays["final"]]):
        assert relative(found[k], expected) < 1e-5


def test_edm_sampler(x64):
    arrays, _ = golden("other/edm_heun18")
    assert_same_calls(heun(sigma_grids.edm(18)), arrays)


def test_edm_sampler_with_churn(x64):
    arrays, meta = golden("other/edm_heun10_churn")
    options, grid = meta["kwargs"], sigma_grids.edm(10)
    limits = {"s_churn": options["S_churn"], "s_tmin": options["S_min"], "s_tmax": options["S_max"]}
    hat = sigma_grids.churned(grid, sigma_grids.continuous(), **limits)
    table = heun(grid, hat=hat, s_noise=options["S_noise"])
    noise = np.zeros((table.num_calls, *arrays["latents"].shape))
    noise[1::2] = arrays["noise"][1:]  # drawn before step i there, in the row before it here
    assert_same_calls(table, arrays, noise)


ABLATIONS = {
    "edm_abl_euler_vp": (sigma_grids.vp_sigmas(12), {"schedule": "vp", "scaling": "vp", "inner": None}),
    "edm_abl_heun_ve": (sigma_grids.exponential_sigmas(10, 0.02, 100), {"schedule": "ve", "inner": 1.0}),
    "edm_abl_heun_iddpm": (None, {"schedule": "linear", "inner": 0.5}),
}


@pytest.mark.parametrize("name", ABLATIONS)
def test_edm_ablation_sampler(name, x64):
    arrays, _ = golden(f"other/{name}")
    sigmas, options = ABLATIONS[name]
    if sigmas is None:
        # EDM's code has sin^2 in float32, which leaves few digits where sigma is small.
        sigmas = arrays["call_sigma"][::2]
        np.testing.assert_allclose(sigma_grids.iddpm_sigmas(8), sigmas, rtol=5e-4)
    at = sigma_grids.continuous()
    assert_same_calls(edm_ode(sigma_grids.from_sigmas(at, [*sigmas, 0]), at, **options), arrays)


def algorithm_2(x, sigmas, noise, *, schedule, scaling, alpha, betas, s_churn, s_tmin, s_tmax, s_noise):
    """Karras et al. 2022, algorithm 2 in time t for x = s(t) (x_0 + sigma(t) eps), with two stages alpha apart.

    In float64, with derivatives by central differences; `noise` is drawn in every step. All x before steps, and the
    last.
    """
    beta_d, beta_min = betas
    sigma = {
        "linear": lambda t: t,
        "ve": lambda t: np.sqrt(t),
        "vp": lambda t: np.sqrt(np.expm1(beta_d * t**2 / 2 + beta_min * t)),
    }[schedule]
    scale = {"none": lambda t: 1.0, "vp": lambda t: 1 / np.sqrt(1 + sigma(t) ** 2)}[scaling]

    def time(level):  # the inverse of sigma, by bisection
        low, high = 0.0, 2.0 if schedule == "vp" else max(1.0, level**2)
        for _ in range(200):
            middle = (low + high) / 2
            low, high = (middle, high) if sigma(middle) < level else (low, middle)
        return (low + high) / 2

    def slope(f, t):
        return (f(t * (1 + 1e-6)) - f(t * (1 - 1e-6))) / (2e-6 * t)

    def velocity(x, t):
        s, level = scale(t), sigma(t)
        x_0 = MEAN + VARIANCE / (VARIANCE + level**2) * (x / s - MEAN)
        return slope(scale, t) / s * x + s * slope(sigma, t) * (x / s - x_0) / level

    n, found = len(sigmas), []
    x = x * scale(time(sigmas[0])) * sigmas[0]
    for i, level in enumerate(sigmas):
        gamma = min(s_churn / n, np.sqrt(2) - 1) if s_tmin <= level <= s_tmax else 0.0
        hat, now = time(level * (1 + gamma)), time(level)
        after = time(sigmas[i + 1]) if i + 1 < n else 0.0
        x = scale(hat) / scale(now) * x + scale(hat) * np.sqrt((1 + gamma) ** 2 - 1) * level * s_noise * noise[i]
        found.append(x)
        h, first = after - hat, velocity(x, hat)
        if alpha is None or i == n - 1:
            x = x + h * first
        else:
            second = velocity(x + alpha * h * first, hat + alpha * h)
            x = x + h * ((1 - 1 / (2 * alpha)) * first + second / (2 * alpha))
    return [*found, x]


@pytest.mark.parametrize("alpha", [None, 1.0, 0.6])
@pytest.mark.parametrize("scaling", ["none", "vp"])
@pytest.mark.parametrize("schedule", ["linear", "ve", "vp"])
def test_edm_ablation_sampler_with_churn(schedule, scaling, alpha, x64):
    sigmas = sigma_grids.karras_sigmas(7, 0.02, 20)
    betas = vp_betas(0.02, 20)
    churn = {"s_churn": 2.0, "s_tmin": 0.05, "s_tmax": 15.0}
    rng = np.random.default_rng(0)
    x_T, noise = rng.normal(size=(2, 3)), rng.normal(size=(7, 2, 3))
    noise[0] = 0  # sigma_T is above s_tmax
    options = {"schedule": schedule, "scaling": scaling}
    expected = algorithm_2(x_T, sigmas, noise, alpha=alpha, betas=betas, s_noise=1.01, **churn, **options)
    grid = sigma_grids.from_sigmas(AT, [*sigmas, 0])
    hat = sigma_grids.churned(grid, AT, **churn)
    own = {} if schedule != "vp" else {"betas": betas}
    table = edm_ode(grid, AT, inner=alpha, hat=hat, s_noise=1.01, **options, **own)
    table = table._replace(init=table.rows.sigma[0])
    # The noise of step i is drawn in the row before its call.
    stages = 1 if alpha is None else 2
    drawn = np.zeros((table.num_calls, 2, 3))
    drawn[stages - 1 :: stages] = noise[1:] if stages == 2 else [*noise[1:], noise[0]]
    found = trace(denoise, table, jnp.asarray(x_T), jnp.asarray(drawn))
    before = np.concatenate([table.init * x_T[None], found])[::stages]
    for ours, theirs in zip([*before[:7], found[-1]], expected, strict=True):
        assert relative(ours, theirs) < 1e-6
    assert table.rows.update[stages - 1 : -1 : stages, 0, -1].any()
    if scaling == "none":
        assert table.rows.alpha.tolist() == [1.0] * table.num_calls


def test_betas_of_edms_code():
    """The process whose sigma runs from sigma_max at t = 1 to sigma_min at 0.001: Song et al.'s from its own ends."""
    ends = np.sqrt(np.expm1(19.9 / 2 * np.array([1e-3, 1]) ** 2 + 0.1 * np.array([1e-3, 1])))
    np.testing.assert_allclose(vp_betas(*ends), (19.9, 0.1), rtol=1e-9)
    beta_d, beta_min = vp_betas(0.002, 80)
    assert beta_min < 0  # and the last step ends at t = 0, not at the t of sigma = 0
    grid = sigma_grids.edm(5)
    found = edm_ode(grid, AT, schedule="vp", inner=None, betas=(beta_d, beta_min)).rows.update[-1, 0]
    np.testing.assert_allclose(found[-2] - 0.002, -1e-3 * (beta_min + beta_d * 1e-3) * (0.002 + 500) / 2, rtol=1e-6)


# Behaviour.


@pytest.mark.parametrize("num_steps", [1, 2, 3, 7, 999, 1000])
def test_every_number_of_steps_is_finite(num_steps):
    for grid in (sigma_grids.karras(S, num_steps), sigma_grids.linspace(S, num_steps), grids.trailing(S, num_steps)):
        for table in (
            euler(grid, hat=sigma_grids.churned(grid, AT, s_churn=10)),
            euler_late_churn(grid, s_churn=10),
            euler_ancestral(grid),
            heun(grid, hat=sigma_grids.churned(grid, AT, s_churn=10)),
            kdpm2(grid, AT),
            kdpm2_ancestral(grid, AT),
            lms(grid),
            ipndm(grid),
            edm_ode(grid, AT, schedule="vp", scaling="vp", inner=0.5),
        ):
            assert all(np.isfinite(leaf).all() for leaf in table.rows)


def config(name, **settings):
    return {"_class_name": name, **settings}


@pytest.mark.parametrize("num_steps", [1, 2, 3, 7, 61])
@pytest.mark.parametrize("name", sorted(MINE))
def test_presets_are_finite(name, num_steps):
    table = from_diffusers_config(config(name), num_steps).table
    assert all(np.isfinite(leaf).all() for leaf in table.rows) and np.isfinite(table.init)


def test_final_sigma_min_repeats_the_last_level():
    table = from_diffusers_config(config("EulerDiscreteScheduler", final_sigmas_type="sigma_min"), 5).table
    assert table.num_calls == 5
    last = table.rows.update[-1, 0] / [1, table.rows.alpha[-1], table.rows.sigma[-1], 1]
    np.testing.assert_allclose(last[1:3] * table.rows.alpha[-1], 1, rtol=1e-12)  # x / alpha is kept


def test_log_linear_sigmas_that_are_told_are_one_more():
    """Recorded: N + 1 sigmas from the largest to the smallest; told as log(sigma) / 4, each is a call."""
    settings = {"interpolation_type": "log_linear", "timestep_type": "continuous", "prediction_type": "v_prediction"}
    rows = from_diffusers_config(config("EulerDiscreteScheduler", **settings), 3).table.rows
    sigmas = rows.sigma / rows.alpha
    np.testing.assert_allclose(sigmas, [157.41, 6.2811, 0.25064, 0.010001], rtol=1e-4)
    np.testing.assert_allclose(rows.time, np.log(sigmas) / 4, rtol=1e-12)
    # At the timesteps of a schedule there are N times for these sigmas, and the last one is where sampling ends.
    rows = from_diffusers_config(config("EulerDiscreteScheduler", interpolation_type="log_linear"), 3).table.rows
    np.testing.assert_allclose(rows.sigma / rows.alpha, sigmas[:3], rtol=1e-12)
    assert rows.time.tolist() == [999, 499.5, 0]


EULER, KDPM2 = "EulerDiscreteScheduler", "KDPM2DiscreteScheduler"


@pytest.mark.parametrize(
    "build, message",
    [
        (lambda: euler(GRIDS["karras"], hat=[]), r"one level a step, 10, got 0"),
        (lambda: euler_ancestral(GRIDS["karras"], eta=1.5), r"eta must lie in \[0, 1\], got 1.5"),
        (lambda: euler_late_churn(GRIDS["karras"], s_churn=1, prediction="e"), r"unknown prediction 'e'"),
        (lambda: lms(GRIDS["karras"], order=7), r"order must be a whole number in \[1, 6\], got 7"),
        (lambda: ipndm(GRIDS["karras"], order=0), r"order must be 1, 2, 3 or 4, got 0"),
        (lambda: edm_ode(GRIDS["karras"], AT, schedule="lin"), r"unknown schedule 'lin'; did you mean 'linear'"),
        (lambda: edm_ode(GRIDS["karras"], AT, betas=(19, 0.1)), r"betas are those of schedule 'vp', got .* 'linear'"),
        (lambda: edm_ode(GRIDS["karras"], AT, hat=[]), r"hat must have one level a step, 10, got 0"),
        (lambda: vp_betas(2.0, 1.0), r"vp_betas needs 0 < sigma_min < sigma_max .*, got 2.0, 1.0 and time_min 0.001"),
        (lambda: edm_ode(GRIDS["karras"], AT, inner=1.5), r"inner must be None or lie in \(0, 1\], got 1.5"),
        (lambda: samplers.preconditioned(lambda x, t: x, 0.0), r"sigma_data must be positive, got 0.0"),
        (lambda: samplers.preconditioned(lambda x, t: x, 0.5, "x_0"), r"unknown prediction 'x_0'.*known: eps, v"),
        (lambda: sigma_grids.from_sigmas(AT, [3, 4, 0]), r"decrease strictly to 0 or above, got \[3.0, 4.0, 0.0\]"),
        (lambda: sigma_grids.from_times(S, [1000, 5]), r"numbers in \[0, 999\], got"),
        (lambda: sigma_grids.from_times(S, [5, 5.0]), r"decrease strictly along a grid, got sigma/alpha"),
        (lambda: sigma_grids.karras(S, 0), r"num_steps must be a whole number in \[1, 1000000\], got 0"),
        (lambda: from_diffusers_config(config(EULER), 1001), r"in \[1, 1000\], got 1001"),
        (lambda: from_diffusers_config(config(EULER), 10, timesteps=[5]), r"either num_steps or a list"),
        (lambda: from_diffusers_config(config(EULER), timesteps=[]), r"at least 1 element and one of sigmas 2"),
        (lambda: from_diffusers_config(config(EULER), sigmas=[3.0]), r"at least 1 element and one of sigmas 2"),
        (lambda: from_diffusers_config(config(EULER)), r"either num_steps or a list"),
        (lambda: from_diffusers_config(config(EULER), sigmas=[2, 0], timesteps=[3]), r"cannot both be given"),
        (lambda: from_diffusers_config(config(EULER, use_karras_sigmas=True), timesteps=[3]), r"timesteps cannot"),
        (lambda: from_diffusers_config(config(EULER, beta_schedule="exp"), 5), r"unknown beta_schedule 'exp'"),
        (lambda: from_diffusers_config(config(EULER, trained_betas=[0.1, 0.2]), 2), r"number of trained_betas, 2"),
        (
            lambda: from_diffusers_config(config(EULER, use_karras_sigmas=True, use_beta_sigmas=True), 5),
            r"only one of .* got use_karras_sigmas and use_beta_sigmas",
        ),
        (
            lambda: from_diffusers_config(config(EULER, use_karras_sigmas=True, sigma_max=900.0), 9),
            r"first time of the grid must differ from the others, got 999 again",
        ),
        (
            lambda: from_diffusers_config(config(EULER, use_karras_sigmas=True, use_beta_sigmas=True), sigmas=[2, 0]),
            r"only one of .* got use_karras_sigmas and use_beta_sigmas",
        ),
        (lambda: from_diffusers_config(config(EULER, timestep_spacing="even"), 5), r"unknown timestep_spacing 'even'"),
        (lambda: from_diffusers_config(config(KDPM2, prediction_type="sample"), 5), r"known: epsilon, v_prediction"),
        (
            lambda: from_diffusers_config(config("EDMEulerScheduler"), 0),
            r"must be a whole number in .*, got 0",
        ),
        (lambda: from_diffusers_config(config("IPNDMScheduler")), r"must be a whole number in .*, got None"),
    ],
)
def test_errors(build, message):
    with pytest.raises(ValueError, match=message):
        build()


def test_s_tmax_of_a_json_file():
    options = {"s_churn": 5.0, "s_tmax": "inf"}
    found = from_diffusers_config(config(EULER), 5, **options).table
    assert_same_table(found, from_diffusers_config(config(EULER), 5, s_churn=5.0, s_tmax=inf).table, atol=0)
