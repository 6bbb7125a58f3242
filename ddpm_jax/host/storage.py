"""Disks that fail: files whole or not at all, errors that name the file, another try where the reason may pass."""

import contextlib
import errno
import os
import re
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import IO, Any, ParamSpec, TypeVar

Say = Callable[[str], None]
P = ParamSpec("P")
T = TypeVar("T")

TRANSIENT = frozenset({
    errno.EAGAIN, errno.EBUSY, errno.EINTR, errno.EIO, errno.ESTALE, errno.ETIMEDOUT,
    errno.ECONNABORTED, errno.ECONNREFUSED, errno.ECONNRESET, errno.ENOTCONN,
    errno.EHOSTDOWN, errno.EHOSTUNREACH, errno.ENETDOWN, errno.ENETRESET, errno.ENETUNREACH,
})  # fmt: skip
"""What network and cluster file systems report while a server is busy, restarts or cannot be reached; a local disk that
dies says EIO as well, and is asked in vain. All else is permanent: ENOENT, EACCES, EROFS, ENOTDIR, ENOSPC, EDQUOT."""

ATTEMPTS = 5
FIRST_WAIT = 0.5  # seconds; 1, 2 and 4 follow

# Orbax writes arrays by tensorstore, whose errors are a ValueError with this at its end.
OS_CODE = re.compile(r"\[os_error_code='(\d+)'")


def errno_of(error: BaseException | None) -> int | None:
    """The errno that an error, or what it was raised from, reports; None if it is not about a file."""
    while error is not None:
        if isinstance(error, OSError) and error.errno is not None:
            return error.errno
        if found := OS_CODE.search(str(error)):
            return int(found[1])
        error = error.__cause__
    return None


def retrying(say: Say) -> Callable[[Callable[P, T]], Callable[P, T]]:
    """From f to one that calls f again, up to ATTEMPTS times, while it raises errors with an errno in TRANSIENT.

    The last error is raised as it came; any other error at once. `say` is told before every wait. f must give the same
    when it is called again.
    """
    import tenacity  # so that those who only name and write files do without it

    def tell(state: Any) -> None:
        wait, error = state.next_action.sleep, " ".join(str(state.outcome.exception()).split())
        say(f"{error}: trying again in {wait:g} s (attempt {state.attempt_number + 1} of {ATTEMPTS})")

    return tenacity.retry(
        retry=tenacity.retry_if_exception(lambda error: errno_of(error) in TRANSIENT),
        stop=tenacity.stop_after_attempt(ATTEMPTS),
        wait=tenacity.wait_exponential(multiplier=FIRST_WAIT),
        before_sleep=tell,
        reraise=True,
    )


def require_file(path: Path) -> None:
    """Whether what is there is a file: a pipe would be waited for without end.

    Raises:
      ValueError: it is a pipe or a device.
    """
    if path.exists() and not path.is_file() and not path.is_dir():
        raise ValueError(f"{path} is a pipe or a device, and no file")


def crc32(path: Path) -> int:
    """CRC-32 of what is in a file."""
    found = 0
    with naming(path), open(path, "rb") as file:
        while chunk := file.read(1 << 24):
            found = zlib.crc32(chunk, found)
    return found


def make_directory(path: Path) -> None:
    """Make a directory and those that it is in, where they are not there.

    Raises:
      OSError: it cannot be made; a link on the way leads to nothing.
    """
    for place in (path, *path.parents):
        if place.is_symlink() and not place.exists():
            raise FileNotFoundError(f"{place} is a link to {os.readlink(place)}, which is not there")
    path.mkdir(parents=True, exist_ok=True)


@contextlib.contextmanager
def naming(path: Path) -> Iterator[None]:
    """Errors of the system that do not name a file become OSErrors that name this one.

    A write to an open file that finds the disk full says that and no more.
    """
    try:
        yield
    except OSError as error:
        if error.errno is None or error.filename is not None:
            raise
        raise OSError(error.errno, os.strerror(error.errno), str(path)) from error
    except ValueError as error:
        if (found := OS_CODE.search(str(error))) is None:
            raise
        raise OSError(int(found[1]), os.strerror(int(found[1])), str(path)) from error


@contextlib.contextmanager
def replacing(path: Path) -> Iterator[IO[bytes]]:
    """A file to write to, which takes the place of `path` when the block ends; one that fails leaves what was there."""
    partial = path.with_name(path.name + ".partial")
    with naming(partial), open(partial, "wb") as file:
        yield file
    partial.replace(path)


def write_atomically(path: Path, text: str) -> None:
    """The file holds the old text or the new, never a part, though the machine loses power."""
    with replacing(path) as file:
        file.write(text.encode())
        file.flush()
        os.fsync(file.fileno())
