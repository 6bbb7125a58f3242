"""What a learned table would gain by numbers that it does not have.

Run:       ddpm-jax learn-sampler runs/digits --num-steps 5
           python experiments/table_freedom.py runs/digits runs/digits/samplers/learned_5.json OUT.json
Needs:     a minute on a CPU, for digits; of MNIST ten
Expect:    no paper. Shaul et al. 2024 (arXiv:2403.01329) have the table's numbers and no more
Measured:  docs/learned_samplers.md

From the learned numbers, at their times, one Gauss-Newton step of the fit's own loss: of the numbers that the table
has, and of these with more. More are a scale of x_T; the level by which each call's x_0 is had from X and eps, apart
from the time that the network is told, which clipping makes a freedom; and x_0 as the network says it, not clipped,
with weights as the other has. Of steps of different damping the one of the least loss counts. The held-out errors are
also those of the images clipped to [-1, 1], which are what is written as pictures.
"""

import dataclasses
import json
import sys
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from ddpm_jax import opening
from ddpm_jax.distil import files
from ddpm_jax.distil.command import TEACHER, TEACHER_GRID, network_of
from ddpm_jax.distil.family import Times, assignments_of, numbers_of, times_of
from ddpm_jax.distil.fit import FLOOR, HELD_OUT, Errors, errors_between, pair_key
from ddpm_jax.distil.regression import TeacherPath, path_of
from ddpm_jax.host.storage import write_atomically
from ddpm_jax.samplers import Denoise, Row
from ddpm_jax.samplers.catalogue import make_table

PAIRS, BATCH, TEACHER_STEPS = 64, 32, 100
DAMPING = (1e-6, 1e-4, 1e-2, 1.0)
OWN, MORE = ("kept", "weights"), ("scale of x_T", "levels of x_0", "x_0 not clipped")


def parts_of(rows: np.ndarray) -> dict[str, np.ndarray]:
    """The numbers by name: those that the table has, then more, which change nothing where they are 0."""
    n = len(rows)
    own = dict(zip(OWN, (rows[:, 1], rows[:, 2:][np.tril_indices(n)]), strict=True))
    return own | {name: np.zeros(size) for name, size in zip(MORE, (1, n, n * (n + 1) // 2), strict=True)}


def sampler(
    denoise: Denoise, schedule: Times, times: np.ndarray, clip: float, x_T: jax.Array, parts: list
) -> jax.Array:
    """x_0 [B, ...] from parts as `parts_of` has them; denoise does not clip."""
    kept, weights, scale, levels, raw = parts
    square = lambda entries: jnp.zeros((len(times), len(times))).at[np.tril_indices(len(times))].set(entries)
    weights, raw, said = square(weights), square(raw), []
    x = jnp.exp(scale[0]) * x_T
    for k, time in enumerate(times):
        alpha, sigma = schedule.at(time)
        ratio = sigma / alpha * jnp.exp(levels[k])
        alpha = (1 + ratio**2) ** -0.5
        sigma = ratio * alpha
        said.append(denoise(x, Row(time, alpha, sigma, 0.0, 0.0, np.zeros((1, 4)))).x_0)
        x_0 = jnp.stack(said)
        clipped = jnp.tensordot(weights[k, : k + 1], jnp.clip(x_0, -clip, clip), 1)
        x = kept[k] * x + clipped + jnp.tensordot(raw[k, : k + 1], x_0, 1)
    return x


def main(run: str, file: str, out: str) -> None:
    source, learned = opening.open(run, print), files.load(Path(file))
    files.check_schedule(learned, source.schedule)
    schedule, network = times_of(source.schedule), network_of(source)
    unclipped = dataclasses.replace(source.reading, clip=None).denoiser(source.schedule)
    clip = source.reading.clip or np.inf
    numbers = jax.tree.map(np.float32, numbers_of(learned.table(), source.schedule))
    rows = np.asarray(assignments_of(numbers, schedule))
    parts = parts_of(rows)
    ends = np.cumsum([len(part) for part in parts.values()])
    places = dict(zip(parts, np.split(np.arange(ends[-1]), ends[:-1]), strict=True))

    def images(flat: jax.Array, x_T: jax.Array, params: Any) -> jax.Array:
        denoise = unclipped(source.model_fn(params))
        return sampler(denoise, schedule, rows[:, 0], clip, x_T, [flat[place] for place in places.values()])

    draw = jax.jit(images)
    push = jax.jit(lambda flat, x_T, params, way: jax.jvp(lambda f: images(f, x_T, params), (flat,), (way,))[1])
    teacher = make_table(TEACHER, source.schedule, TEACHER_STEPS, TEACHER_GRID)
    pairs, held_out = (path_of(network, teacher, pair_key(0), first, PAIRS, BATCH) for first in (0, HELD_OUT))

    def drawn(flat: np.ndarray, path: TeacherPath) -> np.ndarray:
        return np.concatenate([draw(flat, x_T, *network.data) for x_T in np.split(path.x_T, PAIRS // BATCH)])

    def moved_by(way: np.ndarray) -> np.ndarray:
        """How the images of the pairs move that way."""
        return np.concatenate([push(start, x_T, *network.data, way) for x_T in np.split(pairs.x_T, PAIRS // BATCH)])

    def of_pairs(flat: np.ndarray) -> Errors:
        return errors_between(drawn(flat, pairs), pairs.states[-1])

    def measured(flat: np.ndarray, on_pairs: Errors) -> dict[str, Any]:
        others, targets = drawn(flat, held_out), held_out.states[-1]
        found = (on_pairs, errors_between(others, targets), errors_between(np.clip(others, -clip, clip), targets))
        return {name: each._asdict() for name, each in zip(("pairs", "held_out", "clipped"), found, strict=True)}

    start = np.concatenate(list(parts.values())).astype(np.float32)
    found = (drawn(start, pairs) - pairs.states[-1]).reshape(PAIRS, -1).astype(np.float64)
    weight = 1 / np.sqrt(np.mean(found**2, axis=1, keepdims=True) + FLOOR**2)
    ways = np.eye(len(start), dtype=np.float32)
    jacobian = np.stack([(weight * moved_by(way).reshape(PAIRS, -1)).ravel() for way in ways])
    result: dict[str, Any] = {"num_calls": len(rows), "learned": measured(start, of_pairs(start))}
    print(json.dumps(result), flush=True)
    for more in ((), *((name,) for name in MORE), MORE):
        free = np.concatenate([places[name] for name in (*OWN, *more)])
        curvature, slope = jacobian[free] @ jacobian[free].T, jacobian[free] @ (weight * found).ravel()
        tries = []
        for damping in DAMPING:
            moved = start.copy()
            moved[free] -= np.linalg.solve(curvature + damping * np.diag(np.diag(curvature)), slope)
            tries.append((of_pairs(moved), damping, moved))
        error, damping, moved = min(tries, key=lambda each: np.nan_to_num(each[0].geometric_mean, nan=np.inf))
        name = " and ".join(more) or "none"
        result[name] = {"numbers": len(free), "damping": damping} | measured(moved, error)
        print(name, json.dumps(result[name]), flush=True)
    write_atomically(Path(out), json.dumps(result, indent=1) + "\n")


if __name__ == "__main__":
    main(*sys.argv[1:])
