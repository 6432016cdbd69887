"""How a process hears that another one has ended, whatever it is in the midst of."""

from __future__ import annotations

import os
import socket
import threading
import time
from collections.abc import Iterator
from dataclasses import replace

import pytest

from optimum_grasprune.errors import GraspruneError, ProcessEnded
from optimum_grasprune.execution import Launch, watch
from optimum_grasprune.execution.watch import Watch

GONE = "the process of rank 1 of 2 is gone, without which the others cannot go on"


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(watch, "GRACE", 0.05)
    monkeypatch.setattr(watch, "LAST", 0.3)


@pytest.fixture
def exits(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """The codes that processes would have ended with at once."""
    codes: list[int] = []
    monkeypatch.setattr(os, "_exit", codes.append)
    return codes


class Linked:
    """A watch, and the other end of its connection."""

    def __init__(self, rank: int = 0) -> None:
        self.other, own = socket.socketpair()
        self.watch = Watch(rank, 2, {1 - rank: own})
        self._own = own

    def close(self) -> None:
        self.watch.leave(0)
        self.other.close()
        self._own.close()


@pytest.fixture
def linked(quick: None, exits: list[int]) -> Iterator[Linked]:
    made = Linked()
    yield made
    made.close()
    assert not exits


def compute(seconds: float = 20.0) -> None:
    until = time.monotonic() + seconds
    while time.monotonic() < until:
        pass


def test_a_computation_is_interrupted_when_another_process_is_gone(linked: Linked) -> None:
    linked.watch.check()
    threading.Timer(0.1, linked.other.close).start()
    with pytest.raises(ProcessEnded, match=GONE) as caught:
        compute()
    assert caught.value.code == 1 and linked.watch.speaks


def test_an_exchange_that_fails_is_told_by_the_end_of_the_other(linked: Linked) -> None:
    linked.other.close()
    assert str(linked.watch.failed(RuntimeError("Connection closed by peer"))) == GONE


def test_an_exchange_that_fails_while_all_live_says_so_itself(linked: Linked) -> None:
    error = RuntimeError("shapes differ")
    assert linked.watch.failed(error) is error


def test_who_ends_in_an_orderly_way_says_how(linked: Linked) -> None:
    linked.other.sendall(b'{"rank": 1, "code": 2, "li')
    linked.other.sendall(b'ne": "no such file"}\n')
    with pytest.raises(ProcessEnded, match="^no such file$") as caught:
        linked.watch.wait()
    assert caught.value.code == 2 and linked.watch.speaks


def test_others_hear_how_a_process_ends(quick: None, exits: list[int]) -> None:
    first, second = socket.socketpair()
    watches = [Watch(0, 2, {1: first}), Watch(1, 2, {0: second})]
    watches[0].leave(143, "interrupted")
    watches[0].leave(0)  # it has said so already
    with pytest.raises(ProcessEnded, match="^interrupted$") as caught:
        watches[1].wait()
    assert caught.value.code == 143 and not watches[1].speaks
    watches[1].leave(143)
    first.close()
    second.close()
    assert not exits


def test_the_second_process_speaks_where_the_first_is_gone(quick: None, exits: list[int]) -> None:
    linked = Linked(rank=1)
    assert not linked.watch.speaks
    linked.other.close()
    with pytest.raises(ProcessEnded, match="rank 0 of 2 is gone"):
        linked.watch.wait()
    assert linked.watch.speaks
    linked.close()


def test_when_the_first_process_is_done_the_others_are_too(quick: None, exits: list[int]) -> None:
    linked = Linked(rank=1)
    linked.other.sendall(b'{"rank": 0, "code": 0, "line": ""}\n')
    linked.watch.wait()
    linked.close()
    assert not exits


def test_what_is_to_come_to_its_end_does_and_what_follows_is_interrupted(linked: Linked) -> None:
    with linked.watch.finishing():
        linked.other.close()
        compute(0.5)
    with pytest.raises(ProcessEnded, match=GONE):
        compute()


def test_a_process_that_has_left_goes_on_by_itself(linked: Linked) -> None:
    linked.watch.leave(0)
    linked.other.close()
    compute(0.5)


def test_a_process_that_cannot_be_interrupted_ends_all_the_same(
    quick: None, exits: list[int], monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("_thread.interrupt_main", lambda _: None)
    linked = Linked()
    linked.other.close()
    compute(1.0)
    assert exits == [1] and capfd.readouterr().err == f"{GONE}\n"
    linked.close()


class Dictionary(dict[str, str]):
    def set(self, key: str, value: str) -> None:
        self[key] = value

    def get(self, key: str) -> bytes:  # type: ignore[override]
        while key not in self:
            time.sleep(0.01)
        return self[key].encode()


def test_processes_meet_and_strangers_do_not_count(quick: None, exits: list[int]) -> None:
    store, met = Dictionary(), dict[int, Watch]()

    def come(rank: int) -> None:
        met[rank] = Watch.begun(rank, 3, store, "127.0.0.1", 20)

    first = threading.Thread(target=come, args=(0,))
    first.start()
    with socket.create_connection(("127.0.0.1", int(store.get("grasprune/watch").split()[0]))) as stranger:
        stranger.sendall(b"GET / HTTP/1.1\n")
        others = [threading.Thread(target=come, args=(rank,)) for rank in (1, 2)]
        for thread in others:
            thread.start()
        for thread in (*others, first):
            thread.join(20)
    met[2].leave(2, "not this one")
    with pytest.raises(ProcessEnded, match="not this one"):
        met[1].wait()
    for each in met.values():
        each.leave(2)
        for connection in each._connections.values():
            connection.close()


def test_those_that_do_not_come_are_named() -> None:
    with pytest.raises(GraspruneError, match="of the 3 processes of this run some did not come: rank 1, 2"):
        Watch.begun(0, 3, Dictionary(), "127.0.0.1", 0.2)


LAUNCHED = {"RANK": "1", "WORLD_SIZE": "2", "LOCAL_RANK": "0", "MASTER_ADDR": "node7", "MASTER_PORT": "29500"}


def test_what_a_launcher_says() -> None:
    alone_there = Launch(rank=1, count=2, local_rank=0, address="node7", port=29500, local_count=1)
    assert Launch.found({**LAUNCHED, "LOCAL_WORLD_SIZE": "1"}) == alone_there
    assert Launch.found(LAUNCHED) == replace(alone_there, local_count=2)
    assert Launch.found({**LAUNCHED, "WORLD_SIZE": "1"}) is None and Launch.found({}) is None
    assert Launch.found({"WORLD_SIZE": "4"}) is None


@pytest.mark.parametrize(
    ("changed", "line"),
    [
        ({"MASTER_ADDR": ""}, "WORLD_SIZE=2 in the environment, but no MASTER_ADDR: start it with torchrun"),
        ({"MASTER_PORT": "http"}, "MASTER_PORT='http' in the environment is no number: start it with torchrun"),
        ({"LOCAL_WORLD_SIZE": "all"}, "LOCAL_WORLD_SIZE='all' in the environment is no number: start it with torchrun"),
        ({"RANK": "2"}, "RANK=2 in the environment is not below WORLD_SIZE=2"),
    ],
)
def test_what_a_launcher_cannot_have_meant(changed: dict[str, str], line: str) -> None:
    with pytest.raises(GraspruneError, match=line):
        Launch.found({**LAUNCHED, **changed})
