"""One rule over all tasks: ``split_seed`` alone draws a split, which is the same wherever the same data are read."""

from __future__ import annotations

import csv
import inspect
from pathlib import Path

import pytest

from hdxray_fast.classify.config import FinetuneConfig
from hdxray_fast.classify.labels import labels_of, read_manifest, redrawn
from hdxray_fast.classify.probe_config import ProbeConfig
from hdxray_fast.data.seen import Seen
from hdxray_fast.data.seen_key import run_key
from hdxray_fast.reports.config import ReportConfig
from hdxray_fast.reports.evaluate import evaluate_reports
from hdxray_fast.reports.layouts import read_studies
from hdxray_fast.reports.own_split import read_of_run, read_own_split
from hdxray_fast.reports.writing_options import WritingOptions

pytest.importorskip("pandas")
PATIENTS = 40
SEEDS = (0, 1, 7)


def write(folder: Path, patient: str = "patient", image: str = "image", **more: str) -> str:
    """Two images of each patient, with labels and reports, in a folder of their own."""
    folder.mkdir(exist_ok=True)
    path = folder / "data.csv"
    rows = []
    for i in range(2 * PATIENTS):
        (folder / f"{i}.png").write_bytes(b"")
        labels = {"effusion": i // 2 % 2, "mass": int(i // 2 % 5 == 0)}
        rows.append({image: f"{i}.png", "id": f"s{i}", patient: f"p{i // 2}", **labels, "report": "Clear.", **more})
    with path.open("w", newline="") as stream:
        writer = csv.DictWriter(stream, list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)
    return str(path)


CLASSES = ["effusion", "mass"]
TASKS = {
    "probe": lambda data, **seeds: labels_of(ProbeConfig(data, "out", "weights", classes=CLASSES, **seeds)),
    "finetune": lambda data, **seeds: labels_of(FinetuneConfig(data=data, out="out", classes=CLASSES, **seeds)),
    "report train": lambda data, **seeds: read_of_run(ReportConfig(data=data, out="out", **seeds))[0],
}


def patients(table) -> dict[str, str]:
    return dict(zip(table.patients, table.splits, strict=True))


@pytest.mark.parametrize("task", TASKS)
def test_any_seed_has_the_same_patients(tmp_path, task):
    data, read = write(tmp_path / "data"), TASKS[task]
    drawn = [patients(read(data, seed=seed)) for seed in SEEDS]
    assert drawn[0] == drawn[1] == drawn[2] and set(drawn[0].values()) == {"train", "val", "test"}
    others = [patients(read(data, split_seed=seed)) for seed in SEEDS]
    assert others[0] == drawn[0] and others[1] != drawn[0] != others[2]
    moved = write(tmp_path / "moved", patient="PatientID", image="Path", comment="read twice")
    assert patients(read(moved, seed=5)) == drawn[0]


def test_probe_and_finetuning_have_one_split(tmp_path):
    """A probe with seed 1 tested patients of whom fine-tuning trained."""
    data = write(tmp_path / "data")
    for split_seed in SEEDS:
        tables = [TASKS[task](data, seed=3, split_seed=split_seed) for task in ("probe", "finetune")]
        assert patients(tables[0]) == patients(tables[1])


@pytest.mark.parametrize("task", TASKS)
@pytest.mark.parametrize("split_seed", SEEDS)
def test_a_models_own_split_is_found_again_in_another_folder(tmp_path, task, split_seed):
    """From the record as it lies in the model's folder, and from the origin alone where the record was removed."""
    trained = TASKS[task](write(tmp_path / "data"), seed=1, split_seed=split_seed)
    Seen.of(trained, key=run_key(tmp_path)).save(tmp_path / "seen.safetensors")
    record = Seen.load(tmp_path / "seen.safetensors")
    assert record.origin["seed"] == split_seed and record.is_of(trained.origin["given"])
    moved = write(tmp_path / "moved", patient="PatientID", image="Path", comment="read twice")
    for kept in (record, Seen.of_origin(record.origin, record.key), Seen.of_origin(trained.origin)):
        if task == "report train":
            again = read_own_split(moved, kept)
        else:
            seen = kept if len(kept.keys["patients"]) else None
            again = redrawn(read_manifest(moved, classes=CLASSES), kept.origin, moved, seen=seen, key=kept.key)
        assert patients(again) == patients(trained)


def test_each_seed_has_a_name_of_its_own():
    """What draws splits, words and intervals is called so; ``seed`` is of training."""
    for reads in (read_studies, evaluate_reports, WritingOptions):
        assert "seed" not in inspect.signature(reads).parameters
    assert "split_seed" in inspect.signature(read_studies).parameters
    assert {"split_seed", "bootstrap_seed"} <= set(inspect.signature(evaluate_reports).parameters)
    assert "sampling_seed" in inspect.signature(WritingOptions).parameters
    for config in (ProbeConfig, FinetuneConfig, ReportConfig):
        assert inspect.signature(config).parameters["split_seed"].default == 0
