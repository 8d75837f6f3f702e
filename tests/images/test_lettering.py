"""Names on pictures: in their own letters where OpenCV has them, and within the picture."""

from __future__ import annotations

import os

import numpy as np
import pytest

from hdxray_fast.images import lettering
from hdxray_fast.images.lettering import write_line


def drawn(text: str, width: int = 300) -> np.ndarray:
    strip = np.zeros((24, width, 3), np.uint8)
    write_line(strip, text, 4, 17, 15, (255, 255, 255))
    return strip


@pytest.mark.parametrize("name", ["Größe.png", "Рентген.dcm", "胸部.png"])
def test_a_name_is_drawn_in_its_letters(name):
    if lettering._unicode_font() is None:
        pytest.skip("OpenCV before 5 has ASCII letters alone")
    asked = drawn("".join(letter if letter.isascii() else "?" for letter in name))
    assert drawn(name).any() and not np.array_equal(drawn(name), asked)


def test_without_such_a_font_the_rest_of_a_name_is_drawn(monkeypatch):
    monkeypatch.setattr(lettering, "_unicode_font", lambda: None)
    assert drawn("胸.png").any() and np.array_equal(drawn("胸.png"), drawn("?.png"))


@pytest.mark.parametrize("font", [True, False])
def test_bytes_and_lengths_of_any_kind_fit(monkeypatch, font):
    if not font:
        monkeypatch.setattr(lettering, "_unicode_font", lambda: None)
    for text in ("", os.fsdecode(b"caf\xe9 \x1b[2J"), "röntgen-" * 40):
        assert not drawn(text, 120)[:, 116:].any()
