"""Cleaning and tokenizers: what they do to known texts, and to all real reports."""

from __future__ import annotations

import json
import random
import re
import shutil

import pytest

import hdxray_fast as hx
from hdxray_fast.reports.cleaning import (
    CLEANERS,
    R2GenReferences,
    clean_chinese,
    clean_english,
    clean_none,
    clean_r2gen_iu_xray,
    clean_r2gen_mimic_cxr,
    cleaner,
)

CHINESE = [
    "双肺纹理清晰，未见实变影。心影大小正常。",
    "右下肺见斑片影，考虑炎症。CT值约40HU。",
    "左侧胸腔少量积液（约2.5cm）；余未见异常。",
]


@pytest.fixture(scope="module")
def findings(test_data) -> list[str]:
    """The 3,425 findings of IU X-ray, as they were written."""
    return [e["findings"] for e in json.loads((test_data / "reports" / "iu_xray_reports.json").read_text())]


# Cleaning -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("raw", "clean"),
    [
        ("  The  lungs\n are clear .. No effusion.. ", "The lungs are clear. No effusion."),
        ("1. No acute disease. 2. Stable T9 fracture. 3) XXXX.", "No acute disease. Stable T9 fracture. XXXX."),
        ("2.No evidence of edema.", "No evidence of edema."),
        ("A 1.5 cm nodule at rib 4. Measures 3. 5 is old.", "A 1.5 cm nodule at rib 4. Measures 3. 5 is old."),
        (
            "Pleural effusion.Heart normal. Seen at 3 a.m. on CT.",
            "Pleural effusion. Heart normal. Seen at 3 a.m. on CT.",
        ),
        ("Stable ... more , or less ; done", "Stable ... more, or less; done"),
        ("\ufeffDon\u2019t\x00 see ___-year-old X-ray", "Don't see ___-year-old X-ray"),
        ("see<BR>below <br/>", "see below"),
        ("  ", ""),
    ],
)
def test_english(raw, clean):
    assert clean_english(raw) == clean
    assert clean_english(clean) == clean
    assert clean_none(raw) == raw.strip()


@pytest.mark.parametrize(
    ("raw", "clean"),
    [
        ("　双肺 纹理清晰，\n未见实变影。。 ", "双肺纹理清晰，未见实变影。"),
        ("见 CT 值约 40 HU（增强后 60 HU）；余 （－）。", "见CT值约40 HU（增强后60 HU）；余（－）。"),
        ("Heart  size normal", "Heart size normal"),
        ("心影：不大、！？", "心影：不大、！？"),  # full-width punctuation stays
    ],
)
def test_chinese(raw, clean):
    assert clean_chinese(raw) == clean
    assert clean_chinese(clean) == clean


def test_r2gen_cleaning_is_r2gens():
    """Expected texts were computed by R2Gen's own functions; both agreed with these on 100,000 random texts as well."""
    raw = '1. Mild..  "Bibasilar" atelectasis/scarring. 2. No x-ray T9 (lateral) 50% [prior]; <3 cm. 3. ___ .... Done'
    clean = "mild . bibasilar atelectasisscarring . no x-ray t9 lateral 50 prior 3 cm .  . done ."
    assert clean_r2gen_iu_xray(raw) == clean
    assert clean_r2gen_mimic_cxr(raw) == clean
    lines = "The lungs are\n  clear.  ______ Heart: 'normal'. "
    assert clean_r2gen_iu_xray(lines) == "the lungs are\n  clear .  heart normal ."
    assert clean_r2gen_mimic_cxr(lines) == "the lungs are clear .  heart normal ."


def test_r2gen_references():
    training = ["Heart is normal. Lungs are clear."] * 3 + ["Aorta is tortuous."]
    references = R2GenReferences.fit(training, "iu-xray")
    assert references("The heart is Normal.") == "<unk> heart is normal ."
    assert references("Aorta is clear") == "<unk> is clear ."  # once in training: below R2Gen's 3
    long = references("heart " * 100)
    assert long.split() == ["heart"] * 59
    assert references(long) == long
    assert R2GenReferences.fit(training, "mimic-cxr").words == frozenset()
    assert len(R2GenReferences.fit(training * 4, "mimic-cxr")("heart " * 200).split()) == 99
    with pytest.raises(hx.ConfigError, match="'chexpert', accepted are 'iu-xray', 'mimic-cxr'"):
        R2GenReferences.fit(training, "chexpert")


def test_unknown_cleaning_is_named():
    with pytest.raises(hx.ConfigError, match="'german', accepted are 'none', 'english'"):
        cleaner("german")


def test_cleaning_of_all_real_reports(findings):
    for name in ("none", "english", "chinese"):
        cleaned = [cleaner(name)(text) for text in findings]
        assert all(cleaner(name)(text) == text for text in cleaned), name
    for raw, clean in zip(findings, map(clean_english, findings), strict=True):
        # letters and digits are all kept, but for numbers of lists
        letters = [re.sub(r"\b\d{1,2}[.)]\s*(?=[A-Z])|<BR>|[\W]", "", text) for text in (raw, clean)]
        assert letters[0] == letters[1]
        assert ".." not in clean.replace("...", "") and "  " not in clean
    references = R2GenReferences.fit(findings, "iu-xray")
    for text in findings:
        once = references(text)
        assert 0 < len(once.split()) <= 59
        assert references(once) == once  # generated text that is in R2Gen's form already stays as it is


@pytest.mark.parametrize("name", CLEANERS)
def test_cleaning_takes_any_text(name):
    chooser = random.Random(0)
    pieces = [
        "\0",
        "\ud83d\ude00".encode("utf-16", "surrogatepass").decode("utf-16"),
        "。",
        " ",
        "\n",
        ".",
        "1. ",
        "肺",
    ]
    for _ in range(200):
        assert isinstance(cleaner(name)("".join(chooser.choices([*pieces, "A", "b", "_", "("], k=30))), str)


# Tokenizers -----------------------------------------------------------------------------------------------------------

pytest.importorskip("transformers")
from hdxray_fast.reports.text_tokenizers import (  # noqa: E402
    ReportTokenizer,
    check_fits,
    frequency_floor,
    load_tokenizer,
    train_tokenizer,
)
from hdxray_fast.reports.unknown_words import require_targets, unknown_warning  # noqa: E402


@pytest.mark.parametrize("kind", ["word", "bpe", "character"])
def test_every_real_report_comes_back(findings, kind, tmp_path):
    texts = [clean_english(text) for text in findings]
    tokenizer = train_tokenizer(texts, kind, min_frequency=1, vocab_size=8000, min_patients=1, digits=True)
    exact = 0
    for text in texts:
        ids = tokenizer.encode(text)
        assert max(ids) < len(tokenizer)
        assert tokenizer.unk not in ids
        back = tokenizer.decode([*ids, tokenizer.eos, 7, 8])
        exact += back == text
        assert back.replace(" ", "") == text.replace(" ", "")
    # words come back written as usual: "body(lateral view)" and "vasculature/ aorta" with one more space
    assert exact == len(texts) if kind != "word" else exact > 0.99 * len(texts)
    tokenizer.save(tmp_path)
    again = load_tokenizer(tmp_path)
    assert (again.kind, again.bos, again.eos, again.pad) == (kind, tokenizer.bos, tokenizer.eos, tokenizer.pad)
    for text in texts[:50]:
        assert again.encode(text) == tokenizer.encode(text)
        assert again.decode(again.encode(text)) == tokenizer.decode(tokenizer.encode(text))


def test_frequency_floor_of_words(findings):
    texts = [clean_english(text) for text in findings]
    tokenizer = train_tokenizer(texts, "word", min_frequency=3, min_patients=1, digits=True)
    assert len(tokenizer) < len(train_tokenizer(texts, "word", min_frequency=1, min_patients=1, digits=True))
    assert 0 < tokenizer.unknown_share(texts) < 0.03
    assert tokenizer.decode(tokenizer.encode("The pneumonoultramicroscopic heart is normal.")) == (
        "The <unk> heart is normal."
    )
    small = train_tokenizer(texts, "word", vocab_size=50, min_patients=1, digits=True)
    assert len(small) == 50
    assert (
        train_tokenizer(texts, "word", vocab_size=50, min_patients=1, digits=True).backend.get_vocab()
        == small.backend.get_vocab()
    )


def test_the_floor_that_small_sets_take(findings):
    """The usual one leaves 1 % of all real reports' words unknown, and 15 % of those of 40."""
    texts = [clean_english(text) for text in findings]
    assert frequency_floor(texts, "word") == 3
    few = texts[:40]
    assert train_tokenizer(few, "word", min_frequency=3, min_patients=1, digits=True).unknown_share(few) > 0.1
    assert frequency_floor(few, "word") == 1
    assert train_tokenizer(few, "word", min_patients=1, digits=True).unknown_share(few) == 0
    assert (
        train_tokenizer(few, "word", min_frequency=2, min_patients=1, digits=True).unknown_share(few) > 0
    )  # what is asked for is done


@pytest.mark.parametrize(("rare", "floor"), [(5, 3), (6, 1)])
def test_where_the_floor_falls(rare, floor):
    texts = [*["clear"] * (100 - rare), *(f"word{i}" for i in range(rare))]
    assert frequency_floor(texts, "word") == floor
    assert (train_tokenizer(texts, "word", min_patients=1, digits=True).unknown_share(texts) > 0) is (floor == 3)
    assert (frequency_floor(texts, "bpe"), frequency_floor(texts, "character")) == (2, 1)


@pytest.mark.parametrize(
    ("floor", "replaceable", "remedy"),
    [
        (3, True, "give --min-frequency 1 (it is 3), or --tokenizer bpe"),
        (1, True, "give a larger --vocab-size, or --tokenizer bpe"),
        (None, True, "give --tokenizer bpe, which knows every text, or another one"),
        (None, False, "choose a language model whose tokenizer"),
    ],
)
def test_a_warning_names_its_remedy(floor, replaceable, remedy):
    assert unknown_warning(0.05, floor, replaceable=replaceable) is None
    warning = unknown_warning(0.0501, floor, replaceable=replaceable)
    assert warning.startswith("5.0% of the tokens of the training reports are unknown") and remedy in warning


def test_r2gens_vocabulary(findings):
    """Words of R2Gen's own cleaning at its floor of 3, and its marks of sentence ends."""
    texts = [clean_r2gen_iu_xray(text) for text in findings]
    tokenizer = train_tokenizer(texts, "word", min_frequency=3, min_patients=1, digits=True)
    assert (
        tokenizer.decode(tokenizer.encode("heart is normal . lungs are clear .")) == "heart is normal. lungs are clear."
    )
    words = {word for text in texts for word in text.split()}
    plain = {word for word in words if re.fullmatch(r"[a-z]+", word)}
    common = {word for word in plain if sum(text.split().count(word) for text in texts[:300]) >= 3}
    assert common <= set(tokenizer.backend.get_vocab())


@pytest.mark.parametrize("kind", ["character", "bpe"])
def test_chinese_comes_back(kind):
    texts = [clean_chinese(text) for text in CHINESE]
    tokenizer = train_tokenizer(texts, kind, min_frequency=1, min_patients=1, digits=True)
    for text in texts:
        assert tokenizer.decode(tokenizer.encode(text)) == text
    if kind == "character":
        assert len(tokenizer.encode(texts[0])) == len(texts[0])
        assert tokenizer.decode(tokenizer.encode("双肺龘清晰")) == "双肺<unk>清晰"


def test_special_tokens_written_in_a_report_are_text():
    for kind in ("word", "bpe", "character"):
        tokenizer = train_tokenizer(["a <eos> b <pad> c"], kind, min_frequency=1, min_patients=1, digits=True)
        ids = tokenizer.encode("a <eos> b")
        assert tokenizer.eos not in ids
        assert tokenizer.decode(ids).replace(" ", "") == "a<eos>b"


def test_targets_are_cut_and_counted():
    tokenizer = train_tokenizer(["a b c d e"], "word", min_frequency=1, min_patients=1, digits=True)
    assert tokenizer.target("a b", 5) == ([*tokenizer.encode("a b"), tokenizer.eos], False)
    ids, cut = tokenizer.target("a b c d e", 5)
    assert (len(ids), cut) == (5, True)
    assert tokenizer.eos not in ids
    targets, cuts = require_targets(["a b", "a b c d e", "a b c d"], tokenizer, 5, 0.0)
    assert ([len(ids) for ids in targets], cuts) == ([3, 5, 5], 1)
    assert tokenizer.decode([]) == ""


def test_a_tokenizer_that_does_not_fit(tmp_path):
    english = train_tokenizer(
        ["the heart is normal", "the lungs are clear"], "word", min_frequency=1, min_patients=1, digits=True
    )
    with pytest.raises(hx.TrainingError, match=r"^tokenizer: 100% of the tokens of the training reports are unknown"):
        require_targets(CHINESE, english, 60, english.unknown_share(CHINESE))
    check_fits(english, len(english))
    with pytest.raises(hx.ConfigError, match=r"has \d+ tokens and the model has embeddings for 5"):
        check_fits(english, 5)
    with pytest.raises(hx.CheckpointError, match="cannot be loaded"):
        load_tokenizer(tmp_path / "nowhere")
    english.save(tmp_path / "saved")
    marks = tmp_path / "saved" / "report_tokenizer.json"
    marks.write_text(json.dumps({"kind": "word", "size": 3}))
    with pytest.raises(hx.CheckpointError, match="and had 3 when it was saved"):
        load_tokenizer(tmp_path / "saved")
    marks.write_text("{")
    with pytest.raises(hx.CheckpointError, match=r"report_tokenizer.json: cannot be read"):
        load_tokenizer(tmp_path / "saved")
    (tmp_path / "saved" / "tokenizer.json").write_text("{")
    marks.write_text(json.dumps({"kind": "word", "size": len(english)}))
    with pytest.raises(hx.CheckpointError, match=r"/tokenizer.json: cannot be read"):
        load_tokenizer(tmp_path / "saved")


@pytest.mark.parametrize(
    ("texts", "options", "message"),
    [
        ([], {}, "no text to train on"),
        (["", " \n"], {}, "no text to train on"),
        (["a b"], {"min_frequency": 2}, "no token is seen 2 times"),
        (["a b"], {"kind": "sentence"}, "'sentence', accepted are 'word', 'bpe', 'character'"),
        (["a b"], {"min_frequency": 0}, "at least 1"),
        (["a b"], {"vocab_size": 4}, "at least 5"),
        (CHINESE, {}, "which Chinese has not"),
    ],
)
def test_tokenizers_that_cannot_be_trained(texts, options, message):
    with pytest.raises(hx.ConfigError, match=message):
        train_tokenizer(texts, **options, min_patients=1, digits=True)


def test_any_hugging_face_tokenizer(tmp_path):
    """One without start and padding tokens, as GPT-2's; and one without an end token, which is refused."""
    import transformers

    made = train_tokenizer(
        ["The heart is normal. The lungs are clear."] * 3, "bpe", min_frequency=1, min_patients=1, digits=True
    )
    backend = transformers.PreTrainedTokenizerFast(tokenizer_object=made.backend.backend_tokenizer, eos_token="<eos>")
    backend.save_pretrained(tmp_path / "hf")
    tokenizer = load_tokenizer(tmp_path / "hf")
    assert (tokenizer.kind, tokenizer.bos, tokenizer.pad) == ("hf", tokenizer.eos, tokenizer.eos)
    assert tokenizer.decode(tokenizer.encode("The lungs are normal.")) == "The lungs are normal."
    targets, cuts = require_targets(["The heart is clear."], tokenizer, 60, 0.0)
    assert targets[0][-1] == tokenizer.eos and cuts == 0
    tokenizer.save(tmp_path / "again")
    assert load_tokenizer(tmp_path / "again").kind == "hf"
    shutil.rmtree(tmp_path / "hf")
    endless = transformers.PreTrainedTokenizerFast(tokenizer_object=made.backend.backend_tokenizer)
    with pytest.raises(hx.ConfigError, match="no end-of-text token"):
        ReportTokenizer(endless, "hf")
