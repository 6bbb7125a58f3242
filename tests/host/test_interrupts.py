"""Ctrl-C: the first is never lost, the second ends a program at once."""

import subprocess
import sys
import textwrap

import pytest


def run(code: str, timeout: float = 120) -> tuple[int, str, str]:
    """(status, stdout, stderr) of a program that interrupts itself."""
    before = "import gc, hashlib, os, signal, threading, time\nfrom ddpm_jax.host import interrupts\n"
    command = [sys.executable, "-c", before + textwrap.dedent(code)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=timeout)
    return done.returncode, done.stdout, done.stderr


@pytest.mark.parametrize("place", ["gc.callbacks.append(callback); gc.collect()", "Dropping()"])
def test_an_interrupt_that_is_dropped_comes_again(place):
    """In a callback of the garbage collector, where JAX has one, and in a destructor."""
    status, out, err = run(
        f"""
        sent = []
        def callback(*_):
            if not sent:
                sent.append(True)
                signal.raise_signal(signal.SIGINT)
        class Dropping:
            def __del__(self):
                callback()
        with interrupts.kept("twice"):
            try:
                {place}
                time.sleep(100)
            except KeyboardInterrupt:
                print("heard")
                time.sleep(0.2)  # it comes once
        """
    )
    assert (status, out, err) == (0, "heard\n", "")


def test_the_second_ends_a_program_that_computes():
    """Where Python does not come to the first: neither waits for what the main thread does."""
    status, out, err = run(
        """
        def send():
            for _ in range(2):
                time.sleep(0.2)
                os.kill(os.getpid(), signal.SIGINT)
        with interrupts.kept("stopped at once"):
            threading.Thread(target=send).start()
            hashlib.pbkdf2_hmac("sha256", b"", b"", 2**31 - 1)  # minutes, in C
        """
    )
    assert (status, out, err) == (130, "", "stopped at once\n")


def test_others_that_listen_keep_their_interrupts():
    """In a notebook, or of a program in the background, which ignores them."""
    status, out, _ = run(
        """
        signal.signal(signal.SIGINT, signal.SIG_IGN)
        with interrupts.kept("twice"), interrupts.ending_silently():
            for _ in range(3):
                signal.raise_signal(signal.SIGINT)
            print(signal.getsignal(signal.SIGINT) is signal.SIG_IGN)
        """
    )
    assert (status, out) == (0, "True\n")


def test_while_it_imports_a_program_ends_without_a_traceback():
    status, _, err = run(
        """
        with interrupts.ending_silently():
            signal.raise_signal(signal.SIGINT)
            time.sleep(100)
        """
    )
    assert (status, err) == (-2, "")
