"""Whether differences by pairs hold: coverage of their 95 % intervals, errors of the first kind, power.

    python benchmarks/experiments/compare_coverage.py --out results/compare

Draws patients with one to three films, a finding of the patient, and scores of two models that share most of their
noise; so the true difference is known. Each row is ``--tests`` such test sets, measured with the functions that
`hdxray-fast compare` uses. "unpaired" is what a reader does who asks whether two intervals overlap.
"""

from __future__ import annotations

from dataclasses import dataclass
from statistics import NormalDist

import numpy as np
from simulations import run_simulation

from hdxray_fast.classify.delong import delong_error, delong_parts
from hdxray_fast.classify.weighted_metrics import MEASURED, WeightedMetrics
from hdxray_fast.data.paired import Measured, difference, draw_patients

SHOWN = ("auroc", "auprc", "balanced_accuracy", "f1")
SHARED = {"patient": 0.3, "film": 0.4}  # shares of the noise's variance that both models have; the rest is their own


@dataclass(frozen=True)
class Setting:
    """Test sets of one kind.

    Attributes:
        patients, positive: in all, and with the finding.
        aurocs: of the two models.
        runs: of each model.
        spread: standard deviation among a model's runs, in units of the score's noise.
    """

    patients: int
    positive: int
    aurocs: tuple[float, float]
    runs: int = 1
    spread: float = 0.0


SETTINGS = (
    Setting(200, 10, (0.80, 0.80)),
    Setting(200, 10, (0.70, 0.85)),
    Setting(200, 10, (0.95, 0.95)),
    Setting(200, 10, (0.88, 0.97)),
    Setting(200, 20, (0.80, 0.80)),
    Setting(200, 60, (0.80, 0.80)),
    Setting(145, 72, (0.80, 0.86)),
    Setting(200, 60, (0.80, 0.80), runs=1, spread=0.15),
    Setting(200, 60, (0.80, 0.80), runs=3, spread=0.15),
    Setting(200, 60, (0.80, 0.88), runs=3, spread=0.15),
)


def draw(setting: Setting, rng: np.random.Generator, times: int = 1):
    """A test set: truth ``[N]``, patients ``[N]``, scores ``[2, runs, N]`` in [0, 1]."""
    count = setting.patients * times
    films = rng.integers(1, 4, count)
    patient = np.repeat(np.arange(count), films)
    truth = (patient < setting.positive * times).astype(int)
    noise = SHARED["patient"] ** 0.5 * rng.normal(size=count)[patient]
    noise = noise + SHARED["film"] ** 0.5 * rng.normal(size=len(patient))
    own = (1 - sum(SHARED.values())) ** 0.5 * rng.normal(size=(2, setting.runs, len(patient)))
    apart = np.array([2**0.5 * NormalDist().inv_cdf(area) for area in setting.aurocs])
    apart = apart[:, None] + setting.spread * rng.normal(size=(2, setting.runs)) * (times == 1)
    return truth, patient.astype(str), 1 / (1 + np.exp(-(apart[..., None] * (truth - 0.5) + noise + own)))


def measure(setting: Setting, rng: np.random.Generator, bootstraps: int) -> tuple[dict, dict, bool]:
    """Rows of :func:`difference` by metric, DeLong's interval, and whether the two intervals are apart (AUROC)."""
    truth, patients, scores = draw(setting, rng)
    weights = np.concatenate([np.ones((1, len(truth))), *draw_patients(patients, bootstraps, int(rng.integers(2**31)))])
    found = np.array([[WeightedMetrics(truth, s, s >= 0.5).measure(weights) for s in runs] for runs in scores])
    units = min(len(set(patients[truth == value])) for value in (0, 1))
    pair = {name: [Measured(found[m, :, 0, k], found[m, :, 1:, k]) for m in (0, 1)] for k, name in enumerate(MEASURED)}
    rows = {name: difference(*pair[name], units, int(rng.integers(2**31))) for name in SHOWN}
    parts = np.diff([np.mean([delong_parts(truth, s) for s in runs], axis=0) for runs in scores], axis=0)[0]
    reach = 1.96 * delong_error(truth, parts, patients)
    middle = rows["auroc"]["difference"]
    single = [np.nanpercentile(found[m, :, 1:, 0].mean(axis=0), (2.5, 97.5)) for m in (0, 1)]
    apart = single[0][1] < single[1][0] or single[1][1] < single[0][0]
    return rows, {"low": middle - reach, "high": middle + reach}, apart


def simulate(setting: Setting, tests: int, bootstraps: int, seed: int) -> dict:
    """Shares of test sets: by metric whose interval holds the true difference, and whose p is below 0.05."""
    rng = np.random.default_rng(seed)
    truth, _, scores = draw(setting, rng, times=1000)
    ones = np.ones((1, len(truth)))
    whole = [WeightedMetrics(truth, runs[0], runs[0] >= 0.5).measure(ones)[0] for runs in scores]
    true = dict(zip(MEASURED, whole[1] - whole[0], strict=True))
    true["auroc"] = setting.aurocs[1] - setting.aurocs[0]
    if setting.aurocs[0] == setting.aurocs[1]:
        true = dict.fromkeys(true, 0.0)
    held, seen, length = (dict.fromkeys((*SHOWN, "delong"), 0.0) for _ in range(3))
    unpaired = 0
    for _ in range(tests):
        rows, delong, apart = measure(setting, rng, bootstraps)
        unpaired += apart
        for name, row in {**rows, "delong": delong}.items():
            value = true["auroc" if name == "delong" else name]
            held[name] += (row["low"] <= value <= row["high"]) / tests
            seen[name] += (row["p"] < 0.05 if "p" in row else not row["low"] <= 0 <= row["high"]) / tests
            length[name] += (row["high"] - row["low"]) / tests
    return {"held": held, "seen": seen, "length": length, "unpaired": unpaired / tests, "true": true["auroc"]}


def table(results: list[tuple[Setting, dict]]) -> str:
    """Markdown: coverage of each metric, and how often a difference is seen, rightly or, if there is none, wrongly."""
    head = ["patients (positive)", "AUROC", "runs (spread)", *(f"{name.replace('_', ' ')}" for name in SHOWN)]
    head += ["DeLong", "p < 0.05 (AUROC)", "DeLong", "intervals apart"]
    lines = ["| " + " | ".join(head) + " |", "|" + "---|" * len(head)]
    for setting, found in results:
        cells = [f"{setting.patients} ({setting.positive})", f"{setting.aurocs[0]:.2f}, {setting.aurocs[1]:.2f}"]
        cells += [f"{setting.runs} ({setting.spread:g})"]
        cells += [f"{found['held'][name]:.3f}" for name in (*SHOWN, "delong")]
        cells += [f"{found['seen']['auroc']:.3f}", f"{found['seen']['delong']:.3f}", f"{found['unpaired']:.3f}"]
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines)


def main() -> None:
    def one(number: int, options) -> dict:
        return simulate(SETTINGS[number], options.tests, options.bootstraps, options.seed)

    run_simulation(__doc__, SETTINGS, one, table, tests=1000)


if __name__ == "__main__":
    main()
