"""Radiographs that a pre-training never sees: nobody's are on both sides, and their loss is the same however it is
shared out."""

from __future__ import annotations

import csv
import dataclasses
import json
from contextlib import nullcontext
from pathlib import Path
from types import SimpleNamespace

import cv2
import pytest
import torch
from tiny_training import TINY_PRETRAINING
from toy_radiographs import draw_radiograph

import hdxray_fast as hx
from hdxray_fast.errors import ConfigError
from hdxray_fast.pretrain.config import PretrainConfig
from hdxray_fast.pretrain.held_out import HeldOut, held_out_rows, looks_of, patients_of
from hdxray_fast.pretrain.task import PretrainTask, run_pretraining

for package in ("accelerate", "safetensors", "tqdm", "pyarrow"):
    pytest.importorskip(package)

SMALL = {**TINY_PRETRAINING, "img_size": 64, "ratio_inside": 0.5, "ratio_outside": 0.5, "steps": 3}


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """A run on a manifest of six radiographs of four patients, of whom some are held out."""
    root = tmp_path_factory.mktemp("held")
    rows = []
    for number, patient in enumerate("aabbcd"):
        assert cv2.imwrite(str(root / f"{number}.png"), draw_radiograph(number))
        rows.append((f"{number}.png", patient))
    with (root / "list.csv").open("w", newline="") as stream:
        csv.writer(stream).writerows([("image", "patient"), *rows])
    config = PretrainConfig(data=str(root / "list.csv"), out=str(root / "run"), val_share=0.5, val_every=2, **SMALL)
    return root, config, run_pretraining(config, progress=False)


def test_a_patient_is_on_one_side_and_so_are_the_same_pixels():
    patients = ["a", "a", "", "b", "", "c", "d", ""]
    pixels = ["1", "2", "2", "3", "3", "4", "5", "6"]
    sides = set()
    for seed in range(30):
        kept, held = held_out_rows(patients, pixels, 0.4, seed)
        assert sorted(kept + held) == list(range(8)) and kept and held
        for together in ({0, 1, 2}, {3, 4}):
            assert together <= set(kept) or together <= set(held)
        sides.add(tuple(held))
    assert len(sides) > 5
    assert held_out_rows(patients, pixels, 0, 0) == (list(range(8)), [])


def test_a_set_that_grows_keeps_what_it_held_out():
    names = [str(number) for number in range(400)]
    few, more = (set(held_out_rows(names[:n], names[:n], 0.1, 3)[1]) for n in (200, 400))
    assert few == {row for row in more if row < 200} and 20 < len(more) < 60


@pytest.mark.parametrize("seed", range(20))
def test_a_copy_that_comes_to_a_film_held_out_is_held_out_too(seed):
    """Under whatever name: where a group falls is where its lowest falls."""
    names = [f"p{number}" for number in range(60)]
    held = held_out_rows(names, names, 0.2, seed)[1]
    row = held[0]
    patients, pixels = [*names, "a0"], [*names, names[row]]  # "a0" comes first of all names
    assert {row, 60} <= set(held_out_rows(patients, pixels, 0.2, seed)[1])


def test_images_without_patient_or_hash_are_each_their_own():
    kept, held = held_out_rows([""] * 50, [""] * 50, 0.2, 0)
    assert kept and 3 < len(held) < 20


def test_one_patient_alone_cannot_be_held_out():
    with pytest.raises(ConfigError, match="val_share: all radiographs are one patient's"):
        held_out_rows(["a", "a"], ["1", "2"], 0.5, 0)
    with pytest.raises(ConfigError, match="val_share: 1"):
        PretrainConfig(data="a", out="b", val_share=1.0)


@pytest.mark.parametrize("data", ["a", Path("a"), ["a"], (Path("a"),)], ids=str)
def test_one_place_is_called_one_way(data):
    config = PretrainConfig(data=data, out="b")
    assert (config.data, config.sources) == ("a", ["a"])
    assert PretrainConfig(data=("a", Path("c")), out="b").data == ["a", "c"]


def test_patients_are_those_of_all_manifests(run):
    root, config, result = run
    known = patients_of(config, result.images)
    (root / "more.csv").write_text("image,patient\nelsewhere.png,z\n")
    several = [str(root / "more.csv"), str(root), str(root / "list.csv")]
    assert known and all(known) and patients_of(dataclasses.replace(config, data=several), result.images) == known
    assert patients_of(dataclasses.replace(config, data=several[:2]), result.images) == [""] * len(known)


def test_patients_are_known_however_a_file_is_spelt(run, tmp_path, monkeypatch):
    """A folder that is named from here, and a manifest with whole paths and blanks around ids."""
    root, config, _ = run
    rows = [f"{root / f'{number}.png'},{patient} " for number, patient in enumerate("aabbcd")]
    (tmp_path / "whole.csv").write_text("\n".join(["image,patient", *rows, ""]))
    monkeypatch.chdir(root.parent)
    several = dataclasses.replace(config, data=[root.name, str(tmp_path / "whole.csv")], out=str(tmp_path / "run"))
    images = run_pretraining(several, progress=False).images
    known = patients_of(several, images)
    assert known == ["aabbcd"[int(Path(source).stem)] for source in images.sources()]


def test_films_of_a_set_without_hashes_are_told_apart_by_what_is_kept(run):
    images = run[2].images
    told = SimpleNamespace(hashes=lambda: ["", "", "x"], checksums=lambda: images.checksums()[[0, 0, 1]])
    first, second, third = looks_of(told)
    assert first == second and third == "x" and first.startswith("crc ")


def test_the_loss_is_logged_and_is_that_of_the_model(run):
    root, config, result = run
    row = 480 + 2 * 44
    count = 6 - len(result.images)  # of the radiographs held out, with patch means alone and a line below
    assert cv2.imread(str(result.picture)).shape == (count * (row + 12) - 12 + 44, 6 * 480 + 5 * 12, 3)
    log = [json.loads(line) for line in (root / "run" / "log.jsonl").read_text().splitlines()]
    assert ["val_loss" in line for line in log] == [False, True, True]
    trained = {name.rsplit("/", 1)[-1] for name in result.images.sources()}
    held = {f"{number}.png" for number in range(6)} - trained
    assert held and trained
    for pair in ({"0.png", "1.png"}, {"2.png", "3.png"}):  # a patient's
        assert pair <= held or pair <= trained
    task, model = PretrainTask(config), hx.load_model(root / "run" / "model").eval()
    task.build()
    rows = [row for row, source in enumerate(result.images.images.sources()) if source.rsplit("/", 1)[-1] in held]
    held_out = result.images.images.subset(rows)
    accelerator = SimpleNamespace(process_index=0, num_processes=1, device=torch.device("cpu"), autocast=nullcontext)
    training = SimpleNamespace(accelerator=accelerator, sum=lambda values: {k: float(v) for k, v in values.items()})
    with torch.no_grad():
        for size in (1, 2, 3):
            shared = dataclasses.replace(config, batch_size=size)
            loss = HeldOut(shared, held_out, 16, task.predict).loss(training, task, model)
            assert loss == pytest.approx(log[-1]["val_loss"], rel=1e-5)


def test_processes_call_the_model_equally_often_and_count_each_image_once(run):
    _, config, result = run
    validation = HeldOut(config, result.images, 16, 1.0)
    seen = [[(batch["index"].tolist(), counts) for batch, counts in validation._batches(rank, 3)] for rank in range(3)]
    assert len({len(part) for part in seen}) == 1
    counted = [row for part in seen for rows, counts in part for row in rows if counts]
    assert sorted(counted) == list(range(len(result.images)))
