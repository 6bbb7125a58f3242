"""Averages of a width chosen after the training, from averages of a few other widths kept along the way.

    averages/STEP/   Orbax: ema_stack, [R, ...] of the run's optimizer.ema_sigmas at that step; seal.json

Every average is an integral of the parameters' path theta(tau) under a profile p(tau), here always that of a power
function, p(tau) = (gamma + 1) tau^gamma / t^(gamma + 1) on [0, t]. A sum of averages is one under the sum of their
profiles: weights that make it another profile make it the other average. A profile that is off by a function r makes it
off by integral r(tau) (theta(tau) - c) d tau, for any constant c, since the weights sum to 1.

Source: Karras et al. 2024 (arXiv:2312.02696), section 3.2 and appendix C.
"""

import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import orbax.checkpoint as ocp

from ddpm_jax import build
from ddpm_jax.config.averages import NARROWEST, WIDEST, Averages, gamma_of
from ddpm_jax.config.run import OptimizerConfig
from ddpm_jax.host import processes
from ddpm_jax.names import choose
from ddpm_jax.runs import checkpoint
from ddpm_jax.runs.checkpoint import Say
from ddpm_jax.runs.leaves import undivided
from ddpm_jax.runs.sealing import damage, seal, steps_of

FOLDER, ITEM = "averages", "ema_stack"

# Of the norms of a profile's error and of the profile: as much as a width that is off by 6 % makes.
TOLERANCE = 0.05


# ----------------------------------------------------------------------------------------------------------- weights


class Weights(NamedTuple):
    """Of snapshots [S] with R averages each."""

    values: np.ndarray
    """float64 [S, R], their sum is 1."""
    error: float
    """||sum of profiles - profile|| / ||profile||, in L2 over the steps."""


def weights(steps: Sequence[int], sigmas: Sequence[float], step: int, sigma_rel: float) -> Weights:
    """The w that minimize || sum_sr w_sr p_sr - p ||^2 subject to sum_sr w_sr = 1.

    p_sr is the profile of width r of snapshot s; inner products of profiles are known in closed form, see `inner`. That
    the weights sum to 1 is added here: a parameter that stays where it is then is its own average.

    Source: Karras et al. 2024 (arXiv:2312.02696), appendix C.

    Args:
      steps: [S] of the snapshots, each in [1, step].
      sigmas: [R] sigma_rel of the averages in each.
      step: t of the average that is made.
      sigma_rel: its width.

    Raises:
      ValueError: steps out of range or twice; a sigma_rel of no power function.
    """
    if not len(steps) or len(set(steps)) < len(steps) or not 1 <= min(steps) <= max(steps) <= step:
        raise ValueError(f"steps of the snapshots must be different numbers in [1, {step}], got {list(steps)}")
    values, errors = _solve(steps, sigmas, step, [sigma_rel])
    return Weights(values[..., 0], float(errors[0]))


def inner(
    t_a: np.ndarray | float, gamma_a: np.ndarray | float, t_b: np.ndarray | float, gamma_b: np.ndarray | float
) -> Any:
    """integral p_a(tau) p_b(tau) d tau = (gamma_a + 1) (gamma_b + 1) / (gamma_a + gamma_b + 1) (t / T)^gamma_T / T.

    t <= T are t_a and t_b in order, gamma_T is that of the later one.

    Source: Karras et al. 2024 (arXiv:2312.02696), appendix C.
    """
    first, last = np.minimum(t_a, t_b), np.maximum(t_a, t_b)
    gamma_last = np.where(t_a > t_b, gamma_a, gamma_b)
    return (gamma_a + 1) * (gamma_b + 1) / (gamma_a + gamma_b + 1) * (first / last) ** gamma_last / last


def _solve(
    steps: Sequence[int], sigmas: Sequence[float], step: int, widths: Sequence[float]
) -> tuple[np.ndarray, np.ndarray]:
    """Weights [S, R, W] and errors [W] of W widths."""
    t = np.repeat(np.array(steps, np.float64), len(sigmas))
    gamma = np.tile([gamma_of(sigma) for sigma in sigmas], len(steps))
    target = np.array([gamma_of(sigma) for sigma in widths])
    scale = inner(t, gamma, t, gamma) ** -0.5  # profiles of norm 1
    gram = inner(t[:, None], gamma[:, None], t, gamma) * scale[:, None] * scale
    products = inner(t[:, None], gamma[:, None], step, target) * scale[:, None]
    # Snapshots close to each other are almost dependent. What is cut off are sums of profiles of norm 3e-7 or less.
    found = np.linalg.lstsq(gram, np.column_stack([products, scale]), rcond=1e-13)[0]
    free, constant = found[:, :-1], found[:, -1:]
    w = free + constant * (1 - scale @ free) / (scale @ constant)
    square = inner(step, target, step, target)
    distance = square - 2 * np.sum(w * products, 0) + np.sum(w * (gram @ w), 0)
    errors = np.sqrt(np.maximum(distance, 0) / square)  # rounding of a difference that is 0
    return (w * scale[:, None]).reshape(len(steps), len(sigmas), len(widths)), errors


def _refused(steps: Sequence[int], sigmas: Sequence[float], step: int, sigma_rel: float, error: float) -> ValueError:
    """The error for a width that snapshots do not represent: by how much, and which is the nearest that they do."""
    widths = np.unique([*np.geomspace(NARROWEST, WIDEST, 400), *sigmas])
    allowed = widths[_solve(steps, sigmas, step, widths.tolist())[1] <= TOLERANCE]
    said = f"the {len(steps)} snapshots up to step {step} give sigma_rel {sigma_rel} with a profile off by {error:.1%}"
    if not len(allowed):
        return ValueError(f"{said}, and no other width at this step within {TOLERANCE:.0%}; take step {max(steps)}")
    nearest = allowed[np.argmin(np.abs(np.log(allowed / sigma_rel)))]
    return ValueError(f"{said}, at most {TOLERANCE:.0%} are allowed; the nearest width within that is {nearest:.4g}")


# --------------------------------------------------------------------------------------------------------- snapshots


def save(workdir: Path, state: Any, averages: Averages) -> None:
    """Write the power functions' averages at state.step; returns when they are there.

    They appear under their name when they are complete and sealed, and are never deleted. What is there already is from
    before a run was resumed at an earlier step, and the same.
    """
    target = workdir.absolute() / FOLDER / str(int(state.step))
    if processes.from_first(lambda: damage(target)) is None:
        return
    partial = target.with_name(target.name + ".partial")
    rows = jax.tree.map(lambda leaf: leaf[len(averages.decays) :], state.ema_stack)
    with ocp.StandardCheckpointer() as writer:
        writer.save(partial / ITEM, undivided(rows), force=True)
    if processes.is_first():
        seal(partial)
        if target.exists():
            shutil.rmtree(target)  # damaged
        partial.rename(target)


def snapshots(workdir: Path, say: Say) -> dict[int, Path]:
    """{step: directory} of the intact ones, in order; `say` is told of damaged ones.

    Raises:
      FileNotFoundError: there are none.
      ValueError: there are, and all are damaged.
    """
    folder = workdir.absolute() / FOLDER
    found = {int(path.name): path for path in folder.glob("*") if path.name.isdecimal()}
    if not found:
        raise FileNotFoundError(f"no averages in {folder}: train with optimizer.ema_sigmas and train.average_every")
    damaged = {step: reason for step, path in found.items() if (reason := damage(path)) is not None}
    reasons = "; ".join(f"{step}: {damaged[step]}" for step in sorted(damaged))
    if len(damaged) == len(found):
        raise ValueError(f"all averages in {folder} are damaged ({reasons})")
    if damaged:
        say(f"averages in {folder} are damaged ({reasons}); going on without them")
    return {step: found[step] for step in sorted(found) if step not in damaged}


# ------------------------------------------------------------------------------------------------------- parameters


class Reconstruction(NamedTuple):
    params: Any
    step: int
    error: float
    """Of the profile, see `Weights`."""


def reconstruct(workdir: Path, sigma_rel: float, say: Say, *, step: int | None = None) -> Reconstruction:
    """sum_sr w_sr theta_sr, the average under the power function of width sigma_rel, summed in float64.

    Args:
      workdir: of a run with optimizer.ema_sigmas and train.average_every.
      sigma_rel: of the average, see `config.averages.gamma_of`.
      say: is told of damaged snapshots.
      step: at which it ends; that of the newest snapshot by default.

    Raises:
      FileNotFoundError: no run, or no snapshots.
      ValueError: a width or a step that the snapshots do not represent; snapshots that are all damaged.
    """
    return _reconstruct(workdir, checkpoint.load_run(workdir), sigma_rel, say, step)


def _reconstruct(
    workdir: Path, info: checkpoint.RunInfo, sigma_rel: float, say: Say, step: int | None = None
) -> Reconstruction:
    sigmas = info.config.optimizer.ema_sigmas
    available = snapshots(workdir, say)
    first, newest = min(available), max(available)
    step = newest if step is None else step
    if not first <= step <= newest:
        raise ValueError(f"step must lie in [{first}, {newest}], the first and the newest snapshot, got {step}")
    steps = [at for at in available if at <= step]
    found = weights(steps, sigmas, step, sigma_rel)
    if found.error > TOLERANCE:
        raise _refused(steps, sigmas, step, sigma_rel, found.error)
    template = build.template(info.config, info.image_shape, info.classes)
    total = jax.tree.map(lambda leaf: np.zeros(leaf.shape), template)
    with ocp.StandardCheckpointer() as reader:
        for at, w in zip(steps, found.values, strict=True):
            if np.abs(w).max() > 1e-10:  # a float32 does not feel less
                stack = reader.restore(available[at] / ITEM, _on_host(template, len(sigmas)))
                total = jax.tree.map(lambda sum_, rows, w=w: sum_ + np.tensordot(w, rows, 1), total, stack)
    params = jax.tree.map(lambda sum_, leaf: jnp.asarray(sum_.astype(leaf.dtype)), total, template)
    return Reconstruction(params, step, found.error)


@dataclass(frozen=True)
class Average:
    """Which of a run's averages: the one of a decay or of a width; by default that of optimizer.ema_decay."""

    decay: float | None = None
    sigma: float | None = None

    def __post_init__(self):
        if self.decay is not None and self.sigma is not None:
            raise ValueError(f"give either an ema_decay or an ema_sigma, got {self.decay} and {self.sigma}")


OWN = Average()


def averaged(workdir: Path, info: checkpoint.RunInfo, template: Any, say: Say, average: Average) -> tuple[Any, int]:
    """An average of the parameters, and the number of steps they have seen.

    Those that the run keeps are those of its newest intact checkpoint. Other widths are those of its newest snapshot,
    see `reconstruct`, and `say` is told how exact they are.

    Args:
      workdir: of the run.
      info: what its config.json says.
      template: shapes and dtypes of the parameters.
      say: is told of damaged files, too.
      average: which.

    Raises:
      FileNotFoundError: no checkpoint or no snapshots.
      ValueError: a decay the run does not keep; as `reconstruct`; a damaged run.
    """
    optimizer = info.config.optimizer
    if average.sigma is not None and average.sigma not in optimizer.ema_sigmas:
        params, step, error = _reconstruct(workdir, info, average.sigma, say)
        say(f"average of sigma_rel {average.sigma} at step {step} from snapshots, its profile off by {error:.2%}")
        return params, step
    row = None if average == OWN else _row(optimizer, average)
    if row is None:
        return checkpoint.restore_ema_and_step(workdir, template, say)
    num_averages = len(optimizer.ema_decays) + len(optimizer.ema_sigmas)
    saved = checkpoint.Saved(workdir)
    stack, step = saved.restore_item_and_step(ITEM, _on_host(template, num_averages), say)
    return jax.tree.map(lambda leaf: jnp.asarray(leaf[row]), stack), step


def of_checkpoint(workdir: Path, step: int, template: Any) -> Any:
    """The average of one checkpoint that the run keeps, on this process's first device.

    Raises:
      FileNotFoundError: it is not there.
      ValueError: it is damaged.
    """
    saved = checkpoint.Saved(workdir)
    if step not in (kept := sorted(steps_of(saved.directory))):
        raise FileNotFoundError(f"no checkpoint {step} in {saved.directory}: it has {kept}")
    if (wrong := damage(saved.directory / str(step))) is not None:
        raise ValueError(f"checkpoint {step} in {saved.directory} is damaged ({wrong})")
    return saved.read(step, {"ema_params": checkpoint.on_first_device(template)})["ema_params"]


def _row(optimizer: OptimizerConfig, average: Average) -> int | None:
    """Of the stack; None is the average beside it."""
    if average.sigma is not None:
        return len(optimizer.ema_decays) + optimizer.ema_sigmas.index(average.sigma)
    rows = {optimizer.ema_decay: None} | {decay: row for row, decay in enumerate(optimizer.ema_decays)}
    return choose("ema_decay of the run", str(average.decay), {str(decay): row for decay, row in rows.items()})


def _on_host(template: Any, num_averages: int) -> Any:
    """The template of a stack that Orbax reads into memory: of a network in shards it may not fit one device."""
    return jax.tree.map(lambda leaf: np.broadcast_to(np.zeros((), leaf.dtype), (num_averages, *leaf.shape)), template)
