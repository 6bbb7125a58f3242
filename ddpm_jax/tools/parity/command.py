"""The command `parity`: what is installed and what was recorded in; a table, JSON, Markdown and a page out."""

import dataclasses
import datetime
import json
import os
import platform
import time
from collections.abc import Callable, Iterator
from itertools import chain
from pathlib import Path
from typing import Annotated, Any

import tyro

from ddpm_jax.host import html, processes
from ddpm_jax.host.storage import write_atomically
from ddpm_jax.names import choose
from ddpm_jax.tools.parity import (
    against,
    guidance,
    losses,
    networks,
    samplers,
    schedulers,
    sweep,
    tables,
    theirs,
    training,
)
from ddpm_jax.tools.parity.results import Result
from ddpm_jax.tools.parity.theirs import Libraries

GROUPS: dict[str, Callable[[Libraries], Iterator[Result]]] = {
    "schedules": tables.compare_schedules,
    "processes": tables.compare_processes,
    "samplers": samplers.compare,
    "schedulers": schedulers.compare,
    "guidance": guidance.compare,
    "networks": networks.compare,
    "losses": losses.compare,
}
TRAINING = "training"  # the last group: it reads recordings
HEADER = ("item", "against", "max relative difference", "tolerance", "first differing step", "verdict")


@dataclasses.dataclass(frozen=True)
class ParityArguments:
    against: Annotated[str | None, tyro.conf.arg(metavar="SOURCE")] = None
    """A folder of diffusers, or a run or a checkpoint that can be written as one: compare its network and its
    scheduler, instead of everything."""
    golden: Path | None = None
    """A folder of recordings: training runs in PyTorch, followed step by step."""
    only: tuple[str, ...] = ()
    """Some of schedules, processes, samplers, schedulers, guidance, networks, losses, training; all by default."""
    random: Annotated[int, tyro.conf.arg(metavar="N")] = 0
    """Random configurations of the scheduler classes, beside the fixed ones of `schedulers`."""
    json: Annotated[Path | None, tyro.conf.arg(metavar="FILE")] = None
    """Where to write all of it as JSON."""
    html: Annotated[Path | None, tyro.conf.arg(metavar="FILE")] = None
    """Where to write all of it as a page."""
    markdown: Annotated[Path | None, tyro.conf.arg(metavar="FILE")] = None
    """Where to write all of it as tables of Markdown."""


def run(arguments: ParityArguments, say: Callable[[str], None]) -> None:
    """Compare, show a table, write the files; exit status 1 where a difference is left without an explanation.

    Raises:
      ValueError: unknown group; a file that exists; random configurations or recordings without the group that they
        belong to.
      FileNotFoundError: no such folder.
      ImportError: PyTorch or diffusers is not installed.
    """
    known = dict.fromkeys((*GROUPS, TRAINING))
    groups = arguments.only or tuple(known)
    for name in groups:
        choose("group of parity", name, known)
    if arguments.against is not None and (arguments.only or arguments.golden or arguments.random):
        raise ValueError("--against compares one folder: --only, --golden and --random belong to the whole report")
    if arguments.random < 0 or (arguments.random and "schedulers" not in groups):
        raise ValueError(f"--random must be at least 0, and 0 where schedulers are left out, got {arguments.random}")
    if arguments.golden is not None and TRAINING not in groups:
        raise ValueError(f"--golden holds recorded training runs, and --only {' '.join(groups)} leaves out {TRAINING}")
    for path in (arguments.json, arguments.html, arguments.markdown):
        if path is not None and path.exists():
            raise ValueError(f"{path} exists already: remove it, or name another file")
    if arguments.golden is not None and not arguments.golden.is_dir():
        raise FileNotFoundError(f"no folder {arguments.golden}")
    libraries, began = theirs.libraries(), time.perf_counter()
    facts: dict[str, Any] = {"command": command_of(arguments)} | machine()
    say(", ".join(f"{name} {value}" for name, value in facts["versions"].items()))
    found = {
        name: training.compare(arguments.golden) if name == TRAINING else GROUPS[name](libraries) for name in groups
    }
    if arguments.random:
        found["schedulers"] = chain(found["schedulers"], sweep.compare(libraries, arguments.random))
    if arguments.against is not None:
        found = {arguments.against: against.compare(libraries, arguments.against, say)}
    results: list[Result] = []
    for name, lines in found.items():
        say(f"\n{name}")
        for result in lines:
            results.append(result)
            say(line(result))
    say("\n" + summary(results))
    facts["seconds"] = round(time.perf_counter() - began)
    write(arguments, facts, results, say)
    if any(result.verdict == "different" for result in results):
        processes.leave(1)


def command_of(arguments: ParityArguments) -> str:
    """The command that makes these results anywhere: folders by what they are, not by where they were."""
    flags = os.environ.get("XLA_FLAGS", "").strip()
    parts = [f"XLA_FLAGS='{flags}'"] if flags else []
    parts += ["ddpm-jax parity", *(["--only", *arguments.only] if arguments.only else [])]
    parts += [f"--random {arguments.random}"] if arguments.random else []
    parts += ["--golden GOLDEN"] if arguments.golden is not None else []
    parts += ["--against SOURCE"] if arguments.against is not None else []
    return " ".join(parts)


def machine() -> dict[str, Any]:
    """Date, machine and versions."""
    return {
        "date": datetime.date.today().isoformat(),
        "machine": f"{platform.machine()}, {os.cpu_count()} CPU cores, Python {platform.python_version()}",
        "versions": theirs.versions(),
    }


def cells(result: Result) -> list[str]:
    """As HEADER says; the note is part of the verdict."""
    number = lambda value: "" if value is None else f"{value:.1e}"
    step = "" if result.first_step is None else str(result.first_step)
    verdict = result.verdict + (f": {result.note}" if result.note else "")
    return [result.item, result.against, number(result.difference), number(result.tolerance), step, verdict]


def line(result: Result) -> str:
    """A result on one line."""
    item, other, difference, _, step, verdict = cells(result)
    where = f" from step {step}" if step else ""
    return f"  {item} | {other} | {difference}{where} | {verdict}"


def summary(results: list[Result]) -> str:
    """How many of each verdict."""
    verdicts = [result.verdict for result in results]
    kinds = ("same", "explained", "different", "not compared")
    return f"{len(results)} items: " + ", ".join(f"{verdicts.count(kind)} {kind}" for kind in kinds)


def write(arguments: ParityArguments, facts: dict[str, Any], results: list[Result], say: Callable[[str], None]) -> None:
    """The files that were asked for, each whole or not at all."""
    if arguments.json is not None:
        known = lambda value: "inf" if value == float("inf") else value  # JSON has no number for it
        rows = [{name: known(value) for name, value in dataclasses.asdict(result).items()} for result in results]
        write_atomically(arguments.json, json.dumps(facts | {"results": rows}, indent=2, allow_nan=False) + "\n")
        say(f"JSON: {arguments.json}")
    for kind, path, text in (("page", arguments.html, page), ("Markdown", arguments.markdown, markdown)):
        if path is not None:
            write_atomically(path, text(facts, results))
            say(f"{kind}: {path}")


def described(facts: dict[str, Any]) -> list[str]:
    """What was run, when, on what, for how long."""
    versions = ", ".join(f"{name} {value}" for name, value in facts["versions"].items())
    return [facts["command"], f"{facts['date']}, {facts['machine']}, {facts['seconds']} s", versions]


def by_group(results: list[Result]) -> Iterator[tuple[str, list[list[str]]]]:
    """Groups in the order of the report, and their cells."""
    for group in dict.fromkeys(result.group for result in results):
        yield group, [cells(result) for result in results if result.group == group]


def markdown(facts: dict[str, Any], results: list[Result]) -> str:
    """The report as Markdown: what was run, the counts, a table for every group."""
    row = lambda cells: "| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |"
    command, *rest = described(facts)
    parts = ["# Parity with PyTorch: every item", "Written by this command:", f"    {command}", *rest, summary(results)]
    for group, rows in by_group(results):
        table = [row(HEADER), row(["---"] * len(HEADER)), *map(row, rows)]
        parts += [f"## {group}", "\n".join(table)]
    return "\n\n".join(parts) + "\n"


def page(facts: dict[str, Any], results: list[Result]) -> str:
    """The report as one HTML page: a table for every group."""
    parts = [html.code("\n".join(described(facts))), html.paragraph(summary(results))]
    for group, rows in by_group(results):
        parts += [html.heading(group), html.table(HEADER, rows)]
    return html.page("Parity with PyTorch", parts)
