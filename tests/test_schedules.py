import inspect
import json

import jax
import numpy as np
import pytest

from ddpm_jax import schedules
from tests.helpers import GOLDEN, golden

ALL = sorted(schedules.BY_NAME)
TABLES = (
    "betas alphas_cumprod alphas_cumprod_prev sqrt_alphas_cumprod sqrt_one_minus_alphas_cumprod "
    "sqrt_recip_alphas_cumprod sqrt_recipm1_alphas_cumprod posterior_variance posterior_log_variance_clipped "
    "posterior_mean_coef1 posterior_mean_coef2"
).split()


def close(actual, expected, rtol=2e-7, atol=1e-38):
    # Below 1e-38 float32 is denormal and loses digits: alphas_cumprod of "sqrt" ends at 3e-44.
    np.testing.assert_allclose(np.asarray(actual, np.float64), expected, rtol=rtol, atol=atol)


# ------------------------------------------------------------------------------------------------------- identities


@pytest.mark.parametrize("name", ALL)
@pytest.mark.parametrize("length", [50, 1000])
def test_tables_are_what_their_names_say(name, length):
    # Every table from the betas by its definition, in float64; float32 holds it to half a unit in the last place.
    s = schedules.make(name, length)
    betas = s.betas_float64
    ac = np.array([np.prod(1 - betas[: t + 1]) for t in range(length)])
    prev = np.append(1, ac[:-1])
    close(s.alphas, 1 - betas)
    close(s.alphas_cumprod, ac, 1e-6)
    close(s.alphas_cumprod_prev, prev, 1e-6)
    close(s.one_minus_alphas_cumprod, 1 - ac, 1e-6)
    close(s.sqrt_alphas_cumprod, np.sqrt(ac), 1e-6)
    with np.errstate(divide="ignore"):
        close(s.sqrt_recip_alphas, 1 / np.sqrt(1 - betas))
        close(s.sqrt_recip_alphas_cumprod, ac**-0.5, 1e-6)
        close(s.sqrt_recipm1_alphas_cumprod, np.sqrt(1 / ac - 1), 1e-6)
        # log_snr crosses 0, where a relative tolerance means nothing.
        np.testing.assert_allclose(s.log_snr, np.log(ac / (1 - ac)), rtol=1e-6, atol=1e-6)
    assert (np.diff(s.log_snr) < 0).all()


@pytest.mark.parametrize("name", ALL)
def test_posterior_is_bayes_rule(name):
    # q(x_{t-1} | x_t, x_0) from precisions: 1/var = alpha_t/beta_t + 1/(1 - ac_{t-1}), for t >= 1.
    s = schedules.make(name, 200)
    beta, alpha = s.betas_float64[1:], 1 - s.betas_float64[1:]
    before = s.one_minus_alphas_cumprod_float64[:-1]
    variance = 1 / (alpha / beta + 1 / before)
    close(s.posterior_variance[1:], variance, 1e-6)
    close(s.posterior_mean_coef1[1:], variance * np.sqrt(s.alphas_cumprod_float64[:-1]) / before, 1e-6)
    close(s.posterior_mean_coef2[1:], variance * np.sqrt(alpha) / beta, 1e-6)
    assert s.posterior_variance[0] == 0 and s.posterior_mean_coef1[0] == 1 and s.posterior_mean_coef2[0] == 0
    log = np.log(np.asarray(s.posterior_variance, np.float64)[1:])
    np.testing.assert_allclose(s.posterior_log_variance_clipped, np.append(log[0], log), atol=1e-6)


def test_small_complements_keep_their_digits():
    # 1 - alphas_cumprod_0 = beta_0 exactly; a float32 cumprod is wrong by 1.7e-4 here.
    s = schedules.linear(1000)
    close(s.one_minus_alphas_cumprod[0], 1e-4, 1e-7)
    s = schedules.from_betas(np.full(3, 1e-12))
    close(s.one_minus_alphas_cumprod, [1e-12, 2e-12, 3e-12], 1e-6)


@pytest.mark.parametrize("name", ALL)
def test_respacing(name):
    s = schedules.make(name, 300)
    same = schedules.respace(s, range(300))
    np.testing.assert_allclose(same.betas_float64, s.betas_float64, rtol=1e-14)
    kept = np.array([0, 3, 4, 117, 298])
    r = schedules.respace(s, kept)
    # A stride whose alpha is tiny is stored as beta = 1 - alpha, which keeps alpha to 1e-16 absolute.
    np.testing.assert_allclose(r.alphas_cumprod_float64, s.alphas_cumprod_float64[kept], rtol=1e-10, atol=1e-15)
    np.testing.assert_array_equal(r.timesteps, kept)
    again = schedules.respace(r, [1, 3])
    np.testing.assert_allclose(again.betas_float64, schedules.respace(s, [3, 117]).betas_float64, rtol=1e-10)
    np.testing.assert_array_equal(again.timesteps, [3, 117])


def test_zero_terminal_snr():
    s = schedules.quad(1000, beta_start=0.00085, beta_end=0.012)
    z = schedules.zero_terminal_snr(s)
    assert z.alphas_cumprod[-1] == 0 and z.log_snr[-1] == -np.inf and z.betas[-1] == 1
    close(z.alphas_cumprod[0], s.alphas_cumprod_float64[0], 1e-7)
    # An affine map of sqrt(alphas_cumprod): ratios of differences survive it.
    a, b = np.sqrt(s.alphas_cumprod_float64), np.sqrt(z.alphas_cumprod_float64)
    np.testing.assert_allclose((b[:-1] - b[1:]) / (b[0] - b[1]), (a[:-1] - a[1:]) / (a[0] - a[1]), rtol=1e-6)


# ---------------------------------------------------------------------------------------------------- special cases


def test_the_classic_walk_through_with_300_steps():
    # The eight tensors of the annotated diffusion model, by its own lines, in float64.
    betas = np.linspace(0.0001, 0.02, 300)
    alphas = 1.0 - betas
    alphas_cumprod = np.cumprod(alphas)
    alphas_cumprod_prev = np.pad(alphas_cumprod[:-1], (1, 0), constant_values=1.0)
    s = schedules.linear(300)
    close(s.betas, betas)
    close(s.alphas, alphas)
    close(s.alphas_cumprod, alphas_cumprod)
    close(s.alphas_cumprod_prev, alphas_cumprod_prev)
    close(s.sqrt_recip_alphas, np.sqrt(1.0 / alphas))
    close(s.sqrt_alphas_cumprod, np.sqrt(alphas_cumprod))
    close(s.sqrt_one_minus_alphas_cumprod, np.sqrt(1.0 - alphas_cumprod))
    close(s.posterior_variance, betas * (1.0 - alphas_cumprod_prev) / (1.0 - alphas_cumprod))
    for name in ("betas", "posterior_variance", "log_snr"):
        assert getattr(s, name).dtype == np.float32 and getattr(s, name).shape == (300,)
    assert s.timesteps.dtype == np.int32 and s.num_timesteps == 300


def test_closed_forms():
    np.testing.assert_allclose(schedules.jsd(10).alphas_cumprod_float64, np.linspace(0.9, 0, 10), atol=1e-15)
    assert (schedules.const(7, beta_end=0.3).betas_float64 == 0.3).all()
    assert (schedules.cosine(1000).betas_float64 == 0.999).sum() == 1
    # alphas_cumprod of the two sigmoids half way: .299 and .498 (parity checklist): the same name, not the same thing.
    assert schedules.sigmoid(1000).alphas_cumprod[500] == pytest.approx(0.299, abs=1e-3)
    assert schedules.sigmoid_cumprod(1000).alphas_cumprod[500] == pytest.approx(0.498, abs=1e-3)
    # The rescaled schedule keeps the total noise whatever T.
    a, b = schedules.linear_rescaled(500), schedules.linear_rescaled(4000)
    assert abs(a.log_snr[-1] - b.log_snr[-1]) < 0.2 < abs(a.log_snr[-1] - schedules.linear(500).log_snr[-1])
    assert schedules.warmup(100, fraction=0.5).betas_float64[50] == 0.02 > schedules.warmup(100, fraction=0.5).betas[48]


def test_one_step():
    for name in ALL:
        if name != "linear_rescaled":  # its single beta would be 0.1 .. 20
            s = schedules.make(name, 1)
            assert s.posterior_variance[0] == 0 and np.isfinite(s.posterior_log_variance_clipped[0])


def test_a_schedule_is_a_pytree():
    s = schedules.cosine(20)
    out = jax.jit(lambda s: s)(s)
    np.testing.assert_array_equal(out.betas_float64, s.betas_float64)
    assert jax.tree.structure(out) == jax.tree.structure(s)
    doubled = jax.grad(lambda s: s.log_snr.sum(), allow_int=True)(s)
    np.testing.assert_array_equal(doubled.log_snr, 1)


# ---------------------------------------------------------------------------------------------------- golden numbers


OPENAI = [["linear", 1000], ["cosine", 1000], ["linear", 50], ["cosine", 50], ["linear", 20]]


@pytest.mark.parametrize("name, length", OPENAI)
def test_openai_tables(name, length):
    arrays, _ = golden("openai/betas")
    s = {"linear": schedules.linear_rescaled, "cosine": schedules.cosine}[name](length)
    np.testing.assert_allclose(s.betas_float64, arrays[f"{name}.T{length}.betas"], rtol=1e-12)
    for table in TABLES:
        # The reference forms 1 - alphas_cumprod by subtraction, which loses up to 1e-12 of 1e-4, and log by logs of it.
        close(getattr(s, table), arrays[f"{name}.T{length}.{table}"], 3e-7)


def test_openai_betas_of_iddpm():
    arrays, _ = golden("openai/betas")
    np.testing.assert_allclose(schedules.linear_rescaled(4000).betas_float64, arrays["linear.T4000.betas"], rtol=1e-12)
    np.testing.assert_allclose(schedules.cosine(4000).betas_float64, arrays["cosine.T4000.betas"], rtol=1e-10)


@pytest.mark.parametrize(
    "name, made",
    {
        "linear": schedules.linear(),
        "quad": schedules.quad(),
        "warmup10": schedules.warmup(),
        "warmup50": schedules.warmup(fraction=0.5),
        "const": schedules.const(),
        "jsd": schedules.jsd(),
    }.items(),
)
def test_legacy_betas(name, made):
    arrays, _ = golden("openai/betas")
    np.testing.assert_allclose(made.betas_float64, arrays[f"legacy_{name}.T1000.betas"], rtol=1e-12)


def test_openai_respaced_tables():
    arrays, meta = golden("openai/respaced_tables")
    for name, length, sections in meta["cases"]:
        base = {"linear": schedules.linear_rescaled, "cosine": schedules.cosine}[name](length)
        key = f"{name}.T{length}.{sections}"
        s = schedules.respace(base, arrays[f"{key}.timestep_map"])
        np.testing.assert_array_equal(s.timesteps, arrays[f"{key}.timestep_map"])
        for table in TABLES:
            close(getattr(s, table), arrays[f"{key}.{table}"], 3e-7)


def test_ddim_and_ldm_betas():
    arrays, meta = golden("other/ddim_betas")
    for case in meta["cases"]:
        name, length = case["key"].split(".T")
        ends = {key: case[key] for key in ("beta_start", "beta_end")}
        allowed = inspect.signature(schedules.BY_NAME[name]).parameters
        s = schedules.make(name, int(length), **{key: value for key, value in ends.items() if key in allowed})
        np.testing.assert_allclose(s.betas_float64, arrays[case["key"]], rtol=1e-12)
    arrays, meta = golden("other/ldm_schedules")
    for case in meta["cases"]:
        name = case["key"].removeprefix("betas.")
        betas = schedules.make_beta_schedule(name, case["T"], case["linear_start"], case["linear_end"])
        assert betas.dtype == np.float64
        # Cosine betas are 1 - f/f in both, two numbers near 1: 1e-16 absolute.
        np.testing.assert_allclose(betas, arrays[case["key"]], rtol=1e-12, atol=3e-16)


def test_diffusers_tables():
    arrays, meta = golden("diffusers/beta_tables")
    by_name = {
        "linear": schedules.linear,
        "scaled_linear": schedules.quad,
        "squaredcos_cap_v2": schedules.cosine,
        "sigmoid": schedules.sigmoid,
        "laplace": schedules.laplace,
    }
    checked = 0
    for case in meta["cases"]:
        config = dict(case["config"])
        if (make := by_name.get(config.pop("beta_schedule"))) is None:
            continue  # exp: Heun's only
        s = make(config.pop("num_train_timesteps", 1000), **config)
        if case["rescale_betas_zero_snr"]:
            s = schedules.zero_terminal_snr(s)
        # diffusers works in float32 throughout: 1 - alpha rounds alpha, near 1, to 6e-8, and torch.linspace its
        # steps; zero_snr divides roots that agree to few digits near the end.
        close(s.betas, arrays[f"{case['key']}.betas"], rtol=2e-5, atol=5e-7)
        # Its cumulative product: 1.3e-5 relative for cosine, less for the others (parity checklist, S5).
        close(s.alphas_cumprod, arrays[f"{case['key']}.alphas_cumprod"], rtol=1.5e-5, atol=3e-7)
        checked += 1
    assert checked == 9


def test_golden_files_say_where_they_come_from():
    for path in GOLDEN.rglob("*.npz"):
        with np.load(path, allow_pickle=False) as file:
            assert {"upstream", "versions"} <= json.loads(str(file["meta"])).keys(), path


# ----------------------------------------------------------------------------------------------------------- errors


@pytest.mark.parametrize(
    "call, message",
    [
        (lambda: schedules.linear(10, beta_end=1.2), r"betas must lie in \(0, 1\).*betas\[\d\] = 1\.0"),
        (lambda: schedules.from_betas([0.1, -0.2, 0.3]), r"betas\[1\] = -0\.2 \(T = 3\)"),
        (lambda: schedules.from_betas([0.1, np.nan]), r"betas\[1\] = nan"),
        (lambda: schedules.from_betas([0.5, 1.0, 0.5]), r"only the last may be 1, got betas\[1\] = 1\.0"),
        (lambda: schedules.from_betas([]), r"non-empty 1-d array, got shape \(0,\)"),
        (lambda: schedules.from_betas([0.1], timesteps=[0, 1]), r"timesteps must be 1 integers"),
        (lambda: schedules.linear_rescaled(19), r"betas\[18\] = 1\.05"),
        (lambda: schedules.linear(0), r"num_timesteps must be a whole number of at least 1, got 0"),
        (lambda: schedules.cosine(10.5), r"got 10\.5"),
        (lambda: schedules.make("cosin"), r"unknown schedule 'cosin'; did you mean 'cosine'\?"),
        (lambda: schedules.make("cosine", beta_end=1), r"'cosine' takes s, max_beta, got 'beta_end'"),
        (lambda: schedules.make_beta_schedule("scaled_linear", 10), r"unknown schedule 'scaled_linear'"),
        (lambda: schedules.respace(schedules.linear(10), [3, 3]), r"increase strictly, got 3 followed by 3"),
        (lambda: schedules.respace(schedules.linear(10), [3, 10]), r"in \[0, 10\), got 10"),
        (lambda: schedules.respace(schedules.linear(10), []), r"non-empty list of integers"),
        (lambda: schedules.warmup(fraction=1.5), r"fraction must lie in \(0, 1\], got 1\.5"),
        (lambda: schedules.zero_terminal_snr(schedules.linear(1)), r"at least 2 timesteps, got 1"),
    ],
)
def test_errors_say_the_value_and_what_is_allowed(call, message):
    with pytest.raises(ValueError, match=message):
        call()
