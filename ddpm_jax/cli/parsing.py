"""What the command line is made of: tyro's options, experiment files, and which network the options are of."""

import contextlib
import dataclasses
import importlib.util
import io
import itertools
import os
import re
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

import tyro

from ddpm_jax.config.networks import NETWORKS
from ddpm_jax.config.run import Config
from ddpm_jax.config.tasks import TASKS
from ddpm_jax.names import choose

T = TypeVar("T")


def parse(cls: type[T], argv: list[str], command: str, default: T = tyro.MISSING_NONPROP) -> T:
    """tyro's parser; its framed errors as one line."""
    errors = io.StringIO()
    columns = os.environ.get("COLUMNS")
    try:
        if "-h" not in argv and "--help" not in argv:
            os.environ["COLUMNS"] = "1000"  # so that tyro does not wrap
        with contextlib.redirect_stderr(errors):
            # Of several kinds of network a configuration has the options of its own, instead of a subcommand for each.
            alone = (tyro.conf.AvoidSubcommands,)
            return tyro.cli(cls, prog=f"ddpm-jax {command}", args=argv, default=default, config=alone)
    except SystemExit as stop:
        if stop.code == 0:
            raise
        lines = [line.strip("│╭╮╰╯─ ") for line in re.sub(r"\x1b\[[0-9;]*m", "", errors.getvalue()).splitlines()]
        raise ValueError(" ".join(line for line in lines[1:] if line.strip("-") and "helptext" not in line)) from None
    finally:
        os.environ.pop("COLUMNS", None) if columns is None else os.environ.update(COLUMNS=columns)


def parse_run(arguments: Callable[..., T], argv: list[str], command: str) -> tuple[T, Path | None]:
    """The options of a command that takes a configuration, `[EXPERIMENT.py] [--model NAME] --model.depth 4 ...`.

    Args:
      arguments: the dataclass of its options, with `config` and `model`.
      argv: the words after the command.
      command: its name.

    Returns:
      (arguments, the experiment file or None).

    Raises:
      FileNotFoundError, ValueError: as load_experiment, with_network and parse.
    """
    path = Path(argv[0]) if argv and not argv[0].startswith("-") else None
    argv = argv if path is None else argv[1:]
    argv = [CONDITION_NAMES + word.removeprefix(CONDITION) if is_condition(word) else word for word in argv]
    config = with_network(Config() if path is None else load_experiment(path), argv)
    default = arguments(config=config, model=config.model.name)
    return parse(type(default), argv, command, default), path


MODEL, TASK = "--model", "--task"
CONDITION, CONDITION_NAMES = "--condition", "--condition.names"
"""What is typed, and which option that is."""


def is_condition(word: str) -> bool:
    """Whether a word of the command line is --condition or --condition=NAME."""
    return word == CONDITION or word.startswith(f"{CONDITION}=")


def with_network(config: Config, argv: list[str]) -> Config:
    """The configuration whose options a command line gives: with the task and the network that `--task NAME` and
    `--model NAME` name, the network as it is by default where it is another than the configuration's own.

    Raises:
      ValueError: an unknown task or network, or an option of another one; says which it has.
    """
    task = _given(TASK, argv) or config.task
    reads = choose(TASK, task, TASKS)
    model = _given(MODEL, argv) or (config.model.name if task == config.task else reads.networks[0])
    network = config.model if model == config.model.name else choose(MODEL, model, NETWORKS)()
    if model not in reads.networks:
        raise ValueError(f"{MODEL} {model} is no network of {TASK} {task} (known: {', '.join(reads.networks)})")
    for word in argv:
        option = word.partition("=")[0]
        if option.startswith("--") and reads.leaves(option.removeprefix("--").replace("-", "_")):
            typed = CONDITION if option == CONDITION_NAMES else option
            raise ValueError(f"{typed} is no setting of {TASK} {task}")
    config = dataclasses.replace(config, task=task, model=network)
    names = [item.name for item in dataclasses.fields(config.model)]
    for word in argv:
        name = word.partition("=")[0].removeprefix(f"{MODEL}.")
        if word.startswith(f"{MODEL}.") and name.replace("-", "_").removeprefix("no_") not in names:
            known = ", ".join(f"{MODEL}.{name}".replace("_", "-") for name in names)
            raise ValueError(f"{MODEL}.{name} is no setting of {MODEL} {config.model.name} (known: {known})")
    return config


def _given(option: str, argv: list[str]) -> str | None:
    """The last value of an option, of `--option VALUE` and `--option=VALUE`."""
    given = [after for word, after in itertools.pairwise(argv) if word == option]
    given += [word.removeprefix(f"{option}=") for word in argv if word.startswith(f"{option}=")]
    return given[-1] if given else None


# What a file of Python can end in by mistake.
FAULTS = (ArithmeticError, AssertionError, AttributeError, ImportError, LookupError, MemoryError, NameError, OSError,
          RuntimeError, SyntaxError, TypeError, ValueError)  # fmt: skip


def load_experiment(path: Path) -> Config:
    """The `config` of a Python file.

    Raises:
      FileNotFoundError: no such file.
      ValueError: it is not Python, it fails, or it does not define a Config called config.
    """
    if not path.is_file() or path.suffix != ".py":
        raise FileNotFoundError(f"no experiment file {path} (a .py file that defines config); images are --data.name")
    spec = importlib.util.spec_from_file_location(path.stem, path)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    try:
        spec.loader.exec_module(module)
    except FAULTS as error:
        lines = [f"line {frame.lineno}: " for frame in traceback.extract_tb(error.__traceback__)
                 if frame.filename == str(path)]  # fmt: skip
        raise ValueError(f"{path}: {''.join(lines[-1:])}{type(error).__name__}: {error}") from error
    config = getattr(module, "config", None)
    if not isinstance(config, Config):
        raise ValueError(f"{path} must define config, a ddpm_jax.config.run.Config, got {type(config).__name__}")
    return config
