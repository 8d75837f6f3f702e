"""No name, id or date of a patient leaves a DICOM file: not into an index, a log, an error, a checkpoint or a terminal.

Strings that occur nowhere else are planted into every element that could be quoted, in whole files and in damaged ones;
then each command runs and every byte that it wrote or said is looked through.
"""

import io
import json
import warnings
import zipfile
from pathlib import Path

import numpy as np
import pytest
from prepared_helpers import contents
from toy_radiographs import draw_radiograph
from written_files import everything_in
from xray_makers import PATIENT, dicom

import hdxray_fast as hx
from hdxray_fast.cli.main import main
from hdxray_fast.data.prepared.reading import PreparedSet

pytest.importorskip("pydicom")

# Long enough that no hash or pixel holds them by chance
WORDS = ("sentinel", "19330303", "20330404", "131415.926", "99887766", "99887767", "zz-free-text")
# Elements whose values decide what is done, so that an error might quote them: planted one at a time
TEMPTING = {
    "Modality": "SENTINELMOD",
    "BodyPartExamined": "SENTINELPART",
    "ViewPosition": "SENTINELVIEW",
    "PhotometricInterpretation": "SENTINELPHOTO",
    "PresentationIntentType": "SENTINELINTENT",
    "SeriesDescription": "zz-free-text lateral of the sentinel",
    "ProtocolName": "SENTINELPROTOCOL",
    "AcquisitionDeviceProcessingDescription": "SENTINELPROCESSING",
    "BurnedInAnnotation": "SENTINELBURNT",
    "ImageLaterality": "SENTINELSIDE",
    "PatientOrientation": ["SENTINELA", "SENTINELF"],
    "SOPClassUID": "1.2.826.0.1.99887766.1",
    "PixelSpacing": "SENTINEL",
}


@pytest.fixture(scope="module")
def dicoms(tmp_path_factory) -> Path:
    """DICOM files with planted patients: whole, cut, with nonsense in one element each, and a member of an archive."""
    root = tmp_path_factory.mktemp("privacy") / "xrays"
    root.mkdir()
    planted = {
        "StudyTime": "131415.926",
        "OtherPatientIDs": "SENTINEL-OTHER",
        "PatientComments": "zz-free-text about the sentinel",
        "StudyDescription": "zz-free-text",
        "WindowCenter": 120,
        "WindowWidth": 200,
        "WindowCenterWidthExplanation": "zz-free-text SENTINEL",
        "StationName": "SENTINELSTATION",
    }
    for number in range(4):
        dicom(root / f"whole{number}.dcm", draw_radiograph(number), **planted)
    whole = (root / "whole0.dcm").read_bytes()
    (root / "cut.dcm").write_bytes(whole[:-9000])
    (root / "headless.dcm").write_bytes(whole[132:])
    (root / "garbled.dcm").write_bytes(whole.replace(b"PN", b"ZZ").replace(b"US", b"SQ"))
    for name, value in TEMPTING.items():
        try:
            dicom(root / f"{name}.dcm", draw_radiograph(9), **planted, **{name: value})
        except (ValueError, TypeError):  # pydicom writes no such value: it replaces one of the same length
            data = dicom(root / f"{name}.dcm", draw_radiograph(9), **planted, **{name: "1.25\\1.25"}).read_bytes()
            (root / f"{name}.dcm").write_bytes(data.replace(b"1.25\\1.25", b"SENTINEL\\"))
    with zipfile.ZipFile(root / "more.zip", "w") as archive:
        archive.write(root / "whole3.dcm", "inner.dcm")
        archive.writestr("broken.dcm", whole[:-9000])
    return root


def leaks(folder: Path, said: str = "") -> list[tuple[str, str]]:
    """(file, word) of every planted string in a file, in a table's or an archive's content, or in what was said."""
    texts = {"terminal": said.encode(), **everything_in(folder)}
    words = (*WORDS, *(str(value).lower() for value in PATIENT.values() if len(str(value)) > 7))
    return [(name, word) for name, text in texts.items() for word in words if word.encode() in text.lower()]


def test_the_search_finds_what_is_there(tmp_path):
    import pyarrow as pa
    import pyarrow.parquet

    pa.parquet.write_table(pa.table({"a": ["x" * 50, "SENTINEL-4711"]}), tmp_path / "a.parquet", compression="zstd")
    np.savez_compressed(tmp_path / "b.npz", a=np.frombuffer(b"zz-free-text" * 9, np.uint8))
    (tmp_path / "c.log").write_text("born 19330303")
    found = {Path(name.split("::")[0].split(" as ")[0]).name for name, _ in leaks(tmp_path, "for Sentinel^Planted")}
    assert found == {"a.parquet", "b.npz", "c.log", "terminal"}


def test_prepare_and_stream(dicoms, tmp_path, capfd, caplog):
    small = ["--img-size", "96", "--shard-size", "5"]
    assert main(["prepare", str(dicoms), "--out", str(tmp_path / "set"), "--workers", "1", *small]) == 0
    small += ["--contour", "rectangle"]
    everything = ["--modality", "any", "--view", "any", "--body-part", "any", "--workers", "0"]
    assert main(["prepare", str(dicoms), "--out", str(tmp_path / "any"), *everything, *small]) == 0
    if __import__("importlib").util.find_spec("litdata"):
        assert main(["stream", str(tmp_path / "any"), "--out", str(tmp_path / "chunks")]) == 0
    said = "".join(capfd.readouterr()) + caplog.text
    assert "images of" in said and (tmp_path / "any" / "quarantine.csv").read_text().count("\n") > 3
    assert not leaks(tmp_path, said)


def test_contour_overlays(dicoms, tmp_path, capfd, caplog):
    assert main(["contour", str(dicoms), "--out", str(tmp_path / "contours"), "--img-size", "96"]) == 0
    assert not leaks(tmp_path, "".join(capfd.readouterr()) + caplog.text)


@pytest.mark.usefixtures("two_blocks")
def test_embed_and_pretrain(dicoms, tmp_path, capfd, caplog):
    pytest.importorskip("accelerate")
    hx.save_model(hx.create_encoder("vit_tiny_patch16", img_size=96, contour="rectangle"), tmp_path / "model")
    table = tmp_path / "features.parquet"
    assert (
        main(["embed", str(dicoms), "--weights", str(tmp_path / "model"), "--out", str(table), "--workers", "0"]) == 0
    )
    run = ["pretrain", "--data", str(dicoms), "--out", str(tmp_path / "run"), "--model", "vit_tiny_patch16"]
    small = ["--img-size", "96", "--steps", "2", "--batch-size", "2", "--workers", "0", "--decoder-embed-dim", "64"]
    assert main([*run, *small, "--decoder-depth", "1", "--picture-every", "1", "--contour", "rectangle"]) == 0
    said = "".join(capfd.readouterr()) + caplog.text
    assert (tmp_path / "run" / "log.jsonl").exists() and list((tmp_path / "run").rglob("*.png"))
    assert not leaks(tmp_path, said)


def test_errors_of_reading(dicoms, capfd):
    said = io.StringIO()
    failed = 0
    for path in sorted(dicoms.glob("*.dcm")):
        for options in ({}, {"any_modality": True}, {"force": True, "any_modality": True}):
            with warnings.catch_warnings(record=True) as caught:
                warnings.simplefilter("always")
                try:
                    said.write(json.dumps(hx.read_canvas(path, size=96, **options).provenance))
                except hx.HDXrayError as error:
                    failed += 1
                    said.write(f"{error!r} {error} {error.__cause__!r} {error.__context__!r}")
            said.write(" ".join(str(warning.message) for warning in caught))
    assert failed >= 4
    assert not leaks(Path("/nonexistent"), said.getvalue() + "".join(capfd.readouterr()))


def test_patients_are_told_apart_by_a_keyed_hash_alone(tmp_path):
    root = tmp_path / "dicom"
    root.mkdir()
    for number, patient in enumerate(("SENTINEL-4711", "SENTINEL-4711", "OTHER-1")):
        dicom(root / f"{number}.dcm", draw_radiograph(number), PatientID=patient)

    def patients(out: str, *options: str) -> list[str]:
        common = ["--img-size", "96", "--workers", "0", "--contour", "rectangle"]
        assert main(["prepare", str(root), "--out", str(tmp_path / out), *common, *options]) == 0
        return PreparedSet(tmp_path / out).index.column("patient").to_pylist()

    one = patients("one")
    assert one[0] == one[1] != one[2] and all(len(patient) == 16 for patient in one)
    key = tmp_path / "one.patient.key"
    assert key.stat().st_mode & 0o077 == 0
    assert patients("two", "--patient-key", str(key)) == one
    assert patients("three")[0] != one[0]  # another key: no two data sets can be joined by guessing
    assert key.read_bytes().strip() not in b"".join(contents(tmp_path / "one").values())
