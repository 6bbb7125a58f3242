"""A run's directory: the configuration it is the result of, the states along the way, how it went.

    config.json         the resolved configuration, the shape and number of the images
    environment.jsonl   written by environment: one line per start
    checkpoints/STEP/   Orbax: params, ema_params, opt_state, and what else a run has: timestep_state, ema_stack,
                        skipped; seal.json: size and CRC-32 of their files
    averages/STEP/      written by posthoc
    metrics.jsonl, samples/, loss.png   written by train.loop

A checkpoint is written under another name, sealed, and appears under its own only when it is complete. Only one whose
files are all as its seal says is read: Orbax alone restores a flipped bit without a word.
"""

import contextlib
import dataclasses
import errno
import itertools
import json
import os
import shlex
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jax
import numpy as np
import orbax.checkpoint as ocp

from ddpm_jax.config.defaults import resolved
from ddpm_jax.config.fields import at_least
from ddpm_jax.config.run import Config, differences, from_dict, to_dict
from ddpm_jax.host import processes
from ddpm_jax.host.storage import Say, naming, write_atomically
from ddpm_jax.runs.leaves import describe, listing, misfits, undivided
from ddpm_jax.runs.sealing import ITEMS, SEAL, damage, seal

State = Any  # a dataclass with the step, int32, and what sealing.ITEMS names, under the names of FIELDS
FIELDS = {"timestep_state": "task_state"}  # written under the name of what the first task kept there

# ---------------------------------------------------------------------------------------------------- configuration


@dataclasses.dataclass(frozen=True)
class RunInfo:
    """What config.json says: the configuration, resolved, and what of its data a network and a batch depend on."""

    config: Config
    image_shape: tuple[int, int, int]
    num_examples: int

    def __post_init__(self):
        for name, size in (*(("image_shape", size) for size in self.image_shape), ("num_examples", self.num_examples)):
            at_least(name, size)
        object.__setattr__(self, "config", resolved(self.config, self.image_shape))


def open_run(workdir: Path, info: RunInfo) -> None:
    """Make the run's directory, or check that it is this run's.

    Raises:
      ValueError: the directory belongs to another configuration or other data, or holds files but no run.
    """
    path = workdir / "config.json"
    if path.exists():
        before = load_run(workdir)
        changed = differences(before.config, info.config)
        changed += [
            f"{name} of the data: {getattr(before, name)}, now {getattr(info, name)}"
            for name in ("image_shape", "num_examples")
            if getattr(before, name) != getattr(info, name)
        ]
        if changed:
            raise ValueError(
                f"{workdir} belongs to another configuration ({'; '.join(changed)}); choose another --workdir"
                + _how_to_fork(workdir, info.config.train.num_steps, changed)
            )
    elif workdir.exists() and any(not file.name.endswith(".partial") for file in workdir.iterdir()):
        raise ValueError(f"{workdir} is not empty and holds no run (no config.json); choose another --workdir")
    workdir.mkdir(parents=True, exist_ok=True)
    write_atomically(path, json.dumps(to_dict(info), indent=2) + "\n")


# What a checkpoint of another run must have in common with this one, by the beginnings of `differences`.
SAME_NETWORK = ("model", "objective.prediction", "objective.variance", "image_shape", "train.begin")


def _how_to_fork(workdir: Path, num_steps: int, changed: list[str]) -> str:
    """The options that go on from this run's newest checkpoint with other settings, where these have its network."""
    steps = _steps(workdir / "checkpoints") if (workdir / "checkpoints").is_dir() else []
    if not steps or any(line.startswith(SAME_NETWORK) for line in changed if not line.startswith("model.dropout")):
        return ""
    options = ["--train.begin-from", str(workdir)]
    if num_steps <= max(steps):
        options += ["--train.num-steps", str(max(steps) + num_steps)]
    n = next(n for n in itertools.count(2) if not workdir.with_name(f"{workdir.name}_{n}").exists())
    options += ["--workdir", str(workdir.with_name(f"{workdir.name}_{n}"))]
    return f", or go on from its step {max(steps)} with the new settings: the same command with {shlex.join(options)}"


def load_run(workdir: Path) -> RunInfo:
    """What the run was made with.

    Raises:
      FileNotFoundError: no run in this directory.
      ValueError: a config.json that is not one.
    """
    found = find_run(workdir)
    if found is None:
        path = workdir / "config.json"
        what = "is that of a network of diffusers" if path.is_file() else "does not exist"
        raise FileNotFoundError(f"no run in {workdir}: {path} {what}")
    return found


def find_run(place: Path) -> RunInfo | None:
    """What the run in this directory was made with; None where there is none, but a network of diffusers, or nothing.

    Raises:
      ValueError: a config.json that is of neither.
    """
    path = place / "config.json"
    if not path.is_file() or (place / "model_index.json").exists():
        return None
    try:
        found = json.loads(path.read_text())
        return None if isinstance(found, dict) and "_class_name" in found else from_dict(found, RunInfo)
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{path}: {error}") from None


# ------------------------------------------------------------------------------------------------------ checkpoints


class Checkpoints:
    """The checkpoints of one run. `save` returns before the files are written; `close` waits for them."""

    def __init__(self, workdir: Path, *, keep: int):
        self.directory = workdir.absolute() / "checkpoints"
        # Orbax calls back in the thread that writes, when the files are complete, before it gives them their name.
        sealing = ocp.AsyncOptions(post_finalization_callback=self._seal_all)
        options = ocp.CheckpointManagerOptions(max_to_keep=keep, async_options=sealing)
        self._manager = ocp.CheckpointManager(self.directory, options=options)
        self._opened = self.directory.stat()

    def save(self, state: State) -> None:
        """Start writing the state as checkpoint state.step.

        Raises:
          OSError: this one, or the one before, cannot be written.
        """
        items = {name: ocp.args.StandardSave(undivided(x)) for name, x in items_of(state).items()}
        with self._writing():
            self._manager.save(int(state.step), args=ocp.args.Composite(**items))

    def restore(self, template: State, say: Say) -> State | None:
        """The newest intact state, placed like the template; None if there is no checkpoint.

        A damaged checkpoint that is newer is moved to WORKDIR/damaged, where nothing touches it, and `say` is told.

        Raises:
          ValueError: there are checkpoints, and all are damaged.
        """
        step, damaged = self._newest_intact()
        for bad, reason in damaged.items():
            target = self._set_aside(bad)
            say(f"checkpoint {bad} is damaged ({reason}); it is now {target}, going on from {step or 'the beginning'}")
        if step is None:
            return None
        wanted = items_of(template)
        # A run that stopped at what is not finite may go on skipping it: it counts from 0.
        fresh = {"skipped"} & wanted.keys() - {item.name for item in (self.directory / str(step)).iterdir()}
        items = self.read(step, {name: item for name, item in wanted.items() if name not in fresh})
        items |= {name: jax.tree.map(_zero, wanted[name]) for name in fresh}
        return with_items(template, jax.device_put(np.int32(step), template.step.sharding), items)

    def restore_item(self, name: str, template: Any, say: Say) -> Any:
        """One item of the newest intact checkpoint; nothing is moved.

        Raises:
          FileNotFoundError: there is no checkpoint.
          ValueError: there are checkpoints, and all are damaged.
        """
        return self.restore_item_and_step(name, template, say)[0]

    def restore_item_and_step(self, name: str, template: Any, say: Say) -> tuple[Any, int]:
        """As restore_item, and which checkpoint that is."""
        step = self.newest(say)
        return self.read(step, {name: template})[name], step

    def newest(self, say: Say) -> int:
        """The newest intact checkpoint; nothing is moved.

        Raises:
          FileNotFoundError: there is no checkpoint.
          ValueError: there are checkpoints, and all are damaged.
        """
        step, damaged = self._newest_intact()
        if step is None:
            raise FileNotFoundError(f"no checkpoint in {self.directory}")
        for bad, reason in damaged.items():
            say(f"checkpoint {bad} is damaged ({reason}); using {step}")
        return step

    def finish(self, state: State) -> None:
        """Wait until the state is written; where that failed for a reason that may pass, calling again writes it."""
        with self._writing():
            self._manager.wait_until_finished()
            if int(state.step) not in _steps(self.directory):
                self.save(state)
                self._manager.wait_until_finished()

    def last_written(self) -> int | None:
        """The step of the newest checkpoint, once it is written; None if there is none."""
        self._manager.wait_until_finished()
        return self._manager.latest_step()

    def close(self) -> None:
        with self._naming():
            self._manager.close()

    def read(self, step: int, templates: dict[str, Any]) -> dict[str, Any]:
        """Items of a checkpoint, placed like their templates.

        Raises:
          ValueError: leaves of other names, shapes or dtypes than the templates'.
        """
        wrong = [line for name, template in templates.items() for line in self.misfits(step, name, template)]
        if wrong:
            raise ValueError(f"checkpoint {step} in {self.directory} is not of this configuration ({listing(wrong)})")
        arguments = {name: ocp.args.StandardRestore(template) for name, template in templates.items()}
        with self._naming():
            return dict(self._manager.restore(step, args=ocp.args.Composite(**arguments)).items())

    def misfits(self, step: int, name: str, template: Any) -> list[str]:
        """What differs between an item of a checkpoint and its template, by leaf: both dtypes and shapes."""
        path = self.directory / str(step) / name
        saved: dict[str, str] = {}
        if path.is_dir():
            with naming(path), ocp.StandardCheckpointer() as reader:
                saved = describe(name, reader.metadata(path).item_metadata.tree)
        return misfits(saved, describe(name, template))

    @contextlib.contextmanager
    def _writing(self) -> Iterator[None]:
        """Errors say where. Orbax needs minutes to see that it cannot write, and makes anew what is gone."""
        with self._naming():
            tempfile.TemporaryFile(dir=self.directory).close()
            yield

    @contextlib.contextmanager
    def _naming(self) -> Iterator[None]:
        """Errors name the directory. Where it is gone, that is the error, whatever of it Orbax missed first."""
        try:
            with naming(self.directory):
                yield
        except (OSError, ValueError) as error:
            os.scandir(self.directory).close()  # raises where there is no directory
            if os.path.samestat(self.directory.stat(), self._opened):
                raise
            raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), str(self.directory)) from error

    def _newest_intact(self) -> tuple[int | None, dict[int, str]]:
        """(step, what is wrong with each newer one); step is None if there are no finished checkpoints.

        Only the first process reads all files.
        """
        step, damaged = processes.from_first(self._look)
        return step, dict(damaged)

    def _look(self) -> tuple[int | None, list[tuple[int, str]]]:
        damaged: dict[int, str] = {}
        for step in sorted(_steps(self.directory), reverse=True):
            reason = damage(self.directory / str(step))
            if reason is None:
                return step, [*damaged.items()]
            damaged[step] = reason
        if any((self.directory / str(step) / SEAL).exists() for step in damaged):
            reasons = "; ".join(f"{step}: {reason}" for step, reason in damaged.items())
            raise ValueError(f"every checkpoint in {self.directory} is damaged ({reasons})")
        return None, [*damaged.items()]  # killed before the first one was sealed

    def _seal_all(self) -> None:
        for directory in self.directory.iterdir():
            if directory.is_dir() and not (directory / SEAL).exists():
                seal(directory)

    def _set_aside(self, step: int) -> Path:
        target = processes.from_first(lambda: str(self._move(step)))
        self._manager.reload()
        return Path(target)

    def _move(self, step: int) -> Path:
        target = self.directory.parent / "damaged" / str(step)
        while target.exists():
            target = target.with_name(target.name + "_")
        target.parent.mkdir(exist_ok=True)
        (self.directory / str(step)).rename(target)
        return target


@contextlib.contextmanager
def checkpoints(workdir: Path, *, keep: int = 1) -> Iterator[Checkpoints]:
    """Checkpoints that are waited for and closed at the end.

    Raises:
      OSError: the disk is full, the directory cannot be written, ...; it names the file or the directory.
    """
    manager = Checkpoints(workdir, keep=keep)
    try:
        yield manager
    finally:
        manager.close()


def restore_ema_and_step(workdir: Path, template: Any, say: Say) -> tuple[Any, int]:
    """(the averaged parameters of the newest intact checkpoint, the number of steps they have seen).

    They are on this process's first device.

    Raises:
      FileNotFoundError: there is no checkpoint.
      ValueError: there are checkpoints, and all are damaged.
    """
    device = jax.sharding.SingleDeviceSharding(jax.local_devices()[0])
    place = lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=device)
    with checkpoints(workdir) as saved:
        return saved.restore_item_and_step("ema_params", jax.tree.map(place, template), say)


def items_of(state: State) -> dict[str, Any]:
    """What of a state is written, by item: one without arrays, as most tasks' states are, is not."""
    items = {name: getattr(state, FIELDS.get(name, name)) for name in ITEMS}
    return {name: item for name, item in items.items() if jax.tree.leaves(item)}


def with_items(state: State, step: jax.Array, items: dict[str, Any]) -> State:
    """The state at this step, with what was read of a checkpoint, by item."""
    return dataclasses.replace(state, step=step, **{FIELDS.get(name, name): item for name, item in items.items()})


def _steps(directory: Path) -> list[int]:
    """The numbers under which checkpoints appear, whatever they are now."""
    names = [path.name for path in directory.iterdir()]
    return [int(name) for name in names if name.isdecimal() and str(int(name)) == name]


def _zero(leaf: jax.ShapeDtypeStruct) -> jax.Array:
    return jax.device_put(np.zeros(leaf.shape, leaf.dtype), leaf.sharding)
