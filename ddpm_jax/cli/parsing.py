"""What the command line is made of: tyro's options, and experiment files."""

import contextlib
import importlib.util
import io
import os
import re
import traceback
from pathlib import Path
from typing import TypeVar

import tyro

from ddpm_jax.config.run import Config

T = TypeVar("T")


def parse(cls: type[T], argv: list[str], command: str, default: T = tyro.MISSING_NONPROP) -> T:
    """tyro's parser; its framed errors as one line."""
    errors = io.StringIO()
    columns = os.environ.get("COLUMNS")
    try:
        if "-h" not in argv and "--help" not in argv:
            os.environ["COLUMNS"] = "1000"  # so that tyro does not wrap
        with contextlib.redirect_stderr(errors):
            return tyro.cli(cls, prog=f"ddpm-jax {command}", args=argv, default=default)
    except SystemExit as stop:
        if stop.code == 0:
            raise
        lines = [line.strip("│╭╮╰╯─ ") for line in re.sub(r"\x1b\[[0-9;]*m", "", errors.getvalue()).splitlines()]
        raise ValueError(" ".join(line for line in lines[1:] if line.strip("-") and "helptext" not in line)) from None
    finally:
        os.environ.pop("COLUMNS", None) if columns is None else os.environ.update(COLUMNS=columns)


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
