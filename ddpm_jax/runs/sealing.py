"""seal.json: size and CRC-32 of all files that Orbax wrote, since Orbax alone restores a flipped bit without a word.

And which checkpoint of a directory is the newest that is as its seal says.
"""

import errno
import json
from pathlib import Path

from ddpm_jax.host.storage import crc32, write_atomically

# What is sealed, where it is there.
ITEMS = ("params", "ema_params", "opt_state", "timestep_state", "ema_stack", "skipped")
SEAL = "seal.json"
GONE = (errno.ENOENT, errno.ESTALE)  # of a file that another process deletes; the second on network disks


def seal(directory: Path) -> None:
    """Write down size and CRC-32 of every file of the items in a checkpoint's directory."""
    write_atomically(directory / SEAL, json.dumps(_contents(directory)))


def damage(directory: Path) -> str | None:
    """What is not as the seal says, or None."""
    try:
        return _damage(directory)
    except OSError as error:
        if error.errno not in GONE:
            raise
        return f"{error.filename} went away"


def _damage(directory: Path) -> str | None:
    path = directory / SEAL
    if not directory.is_dir():
        return "it is not a directory"
    if not path.exists():
        return f"no {SEAL}: writing it was cut short"
    expected = _sealed(path)
    if expected is None:
        return f"{SEAL} is not what was written"
    found = _contents(directory)
    if len(found) > len(expected):
        return f"{SEAL} names {len(expected)} of {len(found)} files"
    for name, (size, checksum) in expected.items():
        if name not in found:
            return f"{name} is missing"
        if found[name][0] != size:
            return f"{name} has {found[name][0]} of {size} bytes"
        if found[name][1] != checksum:
            return f"{name} is not what was written"
    return None


def is_whole(directory: Path) -> bool:
    """Whether all files that the seal names are there; nothing is said of what is in them."""
    try:
        names = _sealed(directory / SEAL)
    except FileNotFoundError:
        return False
    return names is not None and all((directory / name).exists() for name in names)


def steps_of(directory: Path) -> list[int]:
    """The numbers under which checkpoints appear in their directory, whatever they are now."""
    names = [path.name for path in directory.iterdir()]
    return [int(name) for name in names if name.isdecimal() and str(int(name)) == name]


def look(directory: Path) -> tuple[int | None, list[tuple[int, str]]]:
    """(the step of the newest intact checkpoint, what is wrong with each newer one); None: none was ever finished.

    What a training that goes on deletes meanwhile is not damaged: there is a newer one then, so it looks again.

    Raises:
      ValueError: there are checkpoints, and all are damaged.
    """
    while True:
        found, damaged = sorted(steps_of(directory), reverse=True), dict[int, str]()
        for step in found:
            if (reason := damage(directory / str(step))) is None:
                break
            damaged[step] = reason
        if not damaged or sorted(steps_of(directory), reverse=True) == found:
            break
    if len(damaged) < len(found):
        return found[len(damaged)], [*damaged.items()]
    if any((directory / str(step) / SEAL).exists() for step in damaged):
        reasons = "; ".join(f"{step}: {reason}" for step, reason in damaged.items())
        raise ValueError(f"every checkpoint in {directory} is damaged ({reasons})")
    return None, [*damaged.items()]  # killed before the first one was sealed


def _sealed(path: Path) -> dict[str, list[int]] | None:
    """What a seal says; None if it cannot be a seal."""
    try:
        expected = json.loads(path.read_text())
    except (ValueError, RecursionError, IsADirectoryError):
        return None
    if not isinstance(expected, dict) or not expected:
        return None
    pair = lambda value: isinstance(value, list) and len(value) == 2 and all(isinstance(n, int) for n in value)
    return expected if all(map(pair, expected.values())) else None


def _contents(directory: Path) -> dict[str, list[int]]:
    """{file: [bytes, CRC-32]} of the items; what Orbax notes beside them does not matter."""
    files = (path for item in ITEMS for path in sorted((directory / item).rglob("*")) if path.is_file())
    return {str(path.relative_to(directory)): [path.stat().st_size, crc32(path)] for path in files}
