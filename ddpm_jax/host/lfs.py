"""Files of a repository that was cloned without git-lfs: each only says where the real one is."""

from pathlib import Path

STARTS = (b"version https://git-lfs", b"version https://hawser")  # today's, and of before it was called so


def is_pointer(path: Path) -> bool:
    """Whether a file is such a pointer."""
    with open(path, "rb") as file:
        return file.read(40).startswith(STARTS)
