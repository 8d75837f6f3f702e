"""Label tables: every preset on a small file with the real columns and quirks, policies, splits, refusals."""

from __future__ import annotations

import re
from dataclasses import replace

import numpy as np
import pytest

import hdxray_fast as hx
from hdxray_fast.classify.label_fractions import take_fraction
from hdxray_fast.classify.label_presets import CHEXPERT, NIH14, PRESETS
from hdxray_fast.classify.label_table import LabelTable
from hdxray_fast.classify.labels import (
    auroc_margin,
    check_table,
    describe_labels,
    read_labels,
    read_manifest,
    redrawn,
    refuse_duplicates,
    thin_test,
)
from hdxray_fast.classify.renaming import NoSuchClass
from hdxray_fast.classify.uncertain import decide_uncertain
from hdxray_fast.data.splits import fill_splits

pytest.importorskip("pandas")
NAN = float("nan")


def write(path, text: str):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)
    return path


def generic(tmp_path, rows: int = 40, **columns):
    """A manifest with `rows` images of rows / 2 patients."""
    frame = {
        "image": [f"{i}.png" for i in range(rows)],
        "patient": [f"p{i // 2}" for i in range(rows)],
        "edema": [i % 2 for i in range(rows)],
        "nodule": [int(i % 3 == 0) for i in range(rows)],
        **columns,
    }
    lines = [",".join(frame), *(",".join(str(v) for v in row) for row in zip(*frame.values(), strict=True))]
    return write(tmp_path / "labels.csv", "\n".join(lines) + "\n")


def test_columns_that_a_user_names(tmp_path):
    text = "Foto;Fall;Alter;Größe;Erguss\n" + "".join(f"{i}.png;0{i // 2},5;{i};1,7{i};{i % 2}\n" for i in range(40))
    data = write(tmp_path / "labels.csv", text)
    with pytest.raises(hx.ConfigError, match=r"no column of images; .*name it with image_column \(--image-column\)"):
        read_labels(data)
    with pytest.raises(hx.ConfigError, match=r"^patient_column: .*labels.csv has no column 'Name'; its first line"):
        read_labels(data, image_column="foto", patient_column="Name")
    table = read_labels(data, image_column="foto", patient_column="Fall")
    assert (table.paths[3], table.patients[3]) == (str(tmp_path / "3.png"), "01,5")  # no number: an id
    assert table.classes == ["Erguss"]
    assert "left out: Alter, Größe (values other than 0 and 1)" in table.notes  # though ages 0 and 1 are there
    with pytest.raises(hx.ConfigError, match=r"row 4, column 'Alter' holds another number"):
        read_labels(data, image_column="foto", classes=["Alter", "Erguss"])
    with pytest.raises(hx.ConfigError, match=r"^image_column: the preset 'nih14' knows its columns"):
        read_labels(data, preset="nih14", image_column="Foto")
    german = read_labels(write(data, text.replace("Foto", "Dateiname").replace("Fall", "Patienten-ID")))
    assert (german.paths, german.patients) == (table.paths, table.patients)


def test_grades_and_slips_are_refused_by_name(tmp_path):
    """Few values, or labels in most of the cells: what else stands there is a mistake, or another code of labels."""
    for wrong in ([i % 3 for i in range(40)], [i % 2 + 1 for i in range(40)], [2, *[1, 0] * 19, 7]):
        with pytest.raises(hx.ConfigError, match=r"column 'grade' holds another number"):
            read_labels(generic(tmp_path, grade=wrong))


def test_crosses_and_blank_cells_are_told_to_have_no_negatives(tmp_path):
    """As lists in Excel are kept; a blank cell is 'not known' and no 0, whatever was meant."""
    crossed = ["x", "", "X", ""] * 10
    told = (
        r"labels.csv: column '{}' holds nothing but 'x' and blank cells; a blank one says 'not known', .*: write 1 for "
        "'x', and 0 where the finding is not there"
    )
    with pytest.raises(hx.ConfigError, match=told.format("edema") + r" \(so do nodule\)$"):
        read_labels(generic(tmp_path, edema=crossed, nodule=crossed))
    with pytest.raises(hx.ConfigError, match=told.format("mark") + "$"):
        read_labels(generic(tmp_path, mark=crossed), classes=["mark", "edema"])
    also = read_labels(generic(tmp_path, mark=crossed))
    assert also.classes == ["edema", "nodule"]
    assert any(note.startswith("warning: mark is not read as a class: it holds nothing but 'x'") for note in also.notes)
    with pytest.raises(hx.ConfigError, match=r"row 3, column 'edema' holds 'x'; labels are 1, 0"):
        read_labels(generic(tmp_path, edema=[0, "x", *[0, 1] * 19]))
    with pytest.raises(hx.ConfigError, match=r"0 negative .*; a blank cell says 'not known': write 0 where"):
        read_labels(generic(tmp_path, edema=[1, ""] * 20))


def test_rows_are_those_of_the_file_where_it_has_blank_lines(tmp_path):
    head, *rows = generic(tmp_path).read_text().splitlines()
    rows[1] += "\n\n  \n"  # rows 4 to 6 are blank, and cells may have lines of their own
    rows[0] = rows[0].replace("p0", '"p\n\n0"')
    path = write(tmp_path / "blank.csv", "\n".join(["", head, *rows]))
    assert read_manifest(path).lines == [3, 4, *range(8, 46)]
    rows[2] = rows[2].replace("p1", "")
    write(path, "\n".join([head, *rows]))
    with pytest.raises(hx.ConfigError, match="row 7 has nothing in the column 'patient'"):
        read_manifest(path)


def test_a_share_of_nothing_is_told_where_a_split_lacks(tmp_path):
    with pytest.raises(hx.ConfigError, match="no image is in the split 'val' and val_share is 0: raise it"):
        read_labels(generic(tmp_path), val_share=0)
    with pytest.raises(hx.ConfigError, match="no image is in the split 'test' and test_share is 0: raise it"):
        read_labels(generic(tmp_path), test_share=0)


def test_generic_manifest(tmp_path):
    table = read_labels(generic(tmp_path), val_share=0.2, test_share=0.3)
    assert table.classes == ["edema", "nodule"]
    assert table.paths[3] == str(tmp_path / "3.png")
    assert table.labels.dtype == np.float32
    np.testing.assert_array_equal(table.labels[:, 0], np.arange(40) % 2)
    assert set(table.splits) == {"train", "val", "test"}
    assert table.splits[::2] == table.splits[1::2]  # both images of a patient are together
    balance = {(line["split"], line["class"]): line for line in table.balance()}
    assert sum(line["positive"] for key, line in balance.items() if key[1] == "edema") == 20
    assert (table.splits.count("val"), table.splits.count("test")) == (8, 12)
    assert repr(table) == "LabelTable(40 images of 20 patients, 20 train, 8 val, 12 test; classes: edema, nodule)"
    path = generic(tmp_path)
    head, *rows = path.read_text().splitlines()
    again = read_labels(write(path, "\n".join([head, *rows[::-1]])), val_share=0.2, test_share=0.3)
    assert again.splits[::-1] == table.splits  # whatever the order of the rows
    assert read_labels(generic(tmp_path), classes=["nodule"]).classes == ["nodule"]
    other = read_labels(generic(tmp_path), images=tmp_path / "elsewhere")
    assert other.paths[0] == str(tmp_path / "elsewhere" / "0.png")


def test_classes_that_a_table_calls_otherwise_are_renamed(tmp_path):
    path, asked = generic(tmp_path), ["Mass", "Edema"]
    with pytest.raises(NoSuchClass, match="has no column 'Mass'") as lost:
        read_manifest(path, classes=asked)
    told = str(lost.value.with_way_out(asked))
    assert told.endswith("what is called otherwise there is read by --rename COLUMN=Mass (rename in Python)")
    with pytest.raises(NoSuchClass, match="is 'nodule' meant") as near:
        read_manifest(path, classes=["nodules"])
    assert "--rename nodule=nodules" in str(near.value.with_way_out(["nodules"]))
    table, plain = read_manifest(path, classes=asked, rename="nodule=Mass, edema=Edema"), read_manifest(path)
    assert table.classes == asked
    np.testing.assert_array_equal(table.labels, plain.labels[:, ::-1])
    assert read_manifest(path, rename={"nodule": "Mass"}).classes == ["edema", "Mass"]
    swapped = read_manifest(path, classes=["nodule", "edema"], rename="nodule=edema, edema=nodule")
    np.testing.assert_array_equal(swapped.labels, plain.labels)
    assert swapped.classes == ["nodule", "edema"] and plain.classes == ["edema", "nodule"]
    (tmp_path / "words.csv").write_text("image,label\n0.png,effusions\n1.png,none\n")
    with pytest.raises(NoSuchClass) as other:
        read_manifest(tmp_path / "words.csv", classes=["effusion", "none"], multiclass=True)
    assert "--rename effusions=effusion" in str(other.value.with_way_out(["effusion", "none"]))
    for rename, words in {
        "nodule": "accepted is THEIRS=OURS",
        "nodule=Mass, edema=Mass": "gives one name to two classes",
        "nodule=Masse": "'Masse' is none of the classes asked for",
        "none=Mass": "has no column 'none'",
        "Edema=Mass": "'Edema' is asked for too, and would be read as 'Mass'",
    }.items():
        with pytest.raises(hx.ConfigError, match=words):
            read_manifest(path, classes=asked, rename=rename)


def test_a_bad_cell_does_not_make_a_class_vanish(tmp_path):
    with pytest.raises(hx.ConfigError, match=r"labels.csv: row 5, column 'edema' holds a text; labels are 1, 0"):
        read_labels(generic(tmp_path, edema=[0, 1, 0, "O", *[1] * 36]))
    sites = ["a", "b", *"1" * 8] * 4
    path = generic(tmp_path, sex=["m", "f"] * 20, label=["tb"] * 40, site=["s" + s for s in sites], empty=[""] * 40)
    table = read_labels(path, test_share=0.3)
    assert table.classes == ["edema", "nodule"]
    assert table.notes[:2] == [
        "classes: edema, nodule; name them with --classes if one of these is none",
        "not read as classes: sex, label, site; --multiclass true reads the names in 'label'",
    ]
    assert table.notes[2].endswith("left out: empty")
    lines = generic(tmp_path).read_text().splitlines()
    write(
        tmp_path / "labels.csv", "\n".join([f",{lines[0]}", *(f"{i % 2},{line}" for i, line in enumerate(lines[1:]))])
    )
    assert read_labels(tmp_path / "labels.csv", test_share=0.3).classes == ["edema", "nodule"]  # an index is no class


@pytest.mark.parametrize("name", ["SPLIT", " split ", "Dataset", "subset", "set", "Partition", "Fold"])
def test_columns_are_found_whatever_their_case(tmp_path, name):
    splits = ["Training"] * 20 + ["validation"] * 10 + ["TEST"] * 10
    path = generic(tmp_path, **{name: splits})
    table = read_labels(write(path, path.read_text().replace("patient,", "PatientId, ").replace("image,", "Image, ")))
    assert table.splits == ["train"] * 20 + ["val"] * 10 + ["test"] * 10
    assert table.patients[:3] == ["p0", "p0", "p1"]
    assert not any("drawn" in note or "patient" in note for note in table.notes)
    assert read_labels(generic(tmp_path, dataset=["nih", "chexpert"] * 20)).classes == ["edema", "nodule"]
    with pytest.raises(hx.ConfigError, match=r"labels.csv: row 3, column '.*' names no split; accepted are train, val"):
        read_labels(generic(tmp_path, **{name: ["train", "tset", *splits[2:]]}))


@pytest.mark.parametrize("given", ["", "val", "test", "val test"])
def test_drawn_splits_are_drawn_again_from_the_same_manifest_alone(tmp_path, given):
    """Training lacked some splits; evaluation draws just these, or nothing where the manifest is another."""
    names = given.split()
    split = ["train"] * 28 + [name for name in names for _ in range(12 // len(names))]
    split += ["train"] * (40 - len(split))
    edema = [{1: -1, 7: -1}.get(i, i % 2) for i in range(40)]  # uncertain, ignored: left out in both
    columns = {"edema": edema, "nodule": edema, **({"split": split} if given else {})}
    data = generic(tmp_path, **columns)
    trained = read_labels(data, val_share=0.25, test_share=0.2, split_seed=5)
    again = redrawn(read_manifest(data), trained.origin, str(data))
    kept = dict(zip(trained.paths, trained.splits, strict=True))
    assert {path: split for path, split in zip(again.paths, again.splits, strict=True) if path in kept} == kept
    assert (len(again), len(kept)) == (40, 38)

    def other(**changes):
        made = {name: value for name, value in {**columns, **changes}.items() if value is not None}
        return redrawn(read_manifest(generic(tmp_path, **made)), trained.origin, "other")

    assert other(patient=["q", "q", *(f"p{i // 2}" for i in range(2, 40))]) is None
    assert other(split=["test"] * 10 + ["train"] * 20 + ["val"] * 10) is None
    assert (other(split=None) is None) == bool(given)


@pytest.mark.parametrize(
    ("cells", "labels"),
    [
        (["Yes", "no", ""], [1, 0, NAN]),
        (["no", "no", "no"], [0, 0, 0]),
        (["ja", "Nein", ""], [1, 0, NAN]),
        (["X", "0", ""], [1, 0, NAN]),
        (["positive", "negative", "negative"], [1, 0, 0]),
        (["ja", "ja", "ja"], None),  # one of two may be anything
        (["ja", "nein", "no"], None),
        (["ja", "nein", "0"], None),
    ],
)
def test_words_for_labels(tmp_path, cells, labels):
    rows = "".join(f"{i}.png,p{i},{cell}\n" for i, cell in enumerate(cells))
    data = write(tmp_path / "labels.csv", f"image,patient,mass\n{rows}")
    if labels is None:
        with pytest.raises(hx.ConfigError, match=r"true, false, yes and no; write other words as 1 and 0.*--classes"):
            read_manifest(data, classes=["mass"])
        return
    table = read_manifest(data)
    np.testing.assert_array_equal(table.labels[:, 0], labels)
    pair = {
        "X": "mass: 'x' is read as 1 and '0' as 0",
        "ja": "mass: 'ja' is read as 1 and 'nein' as 0",
        "positive": "mass: 'positive' is read as 1 and 'negati",
    }
    assert any(note.startswith(pair[cells[0]]) for note in table.notes) if cells[0] in pair else len(table.notes) == 1


def test_columns_and_labels_by_any_case(tmp_path):
    text = "Image,PATIENT,Mass \n" + "".join(f"{i}.png,p{i},{i % 2}\n" for i in range(40))
    table = read_labels(write(tmp_path / "labels.csv", text), classes=["mass"])
    assert table.classes == ["mass"] and table.labels[:4, 0].tolist() == [0, 1, 0, 1]
    text = "image,Label\n" + "".join(f"{i}.png,{('tb', 'none')[i % 2]}\n" for i in range(40))
    assert read_labels(write(tmp_path / "one.csv", text), multiclass=True).classes == ["none", "tb"]
    for more, message in (
        ("a.png,TB\n", "differ in case alone; write them alike"),
        ("a.png,rare\n", r"class 'rare' has [01] positive .*; remove its rows"),
    ):
        path = write(tmp_path / "one.csv", text + more)
        with pytest.raises(hx.ConfigError, match=message):
            read_labels(path, multiclass=True)
    with pytest.raises(hx.ConfigError, match="row 42, column 'Label' holds none of the classes none, tb; remove such"):
        read_labels(path, multiclass=True, classes=["none", "tb"])


def test_a_split_without_any_known_label_is_not_replaced(tmp_path):
    data = generic(tmp_path, split=["train"] * 20 + ["val"] * 10 + ["test"] * 10)
    data.write_text(re.sub(r"(?m)^(\d+\.png,p\d+),.*,test$", r"\1,,,test", data.read_text()))
    with pytest.raises(hx.ConfigError, match="none of the 10 images in the split 'test' has a label that is known"):
        read_labels(data)


def test_a_manifest_is_the_same_by_whatever_path_it_is_read(tmp_path, monkeypatch):
    data = generic(tmp_path)
    lines = [",".join(line.split(",")[:1] + line.split(",")[2:]) for line in data.read_text().splitlines()]
    data.write_text("\n".join(lines) + "\n")  # no patient column
    monkeypatch.chdir(tmp_path)
    near, far = read_labels(data.name), read_labels(data)
    assert near.patients[3] == far.patients[3] == "3.png"
    assert (near.splits, near.origin) == (far.splits, far.origin)
    assert near.notes[0].startswith("warning: no patient column: every image counts as a patient of its own")


def test_splits_that_are_drawn_are_said(tmp_path):
    assert (
        "no split column: splits are drawn by patient, --split-seed 3"
        in read_labels(generic(tmp_path), split_seed=3).notes
    )
    table = read_labels(generic(tmp_path, split=["train"] * 30 + ["test"] * 10), val_share=0.3)
    assert table.notes[-1] == "no image is given as val: its patients are drawn from train, --split-seed 0"


def test_patient_ids_are_text(tmp_path):
    ids = ["000", "0", "007", "7 ", " 7", *(f"{i}" for i in range(10, 45))]
    table = read_labels(generic(tmp_path, patient=ids), test_share=0.3)
    assert table.patients[:5] == ["000", "0", "007", "7", "7"]


def test_given_splits_are_kept_and_val_comes_out_of_train(tmp_path):
    split = ["train"] * 30 + ["testing"] * 10
    table = read_labels(generic(tmp_path, split=split), val_share=0.3)
    assert table.splits[30:] == ["test"] * 10
    assert set(table.splits[:30]) == {"train", "val"}
    without_test = read_labels(generic(tmp_path, split=["train"] * 30 + ["val"] * 10), test_share=0.3)
    assert set(without_test.splits[:30]) == {"train", "test"}
    complete = ["train"] * 20 + ["valid"] * 10 + ["test"] * 10
    assert read_labels(generic(tmp_path, split=complete)).splits[20:30] == ["val"] * 10


def test_multiclass_names(tmp_path):
    path = generic(tmp_path, label=["normal", "tb", "mass", "tb"] * 10)
    table = read_labels(path, multiclass=True)
    assert table.classes == ["mass", "normal", "tb"]
    np.testing.assert_array_equal(table.labels.sum(1), 1)
    assert table.labels[1].tolist() == [0, 0, 1]
    with pytest.raises(hx.ConfigError, match="row 4, column 'label' holds none of the classes normal, tb"):
        read_labels(path, multiclass=True, classes=["normal", "tb"])
    with pytest.raises(hx.ConfigError, match="no class or to several"):
        read_labels(generic(tmp_path), multiclass=True)


@pytest.mark.parametrize(
    ("policy", "expected"),
    [
        ("ignore", [NAN, NAN]),
        ("zeros", [0, 0]),
        ("ones", [1, 1]),
        ({"a": "ones"}, [1, NAN]),
        ({"a": "zeros", "b": "ones"}, [0, 1]),
        ("a=zeros, b=ones", [0, 1]),
        ("b=ones", [NAN, 1]),
    ],
)
def test_uncertain_labels(policy, expected):
    decided = decide_uncertain(np.array([[-1, -1], [1, 0]], np.float32), ["a", "b"], policy)
    np.testing.assert_array_equal(decided, np.array([expected, [1, 0]], np.float32))


def test_uncertain_policies_are_checked():
    for policy, message in (
        ("maybe", "'maybe'"),
        ({"c": "ones"}, "names 'c'"),
        ("a=ones,c=ones", "names 'c'"),
        ("a=", "got ''"),
        ({"a": "soft"}, "'soft'"),
    ):
        with pytest.raises(hx.ConfigError, match=message):
            decide_uncertain(np.zeros((1, 2), np.float32), ["a", "b"], policy)


def chexpert(tmp_path):
    header = "Path,Sex,Age,Frontal/Lateral,AP/PA," + ",".join(CHEXPERT)
    blank, first = [""] * 14, "CheXpert-v1.0-small/train/patient00001/study1/view1_frontal.jpg"
    lines = [header]
    for patient in range(1, 13):
        values = list(blank)
        values[2] = ["1.0", "0.0", "-1.0", ""][patient % 4]
        name = f"CheXpert-v1.0-small/train/patient{patient:05d}/study1/view1_frontal.jpg"
        lines.append(f"{name},Female,68,Frontal,AP," + ",".join(values))
    lines.append(first.replace("view1_frontal", "view2_lateral") + ",Female,68,Lateral,," + ",".join(blank))
    root = tmp_path / "CheXpert-v1.0-small"
    write(root / "train.csv", "\n".join(lines) + "\n")
    valid = [header]
    for patient in range(1, 5):
        name = f"CheXpert-v1.0-small/valid/patient6454{patient}/study1/view1_frontal.jpg"
        valid.append(f"{name},Male,73,Frontal,AP," + ",".join([str(patient % 2)] * 14))
    write(root / "valid.csv", "\n".join(valid) + "\n")
    write(tmp_path / first, "")
    return root


def test_chexpert(tmp_path):
    root = chexpert(tmp_path)
    raw = PRESETS["chexpert"](root, None)
    assert raw.classes == list(CHEXPERT)
    assert len(raw) == 16
    assert raw.notes[0] == "1 image of no frontal view"
    assert raw.notes[1:] == ["no list of the test set: valid.csv, which radiologists labelled, is the test split"]
    assert raw.labels[:4, 2].tolist() == [0, -1, 0, 1]  # patients 1 to 4: 0.0, -1.0, blank, 1.0
    assert raw.labels[:12, 0].tolist() == [0] * 12  # a blank is a negative
    assert raw.patients[0] == "patient00001"
    assert raw.splits == ["train"] * 12 + ["test"] * 4
    assert raw.paths[0] == str(tmp_path / "CheXpert-v1.0-small/train/patient00001/study1/view1_frontal.jpg")
    with pytest.raises(hx.ConfigError, match=r"^multiclass: "):
        read_labels(root, preset="chexpert", multiclass=True)
    without = (root / "train.csv").read_text().replace(",Frontal,", ",").replace(",Lateral,", ",")
    path = write(tmp_path / "other" / "train.csv", without.replace(",Frontal/Lateral,", ","))
    assert PRESETS["chexpert"](path, None).notes == raw.notes[:1]
    table = read_labels(root, preset="chexpert", classes=["Cardiomegaly"], uncertain="ones", val_share=0.3)
    assert {split for split, name in zip(table.splits, table.paths, strict=True) if "/valid/" in name} == {"test"}
    assert {split for split, name in zip(table.splits, table.paths, strict=True) if "/train/" in name} == {
        "train",
        "val",
    }
    taught = table.split("train")
    at = [int(patient[7:]) % 4 for patient in taught.patients]
    assert taught.labels[:, 0].tolist() == [[1, 0, 1, 0][place] for place in at]


def test_mimic(tmp_path):
    labels, splits, views = ["subject_id,study_id,Edema,Pneumonia"], ["dicom_id,study_id,subject_id,split"], []
    for i in range(12):
        labels.append(f"1000{i:04d},5000{i:04d},{['1.0', '0.0', '-1.0', ''][i % 4]},{i % 2}.0")
        for view in ("PA", "LATERAL"):
            splits.append(f"d{i}{view},5000{i:04d},1000{i:04d},{['train', 'train', 'validate', 'test'][i // 3]}")
            views.append(f"d{i}{view},{view}")
    splits.append("dX,59999999,19999999,train")
    views.append("dX,PA")
    write(tmp_path / "mimic-cxr-2.0.0-chexpert.csv", "\n".join(labels))
    write(tmp_path / "mimic-cxr-2.0.0-split.csv", "\n".join(splits))
    write(tmp_path / "mimic-cxr-2.0.0-metadata.csv", "\n".join(["dicom_id,ViewPosition", *views]))
    table = read_labels(tmp_path, preset="mimic-cxr", classes=["Edema", "Pneumonia"], uncertain="zeros")
    assert len(table) == 12
    assert table.splits == ["train"] * 6 + ["val"] * 3 + ["test"] * 3
    assert table.labels[:4, 0].tolist() == [1, 0, 0, 0]
    assert table.paths[0] == str(tmp_path / "files/p10/p10000000/s50000000/d0PA.jpg")
    assert table.notes[:2] == ["1 image of studies without labels", "12 images of no frontal view"]
    assert table.notes[2].startswith("2 uncertain labels in val and test count for nothing (Edema 2)")


def test_nih14(tmp_path):
    lines = ["Image Index,Finding Labels,Follow-up #,Patient ID,Patient Age,Patient Gender,View Position"]
    for i in range(30):
        finding = ["No Finding", "Hernia|Mass", "Pleural_Thickening"][i % 3]
        lines.append(f"{i:08d}_000.png,{finding},0,{i},60,M,PA")
    write(tmp_path / "Data_Entry_2017.csv", "\n".join(lines))
    write(tmp_path / "images_003" / "images" / "00000001_000.png", "")
    table = PRESETS["nih14"](tmp_path, None)
    assert table.classes == list(NIH14)
    assert table.labels[0].sum() == 0
    assert [table.classes[c] for c in np.flatnonzero(table.labels[1])] == ["Mass", "Hernia"]
    assert table.paths[1].endswith("images_003/images/00000001_000.png")
    assert "are not beside the CSV" in table.notes[0]
    write(tmp_path / "small" / "00000001_000.png", "")
    with pytest.raises(hx.ConfigError, match=r"^images: .*images_003.*00000001_000.png and .*small.*have one name"):
        PRESETS["nih14"](tmp_path, None)
    assert PRESETS["nih14"](tmp_path, tmp_path / "small").paths[1] == str(tmp_path / "small" / "00000001_000.png")
    (tmp_path / "small" / "00000001_000.png").unlink()
    write(tmp_path / "train_val_list.txt", "\n".join(f"{i:08d}_000.png" for i in range(20)))
    write(tmp_path / "test_list.txt", "\n".join(f"{i:08d}_000.png" for i in range(20, 30)))
    assert PRESETS["nih14"](tmp_path, None).splits == ["train"] * 20 + ["test"] * 10
    write(tmp_path / "test_list.txt", "\n".join(f"{i:08d}_000.png" for i in range(22, 30)))
    table = PRESETS["nih14"](tmp_path, None)
    assert (len(table), table.splits.count("train")) == (28, 20)
    assert table.notes == ["2 images in neither train_val_list.txt nor test_list.txt"]
    write(tmp_path / "Data_Entry_2017.csv", lines[0] + "\n1.png,Scoliosis,0,1,60,M,PA\n")
    with pytest.raises(hx.ConfigError, match="row 2, column 'Finding Labels' holds a finding"):
        PRESETS["nih14"](tmp_path, None)


def test_rsna_repeats_rows(tmp_path):
    lines = ["patientId,x,y,width,height,Target"]
    for i in range(30):
        boxes = ["10,20,30,40,1", "50,20,30,40,1"] if i % 3 == 0 else [",,,,0"]
        lines += [f"id{i:02d},{box}" for box in boxes]
    path = write(tmp_path / "stage_2_train_labels.csv", "\n".join(lines))
    table = read_labels(path, preset="rsna", val_share=0.2, test_share=0.2)
    assert len(table) == 30
    assert table.labels[:, 0].tolist() == [float(i % 3 == 0) for i in range(30)]
    assert table.paths[0] == str(tmp_path / "stage_2_train_images" / "id00.dcm")
    with pytest.raises(hx.ConfigError, match="'Nonsense' is not in"):
        read_labels(path, preset="rsna", classes=["Nonsense"])


def test_vindr_readers_vote(tmp_path):
    lines = ["image_id,class_name,class_id,rad_id,x_min,y_min,x_max,y_max"]
    lines += ["a,Cardiomegaly,3,R1,1,1,2,2", "a,Cardiomegaly,3,R1,3,3,4,4", "a,No finding,14,R2,,,,", "a,Mass,1,R3,,,,"]
    lines += ["b,Cardiomegaly,3,R1,1,1,2,2", "b,Cardiomegaly,3,R2,1,1,2,2", "b,No finding,14,R3,,,,"]
    lines += ["c,No finding,14,R1,,,,", "c,No finding,14,R2,,,,", "c,No finding,14,R3,,,,"]
    table = PRESETS["vindr"](write(tmp_path / "train.csv", "\n".join(lines)), None)
    assert table.classes == ["Cardiomegaly", "Mass"]
    assert table.labels.tolist() == [[0, 0], [1, 0], [0, 0]]  # one of three, two of three, none
    wide = write(tmp_path / "wide.csv", "image_id,rad_id,Mass,No finding\na,R1,1,0\na,R2,1,0\na,R3,0,1\nb,R1,0,1\n")
    table = PRESETS["vindr"](wide, None)
    assert (table.classes, table.labels.tolist()) == (["Mass"], [[1], [0]])


def test_vindr_as_physionet_has_it(tmp_path):
    rows = [f"im{i},R{r},{int(i % 2 == 0 and r < 2)},{int(i % 2)}" for i in range(8) for r in range(3)]
    folder = tmp_path / "annotations"
    write(folder / "image_labels_train.csv", "\n".join(["image_id,rad_id,Mass,No finding", *rows]))
    write(folder / "image_labels_test.csv", "image_id,Mass,No finding\nt0,1,0\nt1,0,1\n")  # the readers' consensus
    write(tmp_path / "test" / "t1.dicom", "")
    table = PRESETS["vindr"](folder, None)
    assert table.labels[:, 0].tolist() == [1, 0] * 4 + [1, 0]
    assert table.splits == ["train"] * 8 + ["test"] * 2
    assert table.paths[9] == str(tmp_path / "test" / "t1.dicom")
    assert PRESETS["vindr"](tmp_path, None).paths == table.paths
    assert set(read_labels(folder, preset="vindr", val_share=0.4).splits) == {"train", "val", "test"}


def test_padchest_lists_in_text(tmp_path):
    lines = ["ImageID,ImageDir,PatientID,Projection,Labels"]
    for i in range(120):
        labels = "\"['cardiomegaly', ' pleural effusion ']\"" if i % 2 else "\"['normal']\""
        lines.append(f"{i}.png,{i % 3},pt{i},PA,{labels}")
    lines += ["x.png,0,ptx,L,\"['cardiomegaly']\"", "y.png,0,pty,PA,"]
    path = write(tmp_path / "PADCHEST_chest_x_ray_images_labels_160K.csv", "\n".join(lines))
    table = PRESETS["padchest"](path, None)
    assert table.classes == ["cardiomegaly", "pleural effusion"]
    assert table.labels[:2].tolist() == [[0, 0], [1, 1]]
    assert table.notes == ["1 image of no frontal view", "1 image without labels"]
    assert table.paths[4] == str(tmp_path / "1" / "4.png")
    write(path, path.read_text().replace(",pt5,", ",,").replace(",pt6,", ",,"))
    table = PRESETS["padchest"](path, None)
    assert table.patients[4:8] == ["pt4", "5.png", "6.png", "pt7"]
    assert table.notes[-1] == "2 images without PatientID: each a patient of its own"
    with pytest.raises(hx.ConfigError, match="'tuberculosis' is not in"):
        PRESETS["padchest"](path, None, classes=["tuberculosis"])


def test_padchest_images_that_say_nothing_are_left_out(tmp_path):
    kinds = ["['nodule', 'exclude']", "['suboptimal study']", "['unchanged']", "['unchanged', 'nodule']", "['normal']"]
    lines = ["ImageID,ImageDir,PatientID,Projection,Labels"]
    lines += [f'{i}.png,0,pt{i},PA,"{kinds[i % 5]}"' for i in range(300)]
    table = PRESETS["padchest"](write(tmp_path / "PADCHEST_x.csv", "\n".join(lines)), None)
    assert table.classes == ["nodule"]  # "unchanged" is on 60 images and is no finding
    assert len(table) == 120
    assert table.labels[:2, 0].tolist() == [1, 0]
    assert table.notes == ["180 images marked as unusable, or as unchanged and no more"]


def test_what_is_shown_before_training(tmp_path):
    text = describe_labels(read_labels(generic(tmp_path), val_share=0.2, test_share=0.3))
    assert "train" in text
    edema = next(line for line in text.splitlines() if line.startswith("edema"))
    assert sum(int(cell[1:]) for cell in edema.split() if cell.startswith("+")) == 20
    path = generic(tmp_path, edema=["", *(i % 2 for i in range(1, 40))], nodule=["", *(i % 2 for i in range(1, 40))])
    table = read_labels(path, test_share=0.3)
    assert len(table) == 39
    assert "left out: 1 image without any known label" in describe_labels(table)
    with pytest.raises(hx.ConfigError, match="no image has a label"):
        read_labels(generic(tmp_path, edema=[""] * 40), classes=["edema"])


@pytest.mark.parametrize("word", ["nan", "NaN", "NA", "inf", "null"])
def test_numbers_that_are_none_are_named(tmp_path, word):
    path = generic(tmp_path, edema=["", word, *(i % 2 for i in range(38))])
    for classes in (None, ["edema"]):
        with pytest.raises(hx.ConfigError, match=rf"labels.csv: row 3, column 'edema' holds '{word}'"):
            read_labels(path, classes=classes)


def test_rows_without_image_or_patient_are_named(tmp_path):
    for column in ("image", "patient"):
        values = [f"x{i}" if i != 4 else "" for i in range(40)]
        with pytest.raises(hx.ConfigError, match=f"row 6 has nothing in the column '{column}'"):
            read_labels(generic(tmp_path, **{column: values}))


def table_of(splits, patients=None, labels=None) -> LabelTable:
    count = len(splits)
    labels = np.tile([[1.0], [0.0]], (count, 1))[:count] if labels is None else labels
    patients = patients or [f"p{i}" for i in range(count)]
    return LabelTable([f"{i}.png" for i in range(count)], np.asarray(labels, np.float32), ["mass"], patients, splits)


def test_a_validation_to_choose_little_by_is_told():
    labels = [[1], [0]] * 10 + [[0]] * 9 + [[1], [0]]
    text = describe_labels(table_of(["train"] * 20 + ["val"] * 9 + ["test"] * 2, labels=labels))
    assert "warning: val has 9 images, few to choose by" in text
    assert "val has no positive or no negative of mass: the threshold stays at 0.5" in text
    assert "warning" not in describe_labels(table_of(["train"] * 20 + ["val"] * 11 + ["test"] * 30))


def test_a_test_split_that_says_little_is_told():
    def told(positive, negative):
        labels = [[1], [0]] * 20 + [[1]] * positive + [[0]] * negative
        return thin_test(table_of(["train"] * 29 + ["val"] * 11 + ["test"] * (positive + negative), labels=labels))

    assert told(7, 0) == ["warning: test has no positive or no negative of mass: no AUROC there"]
    (line,) = told(2, 10)
    assert line.startswith("warning: test is too small to say much: with 2 positive and 10 negative images of mass an")
    assert told(15, 15) == []


@pytest.mark.parametrize(("positives", "negatives"), [(10, 10), (5, 50), (40, 25)])
def test_the_margin_of_an_auroc_is_what_samples_show(positives, negatives):
    """Of draws from two exponential distributions, for which Hanley and McNeil's formula was made."""
    rng, draws = np.random.default_rng(0), 20_000
    scores = rng.exponential(4.0, (draws, positives, 1)), rng.exponential(1.0, (draws, 1, negatives))
    found = (scores[0] > scores[1]).mean((1, 2))
    assert found.mean() == pytest.approx(0.8, abs=0.01)
    assert auroc_margin(positives, negatives) == pytest.approx(1.96 * found.std(), rel=0.03)


def test_what_is_refused_before_training():
    good = ["train"] * 4 + ["val"] * 2 + ["test"] * 2
    check_table(table_of(good), "m.csv")
    with pytest.raises(hx.ConfigError, match=r"m.csv: 0.png \(train\) and 7.png \(test\) are of one patient"):
        check_table(table_of(good, patients=["p0", *(f"p{i}" for i in range(1, 7)), "p0"]), "m.csv")
    with pytest.raises(hx.ConfigError, match="'mass' has 1 positive and 3 negative"):
        check_table(table_of(good, labels=[[1], [0], [0], [0], [1], [0], [1], [0]]), "m.csv")
    with pytest.raises(hx.ConfigError, match="no image is in the split 'val'"):
        check_table(table_of(["train"] * 6 + ["test"] * 2), "m.csv")
    refuse_duplicates(table_of(good), ["a", "a", "b", "", "", "c", "d", "e"], "m.csv")
    with pytest.raises(hx.ConfigError, match=r"0.png \(train\) and 7.png \(test\) hold the same pixels"):
        refuse_duplicates(table_of(good), ["a", "b", "c", "d", "e", "f", "g", "a"], "m.csv")
    with pytest.raises(hx.ConfigError, match="some have none"):
        fill_splits(["train", ""], ["p0", "p1"], 0.1, 0.2, 0)
    with pytest.raises(hx.ConfigError, match="split: number 1 names no split"):
        fill_splits(["holdout"], ["p0"], 0.1, 0.2, 0)
    with pytest.raises(hx.ConfigError, match=r"val_share and test_share: 0\.6 and 0\.6"):
        fill_splits([""], ["p0"], 0.6, 0.6, 0)
    with pytest.raises(hx.ConfigError, match="val_share"):
        fill_splits(["train"], ["p0"], 1.0, 0.2, 0)


def test_fractions_are_nested_and_leave_evaluation_alone():
    table = table_of(["train"] * 200 + ["val"] * 10 + ["test"] * 10)
    small, large = take_fraction(table, 0.05, 3), take_fraction(table, 0.2, 3)
    assert small.splits.count("test") == large.splits.count("test") == 10
    assert 10 <= small.splits.count("train") <= 14
    assert 40 <= large.splits.count("train") <= 44
    assert set(small.paths) <= set(large.paths)
    assert set(take_fraction(table, 0.05, 4).paths) != set(small.paths)
    one = take_fraction(table, 0.001, 0).split("train")
    assert (one.labels == 1).sum() >= 2
    assert (one.labels == 0).sum() >= 2
    with pytest.raises(hx.ConfigError, match="label_fraction"):
        take_fraction(table, 0, 0)


def test_a_fraction_counts_whom_it_adds_and_why_and_exact_adds_none():
    """A class of 1 in 100: of 10 patients none has it, and two who have it come along unless that is not wanted."""
    table = table_of(["train"] * 1000 + ["val"] * 10 + ["test"] * 10)
    rare = np.array([[i % 2, i % 100 == 0] for i in range(1020)], np.float32)
    table = replace(table, labels=rare, classes=["common", "rare"], patients=[f"p{i}" for i in range(1020)])
    taken = take_fraction(table, 0.01, 0)
    counts = taken.fraction
    assert (counts["patients"], counts["asked"]) == (1000, 10)
    assert counts["taken"] == taken.splits.count("train") == 10 + sum(counts["added"].values())
    assert counts["added"] == {"rare": 2}
    assert taken.notes[-1].startswith(
        "labels of 0.01 of the training patients: 10 of 1000 asked for, 12 taken: 2 added for rare (2), so that each"
    )
    exact = take_fraction(table, 0.01, 0, exact=True)
    assert exact.splits.count("train") == exact.fraction["taken"] == exact.fraction["asked"] == 10
    assert set(exact.paths) < set(taken.paths)
    assert exact.notes[-1] == "labels of 0.01 of the training patients: 10 of 1000 asked for, 10 taken"
    with pytest.raises(hx.ConfigError, match=r"^exact_fractions: the 10 patients taken have no image of 'rare'"):
        take_fraction(replace(table, multiclass=True), 0.01, 0, exact=True)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "cannot be read as CSV"),
        ("a,b\n1,2\n", r"no column of images; its first line.*; name it with image_column \(--image-column\)"),
        ("foto,split\n1,train\n", "no column of images; its columns are foto, split; name it"),
        ("image,patient\na.png,1\n", "no column of labels"),
        ("image,mass\na.png,Y\n", r"row 2, column 'mass' holds a text|no column of labels.*its columns are mass"),
        (
            "image,label\na.png,0\nb.png,1\nc.png,2\n",
            "'label' holds another number.*--multiclass true reads names",
        ),
        ("image,mass\na.png,2\n", r"row 2, column 'mass' holds another number"),
        ("image,mass\na.png,1\na.png,0\n", "listed more than once"),
        ("image,mass\n", "holds no usable row .the file holds no rows"),
        ("image|mass\na.png|1\n", "has one cell and no name that is known; its columns are separated by bars"),
        ("image,label\na.png,tb\n", "no column of labels .* its columns are label; --multiclass true"),
        ("image,mass,mass \na.png,1,0\n", "its columns 2 and 3 have one name"),
        ("\nimage,edema,mass, mass\na.png,1,1,0\n", "its columns 3 and 4 have one name; rename or remove one"),
    ],
)
def test_bad_manifests_are_named(tmp_path, text, message):
    with pytest.raises(hx.ConfigError, match=message):
        read_labels(write(tmp_path / "labels.csv", text), classes=["mass"] if "mass" in text else None)


def test_bad_arguments_are_named(tmp_path):
    with pytest.raises(hx.ConfigError, match="does not exist"):
        read_labels(tmp_path / "nowhere.csv")
    with pytest.raises(hx.ConfigError, match="preset: got 'brax'"):
        read_labels(generic(tmp_path), preset="brax")
    with pytest.raises(hx.ConfigError, match="has no column 'fracture'"):
        read_labels(generic(tmp_path), classes=["fracture"])
    for preset in ("chexpert", "mimic-cxr", "nih14", "rsna", "vindr", "padchest"):
        (tmp_path / "empty").mkdir(exist_ok=True)
        with pytest.raises(hx.ConfigError, match="holds n"):
            read_labels(tmp_path / "empty", preset=preset)
        with pytest.raises(hx.ConfigError, match=r"has no column|holds no"):
            read_labels(write(tmp_path / "foreign.csv", "x,y\n1,2\n"), preset=preset)
