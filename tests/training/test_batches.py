"""Batches that nobody trains on: read ahead for a GPU alone, by workers that do not take its cores from each other."""

from __future__ import annotations

import cv2
import pytest
import torch
from torch.utils.data import DataLoader, Dataset

from hdxray_fast.training import batches as room
from hdxray_fast.training.batches import batches_of


class Numbers(Dataset):
    def __getitem__(self, key: int) -> dict:
        return {"number": torch.tensor(key), "threads": torch.tensor(cv2.getNumThreads())}


KEYS = [[3, 1], [2]]


@pytest.mark.parametrize("device", ["cpu", "cuda"])
def test_batches_are_in_order_and_read_ahead_for_a_gpu(monkeypatch, device):
    made = []

    def loader(dataset, **options):
        made.append(options)
        return DataLoader(dataset, **{**options, "pin_memory": False})  # there may be no GPU to lock pages for

    monkeypatch.setattr(room, "DataLoader", loader)
    before = cv2.getNumThreads()
    cv2.setNumThreads(3)
    try:
        found = list(batches_of(Numbers(), KEYS, 2, torch.device(device)))
        assert cv2.getNumThreads() == 3
    finally:
        cv2.setNumThreads(before)
    assert [batch["number"].tolist() for batch in found] == KEYS
    on_gpu = device == "cuda"
    assert (made[0]["num_workers"], made[0]["pin_memory"]) == ((2, True) if on_gpu else (0, False))
    threads = 1 if on_gpu else 3  # forked workers have one each; the CPU reads in this process, with all that there are
    assert {int(count) for batch in found for count in batch["threads"]} == {threads}


def test_workers_end_with_the_loop():
    class Iterator:
        ended = False

        def __next__(self):
            return {}

        def _shutdown_workers(self):
            Iterator.ended = True

    class Loader:
        def __iter__(self):
            return Iterator()

    Iterator.__iter__ = lambda self: self
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(room, "DataLoader", lambda *_, **__: Loader())
        batches = batches_of(Numbers(), KEYS, 0, torch.device("cpu"))
        next(batches)
        batches.close()
    assert Iterator.ended
