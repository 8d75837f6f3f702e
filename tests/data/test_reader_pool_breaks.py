"""A pool of workers that breaks is started again: results and their order stay, and one file is charged at most."""

from __future__ import annotations

import multiprocessing
import time
from concurrent.futures import Future
from concurrent.futures.process import BrokenProcessPool
from types import SimpleNamespace

import pytest

from hdxray_fast.data import reader_pool
from hdxray_fast.data.reader_pool import DIED, Known, call_in_order
from hdxray_fast.errors import TrainingError

WORDS = list("abcdefghijkl")
RESULTS = list("ABCDEFGHIJKL")


@pytest.fixture
def pools(monkeypatch):
    """Stands for pebble: makes one call each time it is asked whether it is active.

    Returns:
        ``made``, pools in the order they were made; ``breaks``, how often a word is to break its pool; ``starts``,
        whether a pool of so many workers can start.
    """
    told = SimpleNamespace(made=[], breaks={}, starts=lambda workers: True)

    class Pool:
        def __init__(self, workers, **_):
            assert all(pool.ended for pool in told.made)
            self.workers, self.due, self.most, self.broken, self.ended = workers, [], 0, False, False
            told.made.append(self)

        def schedule(self, function, args, timeout):
            if self.broken or not told.starts(self.workers):
                raise BrokenProcessPool if not self.broken else RuntimeError("Unexpected error within the Pool")
            self.due.append((Future(), function, args))
            self.most = max(self.most, len(self.due))
            return self.due[-1][0]

        @property
        def active(self):
            if self.due and not self.broken:
                future, function, args = self.due.pop(0)
                if args and told.breaks.get(args[0], 0) > 0:
                    told.breaks[args[0]] -= 1
                    self.broken = True
                    future.set_exception(BrokenProcessPool("All workers expired"))
                    for other, *_ in self.due[1::2]:  # the others never end
                        other.set_exception(BrokenProcessPool("All workers expired"))
                else:
                    future.set_result(function(*args))
            return not self.broken

        def stop(self):
            self.ended = True

        def join(self):
            assert self.ended

    monkeypatch.setattr(reader_pool, "_packages", lambda: (Pool, lambda name: None))
    return told


@pytest.mark.parametrize("ahead", [1, 2, 8])
@pytest.mark.parametrize("word", ["a", "b", "g", "l"])
def test_a_call_that_always_breaks_the_pool_is_charged_alone(pools, word, ahead):
    pools.breaks, ended = {word: 1000}, []
    jobs = [*((one,) for one in WORDS), Known("known already")]
    found = list(call_in_order(str.upper, jobs, workers=2, ahead=ahead, when_ended=ended.append))
    assert found == [*(DIED if one == word else one.upper() for one in WORDS), "known already"]
    assert sorted(ended) == sorted(set(ended)) and (word,) not in ended
    assert [pool.workers for pool in pools.made] == [2, 1, 2] and all(pool.ended for pool in pools.made)
    assert pools.made[1].most == 1


def test_nobody_is_charged_for_a_pool_that_breaks_once(pools):
    pools.breaks = {"b": 1, "h": 1}
    assert list(call_in_order(str.upper, [(word,) for word in WORDS], workers=2, ahead=2)) == RESULTS
    assert [pool.workers for pool in pools.made] == [2, 1, 2, 1, 2]


def test_several_calls_that_break_the_pool_are_all_charged(pools):
    pools.breaks = dict.fromkeys("bcl", 1000)
    found = list(call_in_order(str.upper, [(word,) for word in WORDS], workers=2))
    assert found == [DIED if word in "bcl" else word.upper() for word in WORDS]
    assert len(pools.made) == 7


def test_workers_that_cannot_start_are_no_files_fault(pools):
    pools.starts = lambda workers: False
    with pytest.raises(TrainingError, match=r"end though no file is the reason.*; take fewer workers, or 0 to"):
        list(call_in_order(str.upper, [("a",)], workers=2))
    assert [pool.workers for pool in pools.made] == [1, 1] and all(pool.ended for pool in pools.made)


def test_a_pool_that_breaks_for_no_call_is_started_a_few_times(pools):
    """A limit of processes that lets one worker start, but not two."""
    pools.starts, found = lambda workers: workers < 2, []
    with pytest.raises(TrainingError, match="no file is the reason"):
        found.extend(call_in_order(str.upper, [(word,) for word in WORDS], workers=2, ahead=1))
    assert found == RESULTS[:6]  # two for each time
    assert [pool.workers for pool in pools.made] == [2, 1, 2, 1, 2, 1, 2] and all(pool.ended for pool in pools.made)


def test_pebble_breaks_where_a_worker_dies_unheard_of(monkeypatch):
    """As under load: the worker's word that it had taken the call is read after its death."""
    pytest.importorskip("loky")
    manager = pytest.importorskip("pebble.pool.process").PoolManager
    usual, unheard = manager.find_expired_task, []

    def find(self, worker_id):
        if unheard:
            return usual(self, worker_id)
        unheard.append(worker_id)
        raise BrokenProcessPool("All workers expired")

    def left():
        return [child for child in multiprocessing.active_children() if child.name == "pebble_pool_worker"]

    monkeypatch.setattr(manager, "find_expired_task", find)
    results = call_in_order(eval, [("6 // 2",), ("__import__('os')._exit(9)",)], workers=1)
    assert next(results) == 3 and left()
    assert list(results) == [DIED] and len(unheard) == 1 and not left()


def test_a_worker_that_dies_unheard_of_beside_another_has_not_taken_too_long(monkeypatch):
    manager = pytest.importorskip("pebble.pool.process").TaskManager
    usual = manager.task_start

    def late(self, task_id, worker_id):
        time.sleep(0.25 * task_id)  # for the second; pebble looks for dead workers each 0.1 s
        usual(self, task_id, worker_id)

    monkeypatch.setattr(manager, "task_start", late)
    jobs = [("__import__('time').sleep(1)",), ("__import__('os')._exit(9)",)]
    assert list(call_in_order(eval, jobs, workers=2, timeout=5.0)) == [None, DIED]
