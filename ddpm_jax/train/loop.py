"""The only training loop: batches in; states, checkpoints, pictures and numbers out."""

import contextlib
import time
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cached_property, partial
from pathlib import Path
from typing import NamedTuple, Protocol

import jax
import numpy as np

from ddpm_jax import data, images, keys
from ddpm_jax.config import defaults
from ddpm_jax.config.run import Config, ParallelConfig
from ddpm_jax.host import processes
from ddpm_jax.host.picture_files import save_grid
from ddpm_jax.host.storage import Say, retrying
from ddpm_jax.runs import checkpoint, environment, occupying, posthoc
from ddpm_jax.train import agreement, begin, ema, guards, mesh, state, step, task, tasks
from ddpm_jax.train.due import Clock, due
from ddpm_jax.train.metrics import MetricsLog, plot_loss


class Report(Protocol):
    """Who watches: a progress bar, a test."""

    def start(self, first_step: int, num_steps: int) -> None: ...
    def step(self, step: int) -> None: ...
    def metrics(self, step: int, values: dict[str, float]) -> None: ...
    def say(self, message: str) -> None: ...


class Spread(NamedTuple):
    """How the devices share a step's work."""

    make_train_step: Callable[..., step.TrainStep]
    shard: Callable[[step.Read, int], step.Batch]
    """shard(read, B): a batch as the step takes it, of which a process reads its own rows."""
    place: Callable[[state.TrainState], state.TrainState]
    """The shapes of a state, with the shardings of its checkpoints."""
    whole: Callable[[state.TrainState], state.TrainState]
    """A state that the step returned, placed so."""


@dataclass(frozen=True)
class Run:
    """Everything a configuration names, built and checked."""

    config: Config
    source: data.Source
    shape: tuple[int, int, int]
    """(H, W, C) of what is trained on: images, or latents of them."""
    task: task.Task
    devices: list[jax.Device]
    spread: Spread
    train_step: step.TrainStep
    key_init: jax.Array
    key_sample: jax.Array

    def batch(self, k: int) -> step.Batch:
        """The batch of step k, as train_step takes it: what the task reads of the records."""
        train = self.config.train
        options = {"flip": self.config.data.flip, "features": self.task.reads}
        read = lambda rows: data.batch(self.source, train.seed, k, train.batch_size, rows=rows, **options)
        return self.spread.shard(read, train.batch_size)

    def batches(self, steps: range) -> tuple[int, step.Batch | step.Several]:
        """The number of steps done after these, and what train_step takes for them."""
        found = [self.batch(k) for k in steps]
        return steps.stop, found[0] if self.config.train.steps_per_call == 1 else step.Several(tuple(found))

    def examples(self, k: int) -> np.ndarray:
        """The indices in the data of the batch that step k, counted from 1, is computed from."""
        train = self.config.train
        return data.batch_indices(train.seed, k - 1, train.batch_size, len(self.source))

    @cached_property
    def info(self) -> checkpoint.RunInfo:
        """What its directory says of it."""
        read = data.fingerprint(self.source, self.task.reads)
        classes = self.source.classes if "label" in self.task.reads else None
        networks = self.task.networks if isinstance(self.task, task.Given) else {}
        return checkpoint.RunInfo(self.config, self.shape, len(self.source), read, classes, networks)

    def init(self) -> state.TrainState:
        """The state before step 0."""
        return task.init(self.task, self.key_init, averages_of(self.config), self.config.train.non_finite)

    def start(self, params: state.Params) -> state.TrainState:
        """The state before step 0 with other parameters."""
        return task.start(self.task, params, averages_of(self.config), self.config.train.non_finite)

    def template(self) -> state.TrainState:
        """The shapes, dtypes and shardings of its states."""
        return self.spread.place(jax.eval_shape(self.init))


def make_spread(config: ParallelConfig, devices: list[jax.Device]) -> Spread:
    """One pmap over the devices, or the mesh that the configuration names.

    Raises:
      ValueError: a mesh of more or fewer devices.
    """
    if config.mesh:
        options = {"mesh": mesh.make_mesh(config.mesh, devices)}
        return Spread(
            partial(mesh.make_train_step, **options),
            partial(mesh.shard, **options),
            partial(mesh.sharded, **options),
            lambda state: state,
        )
    return Spread(
        partial(step.make_train_step, devices=devices),
        partial(step.shard, devices=devices),
        partial(step.replicated, devices=devices),
        partial(step.of_all_processes, devices=devices),
    )


def averages_of(config: Config) -> ema.Averages:
    """Those of a state's stack."""
    return ema.Averages(config.optimizer.ema_decays, config.optimizer.ema_sigmas)


def prepare(
    config: Config,
    devices: list[jax.Device] | None = None,
    source: data.Source | None = None,
    say: Say = warnings.warn,
    make_task: tasks.MakeTask = tasks.make,
) -> Run:
    """Build what the configuration names, for the devices of all processes.

    Args:
      config: of the run.
      devices: those of the train step; those of all processes by default.
      source: the images, instead of those that the configuration names.
      say: is told what of the data was not taken as it is, and what of the configuration may not be meant.
      make_task: what is trained.

    Raises:
      ValueError: a configuration that does not fit its data or its devices; JAX set so that a run would be another.
    """
    environment.check()
    devices = devices or processes.all_devices()
    step.check_batch_size(config.train.batch_size, len(devices), config.train.accumulate)  # before anything slow
    check_steps_per_call(config.train.steps_per_call, devices)
    spread = make_spread(config.parallel, devices)
    of_data = make_task(config, say)
    if source is None:
        source = processes.first_before_others(lambda: data.load(config.data.name, **config.data.arguments(), say=say))
    shape = tasks.shape_of(config, source, say)
    config = defaults.resolved(config, shape)
    key_init, key_train, key_sample = jax.random.split(keys.make(config.train.seed), 3)
    made = of_data(config, source, key_train)
    if lacking := [name for name in made.reads if name not in source.spec]:
        raise ValueError(f"{source.name} has no {lacking[0]}s, which are needed here (it has {', '.join(source.spec)})")
    train_step = spread.make_train_step(
        made,
        ema_decay=config.optimizer.ema_decay,
        accumulate=config.train.accumulate,
        averages=averages_of(config),
    )
    return Run(config, source, shape, made, devices, spread, train_step, key_init, key_sample)


def check_steps_per_call(steps_per_call: int, devices: list[jax.Device]) -> None:
    """Whether these devices should scan steps.

    Raises:
      ValueError: several steps in a program for CPUs.
    """
    if steps_per_call > 1 and devices[0].platform == "cpu":
        raise ValueError(
            f"train.steps_per_call must be 1 on CPUs, got {steps_per_call}: inside a loop XLA computes the weight "
            "gradient of a convolution about 100 times slower there"
        )


def calls(first: int, last: int, steps_per_call: int) -> Iterator[range]:
    """[first, last) cut at the multiples of steps_per_call: the steps of every call of train_step."""
    while first < last:
        stop = min((first // steps_per_call + 1) * steps_per_call, last)
        yield range(first, stop)
        first = stop


def fit(config: Config, workdir: Path, report: Report, make_task: tasks.MakeTask = tasks.make) -> int:
    """Train to config.train.num_steps from the newest checkpoint in workdir, or from the beginning.

    The state after step k is a function of (config, k): to stop anywhere and call this again changes nothing. SIGTERM
    or Ctrl-C saves the state of the step that is running, and returns.

    Returns:
      The number of steps the state in workdir has seen.

    Raises:
      ValueError: a configuration that does not fit its data, its devices, the directory or the run it begins from.
      OSError: a file that cannot be read or written; where the reason may pass, after some more attempts.
      FloatingPointError: a loss, a gradient or the state is not finite; nothing of that is saved.
    """
    again = retrying(report.say)
    # What processes do together, one of them cannot do again by itself.
    together = again if jax.process_count() == 1 else lambda function: function
    say = report.say if processes.is_first() else lambda message: None
    processes.agree(agreement.told(config, workdir))
    run = together(prepare)(config, say=say, make_task=make_task)
    with (
        entered(run, workdir, report) as still_ours,
        checkpoint.checkpoints(workdir, keep=config.train.keep_checkpoints) as saved,
        processes.preemption() as asked_to_stop,
    ):
        save = together(saved.save)
        train_state, begun_from_step = first_state(run, saved, save, report)
        done, last = int(train_state.step), config.train.num_steps
        log = MetricsLog(workdir, done) if processes.is_first() else None
        if log is not None:
            environment.record(workdir, done, begun_from_step)
            if done and (changes := environment.changes(workdir)):
                report.say(f"going on with {'; '.join(changes)}: not in the bits of a run that was never stopped")
        after = _After(run, workdir, make_watch(run, saved, report), log, save, report, still_ours)
        report.start(done, last)
        previous = None
        for k, batch in data.prefetch(again(run.batches), calls(done, last, config.train.steps_per_call)):
            train_state, metrics = run.train_step(train_state, batch)
            jax.block_until_ready(previous)  # one call is queued behind the one that runs, never more
            previous = metrics
            report.step(k)
            stop = any([asked_to_stop(step) for step in range(done + 1, k + 1)]) and k < last
            after(k, train_state, metrics, stop)
            done = k
            if stop:
                break
        if log is not None:
            log.close()
        together(saved.finish)(run.spread.whole(train_state))
        if done >= last:
            _save_picture(workdir / "samples.png", run, train_state)
            if log is not None:
                plot_loss(workdir / "metrics.jsonl", workdir / "loss.png")
            _finish(workdir, run, train_state)
        return done


class _After:
    """What is done after the steps: numbers are looked at and logged, averages and states saved, pictures drawn."""

    def __init__(
        self,
        run: Run,
        workdir: Path,
        watch: guards.Watch,
        log: MetricsLog | None,
        save: Callable[[state.TrainState], None],
        report: Report,
        still_ours: Callable[[], None],
    ):
        self._run, self._workdir, self._watch, self._log = run, workdir, watch, log
        self._save, self._report, self._still_ours = save, report, still_ours
        self._clock = Clock(run.config.train.checkpoint_minutes)

    def __call__(self, k: int, train_state: state.TrainState, metrics: guards.Metrics, stop: bool) -> None:
        """After step k, which is the last for now if the run is asked to stop."""
        run, train = self._run, self._run.config.train
        self._still_ours()
        self._watch.add(k, metrics)
        now = due(run.config, k)
        save = now.save or stop or (now.log and self._clock.is_due())
        values = self._watch.look() if now.log or now.average or save else {}
        if now.log and self._log is not None:
            self._report.metrics(k, self._log.write(k, values, train.batch_size))
        if now.average or save:
            self._watch.check(k, train_state)
        if now.average:  # before the checkpoint: a run that is resumed from that has it
            posthoc.save(self._workdir, run.spread.whole(train_state), averages_of(run.config))
        if save:
            self._save(run.spread.whole(train_state))
            self._clock.restart()
        if stop:
            self._report.say(f"asked to stop: step {k} is the last for now, and its state is being saved")
            return
        if now.draw:
            _save_picture(self._workdir / "samples" / f"step_{k:07d}.png", run, train_state)
        if now.evaluate and isinstance(run.task, task.Evaluates):
            self._evaluate(k, run.task, train_state)

    def _evaluate(self, k: int, measures: task.Evaluates, train_state: state.TrainState) -> None:
        begin = time.perf_counter()
        found = measures.evaluate(mesh.on_one_device(train_state.ema_params))
        if self._log is not None and found:
            self._log.evaluated(k, found, time.perf_counter() - begin)
            self._report.say(f"step {k}: {', '.join(f'{name} {value:.4g}' for name, value in found.items())}")


@contextlib.contextmanager
def entered(run: Run, workdir: Path, report: Report) -> Iterator[Callable[[], None]]:
    """Make the run's directory, and say what is trained there; or check that it is this run's. Nobody else trains there
    until the block ends; what it is given raises OSError in the first process where that did not hold.

    Before that, whether all processes have the same data and versions, and whether what it begins from, which has its
    network, is there.

    Raises:
      ValueError, OSError: as processes.agree, begin.check and occupying.occupied.
    """
    info = retrying(report.say)(lambda: run.info)()
    processes.agree(environment.decisive(info))
    begins = not (workdir / "config.json").exists()
    if begins and run.config.train.begin_from is not None:
        begin.check(run.config.train, run.template(), info.networks, report.say)
    with contextlib.ExitStack() as stack:
        mine = []  # in the first process

        def occupy() -> None:
            before = checkpoint.find_run(workdir)
            mine.append(stack.enter_context(occupying.occupied(workdir, info, report.say)))
            if before is not None and not before.fingerprint:
                report.say(f"{workdir} does not say which data it began with: they are taken to be these from now on")

        processes.from_first(occupy)
        if processes.is_first() and isinstance(run.task, task.Given):
            run.task.keep(workdir)
        if begins and run.config.train.begin_from is None and processes.is_first():
            params = jax.eval_shape(run.task.init, run.key_init)
            report.say(run.task.described(sum(leaf.size for leaf in jax.tree.leaves(params))))
            if "image" in run.source.spec and (planes := images.shown_as(run.source.image_shape[-1])) is not None:
                report.say(planes)
            if set(run.source.spec) - set(run.task.reads):
                report.say(f"{data.describe(run.source)}; this run uses the {'s and '.join(run.task.reads)}s only")
        yield mine[0].check if mine else lambda: None


def first_state(
    run: Run, saved: checkpoint.Checkpoints, save: Callable[[state.TrainState], None], report: Report
) -> tuple[state.TrainState, int | None]:
    """The newest state of a run's checkpoints; or the one of another run that it begins with, and that one's step; or
    the one before step 0."""
    template = run.template()
    restored = saved.restore(template, report.say)
    if restored is not None:
        return restored, None
    if run.config.train.begin_from is not None:
        begun, step_there = begin.first_state(run.config.train, template, run.start, report.say)
        save(begun)  # the other run may go on, or away
        return begun, step_there
    return jax.jit(run.init, out_shardings=jax.tree.map(lambda leaf: leaf.sharding, template))(), None


def make_watch(run: Run, saved: checkpoint.Checkpoints, report: Report) -> guards.Watch:
    """What looks at the numbers of a run."""
    return guards.Watch(
        max_skipped=run.config.train.max_skipped,
        examples=run.examples,
        last_checkpoint=saved.last_written,
        say=report.say,
    )


def _save_picture(path: Path, run: Run, train_state: state.TrainState) -> None:
    params = mesh.on_one_device(train_state.ema_params)  # of every process; the others need not draw the same pictures
    if processes.is_first() and (pictures := run.task.pictures(params, run.key_sample)) is not None:
        save_grid(path, pictures)


def _finish(workdir: Path, run: Run, train_state: state.TrainState) -> None:
    if isinstance(run.task, task.Finishes):
        params = mesh.on_one_device(train_state.ema_params)
        if processes.is_first():
            run.task.finish(params, workdir)
