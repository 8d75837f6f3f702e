"""What leaving rare words and digits out of a vocabulary costs: references against themselves, through the tokenizer.

    python benchmarks/experiments/report_vocabulary.py --data iu_xray_reports.json

``--data`` is a list of objects with ``id``, ``findings`` and ``impression``, each of another patient. A word tokenizer
is trained on 80 % of the reports; the other 20 % are written with it and scored against what they were: no model that
writes with this vocabulary could score higher. Counted raw, and as R2Gen counts (its cleaning, words that are rare in
training as ``<unk>`` in both texts).
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

from hdxray_fast.data.splits import fill_splits
from hdxray_fast.reports.cleaning import CLEANERS, R2GenReferences
from hdxray_fast.reports.metrics import conventions, score_reports
from hdxray_fast.reports.text_tokenizers import frequency_floor, train_tokenizer

VOCABULARIES = {
    "all (as R2Gen)": {"min_patients": 1, "digits": True},
    "no digits": {"min_patients": 1, "digits": False},
    "3 patients, no digits": {"min_patients": 3},
    "5 patients, no digits (default)": {},
    "10 patients, no digits": {"min_patients": 10},
}
TASKS = {"findings": ["findings"], "impression": ["impression"], "both": ["findings", "impression"]}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True)
    options = parser.parse_args()
    studies = json.loads(options.data.read_text(encoding="utf-8"))
    print(
        "| task | counted | vocabulary | tokens | unknown, of tokens | reports with one | BLEU-1 | BLEU-4 | ROUGE-L |"
    )
    print("|---|---|---|---|---|---|---|---|---|")
    for task, sections in TASKS.items():
        reports = {study["id"]: " ".join(study[name] for name in sections if study[name]).strip() for study in studies}
        reports = {name: text for name, text in reports.items() if text}
        splits = fill_splits([""] * len(reports), list(reports), 0.0, 0.2, 0)
        train, test = (
            [t for t, own in zip(reports.values(), splits, strict=True) if own == s] for s in ("train", "test")
        )
        r2gen = R2GenReferences.fit(train, "iu-xray")
        for convention, cleaning in zip(conventions("en", r2gen), ("english", r2gen.cleaning), strict=True):
            compare(f"{task} ({len(train)} + {len(test)})", convention, CLEANERS[cleaning], train, test)


def compare(task: str, convention, clean, train: list[str], test: list[str]) -> None:
    """A row for each vocabulary."""
    taught = [clean(text) for text in train]
    test = [text for text in test if convention.split(text)]
    for name, vocabulary in VOCABULARIES.items():
        tokenizer = train_tokenizer(taught, min_frequency=frequency_floor(taught, "word"), **vocabulary)
        written = [tokenizer.decode(tokenizer.encode(clean(text))) for text in test]
        unknown = tokenizer.unknown_share([clean(text) for text in test])
        some = sum("<unk>" in text for text in written) / len(written)
        scores = score_reports(written, test, convention, meteor=False).totals
        row = [task, convention.references, name, str(len(tokenizer)), f"{unknown:.2%}", f"{some:.1%}"]
        print(
            "| " + " | ".join([*row, *(f"{scores[key]:.3f}" for key in ("bleu1", "bleu4", "rouge_l"))]) + " |",
            flush=True,
        )


if __name__ == "__main__":
    main()
