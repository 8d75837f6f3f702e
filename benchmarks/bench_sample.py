"""A training sample of a prepared radiograph: its view drawn, against its canvas moved as a whole."""

from __future__ import annotations

import statistics
import time

import pytest
from harness.prepared_case import noise_set

from hdxray_fast.data.augment import Augmentation
from hdxray_fast.data.prepared.reading import PreparedSet
from hdxray_fast.data.radiograph_dataset import RadiographDataset

PROMISED = 1.2e-3  # seconds of one core
EACH = 40  # samples a round


@pytest.fixture(scope="module")
def images(tmp_path_factory):
    return PreparedSet(noise_set(tmp_path_factory.mktemp("sample"), images=EACH, contour="network"))


def cpu_seconds(dataset: RadiographDataset, epoch: int) -> float:
    """Of one core, a sample."""
    begin = time.process_time()
    for index in range(len(dataset)):
        dataset[epoch, index]
    return (time.process_time() - begin) / len(dataset)


def test_sample(compare, images):
    seen, moved = (RadiographDataset(images, augmentation=Augmentation(), views=views) for views in (True, False))
    ours, theirs = [], []
    for epoch in range(8):  # by turns; the first touches all memory and is not kept
        ours.append(cpu_seconds(seen, epoch))
        theirs.append(cpu_seconds(moved, epoch))
    mine, rival = statistics.median(ours[1:]), statistics.median(theirs[1:])
    case = "training sample of a prepared raw image, 1280² u8, CPU time"
    compare.values(case, mine, rival, rival_name="cv2.warpAffine and cv2.LUT of the canvas", unit="s")
    compare.values(f"{case}, against the promise", mine, PROMISED, rival_name="the promised 1.2 ms", unit="s", bar=1)
