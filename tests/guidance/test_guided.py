"""Guidance as data: what rows ask, what they combine, and that nothing is compiled twice."""

import collections

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ddpm_jax import guidance, samplers, schedules
from ddpm_jax.guidance import CLASSIFIER_FREE, Method
from ddpm_jax.guidance.method import ASKED, GIVEN, NOTHING, TOGETHER
from ddpm_jax.models import DiT, UNet, bind
from ddpm_jax.samplers.grids import leading
from tests.helpers import relative

N, B, SHAPE = 10, 3, (3, 8, 8, 1)
SCHEDULE = schedules.linear(1000)
TABLE = samplers.ddim(leading(SCHEDULE, N))
LABELS, NULL = {"y": jnp.array([0, 1, 2])}, {"y": jnp.full(B, 3)}


def make_denoise(model_fn):
    return samplers.denoiser(model_fn, "eps", clip=1.0)


def network(x, t, told):
    """Smooth, another one for every label, and of one example each."""
    label = told["y"].astype(jnp.float32).reshape(-1, *(1,) * (x.ndim - 1))
    return jnp.tanh(x * (1 + 0.1 * label)) + 0.2 * label + 1e-4 * t.reshape(label.shape)


def alone(told, x, t):
    return network(x, t, told)


GIVEN_FN, NULL_FN = (lambda x, t, told=told: alone(told, x, t) for told in (LABELS, NULL))
ANSWERS = guidance.asked(network, LABELS, NULL)


def draw(method=CLASSIFIER_FREE, table=TABLE, answers=ANSWERS, **numbers):
    guided = guidance.on(table, method, **numbers)
    denoise = guidance.guided(answers, make_denoise, method)
    return jax.jit(lambda: samplers.sample(denoise, guided, jax.random.key(0), SHAPE))()


def drawn(model_fn, table=TABLE):
    return jax.jit(lambda: samplers.sample(make_denoise(model_fn), table, jax.random.key(0), SHAPE))()


@pytest.fixture(scope="module", params=["unet", "dit"])
def trained(request):
    """A small network with three classes and a null label, its weights away from their beginning."""
    small = {"channels": 8, "channel_multipliers": (1, 2), "attention_resolutions": (4,), "num_groups": 4}
    model = {
        "unet": UNet(**small, out_channels=1, num_classes=4),
        "dit": DiT(width=16, depth=2, num_heads=2, patch_size=2, num_classes=3, out_channels=1),
    }[request.param]
    params = model.init(jax.random.key(1), jnp.zeros(SHAPE), jnp.zeros(B), y=LABELS["y"])["params"]
    leaves, tree = jax.tree.flatten(params)
    keys = jax.random.split(jax.random.key(2), len(leaves))
    noisy = [x + 0.1 * jax.random.normal(key, x.shape) for key, x in zip(keys, leaves, strict=True)]
    return model, jax.tree.unflatten(tree, noisy)


def test_scales_0_and_1_are_the_other_samplers_bit_for_bit(trained, optimized):
    model, params = trained
    asked = guidance.asked(lambda x, t, told: bind(model, params, **told)(x, t), LABELS, NULL)
    for scale, told in ((1.0, LABELS), (0.0, NULL)):
        expected = drawn(bind(model, params, **told))
        np.testing.assert_array_equal(draw(answers=asked, scale=scale), expected)
    other = draw(answers=asked, scale=2.0)
    assert relative(other, drawn(bind(model, params, **LABELS))) > 1e-3


def test_what_rows_ask():
    asks = lambda **numbers: guidance.on(TABLE, CLASSIFIER_FREE, **numbers).rows.guidance[ASKED].tolist()
    assert asks(scale=1.0) == [GIVEN] * N and asks(scale=0.0) == [NOTHING] * N and asks(scale=2.0) == [TOGETHER] * N
    assert asks(scale=np.linspace(0, 1, N)) == [NOTHING, *[TOGETHER] * (N - 2), GIVEN]
    assert asks(scale=np.array([[1.0, 1.0]])) == [GIVEN] * N and asks(scale=np.array([[1.0, 0.0]])) == [TOGETHER] * N
    within = np.arange(N) < 3
    assert asks(scale=2.0, interval=within) == [TOGETHER] * 3 + [GIVEN] * 7
    assert asks(scale=0.0, interval=within) == [NOTHING] * 3 + [GIVEN] * 7
    plus = Method(CLASSIFIER_FREE.combine, given_at=None)
    assert guidance.on(TABLE, plus, scale=1.0).rows.guidance[ASKED].tolist() == [TOGETHER] * N


def test_calls_of_the_network():
    """Rows outside of the interval make one call of the batch, the others one of twice the batch."""
    seen = collections.Counter()

    def counted(x, t, told):
        jax.debug.callback(lambda: seen.update([len(x)]))
        return network(x, t, told)

    table = guidance.on(TABLE, CLASSIFIER_FREE, scale=3.0, interval=np.arange(N) % 3 == 0)
    denoise = guidance.guided(guidance.asked(counted, LABELS, NULL), make_denoise, CLASSIFIER_FREE)
    jax.block_until_ready(samplers.sample(denoise, table, jax.random.key(0), SHAPE))
    jax.effects_barrier()
    assert seen == {B: 6, 2 * B: 4}


def test_it_is_the_sampler_of_the_combined_network():
    """As the model_fn u + s (c - u) in two calls, whatever the numbers are."""
    for scale in (2.0, -1.0, 7.5):
        expected = drawn(guidance.classifier_free(GIVEN_FN, NULL_FN, scale=scale))
        assert relative(draw(scale=scale), expected) < 1e-5
    within = guidance.within(TABLE, 300, 700)
    assert within.tolist() == [300 <= t <= 700 for t in TABLE.rows.time]

    def by_hand(x, t):
        guided = guidance.classifier_free(GIVEN_FN, NULL_FN, scale=4.0)(x, t)
        inside = (t[0] >= 300) & (t[0] <= 700)
        return jnp.where(inside, guided, GIVEN_FN(x, t))

    assert relative(draw(scale=4.0, interval=within), drawn(by_hand)) < 1e-5


def test_scales_of_examples_and_of_rows():
    """Each example as alone with its scale; each row with its own."""
    each = np.array([[0.0, 1.0, 5.0]])
    together = draw(scale=each)
    for i, scale in enumerate(each[0]):
        np.testing.assert_allclose(together[i], draw(scale=float(scale))[i], atol=1e-6)
    falling = np.linspace(5, 1, N)

    def by_hand(x, t):
        k = jnp.argmin(jnp.abs(jnp.asarray(TABLE.rows.time) - t[0]))
        return guidance.classifier_free(GIVEN_FN, NULL_FN, scale=jnp.asarray(falling, jnp.float32)[k])(x, t)

    assert relative(draw(scale=falling), drawn(by_hand)) < 1e-5


def test_a_learned_variance_is_that_of_the_condition():
    def learning(x, t, told):
        answer = network(x, t, told)
        return jnp.concatenate([answer, 0.3 * answer], axis=-1)

    make = lambda model_fn: samplers.denoiser(model_fn, "eps", variance="learned_range")
    table = samplers.ddpm(leading(SCHEDULE, N), variance="learned_range")
    row = jax.tree.map(lambda leaf: jnp.float32(leaf[4]), guidance.on(table, CLASSIFIER_FREE, scale=3.0).rows)
    x = jax.random.normal(jax.random.key(0), SHAPE)
    found = guidance.guided(guidance.asked(learning, LABELS, NULL), make, CLASSIFIER_FREE)(x, row)
    expected = make(lambda x, t: learning(x, t, LABELS))(x, row)
    np.testing.assert_allclose(found.noise_scale, expected.noise_scale, rtol=1e-6)


def test_one_program_for_all_numbers(optimized):
    """Scale, interval, class, sampler and number of steps: nothing is compiled again, under jit and in a Runner."""

    def make(y, null):
        return guidance.guided(guidance.asked(network, {"y": y}, {"y": null}), make_denoise, CLASSIFIER_FREE)

    run = samplers.Runner(make, SHAPE, max_calls=30)
    key, null = jax.random.key(0), NULL["y"]
    one = jax.jit(lambda table, y: samplers.sample(make(y, null), table, key, SHAPE))

    def both(scale, high, y, num_steps):
        table = samplers.ddim(leading(SCHEDULE, num_steps))
        table = guidance.on(table, CLASSIFIER_FREE, scale=scale, interval=guidance.within(table, 0, high))
        found = run(table, key, jnp.asarray(y), null)
        if num_steps == N:
            same = one(jax.tree.map(np.float32, table), jnp.asarray(y))
            np.testing.assert_allclose(found, same, atol=1e-5)
        return found

    first = both(3.0, 500, [0, 1, 2], N)
    compiled = run._run._cache_size(), one._cache_size()
    for k in range(50):
        both(float(k) / 10, 20 * k, [k % 3, 1, 2], N if k % 2 else 5 + k % 20)
    assert (run._run._cache_size(), one._cache_size()) == compiled == (1, 1)
    assert relative(both(1.0, 500, [0, 1, 2], N), first) > 1e-3


def test_a_method_that_remembers():
    """The mean of the differences so far, as a loop in Python has it; rows that ask one answer leave it."""

    def combine(answers, numbers, memory):
        c, u = answers
        memory = (c - u) + numbers["momentum"] * memory
        return c + (numbers["scale"] - 1) * memory, memory

    method = Method(combine, {"momentum": None}, memory=lambda like: jnp.zeros(like.shape, like.dtype))
    within = np.arange(N) != 4
    numbers = {"scale": 3.0, "momentum": -0.5, "interval": within}
    found = draw(method, **numbers)
    x = samplers.trajectory(make_denoise(GIVEN_FN), TABLE, jax.random.key(0), SHAPE)[1][0]
    memory = jnp.zeros_like(x)
    for k in range(N):
        row = jax.tree.map(lambda leaf, k=k: jnp.float32(leaf[k]), TABLE.rows)
        t = jnp.full(B, row.time)
        c, u = GIVEN_FN(x, t), NULL_FN(x, t)
        if within[k]:
            memory = (c - u) - 0.5 * memory
            c = c + 2 * memory
        x = samplers.run.step(make_denoise(lambda x, t, c=c: c), row, (x,), jnp.zeros_like(x))[0]
    assert relative(found, x) < 1e-5
    with pytest.raises(ValueError, match="this method needs momentum"):
        guidance.on(TABLE, method, scale=3.0)


def test_rescaled_answers_have_the_size_of_the_condition():
    """phi = 1: the standard deviation of c, image by image, as torch.std counts; phi = 0: nothing changes."""
    x, t = jax.random.normal(jax.random.key(3), SHAPE), jnp.full(B, 500.0)
    c, u = GIVEN_FN(x, t), NULL_FN(x, t)
    method = guidance.rescaled(CLASSIFIER_FREE)
    at = lambda phi: method.combine((c, u), {"scale": jnp.float32(5), "rescale": jnp.float32(phi)})
    std = lambda images: np.std(np.asarray(images, np.float64), axis=(1, 2, 3), ddof=1)
    np.testing.assert_allclose(std(at(1.0)), std(c), rtol=1e-5)
    np.testing.assert_array_equal(at(0.0), u + 5 * (c - u))
    np.testing.assert_allclose(at(0.3), 0.3 * at(1.0) + 0.7 * at(0.0), rtol=1e-5, atol=1e-6)


def drawn_without_numbers():
    denoise = guidance.guided(ANSWERS, make_denoise, CLASSIFIER_FREE)
    return samplers.sample(denoise, TABLE, jax.random.key(0), SHAPE)


@pytest.mark.parametrize(
    "call, message",
    [
        (lambda: guidance.on(TABLE, CLASSIFIER_FREE, scale=2.0, rescale=0.5), "number of this method.*'rescale'"),
        (lambda: guidance.on(TABLE, CLASSIFIER_FREE, scale=np.ones(3)), r"scale must be a number, \[10\] or \[10, B\]"),
        (lambda: guidance.on(TABLE, CLASSIFIER_FREE, scale=2.0, interval=np.ones(3, bool)), "interval must have shape"),
        (lambda: guidance.within(TABLE, 2, 1), "from the smaller number to the larger one, got 2 and 1"),
        (lambda: guidance.within(TABLE, 0, 1, "percent"), "axis.*'percent'"),
        (lambda: guidance.rescaled(guidance.rescaled(CLASSIFIER_FREE)), "takes a method once"),
        (lambda: guidance.asked(network, LABELS, {"y": jnp.zeros(2)}), "all must be told alike"),
        (lambda: drawn_without_numbers(), "must have this method's numbers scale, from guidance.on, got none"),
    ],
)
def test_wrong_numbers(call, message):
    with pytest.raises(ValueError, match=message):
        call()


def test_intervals():
    """In the noise on x_0, in log-SNR, and as a share of the steps: half-open only there."""
    rows = TABLE.rows
    noise = rows.sigma / rows.alpha
    np.testing.assert_array_equal(guidance.within(TABLE, 0.3, 2.0, "sigma"), (noise >= 0.3) & (noise <= 2.0))
    snr = guidance.within(TABLE, -2 * np.log(2.0), -2 * np.log(0.3), "log_snr")
    np.testing.assert_array_equal(snr, guidance.within(TABLE, 0.3, 2.0, "sigma"))
    assert guidance.within(TABLE, 0.2, 0.75, "step").tolist() == [False] * 2 + [True] * 5 + [False] * 3
