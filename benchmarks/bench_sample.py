"""A sample of a prepared radiograph, to pre-train or fine-tune on: its view drawn, against its canvas moved whole."""

from __future__ import annotations

import statistics
import time

import numpy as np
import pytest
from harness.prepared_case import noise_set

from hdxray_fast.classify.data import LabelledRadiographs
from hdxray_fast.data.augment import Augmentation
from hdxray_fast.data.prepared.reading import PreparedSet
from hdxray_fast.data.radiograph_dataset import RadiographDataset

PROMISED = 1.2e-3  # seconds of one core
EACH = 40  # samples a round


@pytest.fixture(scope="module")
def images(tmp_path_factory):
    return PreparedSet(noise_set(tmp_path_factory.mktemp("sample"), images=EACH, contour="network"))


def cpu_seconds(dataset: RadiographDataset | LabelledRadiographs, epoch: int) -> float:
    """Of one core, a sample."""
    begin = time.process_time()
    for index in range(len(dataset)):
        dataset[epoch, index]
    return (time.process_time() - begin) / len(dataset)


def by_turns(seen, moved) -> tuple[float, float]:
    """Median CPU seconds of a sample of each."""
    ours, theirs = [], []
    for epoch in range(8):  # the first touches all memory and is not kept
        ours.append(cpu_seconds(seen, epoch))
        theirs.append(cpu_seconds(moved, epoch))
    return statistics.median(ours[1:]), statistics.median(theirs[1:])


def test_sample(compare, images):
    mine, rival = by_turns(
        *(RadiographDataset(images, augmentation=Augmentation(), views=views) for views in (True, False))
    )
    case = "training sample of a prepared raw image, 1280² u8, CPU time"
    compare.values(case, mine, rival, rival_name="cv2.warpAffine and cv2.LUT of the canvas", unit="s")
    compare.values(f"{case}, against the promise", mine, PROMISED, rival_name="the promised 1.2 ms", unit="s", bar=1)


def test_finetune_sample(compare, images):
    labels, options = np.zeros((len(images), 14), np.float32), {"patch_size": 16, "augmentation": Augmentation()}
    mine, rival = by_turns(*(LabelledRadiographs(images, labels, views=views, **options) for views in (True, False)))
    case = "fine-tuning sample of a prepared raw image, augment mild, 1280² u8, CPU time"
    compare.values(case, mine, rival, rival_name="cv2.warpAffine and cv2.LUT of the canvas", unit="s")
