"""What the documents say of experiments is what the results carry: differences by pairs, their words, the pages."""

from __future__ import annotations

import importlib
import json
import re
import shutil
from pathlib import Path

import numpy as np
import pytest

from hdxray_fast.classify.compare import compare
from hdxray_fast.errors import ConfigError

for package in ("pandas", "scipy", "matplotlib"):
    pytest.importorskip(package)
ROOT = Path(__file__).parents[2]
if not (ROOT / "benchmarks" / "experiments" / "tables.py").exists():
    pytest.skip("needs the project's benchmarks beside the tests", allow_module_level=True)
PATIENTS = 80


@pytest.fixture(autouse=True)
def _path(monkeypatch):
    monkeypatch.syspath_prepend(str(ROOT / "benchmarks" / "experiments"))


@pytest.fixture
def paired():
    return importlib.import_module("paired")


@pytest.fixture
def tables():
    return importlib.import_module("tables")


def write_run(folder: Path, scores: np.ndarray) -> Path:
    """A finished run: predictions of two images of each patient, every second patient with the finding."""
    folder.mkdir(parents=True)
    rows = [f"{i}.png,p{i // 2},,{i // 2 % 2},{score!r}" for i, score in enumerate(scores.tolist())]
    (folder / "predictions.csv").write_text("\n".join(["image,patient,present,label high,high", *rows]) + "\n")
    auroc = {"value": 0.5, "low": 0.4, "high": 0.6}
    (folder / "metrics.json").write_text(json.dumps({"mean": {"auroc": auroc}}))
    return folder


def write_labels(path: Path) -> None:
    """What :func:`write_run` has, half of it to test."""
    rows = [f"{i}.png,p{i // 2},{i // 2 % 2},{'test' if i < 80 else 'train'}" for i in range(2 * PATIENTS)]
    path.write_text("\n".join(["image,patient,high,split", *rows]) + "\n")


def scores(rng: np.random.Generator, apart: float, shared: np.ndarray | float = 0.0, own: float = 1.0) -> np.ndarray:
    truth = np.arange(2 * PATIENTS) // 2 % 2
    return 1 / (1 + np.exp(-(apart * truth + shared + own * rng.normal(size=len(truth)))))


@pytest.fixture
def runs(tmp_path) -> dict[str, list[Path]]:
    """Three runs each of two settings that are alike, and of one that is better."""
    rng, made = np.random.default_rng(0), {}
    for name, apart in (("none", 0.5), ("random", 0.5), ("contour", 2.5)):
        made[name] = [write_run(tmp_path / f"{name}_{seed}", scores(rng, apart)) for seed in range(3)]
    return made


ASKED = [("contour", "random"), ("contour", "none"), ("random", "none")]


def test_differences_are_those_of_compare_with_holm_over_the_table(paired, runs):
    rows = paired.paired_differences(runs, ASKED)
    assert [(row["setting"], row["reference"], row["runs"]) for row in rows] == [(*pair, [3, 3]) for pair in ASKED]
    for row in rows:
        report = compare({name: runs[name] for name in (row["reference"], row["setting"])})
        expected = report["comparisons"][0]["classes"]["high"]["auroc"]
        assert {name: row[name] for name in ("difference", "low", "high", "p")} == {
            name: expected[name] for name in ("difference", "low", "high", "p")
        }
    smallest = min(row["p"] for row in rows)
    assert min(row["p_holm"] for row in rows) == pytest.approx(3 * smallest)
    assert [paired.is_told_apart(row) for row in rows] == [True, True, False]
    assert "Of 3 pairs 2 are told apart." in paired.verdicts(rows)


def test_predictions_of_other_patients_are_refused(paired, runs, tmp_path):
    text = (runs["none"][0] / "predictions.csv").read_text().replace(",p3,", ",p4,")
    (runs["none"][0] / "predictions.csv").write_text(text)
    with pytest.raises(ConfigError, match="other patients"):
        paired.paired_differences(runs, ASKED)


def test_what_runs_share_is_no_noise_of_their_difference(paired, tmp_path):
    """Encoders that differ far more than two kinds of features of one encoder do."""
    rng, made = np.random.default_rng(1), {"all": [], "contour": [], "same": []}
    for number, apart in enumerate((0.3, 1.5, 3.0)):
        common = apart * (np.arange(2 * PATIENTS) // 2 % 2) + rng.normal(size=2 * PATIENTS)
        for name in ("all", "contour"):
            drawn = scores(rng, 0.0 if name == "contour" else 0.4, common, own=0.1)
            made[name].append(write_run(tmp_path / f"{name}_{number}", drawn))
        made["same"].append(shutil.copytree(made["all"][-1], tmp_path / f"same_{number}"))
    within, nothing = paired.differences_within_runs(made, [("contour", "all"), ("same", "all")])
    (between,) = paired.paired_differences(made, [("contour", "all")])
    assert within["difference"] == pytest.approx(between["difference"])
    assert within["high"] - within["low"] < 0.4 * (between["high"] - between["low"])
    assert (nothing["difference"], nothing["low"], nothing["high"], nothing["p"]) == (0, 0, 0, 1)


ROW = {"setting": "A", "reference": "B", "runs": [3, 3], "difference": 0.041, "low": 0.012, "high": 0.07, "p": 0.006}


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"p_holm": 0.012}, "**told apart**: A above B by 0.041 (0.012 to 0.070), p = 0.006, by Holm 0.012"),
        (
            {"p_holm": 0.012, "difference": -0.041, "low": -0.07, "high": -0.012},
            "**told apart**: B above A by 0.041 (0.012 to 0.070), p = 0.006, by Holm 0.012",
        ),
        ({"p_holm": 0.06}, "not told apart: +0.041 (+0.012 to +0.070), p = 0.006, by Holm 0.060"),
        (
            {"p_holm": 1.0, "low": -0.02, "p": 0.3, "runs": [1, 3]},
            "not told apart: +0.041 (-0.020 to +0.070), p = 0.300, by Holm 1.000; of single runs: what another seed "
            "would change is not in it",
        ),
        (
            {"p_holm": None, "low": None, "high": None, "p": None},
            "not told apart: +0.041; too few patients for an interval",
        ),
        (
            {"p": 1e-5, "p_holm": 1e-4},
            "**told apart**: A above B by 0.041 (0.012 to 0.070), p < 0.001, by Holm < 0.001",
        ),
    ],
)
def test_words_say_what_the_difference_carries(paired, changes, words):
    assert paired.verdict({**ROW, **changes}) == words


@pytest.fixture
def begun(monkeypatch):
    """Begins an experiment, as its ``main`` does before anything is trained."""

    def begin(main, arguments: list[str]) -> None:
        def nothing(piece, units):
            raise SystemExit(75)

        with monkeypatch.context() as patch:
            patch.setattr(importlib.import_module("slices").Slice, "work", nothing)
            with pytest.raises(SystemExit):
                main(arguments)

    return begin


def test_finished_runs_become_a_table_with_differences(tables, begun, tmp_path, capsys):
    rng = np.random.default_rng(2)
    write_labels(tmp_path / "labels.csv")
    labels = ["--labels", str(tmp_path / "labels.csv")]
    begun(importlib.import_module("pretraining").main, ["strategies", *labels, "--out", str(tmp_path / "probe")])
    for seed in range(3):
        (tmp_path / "probe" / "pretrain" / f"contour_{seed}" / "model").mkdir(parents=True)
        for folder in ("probe/probes/contour", "probe/probes/none", "rival/resnet18"):
            write_run(tmp_path / f"{folder}_{seed}", scores(rng, 2.5))
    finetuning = importlib.import_module("finetuning")
    given = [*labels, *(f"--{name}={tmp_path / name}" for name in ("probe", "rival")), "--out", str(tmp_path / "out")]
    begun(finetuning.main, given)
    for seed in range(3):
        for kind in ("tuned", "scratch"):
            write_run(tmp_path / "out" / f"{kind}_{seed}", scores(rng, 0.2))
    finetuning.main(given)
    found = json.loads((tmp_path / "out" / "results.json").read_text())
    assert [len(found["auroc"][name]) for name in found["auroc"]] == [3] * 5
    pairs = {(row["setting"], row["reference"]): row for row in found["differences"]}
    assert pairs["resnet18 from scratch", finetuning.TUNED]["p_holm"] < 0.05
    assert pairs[finetuning.TUNED, finetuning.SCRATCH]["p_holm"] > 0.05
    (tmp_path / "experiments").mkdir()
    shutil.copy(tmp_path / "out" / "results.json", tmp_path / "experiments" / "finetuning.json")
    text = tables.section("finetuning", tmp_path)
    assert "64 images train, 16 validate and 80 of 40 patients test." in text
    assert "**told apart**: resnet18 from scratch above fine-tuned, random weights by" in text
    assert (tmp_path / "out" / "table.md").read_text() in capsys.readouterr().out + "\n"
    shutil.rmtree(tmp_path / "rival")
    with pytest.raises(SystemExit, match=r"rival.resnet18_0: no finished run"):
        finetuning.main(given)


@pytest.mark.parametrize(
    ("name", "axis", "kinds", "pairs"),
    [
        ("pretraining", "strategies", ["contour", "random", "rectangle", "block", "none"], 7),
        ("pretraining", "resolutions", ["224", "640", "1280"], 3),
        ("pretraining", "shares", ["none", "1_of_8", "1"], 3),
        ("rival", None, ["resnet18", "vit_tiny_patch16_224"], 1),
    ],
)
def test_a_finished_experiment_is_read_and_trains_nothing(name, axis, kinds, pairs, begun, tables, tmp_path):
    rng = np.random.default_rng(3)
    write_labels(tmp_path / "labels.csv")
    out, main = tmp_path / "out", importlib.import_module(name).main
    given = ["--labels", str(tmp_path / "labels.csv"), "--out", str(out), "--seeds", "0", "1"]
    given = [axis, *given, "--label-shares", "0.5", "--label-draws", "2"] if axis else given
    if axis == "shares":
        given += ["--rows", "1", "none", "1/8"]
    begun(main, given)  # there is no image that it could read
    for kind in kinds:
        for seed in range(2):
            run = f"{kind}_{seed}"
            write_run(out / "probes" / run if axis else out / run, scores(rng, 1.0))
            if axis:
                for reading in ("share_0.5_0", "share_0.5_1", "neighbours"):
                    write_run(out / "readings" / run / reading, scores(rng, 1.0))
                counts = {"0.5": [{"images": 32, "patients": 16}, {"images": 33, "patients": 16}]}
                (out / "readings" / run / "readings.json").write_text(json.dumps(counts))
    main(given)
    found = json.loads((out / "results.json").read_text())
    assert len(found["differences"]) == pairs
    assert all(row["runs"] == [2, 2] and row["low"] < row["high"] for row in found["differences"])
    assert found["settings"]["images"]["test_patients"] == 40
    assert str(tmp_path) not in json.dumps(found)
    text = (out / "table.md").read_text()
    assert f"Of {pairs} pairs" in text or pairs == 1
    if axis:
        assert f"Of {2 * pairs} pairs" in text  # with few labels, and of neighbours: one family of tests
        assert "50 % of the labels 32 to 33 images of 16 patients" in " ".join(text.split())
    if axis == "shares":
        assert [row["setting"] for row in found["differences"]] == ["1/8", "1", "1"]
        (tmp_path / "experiments").mkdir()
        shutil.copy(out / "results.json", tmp_path / "experiments" / "shares.json")
        assert tables.section("shares", tmp_path).endswith(text[text.index("| patients", 5) :].rstrip())


def test_draws_of_labels_are_no_sample_of_their_own(paired, runs, tmp_path):
    """Else five draws of labels would make an encoder five encoders."""
    alone = {name: [[folder] for folder in folders] for name, folders in runs.items()}
    values, rows = paired.differences_of_groups(alone, ASKED)
    between = paired.paired_differences(runs, ASKED)
    for row, expected in zip(rows, between, strict=True):
        assert row.pop("runs") == expected.pop("runs") == [3, 3]
        assert row == pytest.approx(expected, abs=1e-9)
    twice, again = paired.differences_of_groups({name: [run * 2 for run in alone[name]] for name in alone}, ASKED)
    assert [row.pop("runs") for row in again] == [[3, 3]] * 3 and again == rows
    assert all(twice[name] == pytest.approx(values[name], abs=1e-12) for name in values)
    mixed, _ = paired.differences_of_groups({"a": [[*runs["none"][:1], *runs["contour"][:1]]]}, [])
    assert mixed["a"] == pytest.approx([(values["none"][0] + values["contour"][0]) / 2])


def test_kinds_of_patches_are_set_against_each_other_within_their_encoder(tables, tmp_path, monkeypatch):
    rng = np.random.default_rng(4)
    for number in range(3):
        run = write_run(tmp_path / "out" / f"all_{number}", scores(rng, 1.0))
        shutil.copytree(run, tmp_path / "out" / f"valid_{number}")
        write_run(tmp_path / "out" / f"contour_{number}", scores(rng, 1.0))
    write_labels(tmp_path / "labels.csv")
    given = ["--labels", str(tmp_path / "labels.csv"), "--out", str(tmp_path / "out"), "--untrained", "3"]
    begun = {"weights": [], "untrained": 3, "model": "vit_tiny_patch16", "labels": given[1], "images": None}
    begun |= {"img_size": 320, "what": None, "keep": ["valid", "contour"], "limit": 40}
    (tmp_path / "out" / "experiment.json").write_text(json.dumps(begun))
    monkeypatch.setattr("sys.argv", ["contour_features", *given, "--img-size", "64"])
    with pytest.raises(SystemExit, match=r"begun with other settings \(img_size; "):  # or these runs would be its own
        importlib.import_module("contour_features").main()
    monkeypatch.setattr("sys.argv", ["contour_features", *given])
    importlib.import_module("contour_features").main()
    (tmp_path / "experiments").mkdir()
    shutil.copy(tmp_path / "out" / "results.json", tmp_path / "experiments" / "contour_features.json")
    text = " ".join(tables.section("contour_features", tmp_path).split())
    assert "of 3 encoders (vit_tiny_patch16, random weights). 64 images train" in text
    assert "| valid − all | not told apart: +0.000 (+0.000 to +0.000), p = 1.000, by Holm 1.000 |" in text
    assert '| `"contour"` | not measured | not measured | not measured |' in text  # no benchmark is there
    assert "Of 3 pairs none is told apart." in text


def test_without_predictions_nothing_is_compared(tables, tmp_path):
    (tmp_path / "experiments").mkdir()

    def written(name: str, apart: float) -> str:
        rows = {kind: [{"value": 0.8, "low": 0.75 + up, "high": 0.85 + up}] for kind, up in (("a", 0), ("b", apart))}
        path = tmp_path / "experiments" / f"{name}.json"
        path.write_text(json.dumps({"settings": {}, "auroc": rows}))
        return " ".join(tables.section(name, tmp_path).split())

    assert "**Not compared**" in written("probe", 0.0) and "are to be redone" in written("probe", 0.0)
    assert "The intervals of any two rows overlap" in written("pretrain_gpu", 0.05)
    assert "The intervals of a and b lie apart in all seeds." in written("pretrain_gpu", 0.11)


def test_the_documents_say_what_the_results_say(tables):
    assert tables.stale() == [], "run: python benchmarks/experiments/tables.py --write"
    for page in tables.PAGES:
        assert tables.MARKED.search((ROOT / page).read_text(encoding="utf-8"))


def test_a_number_changed_by_hand_is_found(tables, tmp_path):
    for place in (*tables.PAGES, *tables.PICTURES):
        (tmp_path / place).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(ROOT / place, tmp_path / place)
    shutil.copytree(tables.RESULTS, tmp_path / "results")
    assert tables.stale(tmp_path, tmp_path / "results") == []
    page = tmp_path / "docs" / "encoder.md"
    text = page.read_text(encoding="utf-8")
    number = re.search(r"0\.\d{3} \(0\.\d{3}-0\.\d{3}\)", tables.MARKED.search(text)[0])[0]
    page.write_text(text.replace(number, "0.999 (0.998-1.000)"), encoding="utf-8")
    assert tables.stale(tmp_path, tmp_path / "results") == ["docs/encoder.md"]
    probe = tmp_path / "results" / "experiments" / "probe.json"
    found = json.loads(probe.read_text())
    found["auroc"]["contour"][0]["value"] = 0.9
    probe.write_text(json.dumps(found))
    assert tables.stale(tmp_path, tmp_path / "results") == [*tables.PAGES, "docs/img/probe_auroc.png"]


def test_prose_repeats_no_measured_number(tables):
    """What stands outside the markers is not held against the results, so no AUROC, interval or p stands there."""
    text = tables.MARKED.sub("", (ROOT / "docs" / "results.md").read_text(encoding="utf-8"))
    assert set(re.findall(r"\d\.\d+", re.sub(r"```.*?```", "", text, flags=re.DOTALL))) == {"0.05"}
