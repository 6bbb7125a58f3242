"""Open what was trained: the directory of a run of ours, or what `interop.load` reads."""

from pathlib import Path
from typing import Any

import jax

from ddpm_jax import build, interop
from ddpm_jax.config.run import DataConfig, to_dict
from ddpm_jax.host.storage import Say
from ddpm_jax.runs import checkpoint, posthoc
from ddpm_jax.samplers.configs.reading import read_json
from ddpm_jax.trained import Trained


def open(place: str | Path, say: Say, average: posthoc.Average = posthoc.OWN, config: Path | None = None) -> Trained:
    """Whatever there is, ready to be used.

    Args:
      place: the directory of a run; or a folder, a file or a name on the hub, hf:owner/name, as of `interop.load`.
      say: takes a line of text.
      average: which, of a run.
      config: a JSON file with the config of `interop.load`; of no run.

    Raises:
      FileNotFoundError: nothing there, or a part of it is missing, such as a checkpoint.
      ValueError: files that are damaged or none of these; an average it cannot give; an average is chosen, and this is
        no run; a config is given, and this is one.
      ImportError: as interop.load.
    """
    run = checkpoint.find_run(Path(place))
    if run is None:
        if average != posthoc.OWN:
            which = "ema_decay and ema_sigma choose among the averages of a run"
            raise ValueError(f"{which}, got {place}, which is no run")
        return interop.load(place, None if config is None else _settings(config))
    if config is not None:
        raise ValueError(f"--config {config} says what networks of other projects do not say, and {place} is a run")
    return of_run(Path(place), run, say, average)


def of_run(workdir: Path, info: checkpoint.RunInfo, say: Say, average: posthoc.Average = posthoc.OWN) -> Trained:
    """The averaged parameters of a run's newest intact checkpoint, or another average of them, see `posthoc.averaged`.

    Args:
      workdir: of the run.
      info: what its config.json says.
      say: is told of damaged files.
      average: which.

    Raises:
      FileNotFoundError: no checkpoint.
      ValueError: a damaged run, or an average it cannot give.
    """
    built = build.build(info.config, info.image_shape)
    params, step = posthoc.averaged(workdir, info, built.params, say, average)
    return Trained(
        origin=f"a run of ddpm-jax, {step} steps",
        config=to_dict(built.config.model),
        model=built.model,
        params=jax.device_get(params),
        schedule=built.schedule,
        reading=built.reading,
        image_shape=built.image_shape,
        sampler=built.config.sample.sampler,
        num_steps=built.config.sample.num_steps,
        run=built.config,
        step=step,
    )


def data_of(place: str | Path, trained: Trained, **told: Any) -> DataConfig:
    """The data of a run, or what is told of all else.

    Args:
      place: where it was opened.
      trained: what is there.
      told: fields of DataConfig; None is not told.

    Raises:
      ValueError: told of a run, or no name told of all else.
    """
    given = {name: value for name, value in told.items() if value is not None}
    if trained.run is None:
        if "name" not in given:
            raise ValueError(f"{place} does not say which images it was trained on: give --data.name, as in train")
        return DataConfig(**given)
    for name, value in given.items():
        option = f"--data.{name.replace('_', '-')}"
        raise ValueError(f"{option} {value} is for what is no run: {place} is one, of {trained.run.data.name!r}")
    return trained.run.data


def name_of(place: str | Path) -> str:
    """What files about it are named by: the last part of its path, or of its name on the hub, without an ending."""
    return Path(place).absolute().stem


def results(place: str | Path, trained: Trained, kind: str) -> Path:
    """The folder in which a command leaves its results: in a run's directory KIND; of all else NAME_KIND, here.

    What others made stays as it is.
    """
    return Path(place) / kind if trained.run is not None else Path(f"{name_of(place)}_{kind}")


def _settings(path: Path) -> dict[str, Any]:
    """The mapping in the file of --config.

    Raises:
      FileNotFoundError: no such file.
      ValueError: not JSON, or no mapping.
    """
    if not path.is_file():
        raise FileNotFoundError(f"no file {path}, which --config names")
    try:
        return read_json(path)
    except ValueError as error:
        raise ValueError(f"--config {path}: {error}") from error
