"""What `ddpm-jax nll` leaves in its folder; every file appears whole or not at all.

sums.npz        the sums over the images seen so far, and the settings they are of; all else is computed from it
summary.json    settings, bits per dimension and their parts, optimal timesteps
vlb.csv, .png   the table by t
rate_distortion.csv, .png
"""

import json
from pathlib import Path
from typing import Any

import numpy as np

from ddpm_jax.data.arrays import UNREADABLE
from ddpm_jax.evaluate.likelihood.table import Sums, Table, empty
from ddpm_jax.host.storage import Say, make_directory, replacing, write_atomically

SUMS = "sums.npz"


def make(folder: Path) -> None:
    """The folder, new, or one that is of this command.

    Raises:
      FileExistsError: there is something else.
    """
    if folder.exists() and not (folder / SUMS).exists() and any(file.suffix != ".partial" for file in folder.iterdir()):
        raise FileExistsError(f"{folder} exists and has no {SUMS}: move it, or say where to write instead with --out")
    make_directory(folder)


def save_sums(folder: Path, settings: dict[str, Any], sums: Sums) -> None:
    with replacing(folder / SUMS) as file:
        np.savez(file, settings=json.dumps(settings), **sums._asdict())


def load_sums(folder: Path, settings: dict[str, Any], num_timesteps: int, say: Say) -> Sums:
    """The sums to go on from; of no image if there are none.

    Args:
      folder: of `make`.
      settings: what they must be of; those of before there was a fingerprint of the images do not have it.
      num_timesteps: T.
      say: is told so.

    Raises:
      ValueError: they are of other settings, or the file cannot be read.
    """
    path = folder / SUMS
    fresh = empty(num_timesteps)
    if not path.exists():
        return fresh
    try:
        with np.load(path) as file:
            arrays = {name: file[name] for name in file.files}
        before = json.loads(str(arrays.pop("settings")))
        sums = Sums(**arrays)._replace(num_images=int(arrays["num_images"]))
        shapes = [(name, np.shape(array), np.shape(getattr(sums, name))) for name, array in fresh._asdict().items()]
        wrong = [f"{name} of shape {found}, not {wanted}" for name, wanted, found in shapes if found != wanted]
        if wrong or not isinstance(before, dict):
            raise ValueError(", ".join(wrong) or "settings that are no mapping")
    except UNREADABLE as error:
        raise ValueError(f"{path} cannot be read ({error}); delete it to start again") from None
    if "fingerprint" in settings.keys() - before.keys():
        say(f"{path} does not say of which images it is: they are taken to be these from now on")
        before["fingerprint"] = settings["fingerprint"]
    changed = [f"{k}: {before.get(k)!r}, now {settings.get(k)!r}" for k in before | settings
               if before.get(k) != settings.get(k)]  # fmt: skip
    if changed:
        raise ValueError(f"{path} is of other settings ({'; '.join(changed)}); delete it to start again")
    return sums


def save_results(folder: Path, table: Table, summary: dict[str, Any]) -> None:
    """The files for people; the summary last, since it says that the others are there."""
    write_atomically(folder / "vlb.csv", _csv(table._asdict()))
    _plot_terms(folder / "vlb.png", table)
    # The lossless image: everything is sent, nothing is wrong.
    rate = np.append(summary["bits_per_dim"]["total"]["mean"], table.rate)
    curve = {"rate": rate, "distortion": np.append(0.0, table.distortion)}
    write_atomically(folder / "rate_distortion.csv", _csv(curve))
    _plot_rate_distortion(folder / "rate_distortion.png", curve)
    write_atomically(folder / "summary.json", json.dumps(summary, indent=2) + "\n")


def _csv(columns: dict[str, np.ndarray]) -> str:
    rows = zip(*(column.tolist() for column in columns.values()), strict=True)
    return "\n".join([",".join(columns), *(",".join(map(repr, row)) for row in rows)]) + "\n"


def _plot_terms(path: Path, table: Table) -> None:
    from matplotlib.figure import Figure  # slow to import; Figure draws without a display

    figure = Figure(figsize=(9, 4), layout="constrained")
    left, right = figure.subplots(1, 2)
    left.semilogy(table.timestep, table.bits_per_dim)
    left.set(xlabel="t", ylabel="L_t, bits/dim", title="terms of the bound")
    for name in ("eps_mse", "x_0_mse"):
        right.semilogy(table.timestep, getattr(table, name), label=name)
    right.set(xlabel="t", title="mean squared errors")
    right.legend()
    for axes in (left, right):
        axes.grid(alpha=0.3, which="both")
    _save(figure, path)


def _plot_rate_distortion(path: Path, curve: dict[str, np.ndarray]) -> None:
    from matplotlib.figure import Figure

    figure = Figure(figsize=(5, 4), layout="constrained")
    axes = figure.subplots()
    axes.plot(curve["rate"], curve["distortion"])
    axes.set(xlabel="rate, bits/dim", ylabel="distortion, RMSE on 0..255", title="progressive lossy compression")
    axes.grid(alpha=0.3)
    _save(figure, path)


def _save(figure: Any, path: Path) -> None:
    with replacing(path) as file:
        figure.savefig(file, format="png", dpi=120)
