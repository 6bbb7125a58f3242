"""The command `bench`. argparse, not tyro: it must run where only JAX, Flax, optax, Orbax, NumPy and PyTorch are."""

import argparse
import importlib
import itertools
import json
import os
import shlex
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import jax

from ddpm_jax.host.storage import write_atomically
from ddpm_jax.tools.bench import blocks, files, machine
from ddpm_jax.tools.bench.blocks import Block
from ddpm_jax.tools.bench.networks import NETWORKS
from ddpm_jax.tools.bench.settings import Say, Settings


class Part(NamedTuple):
    """A measurement: what it is, the module whose `measure(settings, say) -> blocks` takes it.

    repeated: it takes the batch sizes and dtypes one by one.
    """

    text: str
    module: str
    repeated: bool = False


PARTS = {
    "network": Part(
        "forward and gradient beside PyTorch in all its forms and a matrix product",
        "ddpm_jax.tools.bench.network",
        repeated=True,
    ),
    "sampling": Part(
        "our scan beside a loop in Python, PyTorch in all its forms, diffusers' pipeline",
        "ddpm_jax.tools.bench.sampling",
        repeated=True,
    ),
    "loop": Part("training beside its steps", "ddpm_jax.tools.bench.loop"),
    "solvers": Part(
        "error and quality against network calls on a trained network; needs --workdir", "ddpm_jax.tools.bench.solvers"
    ),
}
PROGRAM = "ddpm-jax bench"
Parts = Mapping[str, Part]


def parser(parts: Parts, program: str) -> argparse.ArgumentParser:
    said = "\n".join(f"  {name:13} {part.text}" for name, part in parts.items())
    found = _Parser(
        prog=program,
        description="Measure this package beside PyTorch and beside itself, one run of each contestant a round. Writes "
        "a JSON file for each measurement and bench.html, the page of all that are in the folder.",
        epilog=f"parts, all by default:\n{said}\n  page          only make the page again, from the files",
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    default = Settings()
    found.add_argument("parts", nargs="*", metavar="PART", help="see below")
    found.add_argument("--model", choices=NETWORKS, default=default.network, help="(default: %(default)s)")
    found.add_argument("--batch", type=_positive, nargs="+", default=[1, 16, 64], help="(default: 1 16 64)")
    found.add_argument("--dtype", choices=("float32", "bfloat16"), nargs="+", default=None,
                       help="of convolutions and matrix products (default: float32; on a GPU both)")  # fmt: skip
    found.add_argument("--num-steps", type=_positive, default=default.num_steps, help="of the samplers (default: 5)")
    found.add_argument("--rounds", type=_positive, default=default.rounds, help="(default: %(default)s)")
    found.add_argument("--seconds", type=float, help="begin no more rounds of a comparison after so long; 3 at least")
    found.add_argument("--minutes", type=float, help="begin no more measurements after so long")
    found.add_argument("--only", nargs="+", default=[], metavar="TEXT",
                       help="only contestants with one of these in their names, such as: ddpm_jax eager")  # fmt: skip
    found.add_argument("--workdir", metavar="SOURCE", help="what solvers are compared on: a run, or a folder or "
                       "checkpoint of another project")  # fmt: skip
    found.add_argument("--data.name", dest="name", help="the images, where that is no run; as in train")
    found.add_argument("--data.image-size", dest="image_size", type=_positive, metavar="N", help="as in train")
    found.add_argument("--out", type=Path, default=Path("bench"), metavar="FOLDER", help="(default: %(default)s)")
    return found


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> Any:
        raise ValueError(f"bench: {message}")


def _positive(text: str) -> int:
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"must be a whole number of at least 1, got {text!r}")
    return int(text)


def run(argv: Sequence[str], say: Say, parts: Parts = PARTS, program: str = PROGRAM) -> None:
    """Measure what the arguments ask for, of these parts, and make the page.

    Raises:
      ValueError: arguments that do not exist or do not fit.
      OSError: files that cannot be written or are not this command's.
    """
    begin = time.monotonic()
    arguments = parser(parts, program).parse_args(argv)
    # So that PyTorch has memory too; read when JAX first asks for its devices.
    os.environ.setdefault("XLA_PYTHON_CLIENT_PREALLOCATE", "false")
    folder = arguments.out
    files.page_of(folder)  # before anything is measured
    for part, settings in [] if arguments.parts == ["page"] else planned(arguments, parts):
        path = folder / f"{part}_{label(part, settings)}.json"
        if path.exists():
            say(f"{path} exists: not measured again; delete it, or choose another --out")
        elif arguments.minutes is not None and time.monotonic() - begin > 60 * arguments.minutes:
            say(f"not measured: {part} {label(part, settings)}: {arguments.minutes:g} minutes have passed")
        else:
            command = f"{program} {shlex.join(argv)}"
            write(path, part, settings, command, measured(parts[part], settings, say))
            say(f"written: {path}")
    say(f"page: {files.write_page(folder)}")


def planned(arguments: argparse.Namespace, known: Parts) -> list[tuple[str, Settings]]:
    """Every measurement, in order.

    Raises:
      ValueError: unknown parts; solvers without a run.
    """
    parts = arguments.parts or [part for part in known if part != "solvers" or arguments.workdir is not None]
    for part in parts:
        if part not in known:
            raise ValueError(f"bench has no part {part!r}; it has {', '.join(known)} and, alone, page")
    told = {"--data.name": arguments.name, "--data.image-size": arguments.image_size}
    if unread := [option for option, value in told.items() if value is not None and "solvers" not in parts]:
        raise ValueError(f"bench {unread[0]} is for the part solvers")
    if "solvers" in parts and arguments.workdir is None:
        raise ValueError("bench solvers needs --workdir SOURCE, the run or folder that they are compared on")
    if arguments.dtype is None:
        arguments.dtype = ["float32", "bfloat16"] if jax.devices()[0].platform == "gpu" else ["float32"]
    settings = Settings(
        network=arguments.model,
        batch=arguments.batch[0],
        dtype=arguments.dtype[0],
        num_steps=arguments.num_steps,
        rounds=arguments.rounds,
        seconds=arguments.seconds,
        only=tuple(arguments.only),
        workdir=arguments.workdir,
        data={"name": arguments.name, "image_size": arguments.image_size},
    )
    found = []
    for part in parts:
        if known[part].repeated:
            options = itertools.product(arguments.dtype, arguments.batch)
            found += [(part, replace(settings, dtype=dtype, batch=batch)) for dtype, batch in options]
        else:
            found.append((part, settings))
    return found


def label(part: str, settings: Settings) -> str:
    """What tells a measurement from others of the same part."""
    if part == "solvers":
        assert settings.workdir is not None
        return Path(settings.workdir).absolute().name
    return settings.label


def measured(part: Part, settings: Settings, say: Say) -> list[Block]:
    """What its module finds."""
    measure: Callable[[Settings, Say], list[Block]] = importlib.import_module(part.module).measure
    return measure(settings, say)


def write(path: Path, part: str, settings: Settings, command: str, found: list[Block]) -> None:
    """One measurement as JSON, whole or not at all."""
    content = {
        "format": files.FORMAT,
        "part": part,
        "label": label(part, settings),
        "command": command,
        "machine": machine.description(),
        "blocks": [blocks.to_dict(block) for block in found],
    }
    path.parent.mkdir(parents=True, exist_ok=True)
    write_atomically(path, json.dumps(content, indent=1) + "\n")


def main(parts: Parts = PARTS, program: str = PROGRAM) -> None:
    """Where the command line's own packages are not installed. A user's error is one line and exit status 2."""
    try:
        run(sys.argv[1:], print, parts, program)
    except (ValueError, OSError, ImportError) as error:
        sys.stderr.write(f"ddpm-jax: {' '.join(str(error).split())}\n")
        sys.exit(2)
