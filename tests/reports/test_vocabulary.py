"""What of its training reports stands in a model's vocabulary, which whoever has the model can read."""

from __future__ import annotations

import json

import pytest

import hdxray_fast as hx

pytest.importorskip("transformers")
from hdxray_fast.reports.config import ReportConfig
from hdxray_fast.reports.text_tokenizers import train_tokenizer
from hdxray_fast.reports.unknown_words import left_out_note, unknown_warning

# A name that one patient's reports have nine times, a number that everybody's have, a word of four patients.
TEXTS = [f"The heart is normal, seen on 2024-05-0{day}. Size 3.5 cm." for day in range(1, 10)]
TEXTS += ["Compared by Zimmermann with Zimmermann of Zimmermann."] * 3 + ["There is granuloma."] * 4
PATIENTS = [f"p{number}" for number in range(9)] + ["z"] * 3 + [f"g{number}" for number in range(4)]


def words(tokenizer, folder) -> str:
    """All that the folder which goes with a model says, lower case."""
    tokenizer.save(folder)
    return "\n".join(path.read_text() for path in folder.iterdir()).lower()


@pytest.mark.parametrize("kind", ["word", "bpe"])
def test_names_and_numbers_stay_out(kind, tmp_path):
    plain = words(train_tokenizer(TEXTS, kind, patients=PATIENTS, min_patients=1, digits=True), tmp_path / "all")
    assert "zimmermann" in plain and "2024" in plain and "granuloma" in plain
    tokenizer = train_tokenizer(TEXTS, kind, patients=PATIENTS)
    told = words(tokenizer, tmp_path / "default")
    assert "heart" in told and "normal" in told
    assert not any(trace in told for trace in ("zimmer", "2024", "granul"))
    assert not any(letter.isdigit() for token in tokenizer.backend.get_vocab() if len(token) > 1 for letter in token)
    if kind == "word":
        assert not any(token.isdigit() for token in tokenizer.backend.get_vocab())
        assert tokenizer.decode(tokenizer.encode("The heart is 3.5 cm.")) == "The heart is <unk> cm."
    else:  # nothing is unknown: numbers and names are written byte by byte
        assert all(tokenizer.decode(tokenizer.encode(text)) == text for text in TEXTS)
    assert "granul" in words(train_tokenizer(TEXTS, kind, patients=PATIENTS, min_patients=4), tmp_path / "four")
    assert "zimmer" in words(train_tokenizer(TEXTS, kind, min_patients=3), tmp_path / "texts")  # 3 reports, 3 patients


def test_characters_of_few_patients_stay_out():
    texts = ["心影正常。"] * 9 + ["张医生 1。"] * 3
    tokenizer = train_tokenizer(texts, "character", patients=[*"abcdefghi", "z", "z", "z"])
    assert tokenizer.decode(tokenizer.encode("心影张")) == "心影<unk>"
    texts = ["心影 15 毫米。"] * 5
    assert train_tokenizer(texts, "character").unknown_share(texts) == 0  # a digit is a character
    tokenizer = train_tokenizer(["心影正常。肺野清晰。"] * 5 + ["张某"] * 3, "bpe")
    assert len(tokenizer.encode("心影正常")) < len(tokenizer.encode("张某张某"))  # pieces of the common words alone


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"min_patients": 0}, "min_patients: got 0"),
        ({"patients": ["a"]}, "patients: got 1 for 16 texts"),
        ({"patients": ["a"] * 16}, "in those of 5 patients; lower min_frequency or min_patients"),
    ],
)
def test_refusals(options, message):
    with pytest.raises(hx.ConfigError, match=message):
        train_tokenizer(TEXTS, **options)


def test_runs_begun_before_keep_their_vocabulary():
    config = ReportConfig(data="studies.csv", out="out")
    new = config.with_floor(TEXTS)
    assert (new.min_patients, new.digits) == (5, False)
    begun = {name: value for name, value in new.as_dict().items() if name not in ("min_patients", "digits")}
    again = config.with_floor(TEXTS, json.loads(json.dumps(begun)))
    assert (again.min_patients, again.digits) == (1, True) and again.differences(begun) == []
    assert new.differences(begun) == ["min_patients: 1 -> 5", "digits: True -> False"]
    assert config.with_floor(TEXTS, new.as_dict()) == new
    given = ReportConfig(data="studies.csv", out="out", min_patients=1, digits=True)
    assert given.with_floor(TEXTS).vocabulary["min_patients"] == 1 and given.with_floor(TEXTS).digits
    with pytest.raises(hx.ConfigError, match="min_patients"):
        ReportConfig(data="studies.csv", out="out", min_patients=0)


def test_what_is_left_out_is_told():
    new = {"min_patients": 5, "digits": False}
    said = "words of fewer than 5 patients and words with digits are not in the vocabulary, which goes with the model"
    assert left_out_note(0.0, new) == f"{said} (min_patients, digits)"
    assert left_out_note(0.012, new).startswith("1.20% of the tokens of the training reports are unknown")
    assert left_out_note(0.0, {}) == left_out_note(0.0, {"min_patients": 1, "digits": True}) == ""
    warning = unknown_warning(0.1, 1, 5)
    assert "give --tokenizer bpe" in warning and "--min-patients 1 (it is 5) and --digits true" in warning
