"""Uncertain labels teach by a policy and are tested on by none."""

from __future__ import annotations

import re

import numpy as np
import pytest

import hdxray_fast as hx
from hdxray_fast.classify.labels import read_labels


def manifest(tmp_path, split=True):
    """40 patients; every fourth label of edema is uncertain, in every split."""
    rows = ["image,patient,edema,nodule" + (",split" if split else "")]
    for i in range(40):
        edema = -1 if i % 4 == 3 else i % 2 if i % 8 < 4 else (i + 1) % 2
        name = ["train", "train", "val", "test"][i // 10]
        rows.append(f"{i}.png,p{i},{edema},{i % 2}" + (f",{name}" if split else ""))
    path = tmp_path / "labels.csv"
    path.write_text("\n".join(rows) + "\n")
    return path


@pytest.mark.parametrize("policy", ["ignore", "zeros", "ones", "edema=ones", {"edema": "zeros"}])
def test_the_policy_is_for_training(tmp_path, policy):
    """Validation and test are the same whatever the policy: what is uncertain there is not known, and counted."""
    table = read_labels(manifest(tmp_path), uncertain=policy)
    expected = {"ignore": np.nan, "zeros": 0.0, "ones": 1.0}[policy if policy in ("ignore", "zeros", "ones") else
                                                             "ones" if policy == "edema=ones" else "zeros"]  # fmt: skip
    for split, value in (("train", expected), ("val", np.nan), ("test", np.nan)):
        part = table.split(split)
        unsure = [int(path.rsplit("/", 1)[-1][:-4]) % 4 == 3 for path in part.paths]
        np.testing.assert_array_equal(part.labels[unsure, 0], np.float32(value))
        assert not np.isnan(part.labels[~np.array(unsure)]).any()
    (told,) = [note for note in table.notes if "uncertain" in note]
    assert told.startswith("5 uncertain labels in val and test count for nothing (edema 5)")


def test_splits_do_not_depend_on_the_policy(tmp_path):
    data = manifest(tmp_path, split=False)
    tables = [read_labels(data, uncertain=policy) for policy in ("ignore", "zeros", "ones")]
    assert tables[0].splits == tables[1].splits == tables[2].splits
    assert set(tables[0].splits) == {"train", "val", "test"}


def test_policies_of_classes_not_asked_for_are_dropped_and_told(tmp_path):
    table = read_labels(manifest(tmp_path), classes=["edema"], uncertain="edema=ones, nodule=zeros")
    assert table.split("train").labels[3, 0] == 1
    assert "uncertain: nodule: none of the classes asked for, its policy is dropped" in table.notes
    with pytest.raises(hx.ConfigError, match=re.escape("uncertain: names 'nodul', classes are edema, nodule")):
        read_labels(manifest(tmp_path), uncertain="edema=ones, nodul=zeros")
    with pytest.raises(hx.ConfigError, match="uncertain: got 'one'"):
        read_labels(manifest(tmp_path), classes=["edema"], uncertain="nodule=one")


def test_evaluation_asks_for_no_policy(tmp_path, capsys):
    """Trained with a policy per class, one class is evaluated alone; what is uncertain is told of, and no more."""
    cv2, torch = pytest.importorskip("cv2"), pytest.importorskip("torch")
    for package in ("sklearn", "matplotlib", "pyarrow"):
        pytest.importorskip(package)
    from hdxray_fast.classify.evaluation import evaluate_files
    from hdxray_fast.classify.probe import run_probe

    data, rng = manifest(tmp_path), np.random.default_rng(0)
    for i in range(40):
        assert cv2.imwrite(str(tmp_path / f"{i}.png"), rng.integers(0, 255, (64, 64)).astype(np.uint8))
    torch.manual_seed(0)
    encoder = hx.create_encoder(
        "vit_tiny_patch16", img_size=64, depth=1, embed_dim=24, num_heads=3, contour="rectangle"
    )
    settings = {"uncertain": "edema=ones, nodule=zeros", "bootstraps": 0, "workers": 0, "pool": "mean"}
    out = tmp_path / "probe"
    result = run_probe(hx.ProbeConfig(str(data), str(out), "", **settings), encoder, progress=False)
    options = {"bootstraps": 0, "workers": 0, "max_bad_share": 0}
    capsys.readouterr()
    report = evaluate_files(out, data, tmp_path / "edema", classes=["edema"], **options)
    assert "3 uncertain labels left out" in capsys.readouterr().err
    assert report["images"] == 7  # of ten in test; of three nobody is sure
    assert report["classes"]["edema"]["auroc"] == result.report["classes"]["edema"]["auroc"]
    assert (report["classes"]["edema"]["positive"], report["classes"]["edema"]["negative"]) == (4, 3)
