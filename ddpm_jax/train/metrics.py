"""A run's numbers over time: metrics.jsonl, TensorBoard events if it is installed, and a plot."""

import importlib.util
import json
import math
import time
from pathlib import Path
from typing import Any

import numpy as np

from ddpm_jax.host.storage import naming, write_atomically


class MetricsLog:
    """Appends to metrics.jsonl; lines of steps that a resumed run will compute again are dropped first."""

    def __init__(self, workdir: Path, first_step: int):
        self._path = path = workdir / "metrics.jsonl"
        kept = [line for line in read_metrics(path) if line["step"] <= first_step]
        write_atomically(path, "".join(json.dumps(line) + "\n" for line in kept))
        self._file = open(path, "a")
        self._events: Any = _tensorboard(workdir / "tensorboard")
        self._before = first_step, time.perf_counter()

    def write(self, step: int, values: dict[str, float], batch_size: int) -> dict[str, float]:
        """Add a line: what the step returned, and the images per second since the last; returns both.

        Numbers of a skipped step that are not finite are left out of the line: JSON has none for them.
        """
        (step_before, time_before), now = self._before, time.perf_counter()
        rate = (step - step_before) * batch_size / (now - time_before)
        self._before = step, now
        values = {**values, "images_per_second": rate}
        self._add(step, values)
        return values

    def evaluated(self, step: int, values: dict[str, float], seconds: float) -> None:
        """Add a line with what was measured of the pictures, in so many seconds, which no image was trained in."""
        self._add(step, values)
        step_before, time_before = self._before
        self._before = step_before, time_before + seconds

    def _add(self, step: int, values: dict[str, float]) -> None:
        finite = {name: value for name, value in values.items() if math.isfinite(value)}
        with naming(self._path):
            self._file.write(json.dumps({"step": step, **finite}) + "\n")
            self._file.flush()
        if self._events is not None:
            with naming(self._path.with_name("tensorboard")):
                for name, value in values.items():
                    self._events.add_scalar(name, np.float32(value), step)

    def close(self) -> None:
        self._file.close()
        if self._events is not None:
            self._events.close()


def _tensorboard(directory: Path) -> Any:
    if importlib.util.find_spec("tensorboard") is None:
        return None
    from tensorboard.summary import Writer  # optional, and slow to import

    return Writer(str(directory))


def read_metrics(path: Path) -> list[dict[str, float]]:
    """The lines of a metrics file, [] if there is none; a last line cut off by a kill is left out.

    Raises:
      ValueError: another line that is not a mapping with a number for step, and one for loss where it has it: that of
        a skipped step may have none.
    """
    lines = path.read_bytes().splitlines(keepends=True) if path.exists() else []
    return [_values(path, number, line) for number, line in enumerate(lines, 1) if line.endswith(b"\n")]


def _values(path: Path, number: int, line: bytes) -> dict[str, float]:
    try:
        values = json.loads(line)
    except (ValueError, RecursionError) as error:
        raise ValueError(f"line {number} of {path} is not JSON ({error}); delete the line") from None
    numbers = isinstance(values, dict) and [values.get("step"), values.get("loss", 0)]
    if not numbers or not all(isinstance(value, int | float) for value in numbers):
        raise ValueError(f"line {number} of {path} must have numbers for step and loss; delete the line")
    return values


def plot_loss(metrics: Path, picture: Path) -> None:
    """Loss against step, both logarithmic, as a PNG; and its mean over the ten lines around each."""
    from matplotlib.figure import Figure  # slow to import; Figure draws without a display

    lines = [line for line in read_metrics(metrics) if "loss" in line]
    figure = Figure(figsize=(6, 4), layout="constrained")
    axes = figure.subplots()
    steps, losses = (np.array([line[name] for line in lines]) for name in ("step", "loss"))
    axes.loglog(steps, losses, alpha=0.3, label="batch")
    if len(lines) >= 20:
        window = np.full(10, 0.1)
        mean = [np.convolve(values, window, "valid") for values in (steps, losses)]
        axes.loglog(*mean, color="C0", label="mean of 10 lines")
        axes.legend()
    axes.set(xlabel="step", ylabel="loss", title="loss of the training batch")
    axes.grid(alpha=0.3, which="both")
    with naming(picture):
        figure.savefig(picture, dpi=120)
