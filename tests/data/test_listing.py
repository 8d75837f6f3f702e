"""Which files are meant: folders, manifests, single files."""

from __future__ import annotations

import os

import pytest

import hdxray_fast as hx
from hdxray_fast.data.columns import PATIENT_COLUMNS, find_column, named_column
from hdxray_fast.data.listing import list_images
from hdxray_fast.data.missing_files import none_found
from hdxray_fast.data.picture_folder import PictureFolder
from hdxray_fast.errors import ConfigError
from hdxray_fast.files import claim_names


def test_folder_is_listed_in_a_fixed_order_without_hidden_and_foreign_files(radiographs):
    (radiographs / "sub").mkdir()
    (radiographs / "sub" / "9.PNG").write_bytes(b"x")
    (radiographs / ".hidden.png").write_bytes(b"x")
    (radiographs / "notes.txt").write_text("no image")
    (radiographs / "IM000001").write_bytes(b"DICOM files often have no suffix")
    names = [str(path.relative_to(radiographs)) for path in list_images(radiographs)]
    assert names == sorted([*(f"{i}.png" for i in range(5)), "sub/9.PNG", "IM000001"])


def test_pictures_that_commands_drew_are_no_radiographs(radiographs):
    before = list_images(radiographs)
    for maker, names in (("features", ["0.features.png"]), ("similar", ["similar.png"]), ("predict", ["0.map.png"])):
        for folder in (radiographs, radiographs / maker):
            PictureFolder(folder, maker, {}, dict.fromkeys(names, "")).claim()
            (folder / names[0]).write_bytes(b"x")
    for maker, names in (("report-generate", ["0.report.png"]), ("evaluate", ["curves.png", "errors.png"])):
        for folder in (radiographs, radiographs / maker):
            claim_names(folder, maker, names)
            for name in names:
                (folder / name).write_bytes(b"x")
    assert list_images(radiographs) == before
    (radiographs / "others").mkdir()
    kept = [radiographs / "others" / name for name in ("0.features.png", "curves.png", "similar.png")]
    for path in kept:  # nothing says that they were drawn
        path.write_bytes(b"x")
    assert sorted(list_images(radiographs)) == sorted([*before, *kept])


@pytest.mark.parametrize("column", ["image", "path", "Path", "Image Index", " IMAGE_Path"])
def test_manifest_keeps_its_order_and_drops_repeats(radiographs, column):
    manifest = radiographs / "list.csv"
    manifest.write_text(f"patient,{column}\n1,3.png\n2,1.png\n3,3.png\n")
    assert [path.name for path in list_images(manifest)] == ["3.png", "1.png"]
    assert list_images(manifest, images="/elsewhere")[0].as_posix() == "/elsewhere/3.png"


def test_a_folder_that_cannot_be_searched_is_named(radiographs, monkeypatch):
    scan = os.scandir

    def closed(path):
        if str(path).endswith("sub"):
            raise PermissionError(13, "Permission denied", str(path))
        return scan(path)

    (radiographs / "sub").mkdir()
    monkeypatch.setattr(os, "scandir", closed)  # who runs tests as root may search any folder
    with pytest.raises(ConfigError, match=r"sub: cannot be searched \(Permission denied\); give access to it"):
        list_images(radiographs)


def test_what_names_no_image_is_a_config_error(tmp_path):
    with pytest.raises(ConfigError, match="does not exist; give a folder of radiographs"):
        list_images(tmp_path / "nowhere")
    (tmp_path / "films").mkdir()
    with pytest.raises(ConfigError, match=r"^data: .*fims does not exist; is .*films meant\?$"):
        list_images(tmp_path / "fims")
    with pytest.raises(ConfigError, match="names no image"):
        list_images(tmp_path)
    manifest = tmp_path / "m.csv"
    manifest.write_text("picture\na.png\n")
    with pytest.raises(ConfigError, match="columns"):
        list_images(manifest)
    for name, header in {"image": "image,image,patient", "patient": "image,patient,patient"}.items():
        manifest.write_text(f"{header}\na.png,b,c\n")  # of which the last would be taken
        with pytest.raises(ConfigError, match=rf"m\.csv has two columns '{name}'; rename or remove one"):
            list_images(manifest)
    manifest.write_bytes(b"\xff\xfebad")
    with pytest.raises(ConfigError, match="is not UTF-16, as its first bytes say"):
        list_images(manifest)


def test_columns_that_a_user_names(radiographs, tmp_path):
    """Where they go by no usual name, in whatever lists or prepares what a manifest names."""
    from hdxray_fast.data.inputs import list_inputs
    from hdxray_fast.data.prepared.sources import list_sources, run_sources

    manifest = tmp_path / "m.csv"
    named = sorted(radiographs.glob("*.png"))
    manifest.write_text("Foto;Fall\n" + "".join(f"{path};{number}\n" for number, path in enumerate(named)))
    with pytest.raises(ConfigError, match=r"^data: .*or name it with image_column \(--image-column\)$"):
        list_images(manifest)
    with pytest.raises(ConfigError, match=r"^image_column: .*m.csv has no column 'Bildchen'"):
        list_images(manifest, image_column="Bildchen")
    assert list_images(manifest, image_column="foto") == named
    assert [one.name for one in list_inputs([manifest], image_column="Foto")] == list(map(str, named))
    assert [source.name for source in run_sources(manifest, image_column="Foto")] == list(map(str, named))
    both = run_sources([manifest, os.path.relpath(radiographs)], image_column="Foto")
    assert [source.name for source in both] == list(map(str, named))  # each file once
    sources = list_sources([manifest], image_column="Foto", patient_column="fall")
    assert [(source.name, source.patient) for source in sources] == [
        (str(path), str(n)) for n, path in enumerate(named)
    ]


@pytest.mark.parametrize("command", ["contour", "embed", "features", "predict", "prepare", "pretrain"])
def test_every_command_that_reads_manifests_takes_the_column_of_their_images(command, tmp_path, capsys):
    from hdxray_fast.cli.main import main

    (tmp_path / "m.csv").write_text("Foto\na.png\n")
    words = [command, str(tmp_path / "m.csv"), "--image-column", "Bildchen", "--out", f"{tmp_path / 'out'}/"]
    if command == "pretrain":
        words[1:1] = ["--data"]
    if command == "predict":
        import hdxray_fast as hx
        from hdxray_fast.classify.classifier import Classifier, ClassifierConfig, save_classifier

        net = {"img_size": 64, "depth": 1, "embed_dim": 24, "num_heads": 3, "contour": "rectangle"}
        model = Classifier(hx.create_encoder("vit_tiny_patch16", **net), ClassifierConfig(["a"], contour="rectangle"))
        save_classifier(model, tmp_path / "model")
        words += ["--model", str(tmp_path / "model")]
    assert main(words) == 2
    assert f"--image-column: {tmp_path / 'm.csv'} has no column 'Bildchen'" in capsys.readouterr().err


def test_columns_are_known_whatever_stands_between_their_letters():
    for name in ("Pat.-Nr.", "pat_nr", "PATIENT NO.", "Patienten-ID"):
        assert find_column(["file", name, "mass"], PATIENT_COLUMNS) == name
    assert find_column(["Pat Nr", "patient"], PATIENT_COLUMNS) == "patient"  # what is spelt as usual comes first
    assert find_column(["patient age"], PATIENT_COLUMNS) is None


def test_columns_that_a_user_names_are_those_with_the_same_signs(tmp_path):
    cells = {0: "1,0,1,0", 1: "0,1,0,1"}
    rows = "".join(f"{row}.png,{cells[row % 2]},{('train', 'val', 'test')[row // 4]}\n" for row in range(12))
    (tmp_path / "labels.csv").write_text(f"image,nodule <5mm,Nodule >5mm,COVID-,COVID+,split\n{rows}")
    table = hx.read_labels(tmp_path / "labels.csv", classes=["nodule >5mm", "covid+"])
    assert table.labels.tolist() == [[0, 0], [1, 1]] * 6
    with pytest.raises(ConfigError, match="has no column '-'"):
        named_column(["image", "#"], "-", PATIENT_COLUMNS, "patient_column", "labels.csv")
    assert named_column(["image", " Fall"], "fall", PATIENT_COLUMNS, "patient_column", "labels.csv") == " Fall"


def test_names_nearly_right_and_names_without_their_endings(tmp_path):
    (tmp_path / "labels.csv").write_text("image,mass\n0001,1\n")
    (tmp_path / "0001.jpg").touch()
    with pytest.raises(ConfigError, match=r"lables.csv does not exist; is .*labels.csv meant\?"):
        hx.read_labels(tmp_path / "lables.csv")
    missing = [str(tmp_path / "0001")]
    assert str(none_found(missing, "labels.csv", None)).endswith("ends in .jpg: names in the table need their endings")
    (tmp_path / "0001.png").touch()  # which of them?
    assert "need their endings" not in str(none_found(missing, "labels.csv", None))
