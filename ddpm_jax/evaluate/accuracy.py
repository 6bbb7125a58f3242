"""How often a classifier of noisy images is right, by t: a table, its file and its plot."""

from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from ddpm_jax import data, images, keys
from ddpm_jax.host.storage import replacing, write_atomically
from ddpm_jax.objectives import classification
from ddpm_jax.process import ModelFn
from ddpm_jax.schedules import Schedule

LEVELS = 21
"""Times of the table, evenly from the first to the last."""
MOST = 2000
"""Examples, chosen by chance where there are more: the standard error of an accuracy is 0.011 at most."""
BATCH = 200
SEED = 0
"""Of the examples and their noise, the same for every classifier."""


class Table(NamedTuple):
    """By t, int [K]: the share of n examples that are right, and the mean of -log p(y | x_t, t), nats; float [K]."""

    t: np.ndarray
    accuracy: np.ndarray
    loss: np.ndarray
    n: int


def by_t(
    bound: Callable[[Any], ModelFn],
    params: Any,
    schedule: Schedule,
    source: data.Source,
    *,
    levels: int = LEVELS,
    most: int = MOST,
) -> Table:
    """mean_i 1[argmax_y p(y | x_t_i, t) = y_i] and mean_i -log p(y_i | x_t_i, t), x_t_i ~ q(x_t | x_0_i), by t.

    The noise of example i at t is of the key fold_in(fold_in(key of SEED, t), i): the same in every call.

    Args:
      bound: bound(params)(x_t, t) -> logits.
      params: of the classifier.
      schedule: of the noise.
      source: images and labels.
      levels: how many t.
      most: how many examples.
    """
    n, key = min(most, len(source)), keys.make(SEED)
    times = np.unique(np.round(np.linspace(0, schedule.num_timesteps - 1, levels)).astype(np.int32))

    @jax.jit
    def sums(params: Any, x_0: jax.Array, y: jax.Array, first: jax.Array, t: jax.Array) -> tuple[jax.Array, jax.Array]:
        example_keys = keys.example_keys(jax.random.fold_in(key, t), first, len(x_0))
        eps = jax.vmap(lambda key: jax.random.normal(key, x_0.shape[1:], x_0.dtype))(example_keys)
        found = classification(bound(params), schedule, x_0, jnp.full(len(x_0), t), eps, y)
        return jnp.sum(found.correct), jnp.sum(found.loss)

    total = np.zeros((2, len(times)))
    for first in range(0, n, BATCH):
        indices = data.batch_indices(SEED, 0, n, len(source))[first : first + BATCH]
        batch = source.read(indices, ("image", "label"))
        x_0, y = images.to_float(batch["image"]), jnp.asarray(batch["label"])
        for k, t in enumerate(times):
            total[:, k] += jax.device_get(sums(params, x_0, y, np.uint32(first), np.int32(t)))
    correct, loss = total / n
    return Table(times, correct, loss, n)


def save(path: Path, table: Table, what: str, num_classes: int) -> None:
    """path.csv and path.png; each appears whole.

    Args:
      path: of both, without an ending.
      table: as of by_t.
      what: the examples, in words, for the title.
      num_classes: of which guessing is right once.
    """
    rows = zip(table.t.tolist(), table.accuracy.tolist(), table.loss.tolist(), strict=True)
    lines = ["t,accuracy,loss,n", *(f"{t},{accuracy!r},{loss!r},{table.n}" for t, accuracy, loss in rows)]
    write_atomically(path.with_suffix(".csv"), "\n".join(lines) + "\n")
    with replacing(path.with_suffix(".png")) as file:
        _figure(table, what, num_classes).savefig(file, format="png", dpi=120)


def _figure(table: Table, what: str, num_classes: int) -> Any:
    from matplotlib.figure import Figure  # slow to import; Figure draws without a display

    figure = Figure(figsize=(9, 4), layout="constrained")
    figure.suptitle(what)
    left, right = figure.subplots(1, 2)
    left.plot(table.t, table.accuracy, marker=".")
    left.axhline(1 / num_classes, color="gray", linestyle="--", label=f"guessing, 1/{num_classes}")
    left.set(xlabel="t", ylabel="share of right answers", title="accuracy", ylim=(0, 1.02))
    right.plot(table.t, table.loss, marker=".")
    right.axhline(np.log(num_classes), color="gray", linestyle="--", label=f"guessing, ln {num_classes}")
    right.set(xlabel="t", ylabel="-log p(y | x_t, t), nats", title="cross-entropy")
    for axes in (left, right):
        axes.legend()
        axes.grid(alpha=0.3)
    return figure
