"""Processes of a launcher that wait for each other: as long as it takes, but not for one that is gone."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
import threading
import time

import pytest
import torch

from hdxray_fast import ranks
from hdxray_fast.errors import TrainingError

pytestmark = pytest.mark.skipif(not torch.distributed.is_available(), reason="this PyTorch has no torch.distributed")


class TwoInThreads:
    """Two processes as threads: what ``ranks`` asks of ``torch.distributed``, summed up at a barrier."""

    def __init__(self) -> None:
        self.rounds, self._sum = 0, torch.zeros(2, dtype=torch.int64)
        self._adding, self._lock = threading.Barrier(2, self._next), threading.Lock()
        self._taking = threading.Barrier(2, self._sum.zero_)

    def _next(self) -> None:
        self.rounds += 1

    def get_world_size(self, group) -> int:
        return 2

    def all_reduce(self, signs, group) -> None:
        with self._lock:
            self._sum += signs
        self._adding.wait(20)
        signs.copy_(self._sum)
        self._taking.wait(20)

    def lose(self) -> None:
        self._adding.abort()


@pytest.fixture
def two(monkeypatch) -> TwoInThreads:
    found = TwoInThreads()
    monkeypatch.setattr(ranks, "dist", found)
    return found


def in_a_thread(work) -> tuple[threading.Thread, list]:
    found: list = []
    thread = threading.Thread(target=lambda: found.append(work()))
    thread.start()
    return thread, found


def test_who_has_done_waits_for_who_has_not_and_both_give_signs_of_life(two):
    first, second = ranks._Signs(None, 0.01), ranks._Signs(None, 0.01)
    waiting, found = in_a_thread(first.end)
    deadline = time.monotonic() + 20
    while two.rounds < 5 and time.monotonic() < deadline:
        time.sleep(0.01)
    assert two.rounds >= 5 and waiting.is_alive()  # the other still works
    assert second.end() is False
    waiting.join(20)
    assert found == [False]


def test_who_fails_tells_the_others(two):
    first, second = ranks._Signs(None, 0.01), ranks._Signs(None, 0.01)
    waiting, found = in_a_thread(first.end)
    assert second.end(failed=True) is False  # it has an error of its own
    waiting.join(20)
    assert found == [True]


def test_one_that_is_gone_is_told_once_the_work_is_done_and_does_not_hide_its_failure(two):
    first, second = ranks._Signs(None, 0.01), ranks._Signs(None, 0.01)
    two.lose()
    with pytest.raises(threading.BrokenBarrierError):
        first.end()
    assert second.end(failed=True) is False


def test_one_process_just_works():
    with ranks.acquainted(), ranks.together():
        assert ranks.from_main(lambda: {"a": 1}) == {"a": 1}
    with pytest.raises(KeyError):
        ranks.on_main(lambda: {}["b"])


def test_processes_that_cannot_find_each_other_say_so(monkeypatch):
    monkeypatch.setenv("WORLD_SIZE", "2")  # without the rest of what a launcher sets
    for name in ("MASTER_ADDR", "MASTER_PORT", "RANK"):
        monkeypatch.delenv(name, raising=False)
    with pytest.raises(TrainingError, match=r"^2 processes were launched, and cannot find each other"):
        ranks.acquainted().__enter__()


PATIENCE = 2  # seconds
SCRIPT = f"""
import os, signal, sys, time
from hdxray_fast import ranks

def told(work):
    began = time.monotonic()
    try:
        found = ranks.from_main(work, {PATIENCE})
    except Exception as error:
        found = str(error)
    print(found, "|", round(time.monotonic() - began, 1), flush=True)

def fail():
    raise ValueError("of its own")

with ranks.acquainted(60):
    told(lambda: time.sleep(2 * {PATIENCE}) or "late")
    told(fail)
    told(lambda: os.kill(os.getpid(), signal.SIGKILL))
"""


@pytest.mark.slow
def test_the_main_process_may_outlast_the_patience_and_is_missed_when_it_dies():
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    env = {
        **os.environ,
        "WORLD_SIZE": "2",
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(port),
        "OMP_NUM_THREADS": "1",
    }
    running = [
        subprocess.Popen(
            [sys.executable, "-c", SCRIPT], env={**env, "RANK": str(rank)}, text=True, stdout=subprocess.PIPE
        )
        for rank in range(2)
    ]
    main, other = (
        [line.split(" | ") for line in process.communicate(timeout=120)[0].splitlines()] for process in running
    )
    assert [text for text, _ in main] == ["late", "of its own"]
    assert [text for text, _ in other[:2]] == ["late", ranks.MAIN_FAILED]
    assert float(other[0][1]) >= 2 * PATIENCE - 1  # it had come to wait well before
    assert other[2][0].startswith("waiting for the others: another process of this run is gone")
    assert running[1].returncode == 0
