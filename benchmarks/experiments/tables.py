"""Writes what the documents say of the experiments: tables, paired differences and the verdict on each pair.

    python benchmarks/experiments/tables.py --write    # docs/results.md, docs/encoder.md and the picture
    python benchmarks/experiments/tables.py --check    # ends with 1 and names the file where one says something else

Everything is from ``benchmarks/results/experiments/<name>.json``, the ``results.json`` of an experiment, and goes
between ``<!-- experiment:<name> -->`` and ``<!-- experiment:end -->``, so that no sentence parts from its number.
"""

from __future__ import annotations

import argparse
import hashlib
import itertools
import json
import re
import sys
import textwrap
from collections.abc import Mapping, Sequence
from pathlib import Path

from paired import verdicts
from readings import readings_text
from runs import plot_aurocs, summary

from hdxray_fast.classify.interval_text import interval_text
from hdxray_fast.data.comparison_folder import table_lines

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
from harness.table import NOT_MEASURED, amount, device_rows, kind

ROOT = Path(__file__).resolve().parents[2]
RESULTS = ROOT / "benchmarks" / "results"
PAGES = ("docs/results.md", "docs/encoder.md")
PICTURES = {"docs/img/pretrain_gpu_auroc.png": "pretrain_gpu", "docs/img/probe_auroc.png": "probe"}
MARKED = re.compile(r"(<!-- experiment:(?!end)(\w+) -->\n).*?(<!-- experiment:end -->)", re.DOTALL)
HEADINGS = {
    "probe": "masked in pre-training by",
    "pretrain_gpu": "masked in pre-training by",
    "resolution": "canvas, pixels",
    "shares": "patients pre-trained on",
    "finetuning": "what",
    "contour_untrained": "patches looked at",
}
NO_PAIRS = "**Not compared**: paired differences need the predictions of all runs"
TO_BE_REDONE = (
    f"{NO_PAIRS}, and these runs are to be redone: when they were made a seed also drew the patients who validate, so "
    "that images of the pre-training validated probes (none tested them)."
)
NOT_KEPT = f"{NO_PAIRS}, and of these only the numbers above were kept."
TIMED = "encoder ViT-S/16, one 1280² image, {}, fp32"
WEIGHED = "peak memory increase of encoding, ViT-S/16, {}"
BENCHED = {"all": "every patch", "contour": "chest patches and a margin of 1"}


def wrapped(text: str) -> str:
    return textwrap.fill(text, 120, break_on_hyphens=False, break_long_words=False)


def told(found: Mapping, without: str) -> str:
    """The verdicts on an experiment's pairs; ``without`` says why there are none."""
    return verdicts(found["differences"]) if found.get("differences") else wrapped(without)


def sizes(settings: Mapping) -> str:
    """How many images train, validate and test, of an experiment that kept it."""
    images = settings.get("images")
    if not isinstance(images, Mapping):
        return ""
    return (
        f"{images['train']} images train, {images['val']} validate and {images['test']} of "
        f"{images['test_patients']} patients test."
    )


def section(name: str, results: Path = RESULTS) -> str:
    """Markdown of one experiment."""
    found = json.loads((results / "experiments" / f"{name}.json").read_text(encoding="utf-8"))
    if name == "contour_features":
        return contour_features(found, results)
    parts = [summary(found["auroc"], HEADINGS[name])]
    if name == "pretrain_gpu":
        return "\n\n".join([*parts, wrapped(f"{NOT_KEPT} {overlaps(found['auroc'])}")])
    if said := f"{features_text(found['settings'])} {sizes(found['settings'])}".strip():
        parts.append(wrapped(said))
    parts.append(told(found, TO_BE_REDONE))
    if "readings" in found:
        parts.append(readings_text(found["readings"], HEADINGS[name]))
    return "\n\n".join(parts)


def overlaps(aurocs: Mapping[str, Sequence[Mapping]]) -> str:
    """Which settings' intervals lie apart in all seeds: all that can be said of summaries, and little."""
    apart = [
        f"{first} and {second}"
        for first, second in itertools.combinations(aurocs, 2)
        if min(row["low"] for row in aurocs[first]) > max(row["high"] for row in aurocs[second])
        or min(row["low"] for row in aurocs[second]) > max(row["high"] for row in aurocs[first])
    ]
    if apart:
        return f"The intervals of {', of '.join(apart)} lie apart in all seeds."
    return "The intervals of any two rows overlap, which says neither that these differ nor that they are alike."


def contour_features(found: Mapping, results: Path) -> str:
    """What looking at the chest alone gives (of the benchmarks) and costs."""
    settings, benched = found["settings"], cpu_rows(results)
    lines = []
    for keep, seeds in found["auroc"].items():
        cells = [f'`"{keep}"`', *gains(benched, keep)]
        if alike := settings.get("cosine", {}).get(keep):
            cells += [f"{alike['patches']:.0f}", f"{alike['cosine_mean']:.3f}", f"{alike['cosine_centred']:.3f}"]
        else:
            cells += [NOT_MEASURED] * 3
        lines.append([*cells, ", ".join(map(interval_text, seeds))])
    head = ["`keep`", "one 1280 × 1280 image, ViT-S/16, one CPU thread", "memory increase"]
    size = settings["img_size"]
    head += [f"patches at {size} × {size}", "cosine with all", "centred", "probe AUROC, each encoder (95 %)"]
    text = features_text(settings)
    if cosine := settings.get("cosine"):
        text += f" Cosines: over {cosine['images']} radiographs of another source."
    parts = ["\n".join(table_lines(head, lines)), wrapped(f"{text} {sizes(settings)}".strip())]
    return "\n\n".join([*parts, told(found, TO_BE_REDONE)])


def features_text(settings: Mapping) -> str:
    """What encoders gave the features, of an experiment that sets kinds of patches against each other."""
    if "encoders" not in settings:
        return ""
    count, size = settings["count"], settings["img_size"]
    which = ", ".join(filter(None, (settings.get("model"), settings["encoders"])))
    return f"Features: mean-pooled, at {size} × {size}, of {count} encoder{'s' if count > 1 else ''} ({which})."


def gains(benched: Mapping[str, Mapping], keep: str) -> list[str]:
    """Time and memory of one kind of patches beside timm's, as the benchmarks measured them."""
    cells = []
    for title in (TIMED, WEIGHED):
        row = benched.get(title.format(BENCHED.get(keep)))
        if row is None:
            cells.append(NOT_MEASURED)
            continue
        ours, rival = (amount(row[who]["median"], row["unit"]) for who in ("ours", "rival"))
        cells.append(f"{ours} (timm's ViT, every patch: {rival})")
    return cells


def cpu_rows(results: Path) -> dict[str, dict]:
    """Rows by case of the CPU on which the encoder was benchmarked last."""
    title = TIMED.format(BENCHED["all"])
    devices = [
        {row["case"]: row for row in rows} for rows in device_rows(results) if kind(rows) == "cpu"
    ]  # fmt: skip
    having = [rows for rows in devices if title in rows]
    return max(having, key=lambda rows: rows[title]["measured"], default={})


def page_as_written(text: str, results: Path = RESULTS) -> str:
    """A page with its sections written anew."""
    return MARKED.sub(lambda found: f"{found[1]}{section(found[2], results)}\n{found[3]}", text)


def fingerprint(found: Mapping) -> str:
    """Of the numbers that a picture shows; the picture carries it, since its pixels differ between machines."""
    return hashlib.sha256(json.dumps(found["auroc"], sort_keys=True).encode()).hexdigest()


def picture_is_of(path: Path, found: Mapping) -> bool:
    from PIL import Image

    if not path.exists():
        return False
    with Image.open(path) as picture:
        return picture.info.get("Comment") == fingerprint(found)


def stale(root: Path = ROOT, results: Path = RESULTS) -> list[str]:
    """Pages and pictures that say something else than the results."""
    pages = [page for page in PAGES if page_as_written(text := (root / page).read_text("utf-8"), results) != text]
    experiments = {
        path: json.loads((results / "experiments" / f"{name}.json").read_text("utf-8"))
        for path, name in PICTURES.items()
    }
    return pages + [path for path, found in experiments.items() if not picture_is_of(root / path, found)]


def write() -> None:
    for place in stale():
        if place in PAGES:
            page = ROOT / place
            page.write_text(page_as_written(page.read_text("utf-8")), "utf-8")
        else:
            name = PICTURES[place]
            found = json.loads((RESULTS / "experiments" / f"{name}.json").read_text("utf-8"))
            plot_aurocs(ROOT / place, found["auroc"], HEADINGS[name], comment=fingerprint(found))
        print(f"written: {place}")


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    task = parser.add_mutually_exclusive_group(required=True)
    task.add_argument("--write", action="store_true")
    task.add_argument("--check", action="store_true")
    if parser.parse_args().write:
        write()
        return 0
    found = stale()
    for place in found:
        print(f"{place} says something else than benchmarks/results/experiments; run this with --write")
    return bool(found)


if __name__ == "__main__":
    sys.exit(main())
