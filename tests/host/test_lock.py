"""One at a time in a directory; whoever died there keeps nobody away."""

import errno
import json
import os
import re
import subprocess
import sys
import threading
import time

import pytest

from ddpm_jax.host import lock


@pytest.fixture(autouse=True)
def soon(monkeypatch):
    """Beats and their absence in fractions of a second."""
    monkeypatch.setattr(lock, "BEAT", 0.02)
    monkeypatch.setattr(lock, "OLD", 0.5)


def elsewhere(place, **changes) -> None:
    """The lock of a process on another machine."""
    path = place / lock.NAME
    path.write_text(json.dumps(lock._me() | {"host": "node7", "machine": "node7"} | changes))


@pytest.mark.parametrize("linkless", [None, errno.EPERM])
def test_only_one_holds_it(tmp_path, monkeypatch, linkless):
    """On a disk without hard links too."""

    def link(*paths):
        raise OSError(linkless, os.strerror(linkless))

    if linkless is not None:
        monkeypatch.setattr(lock.os, "link", link)
    pid = os.getpid()
    with lock.held(tmp_path, pytest.fail) as mine:
        for _ in range(2):
            with pytest.raises(
                OSError, match=rf"{tmp_path} is in use by process {pid} on .*, there since 2\d\d\d-.*: "
            ):
                with lock.held(tmp_path, pytest.fail):
                    pass
        mine.check()
    assert not list(tmp_path.iterdir())
    with lock.held(tmp_path, pytest.fail):
        pass


def test_who_was_killed_keeps_nobody_away(tmp_path):
    """Though its process still has a number, as long as its parent does not look; nobody waits."""
    code = (
        "import sys, time, pathlib; from ddpm_jax.host import lock\n"
        f"with lock.held(pathlib.Path({str(tmp_path)!r}), print):\n    print(flush=True); time.sleep(100)"
    )
    with subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE) as holder:
        assert holder.stdout is not None
        holder.stdout.readline()
        with pytest.raises(OSError, match=f"in use by process {holder.pid} on"), lock.held(tmp_path, pytest.fail):
            pass
        holder.kill()
        holder.stdout.read()  # its end
        deadline = time.monotonic() + 60
        while lock._started(holder.pid) is not None and time.monotonic() < deadline:
            time.sleep(0.01)
        with lock.held(tmp_path, pytest.fail):
            pass
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("started", ["1", ""])
def test_another_process_with_its_number_is_not_it(tmp_path, started):
    (tmp_path / lock.NAME).write_text(json.dumps(lock._me() | {"started": started}))
    with lock.held(tmp_path, pytest.fail):
        pass


@pytest.mark.parametrize("text", [None, "", "{", '{"host": 1}', "[" * 100_000])
def test_another_machine_is_waited_for(tmp_path, text):
    """Until nobody has touched its file for so long; a file that a full disk has cut short may be anybody's."""
    said = []
    elsewhere(tmp_path)
    if text is not None:
        (tmp_path / lock.NAME).write_text(text)
    start = time.monotonic()
    with lock.held(tmp_path, said.append):
        assert time.monotonic() - start >= 0.4
    name = r"process \d+ on node7, there since \S+" if text is None else "somebody whose name is not in it"
    assert len(said) == 1 and re.search(rf"lock.json is that of {name}: waiting up to", said[0])
    os.utime(tmp_path, None)
    elsewhere(tmp_path)
    os.utime(tmp_path / lock.NAME, (1, 1))
    with lock.held(tmp_path, pytest.fail):  # nobody waits for what is old already
        pass


def test_another_machine_that_lives_is_seen(tmp_path):
    elsewhere(tmp_path)
    path, done = tmp_path / lock.NAME, threading.Event()
    beats = threading.Thread(target=lambda: [os.utime(path) for _ in iter(lambda: done.wait(0.1), True)])
    beats.start()
    try:
        with pytest.raises(OSError, match=r"in use by process .* on node7"), lock.held(tmp_path, str):
            pass
    finally:
        done.set()
        beats.join()
    assert path.exists()


def test_of_many_that_find_a_dead_one_one_follows(tmp_path):
    (tmp_path / lock.NAME).write_text(json.dumps(lock._me() | {"started": "1"}))
    together, over, holding = threading.Barrier(8), threading.Barrier(8), []

    def enter():
        together.wait()
        try:
            with lock.held(tmp_path, pytest.fail):
                holding.append(1)
                over.wait(60)
        except OSError:
            over.wait(60)

    threads = [threading.Thread(target=enter) for _ in range(8)]
    [thread.start() for thread in threads]
    [thread.join() for thread in threads]
    assert holding == [1] and not list(tmp_path.iterdir())


def test_a_holder_that_slept_hears_that_it_is_no_longer_one(tmp_path):
    """And takes nothing away from the one that followed."""
    with lock.held(tmp_path, pytest.fail) as mine:
        elsewhere(tmp_path)
        mine._thread.join(60)
        with pytest.raises(
            OSError, match=r"lock.json.* is now that of process \d+ on node7.*: nothing more is written"
        ):
            mine.check()
    assert (tmp_path / lock.NAME).exists()
    os.utime(tmp_path / lock.NAME, (1, 1))
    with lock.held(tmp_path, pytest.fail) as mine:
        (tmp_path / lock.NAME).unlink()
        mine._thread.join(60)
        with pytest.raises(OSError, match="is gone"):
            mine.check()
