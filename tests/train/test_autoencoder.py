"""The task of first stages: who is moved when, the weight of the adversary, averages, pictures, what it refuses."""

import dataclasses
import json

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from ddpm_jax import images
from ddpm_jax.config.networks import KLConfig, VQConfig
from ddpm_jax.config.run import Config, from_dict, to_dict
from ddpm_jax.data.records import from_arrays
from ddpm_jax.models import quantizers
from ddpm_jax.train import task
from ddpm_jax.train.tasks.judged import Judged, Look
from tests.helpers import assert_train_refuses
from tests.train.tasks import SmallVQ, small_autoencoder

pytestmark = pytest.mark.usefixtures("optax_promotes")
KEY = jax.random.key(5)
IMAGES = np.random.RandomState(3).randint(0, 256, (8, 4, 4, 1)).astype(np.uint8)
SOURCE = from_arrays("mine", {"image": IMAGES})
SGD = optax.sgd(0.1)


@pytest.fixture(scope="module")
def steps():
    """(the task, the states before each of 5 steps and after the last, the means of each); its adversary is there from
    step 3 on."""
    trained = small_autoencoder(SGD, KEY, (4, 4, 1), SOURCE)
    with jax.numpy_dtype_promotion("standard"):
        state = jax.jit(lambda: task.init(trained, jax.random.key(0)))()

        @jax.jit
        def step(state):
            means, said = trained.gradient(state, {"image": IMAGES}, jnp.arange(8, dtype=jnp.uint32), 8)
            return dataclasses.replace(trained.update(state, means, said), step=state.step + 1), means, said

        states, found = [state], []
        for _ in range(5):
            state, means, said = step(state)
            states.append(state)
            found.append((means, said))
    return trained, states, found


def difference(a, b):
    return max(float(jnp.abs(x - y).max()) for x, y in zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True))


def test_nothing_is_heard_of_the_adversary_before_its_start(steps):
    """Then its own parameters move, and the autoencoder by its weight times what fools it; all by plain descent."""
    _, states, found = steps
    for k in range(5):
        before, after, (means, _) = states[k].params, states[k + 1].params, found[k][:2]
        assert (difference(before["discriminator"], after["discriminator"]) > 0) == (k >= 3)
        own, generator = (means.grads[side]["decoder"] for side in ("autoencoder", "generator"))
        norm = lambda tree: np.linalg.norm(tree["conv_out"]["kernel"])
        weight = norm(own) / (norm(generator) + 1e-4)
        assert float(states[k + 1].task_state.weight) == pytest.approx(weight, rel=1e-5)
        heard = 0.5 * weight if k >= 3 else 0.0
        expected = jax.tree.map(lambda p, a, b, h=heard: p - 0.1 * (a + h * b), before["autoencoder"]["decoder"], own,
                                generator)  # fmt: skip
        assert difference(after["autoencoder"]["decoder"], expected) < 1e-6
        assert difference(before["autoencoder"]["encoder"], after["autoencoder"]["encoder"]) > 0


def test_the_codebook_is_the_quotient_of_its_averages(steps):
    _, states, found = steps
    for k in range(5):
        _, said = found[k]
        before, after = (state.task_state.averages for state in states[k : k + 2])
        expected = quantizers.update_averages(before, said.z, said.codes, decay=0.9)
        assert difference(after, expected) < 1e-6
        entries = states[k + 1].params["autoencoder"]["codebook"]["embedding"]
        np.testing.assert_allclose(entries, quantizers.codebook_of(expected), atol=1e-6)
        assert not np.any(found[k][0].grads["autoencoder"]["codebook"]["embedding"])
        counted = np.bincount(np.ravel(said.codes), minlength=5) / said.codes.size
        logs = np.log(counted, where=counted > 0, out=np.zeros(5))
        assert float(states[k + 1].task_state.perplexity) == pytest.approx(np.exp(-np.sum(counted * logs)), rel=1e-5)


def test_pictures_are_images_above_reconstructions(steps):
    trained, states, _ = steps
    params = states[-1].params
    pictures = trained.pictures(params, KEY)
    assert pictures.shape == (4, 8, 4, 1)
    np.testing.assert_array_equal(pictures[:, :4], IMAGES[:4])
    decoded = SmallVQ().apply({"params": params["autoencoder"]}, images.to_float(IMAGES[:4]))
    np.testing.assert_allclose(pictures[:, 4:], images.to_uint8(decoded), atol=1)


def test_what_looks_wrong_is_said_in_a_line_each(steps):
    trained, states, _ = steps
    params, judged = states[-1].params, trained.judged
    found = judged.look(params, KEY)
    assert judged.wrong(found, params) == []
    rng = np.random.RandomState(0)
    z = jnp.asarray(rng.randn(4, 2, 2, 2), jnp.float32)
    kl = Look(found.x, found.decoded, z, jnp.full(4, 20.0), ())
    fine = Judged(SmallVQ(), SOURCE, 4)
    says = lambda found, judged=fine: judged.wrong(found, params)
    assert says(kl) == []
    assert "drifts" in says(kl._replace(z=100 * z))[0] and "deviation is 0.01" in says(kl._replace(z=0.01 * z))[0]
    assert "1.2e-06 nats of KL a number, and say nothing" in says(kl._replace(kl=jnp.full(4, 1e-5)))[0]
    assert "hardly bounded" in says(kl._replace(kl=jnp.full(4, 1e4)))[0]
    assert "1 of the 4 reconstructions" in says(kl._replace(decoded=found.decoded.at[0].set(jnp.nan)))[0]
    many = Judged(SmallVQ(num_codes=500), SOURCE, 4)
    dead = kl._replace(kl=(), codes=jnp.zeros((4, 8, 8), jnp.int32))
    assert says(dead, many) == ["1 of 500 codes are used on 4 images, with a perplexity of 1.0: the others are dead"]
    same = Judged(SmallVQ(), SOURCE, 4, lambda params, x: jnp.sin(jnp.arange(64.0)).reshape(4, 4, 4, 1))
    last = {"discriminator": {"conv_1": {"bias": jnp.ones(1)}}}
    assert "it teaches nothing" in same.wrong(kl, last)[0]
    assert same.wrong(kl, {"discriminator": {"conv_1": {"bias": jnp.zeros(1)}}}) == []


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (
            "--adversary.loss hinge --adversary.start 50 --train.num-steps 50",
            r"adversary\.start must be below train\.num_",
        ),
        ("--adversary.weight 0.5", r"adversary\.weight is for adversary\.loss hinge or vanilla, got 0\.5 without it"),
        ("--model vq --model.num-codes 1", r"model\.num_codes must be at least 2, got 1"),
        ("--model fsq --model.levels 5 1", r"model\.levels must be at least 2, got 1"),
        (
            "--model.channel-multipliers 1 2 2 2 2",
            r"images of 8 x 8 cannot be made 16 times smaller, as --model\.channel-",
        ),
        ("--model vq --model.codebook gradient --model.codebook-decay 0.9", r"is for model\.codebook averages"),
        ("--model vq --model.beta-on codebook", r"model\.beta_on codebook is for model\.codebook gradient"),
        ("--model unet", r"--model unet is no network of --task autoencoder \(known: kl, vq, fsq\)"),
        ("--model.num-codes 4", r"--model\.num-codes is no setting of --model kl"),
        ("--objective.loss vlb", r"--objective\.loss is no setting of --task autoencoder"),
        (
            "--adversary.loss hinge --adversary.num-layers 2 --train.num-steps 9",
            r"adversary\.num_layers 2 needs images",
        ),
    ],
)
def test_one_line(options, message, capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert_train_refuses(f"--task autoencoder {options}", message, capsys)


def test_other_tasks_have_no_adversary(capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert_train_refuses("--adversary.loss hinge", r"--adversary\.loss is no setting of --task diffusion", capsys)


def test_json_says_which():
    for model in (KLConfig(kl_weight=0.1), VQConfig(codebook="gradient", beta_on="codebook")):
        config = Config(task="autoencoder", model=model)
        assert from_dict(json.loads(json.dumps(to_dict(config))), Config) == config
    resolved = KLConfig(channels=8).resolved((32, 32, 3))
    assert resolved.factor == 4 and resolved.channel_multipliers == (1, 2, 2)
    assert VQConfig().resolved((8, 8, 1)).codebook_decay == 0.99
