"""The secret of patients' hashes: where it is made, who may read it, and which are refused."""

from __future__ import annotations

import os
import sys

import pytest
from prepared_helpers import contents, prepare
from toy_radiographs import draw_radiograph
from xray_makers import dicom

from hdxray_fast.cli.main import main
from hdxray_fast.data.csv_cells import name_of
from hdxray_fast.data.prepared.patient_key import beside, find_key, make_key, read_key
from hdxray_fast.data.prepared.reading import PreparedSet
from hdxray_fast.data.prepared.worker import patient_hash
from hdxray_fast.errors import ConfigError

posix = pytest.mark.skipif(sys.platform == "win32", reason="owners, modes and links of POSIX")


@pytest.fixture
def films(tmp_path):
    (tmp_path / "films").mkdir()
    dicom(tmp_path / "films" / "a.dcm", draw_radiograph(0), PatientID="4711")
    return tmp_path / "films"


@posix
def test_a_new_key_lies_beside_the_folder_that_is_copied(films, tmp_path):
    out = tmp_path / "set"
    prepare([films], out)
    key = tmp_path / "set.patient.key"
    assert beside(out) == find_key(out) == key and key.stat().st_mode & 0o777 == 0o600
    assert not [path for path in out.rglob("*") if "key" in path.name]
    assert key.read_bytes().strip() not in b"".join(contents(out).values())
    prepare([tmp_path], tmp_path / "other")  # a key that lies among the sources is none
    assert "key" not in (tmp_path / "other" / "skipped.csv").read_text()


@posix
def test_a_set_behind_a_link_has_its_key_beside_what_the_link_leads_to(films, tmp_path):
    (tmp_path / "disk").mkdir()
    real, link = tmp_path / "disk" / "set", tmp_path / "link"
    real.mkdir()
    link.symlink_to(real)
    prepare([films], link)
    assert find_key(link) == find_key(real) == tmp_path / "disk" / "set.patient.key"
    before = contents(real)
    prepare([films], real)
    prepare([films], link)
    assert contents(real) == before
    find_key(real).rename(tmp_path / "link.patient.key")  # as earlier releases had it
    prepare([films], link)
    assert find_key(link) == tmp_path / "link.patient.key"


@posix
def test_a_set_that_was_begun_with_its_key_inside_goes_on_and_is_told(films, tmp_path, capsys):
    out = tmp_path / "set"
    prepare([films], out)
    before = PreparedSet(out).index.column("patient").to_pylist()
    beside(out).rename(out / "patient.key")
    dicom(films / "b.dcm", draw_radiograph(1), PatientID="4711")
    words = ["prepare", str(films), "--out", str(out), "--img-size", "96", "--workers", "0", "--contour", "rectangle"]
    assert main([*words, "--shard-size", "4", "--add"]) == 0, capsys.readouterr().err
    assert f"move it to {beside(out)}" in capsys.readouterr().err
    assert PreparedSet(out).index.column("patient").to_pylist() == before * 2
    (out / "patient.key").unlink()
    with pytest.raises(ConfigError, match=r"^patient_key: .*set was begun with a key, which is neither"):
        prepare([films], out)


@posix
def test_a_key_that_others_may_read_or_that_is_a_link_is_refused(tmp_path):
    path = tmp_path / "key"
    make_key(path)
    whole = read_key(path)
    for mode in (0o640, 0o604, 0o620, 0o666):
        path.chmod(mode)
        with pytest.raises(ConfigError, match=rf"^patient_key: .*key is open to other users \(mode {mode:04o}\)"):
            read_key(path)
    path.chmod(0o400)
    assert read_key(path) == whole
    (tmp_path / "link").symlink_to(path)
    with pytest.raises(ConfigError, match=r"^patient_key: .*link is a link"):
        read_key(tmp_path / "link")
    with pytest.raises(ConfigError, match=r"^patient_key: .* is no file"):
        read_key(tmp_path)


@posix
def test_a_key_of_another_user_is_refused(tmp_path, monkeypatch):
    make_key(tmp_path / "key")
    owner = (tmp_path / "key").stat().st_uid
    os.chown(tmp_path / "key", owner or 12345, -1)
    monkeypatch.setattr(os, "geteuid", lambda: 54321)
    with pytest.raises(ConfigError, match=r"^patient_key: .*key belongs to another user"):
        read_key(tmp_path / "key")


@pytest.mark.parametrize("secret", ["0" * 64, "abc" * 20, "1234567" * 9, "short"])
def test_keys_that_are_soon_guessed_are_refused(tmp_path, secret):
    path = tmp_path / "key"
    path.touch(mode=0o600)
    path.write_text(secret)
    with pytest.raises(ConfigError, match=r"^patient_key: .* are needed") as refused:
        read_key(path)
    assert secret not in str(refused.value)


def test_two_keys_are_never_alike(tmp_path):
    for name in "ab":
        make_key(tmp_path / name)
    assert read_key(tmp_path / "a") != read_key(tmp_path / "b")


def test_an_id_with_a_byte_that_is_no_text_has_a_hash():
    """As tables of this package write such ids, and read them back."""
    found = patient_hash(b"key", name_of("M\\xfcller"))
    assert len(found) == 16 and found == patient_hash(b"key", " M\udcfcller") != patient_hash(b"key", "Muller")
