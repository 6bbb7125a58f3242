"""The step on a mesh against the pmapped one: the same draws bit for bit, the same numbers, a state in shards."""

import dataclasses
import json
import math
import re

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.sharding import PartitionSpec as P

from ddpm_jax import timesteps
from ddpm_jax.cli.parsing import parse
from ddpm_jax.cli.train import TrainArguments
from ddpm_jax.config.run import Config, ObjectiveConfig, OptimizerConfig, ParallelConfig, differences, from_dict
from ddpm_jax.runs import checkpoint
from ddpm_jax.train import loop, mesh, step, task
from tests.helpers import assert_train_refuses
from tests.runs.test_checkpoint import CONFIG as RUN
from tests.runs.test_checkpoint import assert_same_leaves, fit, leaves, named, with_steps
from tests.train.test_step import (
    ADAM,
    IMPORTANCE,
    SHORT,
    Recorder,
    Small,
    diffusion,
    every_task,
    has_learned,
    reader,
    small_unet,
)

MESHES = [{"data": 4}, {"data": 2, "fsdp": 2}, {"fsdp": 4}]
# Adam divides a gradient by its size, rounding included; this is linear in it, and clips as Adam's does.
SGD = optax.chain(optax.clip_by_global_norm(0.1), optax.sgd(0.5, momentum=0.9))


pytestmark = pytest.mark.usefixtures("optax_promotes")


def prepare(trained, sizes, accumulate=1):
    """(train_step of a task, the template of its states, the state before step 0, its batch); sizes {} is pmap."""
    spread = loop.make_spread(ParallelConfig(sizes), jax.local_devices())
    train_step = spread.make_train_step(trained, ema_decay=0.5, accumulate=accumulate)
    init = lambda: task.init(trained, jax.random.key(0))
    template = spread.place(jax.eval_shape(init))
    train_state = jax.jit(init, out_shardings=jax.tree.map(lambda leaf: leaf.sharding, template))()
    return train_step, template, train_state, spread.shard(reader(), 8)


def run(trained, sizes, num_steps, accumulate=1):
    """(the state before every step and after the last, the metrics of every step)."""
    train_step, _, train_state, batch = prepare(trained, sizes, accumulate)
    states, metrics = [jax.tree.map(np.array, train_state)], []
    for _ in range(num_steps):
        train_state, values = train_step(train_state, batch)
        states.append(jax.tree.map(np.array, train_state))
        metrics.append({name: float(value) for name, value in values.items()})
    return states, metrics


def record(sizes, accumulate=1):
    """t, x_t and dropout mask of every example of two steps; x_t is a function of eps."""
    calls = []
    example = lambda t, x_t, mask: (float(t), np.asarray(x_t).tobytes(), np.asarray(mask).tobytes())
    model = Recorder(lambda x_t, t, mask: calls.extend(map(example, t, x_t, mask)))
    run(diffusion(model, SGD, ObjectiveConfig(timesteps="stratified")), sizes, 2, accumulate)
    jax.effects_barrier()
    return sorted(calls)


def assert_close(a, b, **tolerances):
    jax.tree.map(lambda x, y: np.testing.assert_allclose(x, y, **tolerances), a, b)


def assert_metrics_close(a, b, rtol):
    """A discriminator's logits have both signs, and their mean comes near 0 (1.95e-4 in one of these steps) while its
    sum is rounded as numbers of size 1 are."""
    for found, expected in zip(a, b, strict=True):
        assert found.keys() == expected.keys()
        for name in found:
            atol = 1e-7 if name.startswith("logits") else 0
            np.testing.assert_allclose(found[name], expected[name], rtol, atol, err_msg=name)


# --------------------------------------------------------------------------------------------- the same as with pmap


def test_every_draw_is_that_of_pmap(optimized):
    pmapped = record({})
    assert len(pmapped) == 16 and len(set(pmapped)) == 16
    for sizes in MESHES:
        assert record(sizes) == pmapped, sizes


@every_task
def test_steps_are_those_of_pmap(make):
    """Six of them, with a learned variance, t by importance, and a gradient that is clipped by its global norm."""
    (before, *_, after), metrics = run(make(SGD), {}, 6)
    assert has_learned(after.task_state) and min(values["grad_norm"] for values in metrics) > 0.1
    for sizes in MESHES:
        (before_on_mesh, *_, after_on_mesh), metrics_on_mesh = run(make(SGD), sizes, 6)
        jax.tree.map(np.testing.assert_array_equal, before_on_mesh, before)
        assert_metrics_close(metrics_on_mesh, metrics, rtol=1e-5)
        assert_close(after_on_mesh, after, rtol=1e-5, atol=1e-6)
        moved = jax.tree.map(lambda a, b: np.abs(a - b).max(), after.params, before.params)
        assert max(jax.tree.leaves(moved)) > 1e-2


@pytest.mark.slow
def test_importance_is_that_of_pmap():
    """Bit for bit: histories, and so every t, of a network that stays as it is (rate 1e-30)."""
    trained = diffusion(Small(), optax.sgd(1e-30), IMPORTANCE, SHORT)
    (*_, pmapped), _ = run(trained, {}, 6)
    (*_, on_mesh), _ = run(trained, {"data": 2, "fsdp": 2}, 6)
    assert timesteps.warmed_up(pmapped.task_state)
    jax.tree.map(np.testing.assert_array_equal, on_mesh.task_state, pmapped.task_state)


# ------------------------------------------------------------------------------------------------------------ shards


def test_the_axis_that_is_sharded():
    """The largest that fsdp divides, the last of equal ones; none if it divides none."""
    for shape, expected in {
        (3, 3, 8, 16): P(None, None, None, "fsdp"),
        (3, 3, 16, 8): P(None, None, "fsdp"),
        (8, 8): P(None, "fsdp"),
        (9, 4): P(None, "fsdp"),  # 9 is larger, but not divisible
        (3, 3, 1, 1): P(),
        (): P(),
    }.items():
        assert mesh.spec(shape, 4) == expected
        assert mesh.spec(shape, 1) == P()


@pytest.mark.parametrize("sizes", MESHES, ids=str)
def test_bytes_of_a_device_fall_with_fsdp(sizes):
    """After a step: parameters, average and optimizer of every device, exactly; the step's own result is its input."""
    fsdp = sizes.get("fsdp", 1)
    train_step, template, train_state, batch = prepare(diffusion(Small(), ADAM, IMPORTANCE, SHORT), sizes)
    train_state, _ = train_step(train_state, batch)
    for name in ("params", "ema_params", "opt_state"):
        arrays = jax.tree.leaves(getattr(train_state, name))
        share = sum(leaf.nbytes // (fsdp if any(n % fsdp == 0 for n in leaf.shape) else 1) for leaf in arrays)
        held = [sum(leaf.addressable_shards[d].data.nbytes for leaf in arrays) for d in range(4)]
        assert held == [share] * 4
        # Small's last bias, [1], and Adam's counts are whole on every device.
        assert share == pytest.approx(sum(leaf.nbytes for leaf in arrays) / fsdp, rel=0.05)
    for leaf, expected in zip(jax.tree.leaves(train_state), jax.tree.leaves(template), strict=True):
        assert leaf.sharding == expected.sharding
    for leaf in jax.tree.leaves((train_state.step, train_state.task_state)):
        assert leaf.is_fully_replicated
    train_step(train_state, batch)
    assert train_step._cache_size() == 1  # compiled once


def elements_moved(text):
    """The numbers of elements in the results of a compiled program's collectives."""
    found = []
    for line in text.splitlines():
        match = re.search(r"= (.*?) (all-gather|all-reduce|reduce-scatter|all-to-all|collective-permute)", line)
        if match:
            shapes = re.findall(r"\w+\[([\d,]*)\]", match[1])
            found += [math.prod(map(int, shape.split(","))) if shape else 1 for shape in shapes]
    return found


@pytest.mark.parametrize(
    "model", [Small(), pytest.param(small_unet(dropout=0.1), marks=pytest.mark.slow)], ids=["small", "unet"]
)
def test_devices_exchange_parameters_and_gradients_not_activations(model):
    """An activation of 8 images is larger than any parameter."""
    train_step, template, _, batch = prepare(diffusion(model, SGD), {"fsdp": 4})
    given = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=x.sharding), batch)
    moved = elements_moved(train_step.lower(template, given).compile().as_text())
    sizes = [leaf.size for leaf in jax.tree.leaves(template.params)]
    # Each parameter is gathered, each gradient summed; beside these there are scalars, and t and losses of 8 examples.
    assert sum(moved) >= 2 * sum(size for size in sizes if size % 4 == 0)
    assert sum(moved) <= 2 * sum(sizes) + 16 * len(sizes)


def test_the_old_state_is_donated():
    train_step, _, train_state, batch = prepare(diffusion(Small(), SGD), {"fsdp": 4})
    train_step(train_state, batch)
    assert all(leaf.is_deleted() for leaf in jax.tree.leaves(train_state.params))


def test_a_whole_copy_on_one_device():
    for sizes in ({}, {"data": 2, "fsdp": 2}):
        _, _, train_state, _ = prepare(diffusion(Small(), SGD), sizes)
        whole = mesh.on_one_device(train_state.params)
        assert all(leaf.devices() == {jax.local_devices()[0]} for leaf in jax.tree.leaves(whole))
        jax.tree.map(np.testing.assert_array_equal, whole, jax.tree.map(np.asarray, train_state.params))


# -------------------------------------------------------------------------------------------------------------- runs


def on_mesh(config, **sizes):
    return dataclasses.replace(config, parallel=ParallelConfig(sizes))


@pytest.mark.slow
def test_a_run_goes_on_from_pmap_to_a_mesh_and_back(tmp_path):
    """Through its checkpoints, at 3 and 6 of 8 steps: what is restored is what was saved, and it goes on as it would.

    Rounding differs; Adam at a rate of 1e-3 turns it into no more than this in so few steps.
    """
    slow = dataclasses.replace(RUN, optimizer=OptimizerConfig(learning_rate=1e-3, warmup_steps=2, decay_steps=None))
    whole, moved = tmp_path / "whole", tmp_path / "moved"
    notes = fit(whole, slow)
    logged = fit(moved, with_steps(3, slow)).logged
    saved = leaves(moved)
    run = loop.prepare(on_mesh(with_steps(6, slow), data=2, fsdp=2))
    with checkpoint.checkpoints(moved) as checkpoints:
        restored = checkpoints.restore(run.template(), pytest.fail)
    assert_same_leaves(named(restored), saved)
    kernel = restored.params["conv_in"]["kernel"]
    assert kernel.addressable_data(0).nbytes == kernel.nbytes // 2
    logged += fit(moved, run.config).logged
    again = loop.prepare(slow)
    with checkpoint.checkpoints(moved) as checkpoints:
        restored = checkpoints.restore(again.template(), pytest.fail)
    assert int(restored.step) == 6 and all(leaf.is_fully_replicated for leaf in jax.tree.leaves(restored))
    assert_same_leaves(named(restored), leaves(moved))
    logged += fit(moved, slow).logged
    assert [k for k, _ in logged] == [2, 3, 4, 6, 8]
    expected = dict(notes.logged)
    for k, loss in logged:
        if k in expected:
            assert loss == pytest.approx(expected[k], rel=1e-4), k
    a, b = leaves(moved), leaves(whole)
    for name in a:
        np.testing.assert_allclose(a[name], b[name], rtol=1e-3, atol=2e-5, err_msg=name)


def test_configurations():
    parsed = parse(TrainArguments, "--parallel.mesh data 2 fsdp 2".split(), "train").config
    assert parsed == on_mesh(Config(), data=2, fsdp=2) and differences(Config(), parsed) == []
    values = json.loads(json.dumps(checkpoint.to_dict(parsed)))
    assert from_dict(values, Config) == parsed
    del values["parallel"], values["train"]["accumulate"]  # a run from before there was a choice
    assert from_dict(values, Config) == Config()
    grid = mesh.make_mesh({"fsdp": 2, "data": 2}, jax.local_devices())
    assert dict(grid.shape) == {"data": 2, "fsdp": 2}


@pytest.mark.parametrize(
    "options, message",
    [
        ("--parallel.mesh data 3", r"parallel.mesh is data 3 x fsdp 1 = 3 devices, got 4 devices"),
        ("--parallel.mesh data 4 fsdp 2", r"parallel.mesh is data 4 x fsdp 2 = 8 devices, got 4 devices"),
        ("--parallel.mesh data 2 fdsp 2", r"unknown axis of parallel.mesh 'fdsp'; did you mean 'fsdp'\? \(known: data"),
        ("--parallel.mesh fsdp 0", r"parallel.mesh fsdp must be at least 1, got 0"),
        ("--parallel.mesh fsdp four", r"Error parsing --parallel.mesh: .*key-value pairs"),
        ("--parallel.mesh fsdp 4 --train.batch-size 6", r"batch size 6 is not divisible by the number of devices, 4"),
        ("--train.accumulate 0", r"train.accumulate must be at least 1, got 0"),
        ("--train.accumulate 3", r"train.accumulate 3 does not divide the 16 examples of each device .*64 on 4 dev"),
    ],
)
def test_a_users_error_is_one_line(options, message, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert_train_refuses(options, message, capsys)


def test_a_batch_that_does_not_fit_is_refused_while_tracing():
    train_step, template, _, batch = prepare(diffusion(Small(), SGD), {"fsdp": 4}, accumulate=4)
    given = {"image": jax.ShapeDtypeStruct(batch["image"].shape, jnp.uint8)}
    with pytest.raises(ValueError, match=r"train.accumulate 4 does not divide the 2 examples of each device"):
        train_step.lower(template, given)
    with pytest.raises(ValueError, match="batch size 6 is not divisible by the number of devices, 4"):
        mesh.shard(reader(), 6, mesh.make_mesh({"fsdp": 4}, jax.local_devices()))
    with pytest.raises(ValueError, match="batch size 6 is not divisible by the number of devices, 4"):
        step.shard(reader(), 6, jax.local_devices())
