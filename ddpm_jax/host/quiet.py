"""Of threads that fail: no tracebacks of what is an error where it is waited for."""

import logging
import sys
import threading
import warnings
from typing import Any


def threads() -> None:
    """No tracebacks of other threads: what Orbax or TensorBoard cannot write, they raise where it is waited for."""
    for name in ("absl", "asyncio"):
        logging.getLogger(name).setLevel(logging.CRITICAL)
    warnings.filterwarnings("ignore", "coroutine .* was never awaited", RuntimeWarning)
    threading.excepthook, sys.unraisablehook = _failed_in_a_thread, _unraisable


def _failed_in_a_thread(arguments: threading.ExceptHookArgs) -> None:
    if not issubclass(arguments.exc_type, OSError):
        threading.__excepthook__(arguments)


def _unraisable(arguments: Any) -> None:
    # A write of tensorstore's that ends after another one has failed: nobody waits for it any more.
    if str(arguments.exc_value) != "Event loop is closed":
        sys.__unraisablehook__(arguments)
