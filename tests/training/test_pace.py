"""How fast a run goes and what it waits for, and how many processes read for it."""

from __future__ import annotations

import cv2
import numpy as np
import pytest
import torch
from torch.utils.data import DataLoader

from hdxray_fast.training import processes
from hdxray_fast.training.pace import RECENT, Pace
from hdxray_fast.training.processes import loader_workers, one_opencv_thread, outlive_notice


def test_one_slow_step_does_not_move_the_rate():
    pace = Pace(images=8)
    for seconds in (2.0, 2.0, 90.0, 2.0, 2.0):
        pace.add(seconds, 0.0)
    assert pace.images_per_s == 4.0
    assert pace.median == 2.0
    assert pace.in_words() == {"images_per_s": "4.00"}
    assert pace.advice() == ""


def test_a_loader_that_is_the_limit_is_told_with_what_to_do():
    pace = Pace(images=8)
    for _ in range(RECENT):
        pace.add(2.0, 0.62)
    assert pace.waiting == pytest.approx(0.31)
    assert pace.in_words()["waiting_for_data"] == "31%"
    assert pace.advice() == "waited for data 31% of the time; give more --workers, or prepare the images"
    for _ in range(RECENT):  # the last ones count
        pace.add(2.0, 0.1)
    assert pace.advice() == ""


def test_a_short_run_gets_no_advice():
    pace = Pace(images=8)
    pace.add(2.0, 1.9)  # the first batch is always waited for
    assert pace.advice() == ""


@pytest.mark.parametrize(
    ("cores", "here", "expected"), [(16, "1", 8), (16, "4", 3), (16, "8", 1), (4, "1", 3), (2, "8", 1), (64, "8", 7)]
)
def test_the_processes_of_a_machine_share_its_cores(monkeypatch, cores, here, expected):
    monkeypatch.setattr(processes, "worker_count", lambda _: cores)
    monkeypatch.setenv("LOCAL_WORLD_SIZE", here)
    assert loader_workers(-1, on_gpu=True) == expected
    assert loader_workers(-1, on_gpu=False) == 0
    assert loader_workers(5, on_gpu=True) == loader_workers(5, on_gpu=False) == 5


class Threads(torch.utils.data.Dataset):
    """Each sample is how many threads OpenCV has where it is read, after work that would use them."""

    def __len__(self) -> int:
        return 4

    def __getitem__(self, index: int) -> int:
        cv2.warpAffine(np.zeros((900, 900), np.uint8), np.eye(2, 3), (900, 900))
        return cv2.getNumThreads()


def test_a_worker_has_one_thread_of_opencv_and_gets_to_its_work():
    before = cv2.getNumThreads()
    try:
        cv2.setNumThreads(2)
        cv2.warpAffine(np.zeros((900, 900), np.uint8), np.eye(2, 3), (900, 900))  # threads that no child inherits
        with one_opencv_thread():
            samples = iter(
                DataLoader(Threads(), batch_size=1, num_workers=2, worker_init_fn=outlive_notice, timeout=60)
            )
        assert cv2.getNumThreads() == 2
        assert [int(count) for count in samples] == [1] * 4
    finally:
        cv2.setNumThreads(before)
