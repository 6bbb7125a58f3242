"""Ctrl-C, which is SIGINT: the first is never lost, the second ends the program at once.

Python raises KeyboardInterrupt wherever the main thread is. In a destructor, or in a callback of the garbage collector,
such as JAX has one, it is printed and dropped; while XLA computes or compiles it does not come at all.
"""

import contextlib
import os
import signal
import sys
import threading
from collections.abc import Iterator
from typing import Any

STATUS = 128 + signal.SIGINT
"""What shells report of a program that SIGINT has ended."""
AGAIN = 0.05
"""Seconds after which an interrupt that was dropped is raised again."""


def end_silently() -> None:
    """From now on SIGINT ends the program as it ends those of other languages, without a traceback."""
    if _is_pythons():
        signal.signal(signal.SIGINT, signal.SIG_DFL)


@contextlib.contextmanager
def ending_silently() -> Iterator[None]:
    """The same within: while a program imports what it is made of."""
    changes = _is_pythons()
    end_silently()
    try:
        yield
    finally:
        if changes:
            signal.signal(signal.SIGINT, signal.default_int_handler)


@contextlib.contextmanager
def kept(last_words: str) -> Iterator[None]:
    """KeyboardInterrupt is raised again where it was dropped; a second SIGINT ends the process with STATUS, at once.

    Where somebody else listens to SIGINT, or in another thread than the main one, nothing is changed. Who listens from
    now on, as a training does, hears the first one.

    Args:
      last_words: one line for stderr when the second has come.
    """
    if not _is_pythons():
        yield
        return
    watch = _Watch(last_words)
    hook, sys.unraisablehook = sys.unraisablehook, watch.unraisable
    watch.hook = hook
    before = signal.set_wakeup_fd(watch.write_end, warn_on_full_buffer=False)
    try:
        yield
    finally:
        signal.set_wakeup_fd(before)
        sys.unraisablehook = hook
        os.close(watch.write_end)  # which ends its thread


def _is_pythons() -> bool:
    in_main = threading.current_thread() is threading.main_thread()
    return in_main and signal.getsignal(signal.SIGINT) is signal.default_int_handler


class _Watch:
    """A thread that reads which signals come, as they come, whatever the main thread does."""

    hook: Any

    def __init__(self, last_words: str):
        self._last_words, self._own = f"{last_words}\n".encode(), 0
        self._read_end, self.write_end = os.pipe()
        os.set_blocking(self.write_end, False)  # a signal handler writes there
        threading.Thread(target=self._count, daemon=True).start()

    def unraisable(self, arguments: Any) -> None:
        if not issubclass(arguments.exc_type, KeyboardInterrupt):
            self.hook(arguments)
            return
        self._own += 1
        timer = threading.Timer(AGAIN, signal.pthread_kill, (threading.main_thread().ident, signal.SIGINT))
        timer.daemon = True
        timer.start()

    def _count(self) -> None:
        """Count SIGINT, without those of `unraisable`, until the other end of the pipe is closed."""
        heard = 0
        with open(self._read_end, "rb", buffering=0) as signals:
            while number := signals.read(1):
                if number[0] != signal.SIGINT:
                    continue
                if self._own:
                    self._own -= 1
                    continue
                heard += 1
                if heard == 2:
                    os.write(2, self._last_words)
                    os._exit(STATUS)
