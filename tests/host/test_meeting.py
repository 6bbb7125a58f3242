"""How processes meet, with the processes as threads of this one."""

import contextlib
import json
import queue
import socket
import threading

import pytest

from ddpm_jax.host import meeting, ports
from ddpm_jax.host.last_step import LastStep

SOON = 30  # seconds, after which a test that hangs has failed


class Process:
    """One of the processes of a run: what it said, with what it ended, what its functions returned or raised."""

    def __init__(self, port, number, n):
        self.said, self.ended = queue.Queue(), queue.Queue()
        if number == 0:
            self.meeting = meeting.First(port, n, self.said.put, self.ended.put)
        else:
            self.meeting = meeting.Other(("localhost", port), number, n, self.said.put, self.ended.put)

    def begin(self, function, *args):
        self.result = queue.Queue()

        def call():
            try:
                self.result.put(function(*args))
            except Exception as error:
                self.result.put(error)

        threading.Thread(target=call, daemon=True).start()
        return self

    def get(self):
        return self.result.get(timeout=SOON)

    def lose(self):
        """Its end of the connection breaks, as when it is killed."""
        self.meeting._connection.stream.shutdown(socket.SHUT_RDWR)


def start(numbers_and_n, seconds=SOON):
    port = ports.free_port()
    found = [Process(port, number, n) for number, n in numbers_and_n]
    for process in found:
        process.begin(process.meeting.meet, seconds)
    return found


@pytest.fixture
def three():
    found = start([(0, 3), (1, 3), (2, 3)])
    assert [process.get() for process in found] == [None] * 3
    return found


def test_values_are_gathered_by_number(three):
    for again in range(2):
        for i, process in reversed(list(enumerate(three))):
            process.begin(process.meeting.gather, {"is": [i, again]})
        assert [process.get() for process in three] == [[{"is": [i, again]} for i in range(3)]] * 3


def test_who_waits_says_for_whom(three, monkeypatch):
    monkeypatch.setattr(meeting, "SAY_SECONDS", 0.05)
    three[1].begin(three[1].meeting.gather, 1)
    assert three[1].said.get(timeout=SOON) == "waiting for process 0 of 3"
    three[0].begin(three[0].meeting.gather, 0)
    assert three[0].said.get(timeout=SOON) == "waiting for process 2 of 3"
    while three[1].said.get(timeout=SOON) != "waiting for process 2 of 3":
        pass
    three[2].begin(three[2].meeting.gather, 2)
    assert [process.get() for process in three] == [[0, 1, 2]] * 3
    assert meeting.numbers([1, 2, 3], 4) == "processes 1, 2 and 3 of 4"


@pytest.mark.parametrize("number", [0, 1])
def test_a_number_that_two_processes_have(number):
    first, *others = start([(0, 3), (1, 3)])
    if number == 0:
        with pytest.raises(OSError) as taken:
            meeting.First(int(others[0].meeting._address[1]), 3, pytest.fail, pytest.fail)
        assert ports.is_taken(taken.value)
    while first.meeting._members.keys() != {1}:
        pass
    again = meeting.Other(others[0].meeting._address, number, 3, pytest.fail, pytest.fail)
    with pytest.raises(ValueError, match=f"two processes have --process-id {number}: process {number} .pid") as error:
        again.meet(SOON)
    assert str(first.get()) == str(error.value)  # and it ends, and tells the others
    first.meeting.tell(str(error.value))
    assert str(error.value) in others[0].ended.get(timeout=SOON)


def test_a_run_that_has_begun_goes_on(three):
    again = meeting.Other(three[1].meeting._address, 1, 3, pytest.fail, pytest.fail)
    with pytest.raises(ValueError, match="two processes have --process-id 1"):
        again.meet(SOON)
    for i, process in enumerate(three):
        process.begin(process.meeting.gather, i)
    assert [process.get() for process in three] == [[0, 1, 2]] * 3


def test_another_number_of_processes():
    found = start([(0, 3), (1, 2)])
    for process in found:
        assert "process 1 (pid" in str(error := process.get()) and "has --num-processes 2, process 0 (pid" in str(error)
        assert str(error).endswith("has 3")


def test_who_did_not_come():
    first, _ = start([(0, 3), (1, 3)], 1)
    assert str(first.get()) == "waited 1 seconds in vain for process 2 of 3 to start; --wait-seconds may be larger"
    [alone] = start([(1, 2)], 0.01)
    assert "in vain for process 0 of 2 to start at localhost:" in str(error := alone.get())
    assert "Connection refused" in str(error) and isinstance(error, TimeoutError)


OURS = json.dumps({"protocol": meeting.PROTOCOL}).encode() + b"\n"


@pytest.mark.parametrize("answer", [b"HTTP/1.1 400 Bad Request\r\n", OURS])
def test_something_else_listens(answer):
    with ports.listen("localhost", 0) as listener:
        alone = Process(listener.getsockname()[1], 1, 2)
        alone.begin(alone.meeting.meet, SOON)
        stream, _ = listener.accept()
        stream.sendall(answer)
        assert "is no process 0" in str(alone.get())


def test_strangers_are_not_heard(three, monkeypatch):
    monkeypatch.setattr(meeting, "ANSWER_SECONDS", 100 * SOON)
    address = three[1].meeting._address
    ours = lambda **fields: json.dumps({"protocol": meeting.PROTOCOL, **fields}).encode() + b"\n"
    strange = [b"GET / HTTP/1.1\n", b"[]\n", b"null\n", b"x" * 3000, b"[" * 1900 + b"\n", b'{"protocol": "another"}\n']
    strange += [ours(), ours(service=1), ours(number="1", of=3, who="a"), ours(number=7, of=3, who="a")]
    for words in strange:
        with socket.create_connection(address) as stranger:
            stranger.sendall(words)
            stranger.settimeout(SOON)
            with contextlib.suppress(ConnectionResetError):
                assert stranger.recv(1) == b""
    for i, process in enumerate(three):
        process.begin(process.meeting.gather, i)
    assert [process.get() for process in three] == [[0, 1, 2]] * 3


def test_a_process_that_says_what_no_process_says_is_lost(three):
    three[2].meeting._connection.stream.sendall(b"[1]\n")
    assert "process 2 (pid" in (said := three[0].ended.get(timeout=SOON)) and "was lost" in said


def test_a_lost_process_is_named_to_the_others(three):
    three[1].lose()
    for process in (three[0], three[2]):
        assert process.ended.get(timeout=SOON).startswith("process 1 (pid ")


def test_the_last_words_of_a_process(three, monkeypatch):
    monkeypatch.setattr(meeting, "GRACE_SECONDS", 0)
    three[2].meeting.tell("no space left")
    for process in three[:2]:
        assert process.ended.get(timeout=SOON).endswith("): no space left")


def test_a_process_that_ends_in_order_is_not_lost(three):
    three[1].meeting.tell(None)
    three[1].lose()
    three[2].meeting.tell("why")  # heard after that
    assert three[0].ended.get(timeout=SOON).startswith("process 2 (pid ")


@pytest.mark.parametrize("asks", [(0,), (2,), (0, 1, 2)])
def test_all_stop_at_one_step(three, asks):
    """Which none of them has begun when it is found; each does as many steps as the others, one of them late."""
    together = threading.Barrier(3)

    def run(number):
        found = three[number].meeting
        for step in range(10_000):
            together.wait()  # as devices that exchange their gradients
            if step >= 5 and number in asks:
                found.ask_to_stop()
            if found.last_step.is_reached(step):
                return step
        return None

    for number, process in enumerate(three):
        process.begin(run, number)
    steps = [process.get() for process in three]
    assert len(set(steps)) == 1 and steps[0] is not None and steps[0] >= 5, steps


def test_a_process_that_has_said_its_step_waits():
    """Else it might have begun the last one before it hears which that is."""
    found = LastStep()
    assert not found.is_reached(3) and found.say() == 3
    done = queue.Queue()
    for step in (4, 5):
        threading.Thread(target=lambda step=step: done.put(found.is_reached(step)), daemon=True).start()
        if step == 4:
            with pytest.raises(queue.Empty):
                done.get(timeout=0.2)
            found.hear(5)
        assert done.get(timeout=SOON) is (step == 5)


def test_what_jax_says_is_passed_on(three, monkeypatch):
    """Both ways; where the far end breaks, the near one hears nothing of it."""
    host, port = three[0].meeting.service.split(":")
    with ports.listen(host, int(port)) as service:
        client = socket.create_connection(three[2].meeting.service.split(":"))
        server, _ = service.accept()
        server.sendall(b"settings first")
        assert client.recv(14, socket.MSG_WAITALL) == b"settings first"
        client.sendall(b"x" * 200_000)
        assert server.recv(200_000, socket.MSG_WAITALL) == b"x" * 200_000
        server.close()
        client.settimeout(0.2)
        with pytest.raises(TimeoutError):
            client.recv(1)
