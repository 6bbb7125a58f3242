"""What all processes of a run must have alike, by the names under which a user knows it.

What may differ: where the data lies, as long as it is the same data, and what belongs to a machine.
"""

import hashlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ddpm_jax.config.fields import plain
from ddpm_jax.config.run import Config

OF_A_MACHINE = ("--data.dir",)


def told(config: Config, workdir: Path) -> dict[str, Any]:
    """What a process was told, and which code it was told: to be compared before anything is made of it."""
    options = {name: value for name, value in _options(plain(config), "--") if name not in OF_A_MACHINE}
    return {
        "--model": options.pop("--model.name"),
        **options,
        "--workdir": str(workdir.absolute()),
        "the code of ddpm_jax": _code(),
    }


def _options(values: Mapping[str, Any], prefix: str) -> list[tuple[str, Any]]:
    found = []
    for name, value in values.items():
        option = prefix + name.replace("_", "-")
        found += _options(value, f"{option}.") if isinstance(value, Mapping) else [(option, value)]
    return found


def _code() -> str:
    """A digest of this package's files."""
    found, place = hashlib.sha256(), Path(__file__).parent.parent
    for path in sorted(place.rglob("*.py")):
        found.update(str(path.relative_to(place)).encode() + b"\0" + path.read_bytes())
    return found.hexdigest()[:12]
