"""What one of several processes does with what the others say, and how it leaves; the others are made up."""

import threading

import jax
import pytest

from ddpm_jax import cli
from ddpm_jax.cli import entry
from ddpm_jax.host import processes


class Others:
    """They gather what they are told to."""

    service = ""

    def __init__(self, number=0, *gathered):
        self.number, self.gathered, self.told = number, gathered, []

    def gather(self, value):
        values = list(self.gathered)
        values.insert(self.number, value)
        return values

    def tell(self, last_words):
        self.told.append(last_words)


@pytest.fixture
def join(monkeypatch):
    """join(others): this process is one of several from now on, and leaves by an exception."""

    def leave(status):
        raise SystemExit(status)

    def join(others):
        monkeypatch.setattr(processes, "_meeting", others)
        monkeypatch.setattr(processes, "_last_words", threading.Lock())
        monkeypatch.setattr(processes, "is_first", lambda: others.number == 0)
        monkeypatch.setattr(processes.os, "_exit", leave)
        monkeypatch.setattr(processes, "LOST_SECONDS", 0)
        return others

    return join


def raising(error):
    def function():
        raise error

    return function


def test_from_first(join):
    join(Others(0, None))
    assert processes.from_first(lambda: [1, None]) == [1, None]
    for error in (ValueError("no such thing"), FileNotFoundError(2, "gone", "file")):
        with pytest.raises(ValueError if isinstance(error, ValueError) else OSError) as found:
            processes.from_first(raising(error))
        assert str(found.value) == str(error)
    join(Others(1, {"value": 7}))
    assert processes.from_first(pytest.fail) == 7
    join(Others(1, {"error": "OSError", "message": "the disk is full"}))
    with pytest.raises(OSError, match=r"^the disk is full$"):
        processes.from_first(pytest.fail)


def test_agree(join):
    processes.agree({"a": 1})
    join(Others(0, {"a": 1}))
    processes.agree({"a": 1})
    join(Others(1, {"a": None}))
    with pytest.raises(ValueError, match="process 1 has a 2 where process 0 has none: they must be the same in all"):
        processes.agree({"a": 2})


def test_processes_that_others_made(monkeypatch):
    monkeypatch.setattr(jax, "process_count", lambda: 2)
    with pytest.raises(ValueError, match=r"join by ddpm_jax\.host\.processes\.start"):
        processes.agree({})


@pytest.mark.parametrize(
    "error, status, last",
    [
        (OSError("the disk\nis full"), 2, "the disk is full"),
        (KeyboardInterrupt(), 130, "stopped; the same command goes on from what it has written"),
        (RuntimeError("a bug"), 1, "RuntimeError: a bug"),
        (jax.errors.JaxRuntimeError("UNAVAILABLE"), 1, "JaxRuntimeError: UNAVAILABLE"),
    ],
)
def test_an_error_ends_this_process_and_is_told(join, monkeypatch, capfd, error, status, last):
    """With its traceback where it is not a user's."""
    others = join(Others())
    monkeypatch.setitem(entry.COMMANDS, "train", lambda arguments: raising(error)())
    with pytest.raises(SystemExit) as left:
        cli.main(["train"])
    err = capfd.readouterr().err
    assert left.value.code == status and others.told == [last]
    assert err.endswith(f"ddpm-jax: {last}\n") and ("Traceback" in err) == (status == 1)


def test_the_end_of_another_one(join, capfd):
    others = join(Others(1))
    with pytest.raises(SystemExit) as left:
        processes._ended("process 0 (pid 1 on host0) was lost")
    assert left.value.code == 2 and others.told == ["process 0 (pid 1 on host0) was lost"]
    assert capfd.readouterr().err == "ddpm-jax: process 0 (pid 1 on host0) was lost\n"
