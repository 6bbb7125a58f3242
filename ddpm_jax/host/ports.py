"""Ports of this machine, and streams that are passed on from one to another."""

import contextlib
import errno
import socket
import threading
from collections.abc import Callable


def relay(near: socket.socket, far: socket.socket) -> None:
    """Pass on what comes at either end. Where `far` ends, `near` hears nothing of it."""
    threading.Thread(target=_pump, args=(far, near), daemon=True).start()
    _pump(near, far)
    with contextlib.suppress(OSError):
        far.shutdown(socket.SHUT_WR)


def _pump(source: socket.socket, target: socket.socket) -> None:
    with contextlib.suppress(OSError):
        while data := source.recv(1 << 16):
            target.sendall(data)


def listen(host: str, port: int) -> socket.socket:
    """A port where others come; "" is all addresses of this machine."""
    if not host and socket.has_dualstack_ipv6():
        return socket.create_server((host, port), family=socket.AF_INET6, dualstack_ipv6=True)
    return socket.create_server((host, port))


def is_taken(error: OSError) -> bool:
    """Whether `listen` failed because somebody else listens there."""
    return error.errno == errno.EADDRINUSE


def free_port() -> int:
    """One of this machine where nobody listens."""
    with listen("127.0.0.1", 0) as listener:
        return listener.getsockname()[1]


def each(listener: socket.socket, serve: Callable[[socket.socket], None]) -> None:
    """serve(stream), in a thread of its own, for each connection that comes."""

    def accept() -> None:
        while True:
            stream, _ = listener.accept()
            threading.Thread(target=serve, args=(stream,), daemon=True).start()

    threading.Thread(target=accept, daemon=True).start()
