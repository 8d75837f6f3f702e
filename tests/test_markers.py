"""What stands in tables, reports and configs is in no message, no log, no picture, no page and no model.

Words that occur nowhere else are planted in every field; then tables are broken in every way, and each command runs;
everything that was written or said is searched. What holds ids or texts by design is named in ``BY_DESIGN``. DICOM
headers have a test of their own, ``test_privacy.py``.
"""

from __future__ import annotations

import json
import traceback
import warnings
from pathlib import Path

import cv2
import pytest
from film_makers import draw_film
from report_model_makers import save_small_encoder
from written_files import everything_in

import hdxray_fast as hx
from hdxray_fast.classify.label_presets import PRESETS
from hdxray_fast.classify.labels import read_labels
from hdxray_fast.classify.prediction_files import read_answers
from hdxray_fast.cli.main import main
from hdxray_fast.data.listing import list_images
from hdxray_fast.reports.evaluate import evaluate_reports
from hdxray_fast.reports.known_images import read_known_images
from hdxray_fast.reports.layouts import read_studies
from hdxray_fast.reports.predictions import read_predictions

MARK = "zzmark"
BY_DESIGN = {
    "predictions.csv": "patient and id of each image or study, the report beside what was generated",
    "validation.csv": "the same of the studies that a report training validates on",
    "scores.csv": "the same of each study that was scored",
    "reports.html": "what was written of each study, beside its own report",
    "report.html": "the best and the worst texts beside their references",
}


def marked(text: str) -> bool:
    return MARK in text.lower()


# --- every refusal ----------------------------------------------------------------------------------------------------
HEAD = "image,patient,split,mass,note\n"
ROWS = [f"{i}.png,zzmark-p{i},{('train', 'val', 'test')[i % 3]},{i % 2},zzmark note {i}\n" for i in range(12)]
WHOLE = HEAD + "".join(ROWS)
LABELS = {
    "no header": "".join(ROWS),
    "no image": WHOLE.replace("image,", "zzimg,").replace("patient,split", "who,where"),
    "one column": "zzmark;zzmark2\nzzmark;1\n",
    "other separator": WHOLE.replace(",", ";"),
    "two of a name": "image,mass,mass\nzzmark.png,zzmark,0\n",
    "a split that is none": WHOLE.replace(",train,", ",zzmark,", 1),
    "a label that is none": WHOLE.replace(",0,zz", ",zzmark,zz", 1),
    "a number that is none": WHOLE.replace(",1,zz", ",99887766,zz", 1),
    "no labels": "image,patient,note\na.png,zzmark,zzmark\n",
    "two splits": WHOLE.replace("zzmark-p0,", "zzmark-p1,", 1),
    "an image twice": WHOLE.replace("3.png,zzmark-p3", "0.png,zzmark-p0", 1),
    "more cells": HEAD + "a.png,zzmark,train,1,zzmark,zzmark,zzmark\n",
    "an open quote": HEAD + 'a.png,"zzmark,train,1\n',
    "no patient": WHOLE.replace("zzmark-p0,", ",", 1),
    "nothing": "",
    "a NUL": HEAD + "a.png,zz\0mark,zzmark,1,zzmark\n",
    "no UTF-8": (WHOLE + "é.png,zzmark").encode("latin-1"),
    "ids as classes": "image,label\n" + "".join(f"{i}.png,zzmark{i}\n" for i in range(9)),
    "a text as class": "image,label\n" + "".join(f"{i}.png,{'zzmark ' * 20}\n" for i in range(9)),
    "a report": "image,report\na.png,zzmark zzmark\n",
}
STUDIES = {
    "no header": "zzmark,zzmark2,zzmark3\n1,2,3\n",
    "fewer fields": "id,image,report\nzzmark,zzmark\n",
    "more fields": "id,image,report\nzzmark,a.png,zzmark,zzmark\n",
    "an id twice": "id,image,report\nzzmark,a.png,zzmark\nzzmark,b.png,zzmark\n",
    "two splits": "id,image,report,patient,split\nzzmark1,a.png,zzmark,zzmark,train\nzzmark2,b.png,x,zzmark,test\n",
    "a split": "id,image,report,split\nzzmark,a.png,zzmark,zzmark\n",
    "a language": "id,image,report,language\nzzmark,a.png,zzmark,zzmark\n",
    "empty reports": "id,image,report\nzzmark,a.png,\n",
    "no images": "id,image,report\nzzmark,,zzmark\n",
    "no files": "id,image,report,patient\nzzmark,a.png,zzmark,zzmark\n",
    "an open quote": 'id,image,report\nzzmark,a.png,"zzmark\n',
    "no UTF-8": b"id,image,report\nzzmark,a.png,\xffzzmark\n",
}
ANNOTATIONS = {
    "no splits": {"zzmark": []},
    "no list": {"train": {"zzmark": "zzmark"}},
    "no object": {"train": ["zzmark"]},
    "no report": {"train": [{"id": "zzmark", "image_path": "a.png"}]},
    "no path": {"train": [{"id": "zzmark", "report": "zzmark", "image_path": {"zzmark": 1}}]},
    "a report that is none": {"train": [{"id": "zzmark", "report": ["zzmark"], "image_path": "a.png"}]},
    "a language": {"train": [{"id": "zzmark", "report": "x", "image_path": "a.png", "language": "zzmark"}]},
    "no JSON": '{"train": [{"id": "zzmark", "report": zzmark}]}',
    "no UTF-8": b'{"train": "\xffzzmark"}',
}
PREDICTIONS = {
    "a.csv": "zzmark,zzmark2\n1,2\n",
    "b.csv": "id,generated\nzzmark,zzmark\nzzmark,zzmark\n",
    "c.csv": "id,generated,language\nzzmark,zzmark,zzmark\n",
    "d.csv": "id,generated\nzzmark,zzmark\n",
    "e.json": '{"zzmark": 3}',
    "f.json": '[{"zzmark": 3}]',
    "g.json": '[{"id": "zzmark", "generated": zzmark}]',
    "h.jsonl": '"zzmark"\n',
    "i.json": '{"zzmark": "zzmark", "zzmark2": ["zzmark"]}',
}
ANSWERS = {
    "no image": "zzmark,zzmark2\n1,0.5\n",
    "an image twice": "image,patient,mass\na.png,zzmark,0.5\na.png,zzmark,0.5\n",
    "no probability": "image,patient,mass,label mass\na.png,zzmark,zzmark,1\n",
    "no label": "image,patient,mass,label mass\na.png,zzmark,0.5,zzmark\n",
    "no class": "image,patient,note\na.png,zzmark,zzmark\n",
}
PUBLISHED = {  # preset, file, text
    "a path without a patient": ("chexpert", "train.csv", "Path,Edema\nzzmark/a.jpg,1\n"),
    "a finding": ("nih14", "Data_Entry_2017.csv", "Image Index,Finding Labels,Patient ID\na.png,zzmark,zzmark\n"),
    "a list": (
        "padchest",
        "PADCHEST.csv",
        "ImageID,PatientID,Projection,Labels\na.png,zzmark,PA,zzmark zzmark\nb.png,zzmark,PA,{'zzmark'\n",
    ),
    "too few": ("padchest", "PADCHEST.csv", "ImageID,PatientID,Projection,Labels\na.png,zzmark,PA,['zzmark']\n"),
    "no column": ("vindr", "train.csv", "zzmark,zzmark2\n1,2\n"),
    "a target": ("rsna", "stage_2_train_labels.csv", "patientId,Target\nzzmark,zzmark\n"),
}
CONFIGS = {
    "a table": "zzmark,zzmark\nzzmark,1\n",
    "a table with colons": 'image,note\n1.png,"x: zzmark"\n',
    "a setting that is none": "zzmark: 1\n",
    "a list": "- zzmark\n",
    "a value": "lr: zzmark\n",
    "values": "steps: [zzmark, 2]\n",
    "JSON": '{"zzmark": {"zzmark": "zzmark"}}',
    "no UTF-8": b"\xff\xfezzmark",
    "open": "a: [zzmark\nb: }",
    "a tag": "steps: !!python/name:zzmark.zzmark 1\n",
    "a tag that fits not": "steps: !!binary zzmark\n",
}


def refusals(tmp_path: Path):
    """(what, a function that refuses it) of everything above."""

    def file(name: str, content) -> Path:
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        content = json.dumps(content) if isinstance(content, dict) else content
        path.write_bytes(content if isinstance(content, bytes) else content.encode())
        return path

    for number, (what, text) in enumerate(LABELS.items()):
        path = file(f"l{number}.csv", text)
        for options in ({}, {"multiclass": True}, {"classes": ["mass"]}):
            yield f"labels, {what}, {options}", lambda path=path, o=options: read_labels(path, **o)
        yield f"list, {what}", lambda path=path: list_images(path)
    for number, (what, text) in enumerate(STUDIES.items()):
        path = file(f"s{number}.csv", text)
        yield f"studies, {what}", lambda path=path: read_studies(path)
        yield f"studies without images, {what}", lambda path=path: read_studies(path, need_images=False)
        yield f"column, {what}", lambda path=path: read_studies(path, report_column="gone")
    for number, (what, content) in enumerate(ANNOTATIONS.items()):
        path = file(f"{number}/annotation.json", content)
        yield f"annotation, {what}", lambda path=path: read_studies(path)
    data = file("data.csv", "id,image,report,split\nzzmark-own,a.png,zzmark,test\n")
    for name, text in PREDICTIONS.items():
        path = file(f"p/{name}", text)
        yield f"predictions, {name}", lambda path=path: read_predictions(path)
        yield f"scores, {name}", lambda path=path: evaluate_reports(path)
        yield f"scores with data, {name}", lambda path=path: evaluate_reports(path, data=data)
    for number, (what, text) in enumerate(ANSWERS.items()):
        path = file(f"a{number}.csv", text)
        yield f"answers, {what}", lambda path=path: read_answers(path)
    known = file("known_images.csv", "study,image,known_by\nzzmark,a.png,zzmark\n")
    yield "known images", lambda: read_known_images(known)
    for number, (what, (preset, name, text)) in enumerate(PUBLISHED.items()):
        path = file(f"preset{number}/{name}", text)
        yield f"{preset}, {what}", lambda path=path, preset=preset: PRESETS[preset](path, None)
    for number, (what, text) in enumerate(CONFIGS.items()):
        path = file(f"c{number}.yaml", text)
        for command in (["pretrain"], ["finetune"], ["prepare", "x"], ["report", "train"]):
            words = [*command, "--config", str(path), "--out", str(tmp_path / "o")]
            yield f"{' '.join(command)}, {what}", lambda words=words: main(words)


def test_no_refusal_quotes_what_it_refuses(tmp_path, capfd, caplog):
    refused = 0
    for what, run in refusals(tmp_path):
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            told = ""
            try:
                refused += run() == 2  # of the command line
            except hx.HDXrayError as error:  # anything else is no refusal
                refused += 1
                told = "".join(traceback.format_exception(error)) + repr(error)
                told += repr(error.__cause__) + ("" if error.__suppress_context__ else repr(error.__context__))
                told = "\n".join(line for line in told.splitlines() if not line.startswith("    "))  # not this source
        said = "".join(capfd.readouterr()) + caplog.text + " ".join(str(warning.message) for warning in caught)
        assert not marked(told + said), f"{what}: {told}{said}"
        assert "99887766" not in told + said, what
    assert refused > 110


# --- every command ----------------------------------------------------------------------------------------------------
def outputs(folder: Path) -> dict[str, bytes]:
    """What a folder holds, the names of its files included."""
    return {name: name.encode() + found for name, found in everything_in(folder, leave_out=BY_DESIGN).items()}


def test_the_search_finds_what_is_there(tmp_path):
    (tmp_path / "a.json").write_text('{"note": "zzMark"}')
    (tmp_path / "predictions.csv").write_text("zzmark")
    found = outputs(tmp_path)
    assert list(found) == ["a.json"] and marked(found["a.json"].decode())


@pytest.fixture
def planted(tmp_path) -> Path:
    """Radiographs, a table of labels and one of studies, with marks in every field but the files' names."""
    root = tmp_path / "data"
    root.mkdir()
    lines, studies = ["image,patient,split,mass,nodule,note"], ["id,image,report,patient,split,note"]
    texts = ["The heart is normal.", "There is an effusion."]
    for number in range(24):
        cv2.imwrite(str(root / f"{number}.png"), draw_film(number))
        split = ("train", "train", "val", "test")[number // 2 % 4]
        lines.append(f"{number}.png,zzmark-p{number // 2},{split},{number % 2},{number % 2},zzmark note")
        text = f"{texts[number % 2]} zzmark{number}."  # a word of one report alone is no word of the model
        studies.append(f"zzmark-s{number},{number}.png,{text},zzmark-p{number // 2},{split},zzmark")
    (root / "broken.png").write_bytes(b"\x89PNG\r\n\x1a\nzzmark")
    lines.append("broken.png,zzmark-bad,train,1,0,zzmark")
    studies += ["zzmark-bad,broken.png,zzmark,zzmark-bad,train,zzmark", "zzmark-none,gone.png,zzmark,zzmark-n,test,x"]
    (root / "labels.csv").write_text("\n".join(lines))
    (root / "studies.csv").write_text("\n".join(studies))
    return root


@pytest.mark.slow
def test_no_command_tells_what_tables_and_reports_hold(planted, tmp_path, capfd, caplog, record_property):
    pytest.importorskip("pyarrow")
    pytest.importorskip("transformers")
    pytest.importorskip("sklearn")
    out, encoder = tmp_path / "out", str(save_small_encoder(tmp_path / "encoder"))
    labels, studies = str(planted / "labels.csv"), str(planted / "studies.csv")
    out.mkdir()
    some, ways = [str(planted / f"{number}.png") for number in range(3)], ["--workers", "0"]
    classes = ["--classes", "mass", "nodule"]
    short = ["--steps", "2", "--batch-size", "2", "--tensorboard", "false", "--contour", "rectangle", *ways]
    tiny = [*["--width", "48", "--heads", "4", "--ffn", "48", "--layers", "1", "--visual-tokens", "4", "--bleu", "1"]][
        :10
    ]
    said, silent = [], []

    def run(*words: str, status: int = 0) -> None:
        got = main(list(words))
        told = "".join(capfd.readouterr())
        assert got == status, (words[:2], told)
        said.append(told)
        if not told.strip():
            silent.append(words[:2])

    run("prepare", labels, "--out", str(out / "set"), "--img-size", "96", "--contour", "rectangle", *ways)
    run("contour", *some, "--out", str(out / "contours"), "--img-size", "96")
    run("embed", labels, "--weights", encoder, "--out", str(out / "features.parquet"), *ways)
    run("probe", "--data", labels, "--weights", encoder, "--out", str(out / "probe"), *classes, *ways)
    tuned = ["--weights", encoder, "--out", str(out / "tuned"), *classes, *short]
    run("finetune", "--data", labels, *tuned)
    model = str(out / "tuned" / "model")
    run("predict", *some, "--model", model, "--out", str(out / "predictions.csv"), *ways)
    for name in "ab":
        folder = str(out / f"evaluated-{name}")
        run("evaluate", "--data", labels, "--model", model, "--out", folder, "--split", "test", *ways)
    run("compare", str(out / "evaluated-a"), str(out / "evaluated-b"), "--out", str(out / "compared"))
    trained = ["--out", str(out / "reports"), "--weights", encoder, "--min-frequency", "4", *tiny, *short]
    run("report", "train", "--data", studies, *trained)
    reports = str(out / "reports" / "model")
    for name in "ab":
        folder = str(out / f"made-{name}")
        run("report", "generate", "--data", studies, "--split", "test", "--model", reports, "--out", folder)
    made = [str(out / f"made-{name}" / "predictions.csv") for name in "ab"]
    run("report", "evaluate", made[0], "--data", studies, "--out", str(out / "scores"), "--partial")
    run("compare", f"a={made[0]}", f"b={made[1]}", "--out", str(out / "compared-reports"))
    run("finetune", "--data", labels, *tuned)  # there is a run already, which is told again
    for words in (["finetune", "--data", labels, *tuned], ["report", "train", "--data", studies, *trained]):
        run(*words, "--resume", "never", status=2)

    found = outputs(out) | {f"terminal {number}": text.encode() for number, text in enumerate([*said, caplog.text])}
    kinds = sorted({Path(name.split(" ")[0]).suffix or "terminal" for name in found})
    record_property("outputs_searched", len(found))
    print(f"searched {len(found)} outputs of {len(said)} commands for {MARK!r}: {', '.join(kinds)}")
    exceptions = [f"not searched: {name}, {why}" for name, why in BY_DESIGN.items()]
    print(*found, *exceptions, sep="\n  ")
    assert not [name for name, content in found.items() if MARK.encode() in content.lower()]
    assert not silent and len(found) > 60
    assert {path.name for path in out.rglob("*")} >= {*BY_DESIGN}
