"""One at a time in a directory: lock.json says who is there, and is touched as long as that one lives.

The file appears whole, by a hard link that fails where there is one already: network file systems keep that, without a
server of locks. A holder that ended without a word is recognized: on this machine by its process, of another machine
by a file that nobody touches any more.
"""

import contextlib
import datetime
import errno
import json
import os
import re
import socket
import tempfile
import threading
import time
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

from ddpm_jax.host.storage import Say, naming

NAME = "lock.json"
BEAT = 10.0
"""Seconds after which a holder touches its file again."""
OLD = 60.0
"""Seconds after which a file that nobody touched is of nobody."""


LINKLESS = frozenset({errno.EPERM, errno.EOPNOTSUPP, errno.ENOSYS})
"""What disks without hard links say, as those over object stores are; there the file is opened by O_EXCL."""


class Lock:
    """A lock that is held."""

    def __init__(self, path: Path, text: str):
        self._path, self._text = path, text
        self._lost, self._released = threading.Event(), threading.Event()
        self._thread = threading.Thread(target=self._beat, daemon=True)
        self._thread.start()

    def check(self) -> None:
        """Whether it is still held, as far as the last beat knows.

        Raises:
          OSError: it is gone, or another's: this machine slept for so long that it was taken for dead.
        """
        if self._lost.is_set():
            found = _read(self._path)
            now = "is gone" if found is None else f"is now that of {_called(found.text)}"
            raise OSError(f"{self._path}, which keeps other runs away, {now}: nothing more is written here")

    def release(self) -> None:
        self._released.set()
        self._thread.join()
        with contextlib.suppress(OSError):  # what stays on a disk that fails is recognized as of the dead
            found = _read(self._path)
            if found is not None and found.text == self._text:
                self._path.unlink()

    def _beat(self) -> None:
        while not self._released.wait(BEAT):
            with contextlib.suppress(OSError):  # of a disk that fails, the run itself will hear
                found = _read(self._path)
                if found is None or found.text != self._text:
                    self._lost.set()
                    return
                os.utime(self._path)


@contextlib.contextmanager
def held(directory: Path, say: Say) -> Iterator[Lock]:
    """The lock of a directory, released at the end.

    Args:
      directory: it is there.
      say: is told if it must be waited for whether somebody on another machine still lives.

    Raises:
      OSError: somebody is there; says who.
    """
    path, text = directory / NAME, json.dumps(_me())
    _take(path, text, say)
    lock = Lock(path, text)
    try:
        yield lock
    finally:
        lock.release()


def _take(path: Path, text: str, say: Say) -> None:
    while not _make(path, text):
        _require_dead(path, say)


def _make(path: Path, text: str) -> bool:
    """Whether there was no such file, and now is one with this text."""
    whole = path.with_name(f"{NAME}.{os.getpid()}.{threading.get_ident()}.partial")
    try:
        _write(whole, text, "w")
        try:
            os.link(whole, path)
        except FileExistsError:
            pass
        except OSError as error:
            if error.errno not in LINKLESS:
                raise
            return _write(path, text, "x")
        return whole.stat().st_nlink == 2  # NFS may say that it is there, having just made it
    finally:
        whole.unlink(missing_ok=True)


def _write(path: Path, text: str, mode: str) -> bool:
    """Whether it could be opened so."""
    try:
        file = open(path, mode, encoding="utf-8")
    except FileExistsError:
        return False
    with naming(path), file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())
    return True


def _require_dead(path: Path, say: Say) -> None:
    """Remove a lock whose holder is dead; return as well if it is gone by itself.

    Raises:
      OSError: the holder lives.
    """
    found = _read(path)
    if found is None:
        return
    holder = _holder(found.text)
    if holder.get("machine") != _machine():
        _wait_until_old(path, found, say)
    elif _started(holder["pid"]) == holder["started"]:
        raise _in_use(path, found.text)
    _bury(path, found.text)


def _bury(path: Path, text: str) -> None:
    """Remove the lock of a dead holder, or leave that to another process that is about to.

    Many may see that it is dead, and must not take away what one of them has made since: only who makes the file that
    is named after this one removes it.
    """
    claim = path.with_name(f"{NAME}.{zlib.crc32(text.encode(errors='replace')):08x}.partial")
    try:
        open(claim, "x").close()
    except FileExistsError:
        made = _read(claim)
        if made is not None and _age(claim, made) >= OLD:  # that process was killed just then
            claim.unlink(missing_ok=True)
        time.sleep(0.01)
        return
    try:
        found = _read(path)
        if found is not None and found.text == text:
            path.unlink()
    finally:
        claim.unlink(missing_ok=True)


def _wait_until_old(path: Path, found: "_Found", say: Say) -> None:
    """Return when nobody touched it for OLD seconds.

    Raises:
      OSError: somebody did.
    """
    if _age(path, found) < OLD:
        say(f"{path} is that of {_called(found.text)}: waiting up to {OLD:.0f} s for a sign that it still runs")
    while _age(path, found) < OLD:
        time.sleep(min(1, OLD / 10))
        now = _read(path)
        if now is None:
            return
        if now != found:
            raise _in_use(path, now.text)


def _in_use(path: Path, text: str) -> OSError:
    return OSError(f"{path.parent} is in use by {_called(text)}: end that one first, or choose another directory")


class _Found(NamedTuple):
    text: str
    touched: float


def _read(path: Path) -> _Found | None:
    """What a lock says and when it was touched, None if there is none. Opened, as NFS asks its server only then."""
    try:
        with open(path, encoding="utf-8", errors="replace") as file:
            return _Found(file.read(), os.fstat(file.fileno()).st_mtime)
    except FileNotFoundError:
        return None


def _age(path: Path, found: _Found) -> float:
    """Seconds since it was touched, by the clock of the disk, which may be another than this machine's."""
    with naming(path.parent), tempfile.TemporaryFile(dir=path.parent) as file:
        file.write(b" ")
        file.flush()
        return os.fstat(file.fileno()).st_mtime - found.touched


# --------------------------------------------------------------------------------------------------------- who that is


def _me() -> dict[str, Any]:
    now = datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")
    pid = os.getpid()
    return {"host": socket.gethostname(), "pid": pid, "since": now, "machine": _machine(), "started": _started(pid)}


def _holder(text: str) -> dict[str, Any]:
    """What `_me` has written; {} of a file that was cut short or is none of these."""
    try:
        found = json.loads(text)
    except (ValueError, RecursionError):
        return {}
    kinds = {"host": str, "pid": int, "since": str, "machine": str, "started": str}
    fits = isinstance(found, dict) and all(isinstance(found.get(name), kind) for name, kind in kinds.items())
    return found if fits else {}


def _called(text: str) -> str:
    holder = _holder(text)
    if not holder:
        return "somebody whose name is not in it"
    return f"process {holder['pid']} on {holder['host']}, there since {holder['since']}"


def _machine() -> str:
    """What has the same process numbers: a host since it was switched on, or a container."""
    boot, namespace = Path("/proc/sys/kernel/random/boot_id"), Path("/proc/self/ns/pid")
    linux = [boot.read_text().strip(), os.readlink(namespace)] if boot.exists() and namespace.is_symlink() else []
    return " ".join([socket.gethostname(), *linux])


def _started(pid: int) -> str | None:
    """When a process of this machine started, as its system counts; "" where that does not say, None if it is gone."""
    stat = Path(f"/proc/{pid}/stat")
    try:
        if not Path("/proc/self/stat").exists():
            os.kill(pid, 0)
            return ""
        # After the name, which may have anything in it: the state, and 19 fields later the start.
        state, *fields = re.sub(r".*\) ", "", stat.read_text(errors="replace"), count=1, flags=re.DOTALL).split()
    except PermissionError:
        return ""
    except (OSError, OverflowError):
        return None
    return None if state in "ZX" else fields[18]
