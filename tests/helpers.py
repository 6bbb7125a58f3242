"""Golden files, exact denoisers, and the error measure shared by the tests."""

import dataclasses
import json
import re
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ddpm_jax import cli, schedules
from ddpm_jax.reading import Reading
from ddpm_jax.samplers.run import step
from ddpm_jax.trained import Trained

GOLDEN = Path(__file__).parent / "golden"
READING = {field.name for field in dataclasses.fields(Reading)}


def few(values: Iterable[Any], *default: Any) -> list[Any]:
    """Parameters of which these run by default, and all in the slow suite's addition to them."""
    values = list(values)
    assert set(default) <= set(values), set(default) - set(values)
    return [value if value in default else pytest.param(value, marks=pytest.mark.slow) for value in values]


def assert_train_refuses(options: str, message: str, capsys) -> None:
    """`ddpm-jax train` with these options ends with status 2 and one line, and makes no run."""
    with pytest.raises(SystemExit) as stop:
        cli.main(["train", *options.split()])
    error = capsys.readouterr().err.strip()
    assert stop.value.code == 2 and "\n" not in error and re.search(message, error), error
    assert not Path("runs").exists()


def trained_of(**settings: Any) -> Trained:
    """A Trained, its reading given field by field; what is not said is as after most trainings."""
    return changed(
        Trained(**{"origin": "a test", "config": {}, "schedule": schedules.linear(1000)}
                | {"reading": Reading("eps", "fixed_small", clip=1.0)}
                | {name: value for name, value in settings.items() if name not in READING}),
        **{name: value for name, value in settings.items() if name in READING},
    )  # fmt: skip


def changed(trained: Trained, **changes: Any) -> Trained:
    """With other fields, or other fields of its reading."""
    of_reading = {name: changes.pop(name) for name in READING & changes.keys()}
    return dataclasses.replace(trained, reading=dataclasses.replace(trained.reading, **of_reading), **changes)


def golden(name: str) -> tuple[dict[str, np.ndarray], dict[str, Any]]:
    """Arrays and meta of tests/golden/<name>.npz."""
    with np.load(GOLDEN / f"{name}.npz", allow_pickle=False) as file:
        arrays = {key: file[key] for key in file.files if key != "meta"}
        return arrays, json.loads(str(file["meta"]))


def traces_of(classes) -> list[str]:
    """Names of the golden traces of these scheduler classes of diffusers."""
    found = []
    for path in sorted((GOLDEN / "diffusers").glob("*.npz")):
        with np.load(path) as file:
            if json.loads(str(file["meta"])).get("cls") in classes:
                found.append(path.stem)
    return found


def relative(actual, expected) -> float:
    """max |actual - expected| / max |expected|."""
    actual, expected = np.asarray(actual, np.float64), np.asarray(expected, np.float64)
    assert actual.shape == expected.shape, (actual.shape, expected.shape)
    assert np.isfinite(actual).all()
    return float(np.abs(actual - expected).max() / np.abs(expected).max())


def relative_rms(actual, expected) -> float:
    """Root mean square of actual - expected over that of expected."""
    actual, expected = np.asarray(actual, np.float64), np.asarray(expected, np.float64)
    assert actual.shape == expected.shape, (actual.shape, expected.shape)
    return float(np.sqrt(np.mean((actual - expected) ** 2) / np.mean(expected**2)))


def mixture_model(arrays, output="eps", time_scale=1.0, alphas_cumprod=None):
    """The exact eps, x_0 or v of a Gaussian mixture: the model the golden loops were run with (golden/README.md).

    alphas_cumprod, a function of the time the model receives, replaces interpolation in the stored table.
    """
    mu, s, w = (jnp.asarray(arrays[f"gmm_{name}"], float) for name in ("mu", "s", "w"))
    size = mu[0].size
    mu = mu.reshape(1, len(w), size)

    def interpolated(t):
        table = jnp.asarray(arrays["model_alphas_cumprod"], float)
        return jnp.interp(jnp.clip(t, 0, table.size - 1), jnp.arange(table.size, dtype=float), table)

    at = alphas_cumprod or interpolated

    def model_fn(x, t):
        shape, dtype = x.shape, x.dtype
        abar = at(t.astype(float) * time_scale).reshape(-1, 1)
        flat = x.astype(float).reshape(shape[0], 1, size)
        v = abar * s.reshape(1, -1) ** 2 + 1 - abar  # [B, K]
        root = jnp.sqrt(abar)[:, :, None]
        residual = flat - root * mu
        log_r = jnp.log(w).reshape(1, -1) - size / 2 * jnp.log(v) - (residual**2).sum(-1) / (2 * v)
        r = jax.nn.softmax(log_r, axis=-1)[:, :, None]
        eps = jnp.sqrt(1 - abar) * (r * residual / v[:, :, None]).sum(1)
        shrink = (jnp.sqrt(abar) * s.reshape(1, -1) ** 2 / v)[:, :, None]
        x_0 = (r * (mu + shrink * residual)).sum(1)
        velocity = jnp.sqrt(abar) * eps - jnp.sqrt(1 - abar) * x_0
        return {"eps": eps, "x_0": x_0, "v": velocity}[output].reshape(shape).astype(dtype)

    return model_fn


def gaussian_model(schedule, mean, variance, output="eps"):
    """The exact eps or x_0 for data ~ N(mean, variance I) at integer times of the schedule."""
    alphas = jnp.asarray(np.sqrt(schedule.alphas_cumprod_float64), float)
    betas = jnp.asarray(schedule.one_minus_alphas_cumprod_float64, float)

    def model_fn(x, t):
        index = jnp.searchsorted(schedule.timesteps.astype(float), t.astype(float)).astype(jnp.int32)
        keep = (-1,) + (1,) * (x.ndim - 1)
        alpha, beta = alphas[index].reshape(keep).astype(x.dtype), betas[index].reshape(keep).astype(x.dtype)
        score = -(x - alpha * mean) / (alpha**2 * variance + beta)
        eps = -jnp.sqrt(beta) * score
        return {"eps": eps, "x_0": mean + alpha * variance / (alpha**2 * variance + beta) * (x - alpha * mean)}[output]

    return model_fn


def trace(denoise, table, x_T, noise) -> np.ndarray:
    """X after every row, [N, B, ...]: the loop of samplers.run unrolled in Python, one compiled step.

    The denoiser's numbers are arguments of that program: networks that differ in them alone share what is compiled.
    """
    table = jax.tree.map(lambda leaf: np.asarray(leaf, x_T.dtype), table)
    registers = (table.init * x_T, *[jnp.zeros_like(x_T)] * (table.rows.update.shape[1] - 1))
    rows = [jax.tree.map(lambda leaf, k=k: leaf[k], table.rows) for k in range(table.num_calls)]
    traced = jax.make_jaxpr(lambda *arguments: step(denoise, *arguments))(rows[0], registers, noise[0])
    one = jax.jit(lambda numbers, *arguments: jax.core.eval_jaxpr(traced.jaxpr, numbers, *jax.tree.leaves(arguments)))
    result = []
    for row, z in zip(rows, noise, strict=False):  # there may be more noise than a shorter table takes
        registers = tuple(one(traced.consts, row, registers, z))
        result.append(registers[0])
    return np.stack(result)


def with_variance(model_fn, meta):
    """The golden files' variance head beside a network's output, along the last axis."""

    def both(x, t):
        time = t.astype(x.dtype).reshape(-1, *(1,) * (x.ndim - 1)) / 1000 - 0.5
        variance = meta["va"] * jnp.tanh(meta["vg"] * x) + meta["vt"] * time + meta["vb"]
        return jnp.concatenate([model_fn(x, t), variance], axis=-1)

    return both


def affine_model(arrays):
    """out = M x + u t / 1000 + b per channel, of the golden files; the rows of a variance head are left out."""
    m, u, b = (jnp.asarray(arrays[name][:3], float) for name in "Mub")

    def model_fn(x, t):
        time = (u[None] * t.astype(float)[:, None] / 1000).reshape(-1, 3, 1, 1)
        return jnp.einsum("oc,nchw->nohw", m, x.astype(float)) + time + b.reshape(1, 3, 1, 1)

    return model_fn
