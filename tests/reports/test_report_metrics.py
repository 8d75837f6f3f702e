"""Scores against pycocoevalcap's whole pipeline and against scores computed here from their definitions."""

from __future__ import annotations

import importlib.util
import json
import math
import random
import re
import shutil
import statistics
import sys
import types
from collections import Counter
from dataclasses import replace

import pytest
from report_corpus import CASES

import hdxray_fast as hx
from hdxray_fast.reports.cleaning import R2GenReferences
from hdxray_fast.reports.clinical import CLINICAL, clinical_scores
from hdxray_fast.reports.exchange import exchange, exchanged_scores
from hdxray_fast.reports.intervals import score_intervals
from hdxray_fast.reports.metrics import (
    ENGLISH_ONLY,
    NEEDS_JAVA,
    NEEDS_JIEBA,
    NEEDS_TWO,
    SCORES,
    chinese_characters,
    conventions,
    corpus_scores,
    score_reports,
)
from hdxray_fast.reports.ngram_scores import bleu_counts, bleu_of_counts, cider_d
from hdxray_fast.reports.statistics import duplicate_statistics, length_statistics
from hdxray_fast.reports.words import english_words

HAS_METEOR = shutil.which("java") and importlib.util.find_spec("pycocoevalcap")
needs_java = pytest.mark.skipif(not HAS_METEOR, reason="METEOR and its package's tokenizer need pycocoevalcap and Java")
NUMBERS = SCORES[:-1]  # all but METEOR
TEXTS = ["The heart is normal.", "No effusion, no pneumothorax.", "The lungs are clear and well expanded.", "Stable."]


@pytest.fixture(scope="module")
def pairs(test_data) -> list[tuple[str, str]]:
    """500 pairs from real reports: half of each text is that of its reference, the rest is another patient's."""
    reports = json.loads((test_data / "reports" / "iu_xray_reports.json").read_text())
    chooser = random.Random(0)
    findings = [entry["findings"] for entry in chooser.sample(reports, 500)]
    made = []
    for mine, other in zip(findings, [*findings[1:], findings[0]], strict=True):
        own, foreign = mine.split(". "), other.split(". ")
        sentences = [*own[: chooser.randint(0, len(own))], *foreign[: chooser.randint(1, len(foreign))]]
        made.append((". ".join(sentences), mine))
    return made


@pytest.fixture(scope="module")
def raw():
    return conventions("en")[0]


# From the definitions -------------------------------------------------------------------------------------------------


def ngrams(tokens: list[str], n: int) -> Counter:
    return Counter(tuple(tokens[i : i + n]) for i in range(len(tokens) - n + 1))


def bleu(pairs: list[tuple[list[str], list[str]]], n: int) -> float:
    """Papineni et al. 2002: geometric mean of clipped precisions over the corpus, with a brevity penalty."""
    logs = 0.0
    for size in range(1, n + 1):
        clipped = sum((ngrams(made, size) & ngrams(truth, size)).total() for made, truth in pairs)
        logs += math.log(clipped / sum(ngrams(made, size).total() for made, _ in pairs)) / n
    made, truth = (sum(len(pair[side]) for pair in pairs) for side in (0, 1))
    return math.exp(logs + min(0.0, 1 - truth / made))


def rouge_l(made: list[str], truth: list[str]) -> float:
    """Lin 2004, sentence level, beta 1.2."""
    row = [0] * (len(truth) + 1)
    for word in made:
        before = row[:]
        for j, other in enumerate(truth, start=1):
            row[j] = before[j - 1] + 1 if word == other else max(row[j - 1], before[j])
    common = row[-1]
    if not common:
        return 0.0
    precision, recall = common / len(made), common / len(truth)
    return (1 + 1.2**2) * precision * recall / (recall + 1.2**2 * precision)


def cider_d_of(pairs: list[tuple[list[str], list[str]]]) -> list[float]:
    """Vedantam et al. 2015, CIDEr-D with sigma 6, over n-grams of 1 to 4; COCO counts lengths in bigrams."""
    scores = [0.0] * len(pairs)
    for n in range(1, 5):
        counts = [(ngrams(made, n), ngrams(truth, n)) for made, truth in pairs]
        seen = Counter(gram for _, truth in counts for gram in truth)
        rarity = {gram: math.log(len(pairs) / max(1, seen[gram])) for pair in counts for side in pair for gram in side}
        for i, (made, truth) in enumerate(counts):
            a = {gram: count * rarity[gram] for gram, count in made.items()}
            b = {gram: count * rarity[gram] for gram, count in truth.items()}
            lengths = [math.sqrt(sum(value**2 for value in side.values())) for side in (a, b)]
            if all(lengths):
                product = sum(min(value, b.get(gram, 0.0)) * b.get(gram, 0.0) for gram, value in a.items())
                gap = max(0, len(pairs[i][0]) - 1) - max(0, len(pairs[i][1]) - 1)
                scores[i] += 10 / 4 * product / (lengths[0] * lengths[1]) * math.exp(-(gap**2) / (2 * 6**2))
    return scores


def test_scores_are_what_their_definitions_say(pairs, raw):
    check_definitions(pairs, raw)


def test_scores_of_the_small_corpus_are_what_their_definitions_say(raw):
    texts = [case.english for case in CASES]
    made = [" ".join([*text.split()[:6], *other.split()[4:]]) for text, other in zip(texts, texts[::-1], strict=True)]
    check_definitions(list(zip(made, texts, strict=True)), raw)
    same = score_reports(texts, texts, raw, meteor=False).totals
    assert [same[name] for name in NUMBERS[:5]] == pytest.approx([1.0] * 5, abs=1e-6)


def check_definitions(pairs, raw):
    found = score_reports(*zip(*pairs, strict=True), raw, meteor=False)
    split = [tuple(raw.split(text).split() for text in pair) for pair in pairs]
    for n in range(1, 5):
        assert found.totals[f"bleu{n}"] == pytest.approx(bleu(split, n), abs=1e-6)
    each = [rouge_l(made, truth) for made, truth in split]
    assert found.each["rouge_l"] == pytest.approx(each, abs=1e-9)
    assert found.totals["rouge_l"] == pytest.approx(sum(each) / len(each), abs=1e-9)
    each = cider_d_of(split)
    assert found.each["cider_d"] == pytest.approx(each, abs=1e-6)
    assert found.totals["cider_d"] == pytest.approx(sum(each) / len(each), abs=1e-6)
    assert found.totals["meteor"] == "left out"


def test_intervals_draw_patients(pairs, raw):
    made, truths = zip(*pairs, strict=True)
    found = score_reports(made, truths, raw, meteor=False)
    counts = bleu_counts([raw.split(text) for text in made], [raw.split(text) for text in truths])
    whole = bleu_of_counts(counts.sum(axis=0, keepdims=True))[0]
    assert whole == pytest.approx([found.totals[f"bleu{n}"] for n in range(1, 5)], abs=1e-12)
    each = [str(i) for i in range(500)]
    single = score_intervals(made, truths, each, found, 300)
    twos = score_intervals(made, truths, [str(i // 50) for i in range(500)], found, 300)
    assert set(single) == {"bleu1", "bleu2", "bleu3", "bleu4", "rouge_l", "cider_d"}
    for name, (low, high) in single.items():
        assert low < found.totals[name] < high
        assert twos[name][1] - twos[name][0] > 0
    # the mean's standard error, from its definition
    spread = statistics.stdev(found.each["rouge_l"]) / 500**0.5
    assert single["rouge_l"][1] - single["rouge_l"][0] == pytest.approx(2 * 1.96 * spread, rel=0.15)
    # a patient's studies are drawn together: every study twice is no more evidence
    double = score_reports(made * 2, truths * 2, raw, meteor=False)
    wider = score_intervals(made * 2, truths * 2, each * 2, double, 300)
    assert wider["bleu4"] == pytest.approx(single["bleu4"], abs=1e-9)
    assert score_intervals(made, truths, each, found, 300) == single
    assert score_intervals(made, truths, each, found, 0) == {}
    assert score_intervals(made, truths, ["p"] * 500, found, 300) == {}
    nothing = score_intervals([""] * 4, TEXTS, each[:4], score_reports([""] * 4, TEXTS, raw, meteor=False), 50)
    assert nothing["bleu4"] == pytest.approx([0.0, 0.0], abs=1e-6)


# pycocoevalcap's whole pipeline ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("count", [1, 2, 40])
def test_scores_are_those_of_pycocoevalcap(count):
    """Of texts of any length, empty ones, words that come again, and one study alone; to the rounding of sums."""
    bleu, rouge, cider = (
        pytest.importorskip(f"pycocoevalcap.{name}.{name}", reason="pycocoevalcap is not installed")
        for name in ("bleu", "rouge", "cider")
    )
    chooser, words = random.Random(count), [*"abcdefg", "no", "effusion", ".", "胸"]
    made, truths = (
        [" ".join(chooser.choices(words, k=chooser.randint(low, 30))) for _ in range(count)] for low in (0, 1)
    )
    made[0] = "" if count > 1 else made[0]
    sides = [{i: [text] for i, text in enumerate(texts)} for texts in (truths, made)]
    totals, each = corpus_scores(made, truths)
    whole, every = bleu.Bleu(4).compute_score(*sides, verbose=0)
    assert [totals[f"bleu{n}"] for n in range(1, 5)] == pytest.approx(whole, rel=1e-12)
    assert each["bleu4"] == pytest.approx(every[3], rel=1e-12)
    assert each["rouge_l"] == pytest.approx(rouge.Rouge().compute_score(*sides)[1].tolist(), rel=1e-12)
    assert cider_d(made, truths) == pytest.approx(cider.Cider().compute_score(*sides)[1].tolist(), rel=1e-9, abs=1e-12)


@needs_java
@pytest.mark.slow
def test_parity_with_the_whole_pipeline_of_pycocoevalcap(pairs, raw, monkeypatch):
    """COCOEvalCap with its Java tokenizer on all 500 pairs: the same scores."""
    import pycocoevalcap.eval as pipeline

    class NoSpice:  # needs a download
        def method(self):
            return "SPICE"

        def compute_score(self, truths, hypotheses):
            return 0.0, [0.0] * len(truths)

    monkeypatch.setattr(pipeline, "Spice", NoSpice)
    sides = [{i: [{"caption": pair[side]}] for i, pair in enumerate(pairs)} for side in (0, 1)]

    class Captions:
        def __init__(self, side: int) -> None:
            self.imgToAnns = sides[side]

        def getImgIds(self):
            return list(sides[0])

    whole = pipeline.COCOEvalCap(Captions(1), Captions(0))
    whole.evaluate()
    found = score_reports(*zip(*pairs, strict=True), raw).totals
    theirs = {
        "cider_d": "CIDEr",
        "rouge_l": "ROUGE_L",
        "meteor": "METEOR",
        **{f"bleu{n}": f"Bleu_{n}" for n in (1, 2, 3, 4)},
    }
    for name in SCORES:
        assert found[name] == pytest.approx(whole.eval[theirs[name]], abs=1e-6), name


@needs_java
def test_words_are_those_of_the_treebank_tokenizer(test_data):
    """On all real reports, findings and impressions."""
    from pycocoevalcap.tokenizer.ptbtokenizer import PTBTokenizer

    reports = json.loads((test_data / "reports" / "iu_xray_reports.json").read_text())
    texts = [" ".join(entry[part].split()) for entry in reports for part in ("findings", "impression") if entry[part]]
    theirs = PTBTokenizer().tokenize({i: [{"caption": text}] for i, text in enumerate(texts)})
    different = [text for i, text in enumerate(texts) if theirs[i][0] != english_words(text)]
    assert len(texts) > 6000 and not different, different


def test_every_real_report_against_itself_and_another(test_data, raw):
    truths = [entry["findings"] for entry in json.loads((test_data / "reports" / "iu_xray_reports.json").read_text())]
    same = score_reports(truths, truths, raw, meteor=False)
    for name in ("bleu1", "bleu2", "bleu3", "bleu4", "rouge_l"):
        assert same.totals[name] == pytest.approx(1.0, abs=1e-6)
    assert all(value == pytest.approx(1.0) for value in same.each["rouge_l"])
    assert same.totals["cider_d"] > 9.5  # 10, but for n-grams that are in every reference
    others = score_reports([*truths[1:], truths[0]], truths, raw, meteor=False).totals
    assert len(truths) == 3425
    for name in NUMBERS:
        assert 0 < others[name] < 0.45 * same.totals[name]


def test_half_right_and_words_in_disorder(pairs, raw):
    made, truths = zip(*pairs, strict=True)
    same, half = (score_reports(texts, truths, raw, meteor=False).totals for texts in (truths, made))
    chooser = random.Random(0)
    mixed = []
    for text in truths:
        words = text.split()
        chooser.shuffle(words)
        mixed.append(" ".join(words))
    disordered = score_reports(mixed, truths, raw, meteor=False).totals
    for name in NUMBERS:
        assert half[name] < 0.75 * same[name]
        assert name == "bleu1" or disordered[name] < 0.75 * same[name]
    assert disordered["bleu1"] == pytest.approx(1.0, abs=0.01)  # words alone, in any order


# Java -----------------------------------------------------------------------------------------------------------------


@needs_java
@pytest.mark.slow
def test_meteor_with_java(raw):
    odd = ["", "||| no", "two\nlines ||| and a bar"]
    found = score_reports([*TEXTS, *TEXTS[::-1], *odd], [*TEXTS, *TEXTS, *["the heart is normal"] * 3], raw)
    each = found.each["meteor"]
    assert all(value > 0.4 for value in each[:4]), "identical texts; METEOR gives a single word 0.5"
    assert each[0] == pytest.approx(1.0, abs=0.01)
    assert all(0 <= value < 0.4 for value in each[4:])
    assert 0 < found.totals["meteor"] < 1


def test_meteor_without_java_is_said_in_words(raw, monkeypatch, tmp_path):
    monkeypatch.setenv("PATH", str(tmp_path))
    totals = score_reports(TEXTS, TEXTS, raw).totals
    assert totals["meteor"] == NEEDS_JAVA
    assert totals["bleu4"] == pytest.approx(1.0, abs=1e-6)


@pytest.mark.parametrize("program", ["exit 1", "echo no numbers; exit 0", "while read -r line; do echo nonsense; done"])
def test_a_java_that_does_not_work(raw, monkeypatch, tmp_path, program):
    java = tmp_path / "java"
    java.write_text(f"#!/bin/sh\n{program}\n")
    java.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:/usr/bin:/bin")
    assert score_reports(TEXTS, TEXTS, raw).totals["meteor"].startswith("failed: java does not run METEOR (")


# Conventions ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "words"),
    [  # as pycocoevalcap's tokenizer has them
        ("A 16.2cm nodule, 1.5 x 2.3 cm.", "a 16.2 cm nodule 1.5 x 2.3 cm"),
        ("3.5-cm mass at L1-2, T4-T5 and C5/C6", "3.5-cm mass at l1-2 t4-t5 and c5/c6"),
        ("Dr. Smith, seen at 5 p.m. today (q.i.d.)", "dr. smith seen at 5 p.m. today -lrb- q.i.d. -rrb-"),
        ("vs. prior CT. No change.", "vs. prior ct. no change"),
        ("50% of 1,000 ml, 2+ edema, <5 mm", "50 % of 1,000 ml 2 + edema < 5 mm"),
        ("-5 degrees at 10:30; 2.5x3.1", "-5 degrees at 10:30 2.5 x3 .1"),
        ("the patients' lungs, the patient's heart", "the patients lungs the patient 's heart"),
        ("It isn't. Cannot exclude it; won't repeat", "it is n't can not exclude it wo n't repeat"),
        ("O'Brien's 3 o'clock 'quoted' \"text\"", "o'brien 's 3 o'clock quoted text"),
        ("1. Clear. 2.No change...stable", "1 clear 2 no change stable"),
        ("[**name**] a=b & lateral", "-lsb- ** name ** -rsb- a = b & lateral"),
        ("“a” – it’s 5–6", "a it 's 5 6"),
        ("", ""),
    ],
)
def test_words_of_the_treebank(text, words):
    assert english_words(text) == words


@needs_java
def test_java_agrees_on_the_words_above():
    from pycocoevalcap.tokenizer.ptbtokenizer import PTBTokenizer

    cases = next(mark.args[1] for mark in test_words_of_the_treebank.pytestmark if mark.name == "parametrize")
    texts = [(text, words) for text, words in cases if text]
    theirs = PTBTokenizer().tokenize({i: [{"caption": text}] for i, (text, _) in enumerate(texts)})
    assert [theirs[i][0] for i in range(len(texts))] == [words for _, words in texts]


def test_words_and_characters():
    assert (
        english_words("No X-ray change: 3.5 cm, <unk> don't (T9/T10).")
        == "no x-ray change 3.5 cm <unk> do n't -lrb- t9/t10 -rrb-"
    )
    assert chinese_characters("双肺ＣＴ约40HU，清晰。") == "双 肺 ct 约 40hu 清 晰"
    fitted = R2GenReferences.fit(["a b c"] * 3, "iu-xray")
    assert conventions("en", fitted)[1].references == "r2gen-cleaned, other test set"
    word, compatible = conventions("en", replace(fitted, own=True))
    assert (word.references, compatible.references) == ("raw", "r2gen-compatible")
    assert "59 tokens" in compatible.stated and "fewer than 3 times" in compatible.stated
    unknown = R2GenReferences("r2gen-mimic-cxr", 100, 10)
    (_, cleaned) = conventions("en", unknown)
    assert cleaned.references == "r2gen-cleaned, other test set"
    assert cleaned.split("Heart normal. Clear.") == "heart normal . clear ."


def test_r2gen_references_change_the_score(pairs):
    made, truths = zip(*pairs, strict=True)
    raw, compatible = (
        score_reports(made, truths, convention, meteor=False).as_dict()
        for convention in conventions("en", R2GenReferences.fit(truths, "iu-xray"))
    )
    assert raw["studies"] == compatible["studies"] == 500
    assert raw["references"] != compatible["references"]
    assert raw["bleu4"] < compatible["bleu4"]  # full stops and cut ends are easy: why numbers of the two do not compare


def test_chinese_by_character_and_by_word():
    pytest.importorskip("jieba")
    truths = ["双肺纹理清晰，未见实变影。", "心影大小正常，主动脉迂曲。", "右侧胸腔少量积液。"]
    made = ["双肺纹理清晰，未见异常。", "心影增大。", "右侧胸腔少量积液。"]
    character, word = conventions("zh")
    assert (character.unit, word.unit) == ("character", "word")
    by_character = score_reports(made, truths, character).totals
    by_word = score_reports(made, truths, word).totals
    assert by_character["meteor"] == by_word["meteor"] == ENGLISH_ONLY
    assert 0 < by_word["bleu4"] < by_character["bleu4"] < 1
    same = score_reports(truths, truths, character).totals
    assert same["bleu4"] == pytest.approx(1.0, abs=1e-6)
    split = [(character.split(a).split(), character.split(b).split()) for a, b in zip(made, truths, strict=True)]
    assert by_character["bleu4"] == pytest.approx(bleu(split, 4), abs=1e-6)


def test_chinese_without_jieba(monkeypatch):
    monkeypatch.setitem(sys.modules, "jieba", None)
    character, missing = conventions("zh")
    assert (character.unit, missing) == ("character", NEEDS_JIEBA)


def test_texts_that_cannot_be_scored(raw):
    with pytest.raises(hx.ArgumentError, match="got 1 and 2 texts"):
        score_reports(["a"], ["a", "b"], raw)
    with pytest.raises(hx.ArgumentError, match="got 0 and 0"):
        score_reports([], [], raw)
    with pytest.raises(hx.ArgumentError, match="number 1 has no token"):
        score_reports(["a", "b"], ["a", " . "], raw)
    empty = score_reports(["", "", ""], TEXTS[:3], raw, meteor=False).totals
    assert all(empty[name] < 1e-6 for name in NUMBERS)
    alike = score_reports(["a b", "c d"], ["a b", "a b"], raw, meteor=False)
    assert alike.totals["cider_d"] == NEEDS_TWO and "cider_d" not in alike.each


def test_without_pycocoevalcap_all_but_meteor_is_scored(raw, monkeypatch):
    for name in [name for name in sys.modules if name.startswith("pycocoevalcap")]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "pycocoevalcap", None)
    monkeypatch.setattr(shutil, "which", lambda name: name)
    totals = score_reports(TEXTS, TEXTS, raw).totals
    assert totals["meteor"].startswith("needs pycocoevalcap: ") and "install 'pycocoevalcap>=" in totals["meteor"]
    assert [totals[name] for name in NUMBERS[:5]] == pytest.approx([1.0] * 5, abs=1e-6)


# Lengths and repeats --------------------------------------------------------------------------------------------------


def test_lengths():
    assert length_statistics(["a b c", "", "a"], str) == {
        "mean": 1.33,
        "median": 1,
        "shortest": 0,
        "longest": 3,
        "empty": 1,
    }


def test_a_model_that_says_the_same_is_flagged(pairs):
    made, truths = zip(*pairs, strict=True)
    assert duplicate_statistics(made, truths, english_words)["flagged"] == ""
    assert duplicate_statistics(truths, truths, english_words)["flagged"] == ""
    constant = duplicate_statistics(["Heart normal.", "heart  normal"] * 250, truths, english_words)
    assert constant["flagged"] == "the same text for all 500 studies"
    assert (constant["different"], constant["most_common"]) == (1, "Heart normal.")
    assert constant["most_common_share"] == 1.0
    mostly = duplicate_statistics(["Heart normal."] * 300 + list(made[:200]), truths, english_words)
    assert mostly["flagged"].startswith("the same text for 60% of the studies")
    few = duplicate_statistics([f"Number {i % 20}." for i in range(500)], truths, english_words)
    assert few["flagged"].startswith("20 different texts where the references have 4")
    for generated, references in ((["a"], ["b"]), (["a", "a"], ["b", "b"]), (["a", "b"], ["a", "b"])):
        assert duplicate_statistics(generated, references, english_words)["flagged"] == ""


def test_texts_that_fit_other_studies_as_well_are_flagged(pairs, raw):
    made, truths = (list(side[:200]) for side in zip(*pairs, strict=True))
    patients = [f"p{i // 2}" for i in range(200)]
    source = exchange(patients, 0)
    assert sorted(source) == list(range(200))
    assert all(patients[i] != patients[j] for i, j in enumerate(source))
    seeing = exchanged_scores(made, truths, patients, score_reports(made, truths, raw, meteor=False), 200)
    assert seeing["flagged"] == "" and 0.1 < seeing["interval"][0] < seeing["gain"] < seeing["interval"][1]
    assert seeing["bleu4"] < 0.2 and seeing["cider_d"] < 0.5
    # varied texts of a model that does not look: real reports, of other patients
    blind = [truths[i] for i in exchange(patients, 7)]
    scores = score_reports(blind, truths, raw, meteor=False)
    assert duplicate_statistics(blind, truths, english_words)["flagged"] == ""
    found = exchanged_scores(blind, truths, patients, scores, 200)
    assert found["flagged"].startswith("given to other studies the same texts score ROUGE-L 0.2")
    assert found["interval"][0] <= 0 < found["interval"][1]
    assert exchanged_scores(blind, truths, patients, scores, 0)["interval"] == []
    few = score_reports(made[:9], truths[:9], raw, meteor=False)
    assert exchanged_scores(made[:9], truths[:9], patients[:9], few) == {}
    assert exchanged_scores(made, truths, ["p"] * 200, scores) == {}


# Clinical scores: stand-ins with the interfaces of radgraph 0.1.18 and f1chexbert 0.0.2 -------------------------------


def stub(monkeypatch, name: str, **content) -> None:
    module = types.ModuleType(name)
    for key, value in content.items():
        setattr(module, key, value)
    monkeypatch.setitem(sys.modules, name, module)


def test_clinical_scores(monkeypatch):
    asked = {}

    class F1RadGraph:
        def __init__(self, reward_level, model_type=None, cuda=None):
            asked["radgraph"] = (reward_level, model_type, cuda)

        def __call__(self, refs, hyps):
            asked["texts"] = (refs, hyps)
            return (0.5, 0.4, 0.3), ([0.5], [0.4], [0.3]), [], []

    class F1CheXbert:
        def __init__(self, device=None):
            asked["chexbert"] = device

        def __call__(self, hyps, refs):
            report = {"micro avg": {"f1-score": 0.7}, "macro avg": {"f1-score": 0.6}}
            return 0.9, [1.0], report, {**report, "micro avg": {"f1-score": 0.8}}

    stub(monkeypatch, "radgraph", F1RadGraph=F1RadGraph)
    stub(monkeypatch, "f1chexbert", F1CheXbert=F1CheXbert)
    found = clinical_scores(["made"], ["true"], CLINICAL, device="cpu")
    assert asked == {"radgraph": ("all", "radgraph-xl", -1), "texts": (["true"], ["made"]), "chexbert": "cpu"}
    assert found["radgraph"] == {"model": "radgraph-xl", "entities": 0.5, "partial": 0.4, "complete": 0.3}
    assert found["chexbert"] == {
        "model": "chexbert.pth",
        "micro_f1_14": 0.7,
        "macro_f1_14": 0.6,
        "micro_f1_5": 0.8,
        "macro_f1_5": 0.6,
    }
    assert clinical_scores(["made"], ["true"], ["radgraph"], language="zh") == {"radgraph": ENGLISH_ONLY}
    for options, message in (({"names": ["bertscore"]}, "'bertscore'"), ({"radgraph_model": "xxl"}, "'xxl'")):
        with pytest.raises(hx.ConfigError, match=message):
            clinical_scores(["made"], ["true"], **options)


def test_clinical_scores_say_what_is_missing(monkeypatch):
    monkeypatch.setitem(sys.modules, "radgraph", None)
    monkeypatch.setitem(sys.modules, "f1chexbert", None)
    missing = clinical_scores(["made"], ["true"])
    assert re.fullmatch(r"needs radgraph: .*pip install '.*", missing["radgraph"])
    assert re.fullmatch(r"needs f1chexbert: .*pip install '.*", missing["chexbert"])

    def broken(name):
        raise ImportError("no BertModel here", name="transformers")

    stub(monkeypatch, "f1chexbert", __getattr__=broken)
    found = clinical_scores(["made"], ["true"], ["chexbert"])["chexbert"]
    assert found == "needs f1chexbert, which is there and cannot be imported (no BertModel here)"

    class NoHub:
        def __init__(self, *args, **options):
            raise OSError("We couldn't connect to\n the hub")

    stub(monkeypatch, "radgraph", F1RadGraph=NoHub)
    stub(monkeypatch, "f1chexbert", F1CheXbert=NoHub)
    missing = clinical_scores(["made"], ["true"], radgraph_model="radgraph")
    assert missing["radgraph"].startswith(
        "needs its model: radgraph fetches radgraph.tar.gz of StanfordAIMI/RRG_scorers"
    )
    assert missing["chexbert"].startswith("needs its model: f1chexbert fetches chexbert.pth")
    assert all(text.endswith("(We couldn't connect to the hub)") for text in missing.values())
