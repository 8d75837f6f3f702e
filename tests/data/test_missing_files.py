"""A table none of whose files is found: the folder is named, with the one that may be meant."""

from __future__ import annotations

import pytest

from hdxray_fast.data.missing_files import none_found


@pytest.fixture
def place(tmp_path):
    """``images/set/a.png``, and beside ``images`` a table and ``my films/all/a.png``."""
    (tmp_path / "my films" / "all").mkdir(parents=True)
    (tmp_path / "my films" / "all" / "a.png").touch()
    (tmp_path / "images" / "set").mkdir(parents=True)
    (tmp_path / "images" / "set" / "a.png").touch()
    (tmp_path / "table.csv").touch()
    return tmp_path


def refusal(place, name: str, images: str | None) -> str:
    folder = None if images is None else place / images
    source = place / "table.csv"
    return str(none_found([str((folder or place) / name), "b"], str(source), folder)).replace(f"{place}/", "")


@pytest.mark.parametrize(
    ("name", "images", "said"),
    [
        ("a.png", "imagse", "images: imagse does not exist; is images meant?"),
        ("a.png", "elsewhere", "images: elsewhere does not exist; it is the folder that names begin from"),
        ("a.png", "table.csv", "images: table.csv is a file, not a folder; it is the folder that names begin from"),
        ("set/a.png", "images/set", "first is looked for as images/set/set/a.png; is images meant?"),
        ("a.png", "images", "none of the 2 images of table.csv exists in images, the first is looked for as "
         "images/a.png; is images/set meant?"),
        ("c.png", "images", "images/c.png; images (--images) names the folder that their names begin from"),
        ("set/a.png", None, "none of the 2 images exists, the first is set/a.png; is --images images meant?"),
        ("all/a.png", None, "the first is all/a.png; is --images 'my films' meant?"),
        ("set\\a.png", None, "set\\a.png; its names have the backslashes of Windows, write / in their place"),
        ("c.png", None, "the first is c.png; images (--images) names the folder that their names begin from"),
    ],
)  # fmt: skip
def test_the_folder_is_named_and_the_nearest_one(place, name, images, said):
    assert refusal(place, name, images).endswith(said)


def test_a_link_that_leads_to_itself_is_passed_over(place):
    (place / "images" / "loop").symlink_to(place / "images" / "loop")
    (place / "loop").symlink_to(place / "loop")
    assert refusal(place, "a.png", "images").endswith("is images/set meant?")
    assert refusal(place, "a.png", "imagse").endswith("is images meant?")
