"""The step after which all processes of a run stop."""

import threading


class LastStep:
    """What this process has done, and what it hears of the last step of all."""

    def __init__(self) -> None:
        self._done, self._said, self._last = -1, False, None
        self._changed = threading.Condition()

    def is_reached(self, step: int) -> bool:
        """Whether the last step is done, with this one; once a process has said where it is, it waits there for it."""
        with self._changed:
            self._changed.wait_for(lambda: not self._said or self._last is not None)
            self._done = step
            return self._last is not None and step >= self._last

    def say(self) -> int:
        """The step that is done; no other is until `hear`."""
        with self._changed:
            self._said = True
            return self._done

    def hear(self, last: int) -> None:
        with self._changed:
            self._last = last
            self._changed.notify_all()
