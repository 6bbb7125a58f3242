"""The noisy classifier: its step by definition, a whole run, what opens it, and what it refuses."""

import contextlib
import csv
import io
import json

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from safetensors.numpy import load_file

from ddpm_jax import cli, images, opening, process, schedules, timesteps
from ddpm_jax.config.run import ClassifierConfig, Config, OptimizerConfig, TrainConfig, from_dict, to_dict
from ddpm_jax.data.records import from_arrays
from ddpm_jax.evaluate import accuracy
from ddpm_jax.interop import openai
from ddpm_jax.models import bind
from ddpm_jax.models.layers import dropout
from ddpm_jax.noisy_classifier import NoisyClassifier
from ddpm_jax.runs import checkpoint
from ddpm_jax.train import loop, state, step, task
from ddpm_jax.train.tasks import classifier
from ddpm_jax.train.tasks.draws import Draws
from tests.helpers import assert_train_refuses, relative, trained_of

S = schedules.linear(4, beta_end=0.5)
KEY = jax.random.key(5)
IMAGES = np.random.RandomState(0).randint(0, 256, (8, 4, 4, 1)).astype(np.uint8)
LABELS = np.array([0, 1, 2, 0, 1, 2, 0, 1], np.int32)
ADAM = state.make_optimizer(OptimizerConfig(learning_rate=0.01, warmup_steps=0, decay_steps=None))
SMALL = (
    "--task classifier --schedule.num-timesteps 20 --schedule.arguments beta_end 0.3 --model.channels 4"
    " --model.channel-multipliers 1 --model.attention-resolutions --model.num-groups 2 --model.dropout 0.1"
    " --train.batch-size 8 --train.log-every 1 --train.checkpoint-every 2"
)


pytestmark = pytest.mark.usefixtures("optax_promotes")


class Tiny(nn.Module):
    """Quick to compile, and with everything that draws: pixels, the time, dropout."""

    out_channels: int = 3

    @nn.compact
    def __call__(self, x_t, t, *, train=False, dropout_keys=None):
        h = nn.Dense(8)(x_t.reshape(len(x_t), -1)) + nn.Dense(8)(jnp.sin(t)[:, None])
        h = dropout(nn.silu(h), dropout_keys, 0.3) if train else nn.silu(h)
        return nn.Dense(self.out_channels)(h)


def classification(sampler=timesteps.uniform, **changes):
    return classifier.Classification(Tiny(), S, sampler(S), ADAM, KEY, (4, 4, 1), **changes)  # pyright: ignore


def run(trained, num_devices, num_steps, accumulate=1):
    """(the states before every step and after the last, the metrics of every step)."""
    devices = jax.local_devices()[:num_devices]
    train_step = step.make_train_step(trained, ema_decay=0.5, devices=devices, accumulate=accumulate)
    train_state = jax.jit(lambda: task.init(trained, jax.random.key(0)))()
    sharding = jax.tree.map(lambda leaf: leaf.sharding, step.replicated(train_state, devices))
    train_state = jax.device_put(train_state, sharding)
    batch = step.shard(lambda rows: {"image": IMAGES[rows], "label": LABELS[rows]}, 8, devices)
    states, metrics = [jax.tree.map(np.array, train_state)], []
    for _ in range(num_steps):
        train_state, values = train_step(train_state, batch)
        states.append(jax.tree.map(np.array, train_state))
        metrics.append({name: float(value) for name, value in values.items()})
    return states, metrics


def written_out(before, sampler):
    """(loss and accuracy as a function of parameters) of the step after a state, with the documented keys."""
    key_t, key_eps, key_dropout = jax.vmap(
        lambda b: jax.random.split(jax.random.fold_in(jax.random.fold_in(KEY, before.step), b), 3), out_axes=1
    )(jnp.arange(8))
    t, weight = sampler.draw(before.task_state, lambda b: key_t[b], jnp.arange(8), 8)
    eps = jax.vmap(lambda key: jax.random.normal(key, (4, 4, 1)))(key_eps)
    signal, noise = (jnp.sqrt(jnp.asarray(each, jnp.float32)[t])[:, None, None, None]
                     for each in (S.alphas_cumprod_float64, S.one_minus_alphas_cumprod_float64))  # fmt: skip
    x_t = signal * (IMAGES / np.float32(127.5) - 1) + noise * eps

    def loss(params):
        options = {"train": True, "dropout_keys": key_dropout}
        logits = Tiny().apply({"params": params}, x_t, t.astype(jnp.float32), **options)
        losses = jax.nn.logsumexp(logits, axis=1) - jnp.sum(logits * jnp.eye(3)[LABELS], axis=1)
        return jnp.mean(weight * losses), jnp.mean(weight * (jnp.argmax(logits, axis=1) == LABELS))

    return loss, weight


def test_a_step_is_its_definition():
    """-log p(y | x_t, t) and the share of right answers, written out with the documented keys."""
    (before, _), (metrics,) = run(classification(), 2, 1)
    loss, _ = written_out(before, timesteps.uniform(S))
    (value, right), grads = jax.jit(jax.value_and_grad(loss, has_aux=True))(before.params)
    norm = np.sqrt(sum(float(jnp.sum(leaf**2)) for leaf in jax.tree.leaves(grads)))
    assert metrics == pytest.approx({"loss": float(value), "accuracy": float(right), "grad_norm": norm}, rel=1e-4)


def test_states_agree_on_1_and_4_devices_and_in_parts():
    """Also where t is drawn by what the losses were, and is weighed."""
    sampler = lambda schedule: timesteps.importance(schedule, history=2)
    (*_, before, one), metrics = run(classification(sampler), 1, 6)
    assert timesteps.warmed_up(before.task_state)
    loss, weight = written_out(before, sampler(S))
    value, right = loss(before.params)
    assert len(set(np.asarray(weight))) > 1
    assert metrics[-1]["loss"] == pytest.approx(float(value), rel=1e-4)
    assert metrics[-1]["accuracy"] == pytest.approx(float(right), rel=1e-4)
    (*_, many), metrics_n = run(classification(sampler), 4, 6, accumulate=2)
    for values, expected in zip(metrics_n, metrics, strict=True):
        assert values == pytest.approx(expected, rel=1e-3)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=2e-4), many.params, one.params)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4), many.task_state, one.task_state)


# -------------------------------------------------------------------------------------------------- what it has learned


def test_the_gradient_of_a_linear_classifier():
    """Of logits W x + c t: sum over classes of W_k (1[k = y] - p_k)."""
    weights = jnp.asarray(np.random.RandomState(1).randn(16, 3), jnp.float32)

    class Linear(nn.Module):
        out_channels: int = 3

        @nn.compact
        def __call__(self, x_t, t, *, train=False, dropout_keys=None):
            w = self.param("w", lambda key: weights)
            return x_t.reshape(len(x_t), -1) @ w + t[:, None] * jnp.arange(3.0)[None]

    known = NoisyClassifier("a test", {}, Linear(), {"w": weights}, S, (4, 4, 1), time_scale=0.5)  # pyright: ignore
    x = np.random.RandomState(2).randn(5, 4, 4, 1).astype(np.float32)
    t, y = np.float32([0, 1, 2, 3, 3]), np.array([0, 1, 2, 0, 1])
    logits = x.reshape(5, -1) @ np.asarray(weights) + 0.5 * t[:, None] * np.arange(3.0)
    p = np.exp(logits) / np.exp(logits).sum(1, keepdims=True)
    expected = ((np.eye(3)[y] - p) @ np.asarray(weights).T).reshape(x.shape)
    assert relative(known.log_prob_gradient(y)(jnp.asarray(x), jnp.asarray(t)), expected) < 1e-5
    compiled = jax.jit(lambda y, x, t: known.log_prob_gradient(y)(x, t))
    assert relative(compiled(y, x, t), expected) < 1e-5
    for wrong, message in ((y + 2, r"y must lie in \[0, 3\), .*got 3"), (y * 1.0, r"got float64\[5\]"),
                           (y[:2], r"y must be \[B\] with B = 5, got \[2\]")):  # fmt: skip
        with pytest.raises(ValueError, match=message):
            known.log_prob_gradient(wrong)(jnp.asarray(x), jnp.asarray(t))
    guided = {"model": Tiny(), "params": {}, "schedule": S, "image_shape": (4, 4, 1)}
    known.check_guides(trained_of(**guided))
    with pytest.raises(ValueError, match="images of 4 x 4 x 1, the diffusion model of 8 x 4 x 1"):
        known.check_guides(trained_of(**guided | {"image_shape": (8, 4, 1)}))
    with pytest.raises(ValueError, match="noise of another schedule"):
        known.check_guides(trained_of(**guided | {"schedule": schedules.linear(4, beta_end=0.6)}))


def test_accuracy_by_t_is_its_definition(tmp_path):
    """A batch of examples at a time or not; n of them where there are more."""
    params = Tiny().init(jax.random.key(0), jnp.zeros((1, 4, 4, 1)), jnp.zeros(1))["params"]
    source = from_arrays("mine", {"image": IMAGES, "label": LABELS}, classes=("a", "b", "c"))
    bound = lambda params: bind(Tiny(), params)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(accuracy, "BATCH", 3)
        table = accuracy.by_t(bound, params, S, source, most=7)
    again = accuracy.by_t(bound, params, S, source, most=7)
    assert table.n == 7 and table.t.tolist() == [0, 1, 2, 3] and len(set(table.loss)) == 4
    np.testing.assert_allclose(table.loss, again.loss, rtol=1e-6)
    chosen = accuracy.data.batch_indices(0, 0, 7, 8)

    @jax.jit
    def logits_at(t):
        one = lambda i: jax.random.normal(jax.random.fold_in(jax.random.fold_in(jax.random.key(0), t), i), (4, 4, 1))
        x_t = process.q_sample(S, images.to_float(IMAGES[chosen]), jnp.full(7, t), jax.vmap(one)(jnp.arange(7)))
        return Tiny().apply({"params": params}, x_t, jnp.full(7, t.astype(jnp.float32)))

    for k, t in enumerate(table.t):
        logits = np.asarray(logits_at(t))
        log_p = logits - np.log(np.exp(logits).sum(1, keepdims=True))
        assert table.accuracy[k] == pytest.approx(np.mean(log_p.argmax(1) == LABELS[chosen]))
        assert table.loss[k] == pytest.approx(-np.mean(log_p[np.arange(7), LABELS[chosen]]), rel=1e-5)
    accuracy.save(tmp_path / "accuracy", table, "7 examples", 3)
    rows = list(csv.DictReader((tmp_path / "accuracy.csv").read_text().splitlines()))
    assert [int(row["t"]) for row in rows] == [0, 1, 2, 3] and {row["n"] for row in rows} == {"7"}
    assert [float(row["accuracy"]) for row in rows] == table.accuracy.tolist()
    assert [float(row["loss"]) for row in rows] == table.loss.tolist()


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """(the words of its command, the directory of a run, what the command said)."""
    home = tmp_path_factory.mktemp("home")
    rng = np.random.RandomState(0)
    np.savez(home / "mine.npz", images=rng.randint(0, 256, (20, 8, 8, 1)).astype(np.uint8), labels=np.arange(20) % 3)
    words = ["train", *SMALL.split(), "--data.name", str(home / "mine.npz")]
    with jax.numpy_dtype_promotion("standard"), contextlib.redirect_stdout(io.StringIO()) as said:
        cli.main([*words, "--workdir", str(home / "run"), "--train.num-steps", "4"])
    return words, home / "run", said.getvalue()


def test_a_run_says_what_it_is(trained):
    _, workdir, said = trained
    assert "--task classifier --model.channels 4" in said and "--model.num-head-channels 4" in said
    assert f"accuracy by t: {workdir / 'accuracy.png'}" in said and "samples.png" not in said
    assert "20 examples of" in said and "which it was trained on" in said
    assert not (workdir / "samples.png").exists() and (workdir / "accuracy.png").read_bytes().startswith(b"\x89PNG")
    logged = [json.loads(line) for line in (workdir / "metrics.jsonl").read_text().splitlines()]
    assert all(0 <= line["accuracy"] <= 1 and line["loss"] > 0 for line in logged) and len(logged) == 4


def test_a_run_that_was_stopped_ends_with_the_same_bits(trained, tmp_path):
    words, workdir, _ = trained
    for steps in ("2", "4"):
        cli.main([*words, "--workdir", str(tmp_path / "run"), "--train.num-steps", steps])
    a, b = (opening.classifier(place) for place in (workdir, tmp_path / "run"))
    jax.tree.map(np.testing.assert_array_equal, a.params, b.params)
    assert (workdir / "accuracy.csv").read_bytes() == (tmp_path / "run" / "accuracy.csv").read_bytes()


def test_what_opens_a_run(trained, tmp_path, capsys):
    _, workdir, _ = trained
    found = opening.classifier(workdir)
    assert (found.num_classes, found.image_shape, found.step) == (3, (8, 8, 1), 4)
    assert found.classes == ("0", "1", "2")
    config = checkpoint.load_run(workdir).config
    assert found.model == config.model.network(3) and found.schedule.num_timesteps == 20
    averages = loop.prepare(config)
    with checkpoint.checkpoints(workdir) as saved:
        restored = saved.restore(averages.template(), print)
    jax.tree.map(np.testing.assert_array_equal, found.params, restored.ema_params)
    for command in (["sample"], ["nll"], ["learn-sampler"], ["convert"]):
        target = [str(tmp_path / "folder")] if command == ["convert"] else []
        capsys.readouterr()
        with pytest.raises(SystemExit) as stop:
            cli.main([*command, str(workdir), *target])
        error = capsys.readouterr().err.strip()
        assert stop.value.code == 2 and "\n" not in error
        assert "is a run of --task classifier" in error and "ddpm_jax.opening.classifier" in error
    with pytest.raises(FileNotFoundError, match=r"no file .*nothing"):
        opening.classifier(tmp_path / "nothing")


# ------------------------------------------------------------------------------------------------------------- refusals


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ("--task classifier --objective.loss vlb", r"--objective\.loss is no setting of --task classifier$"),
        ("--task classifier --sample.num-steps 50", r"--sample\.num-steps is no setting of --task classifier$"),
        ("--task=classifier --sample.clip=1.0", r"--sample\.clip is no setting of --task classifier$"),
        (
            "--task classifier --objective.weighting_arguments gamma 5",
            r"--objective\.weighting_arguments is no setting",
        ),
        ("--task classifier --train.sample-every 10", r"--train\.sample-every is no setting of --task classifier$"),
        ("--task classifier --model unet", r"--model unet is no network of --task classifier \(known: classifier\)$"),
        ("--model classifier", r"--model classifier is no network of --task diffusion \(known: unet, dit, uvit\)$"),
        ("--model.pool spatial", r"--model\.pool is no setting of --model unet"),
        ("--task classifier --model.upsample conv", r"--model\.upsample is no setting of --model classifier"),
        ("--task clasifier", r"unknown --task 'clasifier'; did you mean 'classifier'\?"),
        ("--task classifier --condition class", r"--condition is no setting of --task classifier$"),
        ("--task classifier --condition.drop 0.1", r"--condition\.drop is no setting of --task classifier$"),
        ("--task classifier --data.labels none", r"--task classifier learns labels, .*leave out --data\.labels none$"),
    ],
)
def test_one_line(options, message, capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert_train_refuses(options, message, capsys)


def test_images_without_labels(tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    np.save(tmp_path / "plain.npy", IMAGES)
    message = r"learns labels, and plain\.npy is read without: give it some, as CLASS/picture\.png"
    assert_train_refuses("--task classifier --data.name plain.npy", message, capsys)


def test_experiments_of_another_task(tmp_path, capsys, monkeypatch):
    """Their network is another one's; what else they say is not left unread."""
    monkeypatch.chdir(tmp_path)
    text = "from ddpm_jax.config.run import *\nconfig = Config(sample=SampleConfig(num_steps=4))\n"
    (tmp_path / "mine.py").write_text(text)
    assert_train_refuses(
        "mine.py --task classifier", r"sample\.num_steps is no setting of task 'classifier', got 4", capsys
    )
    config = Config(task="classifier", model=ClassifierConfig(pool="spatial"), train=TrainConfig(seed=3))
    assert from_dict(json.loads(json.dumps(to_dict(config))), Config) == config
    assert from_dict({"train": {"seed": 3}}, Config) == Config(train=TrainConfig(seed=3))  # of before there were tasks
    for change, message in (
        ({"model": {}}, "model must be 'classifier' for task 'classifier', got 'unet'"),
        ({"objective": {"loss": "vlb"}}, r"objective\.loss is no setting of task 'classifier'"),
        ({"task": "diffusion"}, "model must be 'unet' or 'dit' or 'uvit' for task 'diffusion'"),
    ):
        with pytest.raises(ValueError, match=message):
            from_dict({**to_dict(config), **change}, Config)


# ------------------------------------------------------------------------------------------------------------- recorded


def test_guided_diffusions_steps(shared_golden, monkeypatch, highest):
    """Three steps of their script: losses, gradients, parameters. Its micro-batches have the mean of the whole.

    Adam divides by a gradient's size, so where that is rounding noise a parameter's way is, too: what the recorded
    parameters move by when the weights change by 1e-7 is allowed twice.
    """
    folder = shared_golden / "guidance"
    with np.load(folder / "classifier_train.npz") as file:
        arrays, meta = {name: file[name] for name in file.files}, json.loads(str(file["meta"]))
    config, moves = meta["config"], meta["perturbation_1e7_max_abs"]
    weights = load_file(folder / "classifier_sample_classifier.safetensors")
    nhwc = lambda array: jnp.asarray(np.moveaxis(array, -3, -1))
    recorded = {name: jnp.asarray(arrays[name], jnp.int32) for name in ("t", "y")} | {"noise": nhwc(arrays["noise"])}

    def drawn(key, sampler, task_state, k, x_0, indices, batch_size):
        keys = jax.random.split(key, len(indices))
        t, eps = recorded["t"][k, indices], recorded["noise"][k, indices]
        return Draws(t, jnp.ones(len(indices), jnp.float32), eps, keys, keys)

    monkeypatch.setattr(classifier, "draw", drawn)
    monkeypatch.setattr(images, "to_float", lambda x: x)
    anneals = {"decay": "linear", "decay_steps": meta["iterations"]} if meta["anneal_lr"] else {"decay_steps": None}
    optimizer = state.make_optimizer(
        OptimizerConfig(name="adamw", learning_rate=meta["lr"], weight_decay=meta["weight_decay"], clip_norm=None,
                        warmup_steps=0, **anneals)
    )  # fmt: skip
    schedule = schedules.linear_rescaled(1000)
    x_t = process.q_sample(schedule, nhwc(arrays["x"][0]), recorded["t"][0], recorded["noise"][0])
    assert relative(x_t, nhwc(arrays["noised"][0])) < 1e-6
    model = openai.classifier_from_config(config)
    made = classifier.Classification(model, schedule, timesteps.uniform(schedule), optimizer, KEY, (8, 8, 3))
    train_state = task.start(made, openai.classifier_to_params(weights, config))
    train_step = step.make_train_step(made, ema_decay=0.0, devices=jax.devices()[:1])
    for k in range(len(arrays["loss"])):
        batch = {"image": nhwc(arrays["x"][k])[None], "label": recorded["y"][k][None]}
        train_state, metrics = train_step(train_state, batch)
        assert float(metrics["loss"]) == pytest.approx(arrays["loss"][k], rel=1e-4)
        assert float(metrics["accuracy"]) == pytest.approx(arrays["acc1"][k].mean())
        assert float(metrics["grad_norm"]) == pytest.approx(np.sqrt(np.sum(arrays["grad_norms"][k] ** 2)), rel=1e-4)
        found = openai.params_to_classifier(jax.device_get(train_state.params), config)
        norms = [np.linalg.norm(found[name].astype(np.float64)) for name in meta["param_names"]]
        np.testing.assert_allclose(norms, arrays["param_norms"][k], rtol=1e-4, atol=2 * moves["param_norms"])
    for name in [name for name in arrays if name.startswith("final.")]:
        difference = np.abs(found[name.removeprefix("final.")] - arrays[name]).max()
        assert difference < max(1e-4 * np.abs(arrays[name]).max(), 2 * moves[name]), name
