"""The processor of this machine."""

import platform
from pathlib import Path


def name() -> str:
    """As the system says it: of Linux the model, elsewhere what Python knows."""
    path = Path("/proc/cpuinfo")
    lines = path.read_text().splitlines() if path.is_file() else []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor() or "unknown processor"
