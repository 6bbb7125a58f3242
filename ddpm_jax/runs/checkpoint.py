"""A run's directory: the configuration it is the result of, the states along the way, how it went.

    config.json         the resolved configuration; shape, number and fingerprint of the data
    environment.jsonl   written by environment: one line per start
    checkpoints/STEP/   Orbax: params, ema_params, opt_state, and what else a run has: timestep_state, ema_stack,
                        skipped; seal.json: size and CRC-32 of their files
    averages/STEP/      written by posthoc
    first_stage.safetensors   of a run on latents: the autoencoder
    metrics.jsonl, samples/, loss.png   written by train.loop
    lock.json           who trains there, while somebody does

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
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, TypeVar

import jax
import numpy as np
import orbax.checkpoint as ocp

from ddpm_jax.config.defaults import resolved
from ddpm_jax.config.fields import at_least, check_image_shape
from ddpm_jax.config.run import Config, differences, from_dict, to_dict
from ddpm_jax.data import fingerprints
from ddpm_jax.host import lock, processes
from ddpm_jax.host.storage import Say, make_directory, naming, write_atomically
from ddpm_jax.runs.leaves import describe, listing, misfits, undivided
from ddpm_jax.runs.sealing import ITEMS, SEAL, is_whole, look, seal, steps_of

T = TypeVar("T")
State = Any  # a dataclass with the step, int32, and what sealing.ITEMS names, under the names of FIELDS
FIELDS = {"timestep_state": "task_state"}  # written under the name of what the first task kept there

# ---------------------------------------------------------------------------------------------------- configuration


@dataclasses.dataclass(frozen=True)
class RunInfo:
    """What config.json says: the configuration, resolved, and what of its data a network and a batch depend on."""

    config: Config
    image_shape: tuple[int, int, int]
    num_examples: int
    fingerprint: dict[str, str] = dataclasses.field(default_factory=dict)  # of what it reads; none of before there were
    classes: tuple[str, ...] | None = None  # the names of the labels, where it reads them
    networks: dict[str, str] = dataclasses.field(default_factory=dict)  # that training is given: their checksums

    def __post_init__(self):
        check_image_shape("image_shape", self.image_shape)
        at_least("num_examples", self.num_examples)
        object.__setattr__(self, "config", resolved(self.config, self.image_shape))


def open_run(workdir: Path, info: RunInfo) -> None:
    """Make the run's directory, or check that it is this run's.

    Raises:
      ValueError: as check_run.
    """
    check_run(workdir, info)
    make_directory(workdir)
    write_atomically(workdir / "config.json", json.dumps(to_dict(info), indent=2) + "\n")


def check_run(workdir: Path, info: RunInfo) -> None:
    """Whether a directory is this run's, or can become it.

    Raises:
      ValueError: it belongs to another configuration or other data, or holds files but no run.
    """
    if (workdir / "config.json").exists():
        before = load_run(workdir)
        changed = differences(before.config, info.config)
        of_data = [
            f"{name} of the data: {getattr(before, name)}, now {getattr(info, name)}"
            for name in ("image_shape", "num_examples", "classes")
            if getattr(before, name) != getattr(info, name)
        ]
        of_data += fingerprints.changes(before.fingerprint or info.fingerprint, info.fingerprint)
        of_data += [
            f"weights of the {name}: {before.networks.get(name, 'none')}, now {info.networks.get(name, 'none')}"
            for name in {**before.networks, **info.networks}
            if before.networks.get(name) != info.networks.get(name)
        ]
        if changed or of_data:
            what, back = ("another configuration", "") if changed else ("other data", "bring those back, ")
            raise ValueError(
                f"{workdir} belongs to {what} ({'; '.join(changed + of_data)}); {back}choose another --workdir"
                + _how_to_fork(workdir, info.config.train.num_steps, changed + of_data)
            )
    elif workdir.exists() and any(not _is_ours(file.name) for file in workdir.iterdir()):
        raise ValueError(f"{workdir} is not empty and holds no run (no config.json); choose another --workdir")


def _is_ours(name: str) -> bool:
    """Whether a run that was killed before it had a config.json left this."""
    return name == lock.NAME or name.endswith(".partial")


FIRST_STAGE = "first stage"  # among RunInfo.networks, the autoencoder in whose latents a run is
# What a checkpoint of another run must have in common with this one, by the beginnings of `differences`.
SAME_NETWORK = ("model", "condition", "objective.prediction", "objective.variance", "image_shape", "classes of",
                "train.begin", f"weights of the {FIRST_STAGE}")  # fmt: skip


def _how_to_fork(workdir: Path, num_steps: int, changed: list[str]) -> str:
    """The options that go on from this run's newest checkpoint with other settings, where these have its network."""
    steps = steps_of(workdir / "checkpoints") if (workdir / "checkpoints").is_dir() else []
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


class Saved:
    """The checkpoints of a run as they are read: nothing is written, made or moved.

    A training may go on meanwhile, and delete what is being read: what is read then is the newest.

    Raises:
      FileNotFoundError: there is no checkpoint.
      NotADirectoryError: something else is where they are kept.
    """

    def __init__(self, workdir: Path):
        self.directory = workdir.absolute() / "checkpoints"
        if not self.directory.exists():
            raise FileNotFoundError(f"no checkpoint in {self.directory}")
        os.scandir(self.directory).close()  # raises where it is a file
        self._opened = self.directory.stat()

    def restore_item(self, name: str, template: Any, say: Say) -> Any:
        """One item of the newest intact checkpoint.

        Raises:
          FileNotFoundError: there is no checkpoint.
          ValueError: there are checkpoints, and all are damaged.
        """
        return self.restore_item_and_step(name, template, say)[0]

    def restore_item_and_step(self, name: str, template: Any, say: Say) -> tuple[Any, int]:
        """As restore_item, and which checkpoint that is."""
        return self.newest(lambda step: self.read(step, {name: template})[name], say)

    def newest(self, read: Callable[[int], T], say: Say) -> tuple[T, int]:
        """(what `read` gives of the newest intact checkpoint, its step).

        `read` is called again, with a newer one, where the training deletes the first meanwhile: but not of several
        processes, which would have to agree.

        Raises:
          FileNotFoundError: there is no checkpoint.
          ValueError: there are checkpoints, and all are damaged.
        """
        while True:
            step, damaged = self._newest_intact()
            if step is None:
                raise FileNotFoundError(f"no checkpoint in {self.directory}")
            for bad, reason in damaged.items():
                say(f"checkpoint {bad} is damaged ({reason}); using {step}")
            went = f"checkpoint {step} in {self.directory} went away while it was read"
            try:
                found = read(step)
            except Exception as error:  # whatever Orbax raises where files are missing
                if is_whole(self.directory / str(step)):
                    raise
                if jax.process_count() > 1:
                    raise FileNotFoundError(went) from error
            else:
                # Arrays whose files are missing may be read as zeros.
                if is_whole(self.directory / str(step)):
                    return found, step
                if jax.process_count() > 1:
                    raise FileNotFoundError(went)
            say(f"{went}: looking again")

    def read(self, step: int, templates: dict[str, Any]) -> dict[str, Any]:
        """Items of a checkpoint, placed like their templates.

        Raises:
          ValueError: leaves of other names, shapes or dtypes than the templates'.
        """
        wrong = [line for name, template in templates.items() for line in self.misfits(step, name, template)]
        if wrong:
            raise ValueError(f"checkpoint {step} in {self.directory} is not of this configuration ({listing(wrong)})")
        with self._naming(), ocp.StandardCheckpointer() as reader:
            path = self.directory / str(step)
            return {name: reader.restore(path / name, template) for name, template in templates.items()}

    def misfits(self, step: int, name: str, template: Any) -> list[str]:
        """What differs between an item of a checkpoint and its template, by leaf: both dtypes and shapes."""
        path = self.directory / str(step) / name
        saved: dict[str, str] = {}
        if path.is_dir():
            with naming(path), ocp.StandardCheckpointer() as reader:
                saved = describe(name, reader.metadata(path).item_metadata.tree)
        return misfits(saved, describe(name, template))

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
        step, damaged = processes.from_first(lambda: look(self.directory))
        return step, dict(damaged)


class Checkpoints(Saved):
    """The checkpoints of a run that trains. `save` returns before the files are written; `close` waits for them."""

    def __init__(self, workdir: Path, *, keep: int):
        directory = workdir.absolute() / "checkpoints"
        # Orbax calls back in the thread that writes, when the files are complete, before it gives them their name.
        sealing = ocp.AsyncOptions(post_finalization_callback=self._seal_all)
        # What a kill or a full disk left of a checkpoint goes when the run goes on.
        options = ocp.CheckpointManagerOptions(max_to_keep=keep, async_options=sealing, cleanup_tmp_directories=True)
        self._manager = ocp.CheckpointManager(directory, options=options)
        super().__init__(workdir)

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

    def finish(self, state: State) -> None:
        """Wait until the state is written; where that failed for a reason that may pass, calling again writes it."""
        with self._writing():
            self._manager.wait_until_finished()
            if int(state.step) not in steps_of(self.directory):
                self.save(state)
                self._manager.wait_until_finished()

    def last_written(self) -> int | None:
        """The step of the newest checkpoint, once it is written; None if there is none."""
        self._manager.wait_until_finished()
        return self._manager.latest_step()

    def close(self) -> None:
        with self._naming():
            self._manager.close()

    @contextlib.contextmanager
    def _writing(self) -> Iterator[None]:
        """Errors say where. Orbax needs minutes to see that it cannot write, and makes anew what is gone."""
        with self._naming():
            tempfile.TemporaryFile(dir=self.directory).close()
            yield

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
    return Saved(workdir).restore_item_and_step("ema_params", on_first_device(template), say)


def on_first_device(template: Any) -> Any:
    """The same shapes and dtypes on this process's first device."""
    device = jax.sharding.SingleDeviceSharding(jax.local_devices()[0])
    return jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=device), template)


def items_of(state: State) -> dict[str, Any]:
    """What of a state is written, by item: one without arrays, as most tasks' states are, is not."""
    items = {name: getattr(state, FIELDS.get(name, name)) for name in ITEMS}
    return {name: item for name, item in items.items() if jax.tree.leaves(item)}


def with_items(state: State, step: jax.Array, items: dict[str, Any]) -> State:
    """The state at this step, with what was read of a checkpoint, by item."""
    return dataclasses.replace(state, step=step, **{FIELDS.get(name, name): item for name, item in items.items()})


def _zero(leaf: jax.ShapeDtypeStruct) -> jax.Array:
    return jax.device_put(np.zeros(leaf.shape, leaf.dtype), leaf.sharding)
