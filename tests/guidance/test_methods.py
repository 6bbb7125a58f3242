"""Methods of guidance against what their equations say: identities, special cases, and loops written out."""

import collections

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ddpm_jax import guidance, samplers, schedules
from ddpm_jax.guidance import CLASSIFIER_FREE, Method
from ddpm_jax.guidance.method import ASKED, GIVEN, NOTHING, TOGETHER
from ddpm_jax.samplers.grids import leading
from tests.helpers import relative

N, SHAPE = 8, (2, 8, 8, 3)
TABLE = samplers.ddim(leading(schedules.linear(1000), N))
C, U, NEGATIVE = jax.random.normal(jax.random.key(0), (3, *SHAPE))
METHODS = {name: method for name in guidance.__all__ if isinstance(method := getattr(guidance, name), Method)} | {
    "rescaled": guidance.rescaled(CLASSIFIER_FREE),
    "rescaled, projected": guidance.rescaled(guidance.ADAPTIVE_PROJECTED),
    "from nothing": guidance.adaptive_projected(start="nothing"),
    "two channels": guidance.of_channels(CLASSIFIER_FREE, 2),
    "two channels, projected": guidance.of_channels(guidance.ADAPTIVE_PROJECTED, 2),
}
NEEDED = {"threshold": 3.0, "low": 1.5, "rescale": 0.7, "damping": 0.5}


def combined(method, *answers, memory=None, **numbers):
    """Of answers, with the numbers that are not said at their defaults."""
    known = {name: value for name, value in NEEDED.items() if name in method.defaults}
    numbers = {**method.defaults, **known, **numbers}
    numbers = {name: jnp.float32(value) for name, value in numbers.items()}
    answers = answers or (C, U, NEGATIVE)[: 3 if method is guidance.PERPENDICULAR else 2]
    if method.memory is None:
        return method.combine(answers, numbers)
    memory = method.memory(jax.ShapeDtypeStruct(SHAPE, jnp.float32)) if memory is None else memory
    return method.combine(answers, numbers, memory)[0]


def norms(images):
    return np.linalg.norm(np.asarray(images, np.float64).reshape(len(images), -1), axis=1)


def dots(a, b):
    return np.sum(np.asarray(a, np.float64) * np.asarray(b, np.float64), axis=(1, 2, 3))


@pytest.mark.parametrize("name", METHODS)
def test_a_scale_at_which_one_answer_is_enough(name):
    """What `on` relies on when it asks one answer only; and elsewhere both matter."""
    method = METHODS[name]
    assert method.given_at in (1.0, None) and method.nothing_at in (0.0, None)
    for at, answer in ((method.given_at, C), (method.nothing_at, U)):
        if at is not None:
            np.testing.assert_allclose(combined(method, scale=at), answer, atol=2e-6)
    found = combined(method, scale=0.7)
    assert relative(found, C) > 0.01 and relative(found, U) > 0.01


# ------------------------------------------------------------------------------------------------------ one by one


@pytest.mark.parametrize("start", ["given", "nothing"])
def test_projected_guidance_without_its_three_parts_is_classifier_free(start):
    method = guidance.adaptive_projected(start=start)
    plain = combined(CLASSIFIER_FREE, scale=4.0)
    found = combined(method, scale=4.0, eta=1.0, threshold=np.inf, momentum=-0.5)
    assert relative(found, plain) < 1e-6
    assert relative(combined(method, scale=4.0, projected=0.0), plain) < 1e-6
    assert relative(combined(method, scale=4.0), plain) > 0.1


def test_projected_guidance_is_perpendicular_and_short():
    update = combined(guidance.ADAPTIVE_PROJECTED, scale=3.0, threshold=np.inf) - C
    np.testing.assert_allclose(dots(update, C) / norms(update) / norms(C), 0, atol=1e-6)
    perpendicular = norms(C - U) ** 2 - (dots(C - U, C) / norms(C)) ** 2
    np.testing.assert_allclose(norms(update) ** 2, 4 * perpendicular, rtol=1e-5)
    short = combined(guidance.ADAPTIVE_PROJECTED, scale=3.0, threshold=2.0) - C
    unit = lambda images: images / norms(images).reshape(-1, 1, 1, 1)
    np.testing.assert_allclose(unit(short), unit(update), atol=1e-6)
    np.testing.assert_allclose(norms(short) / norms(update), 2.0 / norms(C - U), rtol=1e-5)
    # Shorter ones stay as they are.
    np.testing.assert_array_equal(combined(guidance.ADAPTIVE_PROJECTED, scale=3.0, threshold=1e3) - C, update)


def test_axes_of_projected_guidance():
    """Over height and width: every channel of every example as an example of its own."""
    method = guidance.adaptive_projected(axes=(1, 2))
    found = combined(method, scale=3.0, threshold=4.0)
    for k in range(3):
        c, u = C[..., k : k + 1], U[..., k : k + 1]
        alone = combined(guidance.ADAPTIVE_PROJECTED, c, u, memory=jnp.zeros(c.shape), scale=3.0, threshold=4.0)
        np.testing.assert_allclose(found[..., k : k + 1], alone, rtol=1e-5, atol=1e-6)


def drawn(method, table, answers, make_denoise=samplers.denoiser, x_T=U):
    denoise = guidance.guided(answers, make_denoise, method)
    zeros = jnp.zeros((table.num_calls, *SHAPE))
    return samplers.sample(denoise, table, None, SHAPE, x_T=x_T, noise=zeros)


CONSTANT = guidance.of_each(lambda x, t: C, lambda x, t: U)


def test_momentum_of_projected_guidance_over_a_run():
    """Answers that stay the same: the k-th difference is (1 - beta^k) / (1 - beta) times the first."""
    numbers = {"scale": 3.0, "eta": 1.0, "threshold": np.inf}
    table = guidance.on(TABLE, guidance.ADAPTIVE_PROJECTED, momentum=-0.5, **numbers)
    found = drawn(guidance.ADAPTIVE_PROJECTED, table, CONSTANT)
    grown = (1 - (-0.5) ** np.arange(1, N + 1)) / 1.5
    expected = drawn(CLASSIFIER_FREE, guidance.on(TABLE, CLASSIFIER_FREE, scale=1 + 2 * grown), CONSTANT)
    assert relative(found, expected) < 1e-5
    assert relative(drawn(CLASSIFIER_FREE, guidance.on(TABLE, CLASSIFIER_FREE, scale=3.0), CONSTANT), expected) > 0.01


def test_cfg_plus_plus_is_ddim_guided_by_a_scale_that_the_schedule_sets():
    """x_t = a_t x_0(u + s d) + sigma_t u is the DDIM step of scale s r / (r - sigma_t), r = a_t sigma_s / a_s."""
    rows, grid = TABLE.rows, leading(schedules.linear(1000), N)
    network = guidance.of_each(lambda x, t: jnp.tanh(x) + 0.3, lambda x, t: 0.5 * x)
    r, sigma = np.array([(t.alpha * s.sigma / s.alpha, t.sigma) for s, t in grid.steps()]).T
    for scale in (0.6, 1.0):
        found = drawn(guidance.CFG_PLUS_PLUS, guidance.on(TABLE, guidance.CFG_PLUS_PLUS, scale=scale), network)
        equal = guidance.on(TABLE, CLASSIFIER_FREE, scale=scale * r / (r - sigma))
        assert relative(found, drawn(CLASSIFIER_FREE, equal, network)) < 1e-5
    nothing = guidance.on(TABLE, guidance.CFG_PLUS_PLUS, scale=0.0)
    assert nothing.rows.guidance[ASKED].tolist() == [NOTHING] * N and len(rows.time) == N


def test_zero_star():
    """Of u only the part along c's is left: u = k c guides nowhere. The zero rows say 0, whatever scale or interval."""
    method = guidance.CFG_ZERO_STAR
    # 18 c - 18 c + c: what cancels is rounded.
    assert relative(combined(method, C, -3.0 * C, scale=7.0), C) < 1e-5
    s = dots(C, U) / norms(U) ** 2
    expected = (1 - 4) * s[:, None, None, None] * np.asarray(U) + 4 * np.asarray(C)
    assert relative(combined(method, scale=4.0), expected) < 1e-5
    np.testing.assert_array_equal(combined(method, scale=4.0, zero=1.0), jnp.zeros(SHAPE))
    asks = lambda **numbers: guidance.on(TABLE, method, **numbers).rows.guidance[ASKED].tolist()
    zero = np.arange(N) < 2
    assert asks(scale=1.0, zero=zero) == [TOGETHER] * 2 + [GIVEN] * (N - 2)
    assert asks(scale=3.0, zero=zero, interval=np.arange(N) >= 5) == [TOGETHER] * 2 + [GIVEN] * 3 + [TOGETHER] * 3
    assert asks(scale=1.0) == [GIVEN] * N
    first = guidance.on(TABLE, method, scale=1.0, zero=zero)
    seen = samplers.trajectory(guidance.guided(CONSTANT, samplers.denoiser, method), first, jax.random.key(0), SHAPE)[1]
    step = TABLE.rows.alpha[1:] / TABLE.rows.alpha[:-1]  # of eps = 0
    np.testing.assert_allclose(seen[2], seen[0] * step[0] * step[1], rtol=1e-5)


def test_autoguidance_never_asks_the_worse_network_at_scale_1():
    seen = collections.Counter()

    def network(name, strength):
        def model_fn(x, t):
            jax.debug.callback(lambda: seen.update([name]))
            return jnp.tanh(strength * x)

        return model_fn

    answers = guidance.of_each(network("good", 1.0), network("bad", 0.5))
    table = guidance.on(TABLE, guidance.AUTOGUIDANCE, scale=np.where(np.arange(N) < 3, 2.0, 1.0))
    found = jax.block_until_ready(drawn(guidance.AUTOGUIDANCE, table, answers))
    jax.effects_barrier()
    assert seen == {"good": N, "bad": 3}

    def by_hand(x, t):
        good, bad = jnp.tanh(x), jnp.tanh(0.5 * x)
        return jnp.where(t[0] > table.rows.time[3], 2 * good - bad, good)

    zeros = jnp.zeros((N, *SHAPE))
    assert relative(found, samplers.sample(samplers.denoiser(by_hand), TABLE, None, SHAPE, x_T=U, noise=zeros)) < 1e-5


def test_perpendicular_negative_prompts():
    """One along the prompt takes nothing away; one across it is taken away whole; two numbers, two effects."""
    d = C - U
    plain = combined(CLASSIFIER_FREE, scale=5.0)
    along = combined(guidance.PERPENDICULAR, C, U, U + 0.8 * d, scale=5.0, negative=3.0)
    np.testing.assert_allclose(along, plain, atol=2e-5)
    across = NEGATIVE - (dots(NEGATIVE, d) / norms(d) ** 2)[:, None, None, None].astype(np.float32) * d
    found = combined(guidance.PERPENDICULAR, C, U, U + across, scale=5.0, negative=0.5)
    np.testing.assert_allclose(found, plain - 2.5 * across, atol=2e-5)


def test_prompts_are_asked_in_one_call():
    """A negative prompt in place of nothing, and beside it: one call of two or three times the batch."""
    told = [jnp.full((2, 1), value) for value in (0.1, 0.0, -0.3)]
    sizes = []

    def network(x, t, told):
        sizes.append(len(x))
        return jnp.tanh(x + told[:, :, None, None])

    each = [lambda x, t, told=told: jnp.tanh(x + told[:, :, None, None]) for told in told]
    for method, order in ((CLASSIFIER_FREE, (0, 2)), (guidance.PERPENDICULAR, (0, 1, 2))):
        table = guidance.on(TABLE, method, scale=4.0)
        asked = guidance.asked(network, *(told[k] for k in order))
        found = drawn(method, table, asked)
        assert len(order) * 2 in sizes
        assert relative(found, drawn(method, table, guidance.of_each(*(each[k] for k in order)))) < 1e-6


def test_tangential_guidance_keeps_the_first_singular_vector():
    expected = []
    for c, u in zip(np.asarray(C, np.float64), np.asarray(U, np.float64), strict=True):
        v = np.linalg.svd(np.stack([c.ravel(), u.ravel()]), full_matrices=False)[2][0]
        kept = (u.ravel() @ v * v).reshape(c.shape)
        expected.append(kept + 3.0 * (c - kept))
    assert relative(combined(guidance.TANGENTIAL, scale=3.0), np.stack(expected)) < 1e-5
    np.testing.assert_allclose(combined(guidance.TANGENTIAL, C, 0.5 * C, scale=3.0), 2 * C, atol=1e-5)


def test_magnitude_aware_guidance():
    """Without damping it is classifier-free; with it, of a scale that falls with |c - u| / |u|."""
    method = guidance.MAGNITUDE_AWARE
    assert relative(combined(method, scale=5.0, damping=0.0), combined(CLASSIFIER_FREE, scale=5.0)) < 1e-6
    u = 4.0 * U
    scale = 1 + 4 * np.exp(-2.0 * norms(C - u) / norms(u))
    expected = combined(CLASSIFIER_FREE, C, u, scale=1.0) + (scale - 1)[:, None, None, None].astype(np.float32) * (
        C - u
    )
    assert relative(combined(method, C, u, scale=5.0, damping=2.0), expected) < 1e-5


def test_frequencies_have_their_own_scales():
    """Equal scales are classifier-free guidance; what is constant over an image has the low one, whatever the other."""
    method = guidance.FREQUENCY_DECOUPLED
    assert relative(combined(method, scale=4.0, low=4.0), combined(CLASSIFIER_FREE, scale=4.0)) < 1e-6
    flat = jnp.full(SHAPE, 0.5)
    np.testing.assert_allclose(combined(method, U + flat, U, scale=9.0, low=3.0), U + 3 * flat, atol=1e-5)
    checkers = jnp.asarray((-1.0) ** np.indices(SHAPE).sum(0), jnp.float32)
    found = combined(method, U + checkers, U, scale=9.0, low=3.0)[:, 2:-2, 2:-2]
    np.testing.assert_allclose(found, (U + 9 * checkers)[:, 2:-2, 2:-2], atol=1e-4)
    parallel = combined(method, C, jnp.zeros(SHAPE), scale=9.0, low=3.0, parallel=0.0, parallel_low=0.0)
    np.testing.assert_array_equal(parallel, jnp.zeros(SHAPE))
    with pytest.raises(ValueError, match="an even height and width of at least 6, got 7 x 8"):
        combined(method, C[:, :7], U[:, :7], scale=2.0)


def test_some_channels():
    plain, found = combined(CLASSIFIER_FREE, scale=4.0), combined(METHODS["two channels"], scale=4.0)
    np.testing.assert_array_equal(found[..., :2], plain[..., :2])
    np.testing.assert_array_equal(found[..., 2], C[..., 2])
    projected = guidance.ADAPTIVE_PROJECTED
    table = guidance.on(TABLE, projected, scale=4.0, threshold=3.0)
    remembers = drawn(METHODS["two channels, projected"], table, CONSTANT)
    first = guidance.of_each(lambda x, t: C[..., :2], lambda x, t: U[..., :2])
    zeros = jnp.zeros((N, *SHAPE[:3], 2))
    denoise = guidance.guided(first, samplers.denoiser, projected)
    alone = samplers.sample(denoise, table, None, (*SHAPE[:3], 2), x_T=U[..., :2], noise=zeros)
    assert relative(remembers[..., :2], alone) < 1e-6
    with pytest.raises(ValueError, match="the first 4 channels are guided, got images of 3"):
        combined(guidance.of_channels(CLASSIFIER_FREE, 4), scale=2.0)
    with pytest.raises(ValueError, match="count must be at least 1, got 0"):
        guidance.of_channels(CLASSIFIER_FREE, 0)


def test_rescaled_with_a_memory_and_of_nothing():
    """The size of c, and the memory of the method; an answer of one value has no size, and stays."""
    method = METHODS["rescaled, projected"]
    found = combined(method, scale=5.0, rescale=1.0)
    np.testing.assert_allclose(np.std(found, axis=(1, 2, 3)), np.std(C, axis=(1, 2, 3)), rtol=1e-5)
    unscaled = combined(guidance.ADAPTIVE_PROJECTED, scale=5.0)
    assert relative(combined(method, scale=5.0, rescale=0.0), unscaled) < 1e-6
    zero = combined(guidance.rescaled(guidance.CFG_ZERO_STAR), scale=5.0, zero=1.0, rescale=0.7)
    np.testing.assert_array_equal(zero, jnp.zeros(SHAPE))
    flat = guidance.rescaled(Method(lambda answers, numbers: jnp.full(SHAPE, 0.5)))
    np.testing.assert_allclose(combined(flat, scale=5.0, rescale=0.7), jnp.full(SHAPE, 0.5), rtol=1e-6)


# ------------------------------------------------------------------------------------------------------ x_0, numbers


def test_guidance_of_x_0():
    """Linear methods are the same; projected ones are those of x_0; a learned variance is the condition's."""
    network = guidance.of_each(
        *(lambda x, t, k=k: jnp.concatenate([jnp.tanh((1 + k) * x), 0.2 * x], axis=-1) for k in (0.0, 0.5))
    )
    make = lambda model_fn: samplers.denoiser(model_fn, "eps", variance="learned_range")
    rows = samplers.ddpm(leading(schedules.linear(1000), N), variance="learned_range")
    row = lambda method, **numbers: jax.tree.map(
        lambda leaf: jnp.float32(leaf[3]), guidance.on(rows, method, **numbers).rows
    )
    plain = row(CLASSIFIER_FREE, scale=3.0)
    found, expected = (
        way(network, make, CLASSIFIER_FREE)(U, plain) for way in (guidance.guided_on_x_0, guidance.guided)
    )
    for ours, theirs in zip(found[:3], expected[:3], strict=True):
        assert relative(ours, theirs) < 1e-5
    method = guidance.ADAPTIVE_PROJECTED
    told = row(method, scale=3.0, threshold=5.0)
    c, u = (make(ask)(U, told).x_0 for ask in network.each)
    start, call = guidance.guided_on_x_0(network, make, method)
    got, memory = call(U, told, start(U))
    assert relative(got.x_0, combined(method, c, u, scale=3.0, threshold=5.0)) < 1e-5
    assert relative(memory, c - u) < 1e-5
    assert relative(told.alpha * got.x_0 + told.sigma * got.eps, U) < 1e-5
    assert relative(guidance.guided(network, make, method).denoise(U, told, start(U))[0].x_0, got.x_0) > 0.01


def test_the_papers_weight():
    of = lambda **numbers: guidance.on(TABLE, CLASSIFIER_FREE, **numbers).rows.guidance
    jax.tree.map(np.testing.assert_array_equal, of(weight=1.5), of(scale=2.5))
    ramp = np.linspace(0, 3, N)
    jax.tree.map(np.testing.assert_array_equal, of(weight=ramp), of(scale=1 + ramp))
    for wrong in ({}, {"scale": 2.0, "weight": 1.0}):
        with pytest.raises(ValueError, match=r"give either scale or weight \(= scale - 1\)"):
            of(**wrong)


def test_ramps():
    """Both rise from the noise to the image, are 2 value at its end, and have the value as their mean over t."""
    table = samplers.ddim(leading(schedules.linear(1000), 1000))
    for ramp in (guidance.schedules.linear, guidance.schedules.cosine):
        found = ramp(table, 3.0, 1000)
        assert (np.diff(found) > 0).all()
        assert found[-1] == 6.0 and found.mean() == pytest.approx(3.0, rel=2e-3)
    assert guidance.schedules.linear(TABLE, 3.0, 1000)[0] == pytest.approx(6 * (1 - TABLE.rows.time[0] / 1000))
    half = guidance.schedules.cosine(table, 3.0, 1000)
    assert half[np.argmin(np.abs(table.rows.time - 500))] == pytest.approx(3.0)
    with pytest.raises(
        ValueError, match="num_timesteps=100 must be that of the network's time, got rows at times 0 to"
    ):
        guidance.schedules.linear(TABLE, 3.0, 100)


@pytest.mark.parametrize(
    "call, message",
    [
        (lambda: guidance.on(TABLE, guidance.CFG_PLUS_PLUS, scale=1.5), r"scale must lie in \[0, 1\], got 1.5"),
        (lambda: guidance.on(TABLE, guidance.CFG_ZERO_STAR, scale=2.0, zero=2), r"zero must lie in \[0, 1\], got 2"),
        (lambda: guidance.on(TABLE, guidance.ADAPTIVE_PROJECTED, scale=2.0), "this method needs threshold"),
        (lambda: guidance.on(TABLE, guidance.FREQUENCY_DECOUPLED, scale=2.0), "this method needs low"),
        (lambda: guidance.adaptive_projected(start="given "), "unknown start 'given '; did you mean 'given'"),
    ],
)
def test_wrong_numbers(call, message):
    with pytest.raises(ValueError, match=message):
        call()
