"""How the processes of a run meet at one port of the first, and hear when one of them ends.

JAX's own service says nothing while it waits, takes two processes of one number for one that began again, and aborts a
process, from C++, when another one is lost. So the port that all processes reach is this module's. Who comes there says
who it is; the connection stays, and where it breaks, that process is lost. What JAX says passes through the same port,
and a process's own JAX never sees that connection break.

    process i                  lines of JSON           process 0
    its JAX, a port of its own ───── bytes ─────► the port ─────► JAX's service, on a port of its own
"""

import contextlib
import json
import os
import socket
import threading
import time
from collections.abc import Callable, Sequence
from typing import Any, Protocol

from ddpm_jax.host import ports
from ddpm_jax.host.last_step import LastStep

PROTOCOL = "ddpm-jax processes 1"
SAY_SECONDS = 10
"""Between two lines about who is waited for."""
ANSWER_SECONDS = 10
"""For the first line of a connection."""
GRACE_SECONDS = 1.0
"""For an error that all processes have: each says it itself before it is ended by another's."""
LONGEST = 2000
"""Of that line; who comes may be anybody."""
# The kernel asks a silent connection whether the other machine is still there; after 30 seconds it is lost.
KEEPALIVE = {"TCP_KEEPIDLE": 10, "TCP_KEEPINTVL": 5, "TCP_KEEPCNT": 4, "TCP_USER_TIMEOUT": 30_000}

Say = Callable[[str], None]
End = Callable[[str], None]


class Meeting(Protocol):
    """What a process has of the others."""

    service: str
    """HOST:PORT where this process's JAX reaches its service."""
    last_step: LastStep
    """Of all processes, which one of them has asked for."""

    def gather(self, value: Any) -> list[Any]:
        """The values, of JSON, that the processes call this with, by their numbers; all processes must call it."""
        ...

    def tell(self, last_words: str | None) -> None:
        """The others that this process ends: with an error that ends them too, or in order."""
        ...

    def ask_to_stop(self) -> None:
        """All processes, to find their last step."""
        ...


class Connection:
    """Lines of JSON, both ways; any thread may send."""

    def __init__(self, stream: socket.socket):
        stream.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
        for name, value in KEEPALIVE.items():
            if hasattr(socket, name):  # macOS lacks some
                stream.setsockopt(socket.IPPROTO_TCP, getattr(socket, name), value)
        self.stream, self._lines, self._sending = stream, stream.makefile("rb"), threading.Lock()

    def send(self, message: dict[str, Any]) -> None:
        """Nothing happens where the other end is gone: who reads hears of that."""
        with self._sending, contextlib.suppress(OSError):
            self.stream.sendall(json.dumps(message).encode() + b"\n")

    def receive(self) -> dict[str, Any] | None:
        """The next message, after the first; None where the connection is broken, or no message comes."""
        try:
            return _message(self._lines.readline())
        except (OSError, ValueError):
            return None

    def greet(self) -> dict[str, Any] | None:
        """The first message, which comes soon, and no byte of what comes after it; None where it is not of PROTOCOL."""
        line = b""
        try:
            self.stream.settimeout(ANSWER_SECONDS)
            while not line.endswith(b"\n") and len(line) < LONGEST and (byte := self.stream.recv(1)):
                line += byte
            self.stream.settimeout(None)
        except OSError:
            return None
        message = _message(line)
        return message if message is not None and message.get("protocol") == PROTOCOL else None


def _message(line: bytes) -> dict[str, Any] | None:
    try:
        found = json.loads(line)
    except (ValueError, RecursionError):
        return None
    return found if isinstance(found, dict) else None


def numbers(missing: Sequence[int], n: int) -> str:
    """ "process 2 of 4", "processes 1 and 3 of 4"."""
    *most, last = map(str, missing)
    return f"process{'es ' + ', '.join(most) + ' and' if most else ''} {last} of {n}"


def in_vain(seconds: float, who: str) -> str:
    return f"waited {seconds:g} seconds in vain for {who}; --wait-seconds may be larger"


def described(number: int) -> str:
    """This process, for the others."""
    return f"process {number} (pid {os.getpid()} on {socket.gethostname()})"


# -------------------------------------------------------------------------------------------------------- the first one


class First:
    """Process 0, to whose port the others come.

    Raises:
      OSError: the port is not free.
    """

    def __init__(self, port: int, n: int, say: Say, end: End):
        self._n, self._say, self._end = n, say, end
        self._members: dict[int, tuple[str, Connection]] = {}
        self._values: dict[int, list[Any]] = {i: [] for i in range(n)}
        self._gone: set[int] = set()
        self._steps: dict[int, int] | None = None
        self.last_step = LastStep()
        self._wrong: str | None = None
        self._changed = threading.Condition()
        self._service_port = ports.free_port()
        self.service = f"127.0.0.1:{self._service_port}"
        ports.each(ports.listen("", port), self._met)

    def meet(self, seconds: float) -> None:
        """Wait for the others.

        Raises:
          TimeoutError: they did not come.
          ValueError: two came with one number, or with another number of processes.
        """
        self._wait(lambda: [i for i in range(1, self._n) if i not in self._members], " to start", seconds)
        self._send_all({"met": True})

    def gather(self, value: Any) -> list[Any]:
        with self._changed:
            self._values[0].append(value)
        self._wait(lambda: [i for i, values in self._values.items() if not values], "", None)
        with self._changed:
            found = [self._values[i].pop(0) for i in range(self._n)]
        self._send_all({"gathered": found})
        return found

    def tell(self, last_words: str | None) -> None:
        self._send_all({"bye": True} if last_words is None else {"end": f"{described(0)}: {last_words}"})

    def ask_to_stop(self) -> None:
        with self._changed:
            if self._steps is not None:
                return
            self._steps = {}
        self._send_all({"stop": True})
        self._hear_step(0, self.last_step.say())

    def _hear_step(self, number: int, step: int) -> None:
        """The last step is one that no process has begun, since each waits where it said that it is."""
        with self._changed:
            assert self._steps is not None
            self._steps[number] = step
            if len(self._steps) < self._n:
                return
            last = max(self._steps.values()) + 1
        self._send_all({"last": last})
        self.last_step.hear(last)

    def _wait(self, missing: Callable[[], list[int]], to_do: str, seconds: float | None) -> None:
        began = time.monotonic()
        who = lambda: f"{numbers(missing(), self._n)}{to_do}"
        with self._changed:
            if missing():
                self._send_all({"waiting": who()})
            while not self._changed.wait_for(lambda: self._wrong or not missing(), _patience(began, seconds)):
                if seconds is not None and time.monotonic() - began >= seconds:
                    raise TimeoutError(in_vain(seconds, who()))
                self._send_all({"waiting": who()})
                self._say(f"waiting for {who()}")
            if self._wrong:
                raise ValueError(self._wrong)

    def _send_all(self, message: dict[str, Any], but: int | None = None) -> None:
        for number, (_, connection) in list(self._members.items()):
            if number != but:
                connection.send(message)

    def _met(self, stream: socket.socket) -> None:
        connection = Connection(stream)
        match connection.greet():
            case {"service": True}:
                connection.send({"protocol": PROTOCOL})
                ports.relay(stream, socket.create_connection(("127.0.0.1", self._service_port)))
            case {"number": int(number), "of": int(of), "who": str(who)} if 0 <= number < of:
                self._member(connection, number, of, who)
            case _:
                stream.close()

    def _member(self, connection: Connection, number: int, of: int, who: str) -> None:
        with self._changed:
            wrong = self._refusal(number, of, who)
            began = len(self._members) == self._n - 1
            if wrong and not began:
                self._wrong = wrong  # a run that has begun goes on
            connection.send({"protocol": PROTOCOL, "who": described(0), "refused": wrong})
            if not wrong:
                self._members[number] = (who, connection)
            self._changed.notify_all()
        if not wrong:
            self._listen(number, who, connection)

    def _refusal(self, number: int, of: int, who: str) -> str | None:
        if of != self._n:
            return f"{who} has --num-processes {of}, {described(0)} has {self._n}"
        there = described(0) if number == 0 else self._members[number][0] if number in self._members else None
        return there and f"two processes have --process-id {number}: {there} and {who}"

    def _listen(self, number: int, who: str, connection: Connection) -> None:
        while (message := connection.receive()) is not None:
            with self._changed:
                if "value" in message:
                    self._values[number].append(message["value"])
                if message.get("bye"):
                    self._gone.add(number)
                self._changed.notify_all()
            if "stop" in message:
                self.ask_to_stop()
            if "step" in message:
                self._hear_step(number, message["step"])
            if "end" in message:
                self._send_all({"end": f"{who}: {message['end']}"}, but=number)
                time.sleep(GRACE_SECONDS)
                return self._end(f"{who}: {message['end']}")
        if number not in self._gone:
            self._send_all({"end": f"{who} was lost"}, but=number)
            self._end(f"{who} was lost")


# ----------------------------------------------------------------------------------------------------------- the others


class Other:
    """Process i, which comes to process 0."""

    def __init__(self, address: tuple[str, int], number: int, n: int, say: Say, end: End):
        self._address, self._number, self._n, self._say, self._end = address, number, n, say, end
        self._where = f"{address[0]}:{address[1]}"
        self._met, self._gathered, self._waits_for, self._changed = False, [], "", threading.Condition()
        self._connection: Connection | None = None
        self.last_step = LastStep()
        listener = ports.listen("127.0.0.1", 0)
        self.service = f"127.0.0.1:{listener.getsockname()[1]}"
        ports.each(listener, self._pass_on)

    def meet(self, seconds: float) -> None:
        """Come to process 0, and wait with it for the others.

        Raises:
          TimeoutError: process 0 is not there.
          ValueError: it has another process of this number, or another number of processes; or it is something else.
        """
        connection = Connection(self._reach(seconds))
        who = described(self._number)
        connection.send({"protocol": PROTOCOL, "number": self._number, "of": self._n, "who": who})
        match connection.greet():
            case {"who": str(first), "refused": None}:
                self._connection = connection
            case {"refused": str(refused)}:
                raise ValueError(refused)
            case _:
                where = f"--coordinator {self._where}"
                raise ValueError(f"what listens at {where} is no process 0, or one of another version")
        threading.Thread(target=self._listen, args=(connection, first), daemon=True).start()
        self._wait(lambda: self._met, "the others to start")

    def gather(self, value: Any) -> list[Any]:
        self._send({"value": value})
        self._wait(lambda: bool(self._gathered), numbers([0], self._n))
        return self._gathered.pop(0)

    def tell(self, last_words: str | None) -> None:
        self._send({"bye": True} if last_words is None else {"end": last_words})

    def ask_to_stop(self) -> None:
        self._send({"stop": True})

    def _send(self, message: dict[str, Any]) -> None:
        if self._connection is not None:
            self._connection.send(message)

    def _wait(self, done: Callable[[], bool], who: str) -> None:
        """Until process 0 says more, it is `who` that is waited for."""
        with self._changed:
            self._waits_for = who
            while not self._changed.wait_for(done, SAY_SECONDS):
                self._say(f"waiting for {self._waits_for}")

    def _reach(self, seconds: float) -> socket.socket:
        began = said = time.monotonic()
        who = f"process 0 of {self._n} to start at {self._where}"
        while True:
            try:
                stream = socket.create_connection(self._address, timeout=5)
                stream.settimeout(None)
                return stream
            except OSError as error:
                now = time.monotonic()
                if now - began >= seconds:
                    raise TimeoutError(in_vain(seconds, f"{who} ({error.strerror})")) from None
                if now - said >= SAY_SECONDS:
                    self._say(f"waiting for {who} ({error.strerror})")
                    said = now
                time.sleep(0.2)

    def _listen(self, connection: Connection, first: str) -> None:
        ends = False
        while (message := connection.receive()) is not None:
            if "end" in message:
                time.sleep(GRACE_SECONDS)
                return self._end(message["end"])
            if "stop" in message:
                self._send({"step": self.last_step.say()})
            if "last" in message:
                self.last_step.hear(message["last"])
            ends = ends or "bye" in message
            with self._changed:
                self._waits_for = message.get("waiting", self._waits_for)
                self._met = self._met or "met" in message
                if "gathered" in message:
                    self._gathered.append(message["gathered"])
                self._changed.notify_all()
        if not ends:
            self._end(f"{first} was lost")

    def _pass_on(self, stream: socket.socket) -> None:
        upstream = Connection(socket.create_connection(self._address))
        upstream.send({"protocol": PROTOCOL, "service": True})
        if upstream.greet() is not None:
            ports.relay(stream, upstream.stream)


def _patience(began: float, seconds: float | None) -> float:
    """Until there is something to say."""
    return SAY_SECONDS if seconds is None else max(0, min(SAY_SECONDS, began + seconds - time.monotonic()))
