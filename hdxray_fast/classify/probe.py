"""A linear probe: features of a frozen encoder, computed once, and a logistic regression on them."""

from __future__ import annotations

import copy
import os
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path

import numpy as np
import torch

from ..data.film_views import warn_of_learned
from ..data.inputs import inputs_of, prepared_among
from ..data.result_files import file_named_by
from ..data.seen import Seen
from ..data.seen_key import KEY_FILE, check_key, run_key
from ..errors import ConfigError, MissingDependencyError, TrainingError
from ..extras import install
from ..features.embedding_files import embed_list
from ..features.feature_table import is_feature_table, read_features
from ..features.shares import Share
from ..files import claim_names
from ..locks import RunLock
from ..models.encoder import Encoder
from ..progress import note
from ..regular_files import RUN_JSON, read_json
from ..terminal import first_names, visible, visible_lines
from ..training.run_folder import LOG
from ..weights.create import encoder_of_size
from .calibration import (
    Temperature,
    as_probabilities,
    describe_temperature,
    fit_temperature,
    temperature_report,
)
from .classifier import Classifier, ClassifierConfig, save_classifier
from .data import without_filtered
from .label_fractions import take_fraction
from .label_table import LabelTable
from .labels import describe_labels, labels_of, one_sided, require_files, told_of
from .matched import match_features
from .metrics import best_threshold
from .predictions import PAGE_FILE, RESULT_FILES, describe_unreadable, report_predictions
from .probe_config import ProbeConfig
from .tested import refuse_unreadable

FEATURES = "features.parquet"
TABLE_OF_FEATURES = (FEATURES, f"{FEATURES}.parts", "features.unreadable.csv")
PROBE_FILES = (*TABLE_OF_FEATURES, "model", KEY_FILE, *RESULT_FILES)
TOLD = ("data", "preset", "multiclass", "uncertain")  # settings that make other results of the same folder
FREE = ("out", "batch_size", "workers", "timeout", "max_memory", "device", "compile")  # nothing hangs on these
FLAT = 0.01  # of the mean probability: so far apart are those of test images of which a probe tells something
STRENGTHS = tuple(10.0**power for power in range(-5, 3))  # scikit-learn's C: the inverse of the regularisation
USUAL_STRENGTH = 0.1  # where validation cannot choose: it neither shrinks to nothing nor lets go


@dataclass
class ProbeResult:
    """What a probe found.

    Attributes:
        out: its folder, with ``metrics.json``, plots and ``model/``.
        report: test metrics, see :func:`hdxray_fast.classify.metrics.evaluate_predictions`.
        strengths: the C chosen for each class.
        not_chosen: classes without a known label in validation, whose C is ``USUAL_STRENGTH``.
        left_out: files that could not be read.
        notes: what is to be known of labels, splits and files; a sentence each.
        train_images: the regressions were fitted on.
        unreadable_csv: names the files that could not be read.
        fraction: of the training patients: how many were asked for, taken, and added for which class.
    """

    out: Path
    report: dict
    strengths: list[float]
    left_out: int = 0
    notes: list[str] = field(default_factory=list)
    train_images: int = 0
    unreadable_csv: Path | None = None
    fraction: dict = field(default_factory=dict)
    not_chosen: list[str] = field(default_factory=list)


def run_probe(config: ProbeConfig, encoder: Encoder | None = None, *, progress: bool = True) -> ProbeResult:
    """Features of every image (kept in ``out/features.parquet``, so that a second probe is quick), then the probe.

    Args:
        config: labels, weights, and the folder that model, metrics and plots go to.
        encoder: a copy of it is taken instead of ``config.weights``.
        progress: show a progress bar, and what was read.

    Returns:
        Test metrics with intervals, and what was left out; the classifier is in ``out/model``.

    Raises:
        ConfigError: the manifest, a class that cannot be learned from what is readable, features made with other
            settings, another run at work in ``out``, or one of several ranks; nothing was trained.
        TrainingError: too few images could be read.
        MissingDependencyError: scikit-learn, pandas or pyarrow is not installed.
    """
    if Share.of_part().ranks > 1:
        raise ConfigError("a linear probe is for one process; embed takes several, into the table of --features")
    if config.features:
        file_named_by(config.features, FEATURES, (".parquet",), "features", folders=False)
    table = without_filtered(labels_of(config), config.prepared)
    if config.prepared is None:
        require_files(table, config.data, config.images)
    out = Path(config.out)
    _refuse_other_task(out, config, table)
    # the one encoder that computes the features, is saved, and draws the error sheet; the caller's stays as it is
    own = encoder_of_size(encoder or config.weights, config.img_size)
    if own is encoder:
        own = copy.deepcopy(encoder)
    if (config.pool or own.pool) == "attention":
        raise ConfigError("pool: a probe is kept on 'cls' or 'mean' features, got 'attention'; say which")
    if progress:
        note(visible_lines(describe_labels(table)))
        if other := _other_settings(out, config):
            note(visible_lines(f"out: {out} holds a probe with other settings ({other}); this one takes its place"))
    with RunLock(out):
        _refuse_other_task(out, config, table)  # again: another run may have begun it meanwhile
        _claim(out)
        return _run_probe(config, out, table, own, progress)


def _run_probe(config: ProbeConfig, out: Path, table: LabelTable, encoder: Encoder, progress: bool) -> ProbeResult:
    names = ("pool", "keep", "batch_size", "workers", "timeout", "max_memory", "device", "precision", "compile")
    options = {name: getattr(config, name) for name in names}
    kept, named_by = (Path(config.features), "features") if config.features else (out / FEATURES, "out")
    inputs = inputs_of(table.paths, config.prepared, config.data)
    done = embed_list(inputs, kept, encoder, progress=progress, thumbnails=True, argument=named_by, **options)
    rows = read_features(done.out) if done.rows else {"path": []}  # refused in a moment
    readable = set(rows["path"])
    unreadable = sum(path not in readable for path in table.paths)
    refuse_unreadable(unreadable, len(table), config.max_bad_share, done.unreadable_csv)
    whole = table
    told = told_of(whole)
    matched = match_features(whole, rows, config.data)
    table, features, hashes, thumbnails = matched.table, matched.features, matched.hashes, matched.thumbnails
    if matched.strange:
        matched.notes.append(
            f"near duplicates are not looked for: {matched.strange} of the images have no thumbnail in {done.out} "
            "(embed and earlier releases keep none); remove it to have all features made anew"
        )
    table_used = take_fraction(table, config.label_fraction, config.seed, config.exact_fractions)
    views = dict(zip(rows["path"], rows.get("view", ()), strict=False))
    of_views = warn_of_learned((path, views.get(path)) for path in table.paths)
    notes = [*matched.notes, *told_of(table_used), *of_views]
    if progress:
        for line in notes:
            if line not in told:  # by what is readable, no copy and taken
                note(visible(line))
    chosen = {path: number for number, path in enumerate(table.paths)}
    order = [chosen[path] for path in table_used.paths]
    features, hashes = features[order], [hashes[row] for row in order]
    thumbnails = None if thumbnails is None else thumbnails[order]

    probe = fit_probe(features, table_used)
    val = table_used.split("val")
    pool = config.pool or encoder.pool or "mean"
    classifier = as_classifier(encoder, probe, table_used, pool, config.keep)
    # what is chosen and reported is what the saved model answers, to its rounding
    held_out = {split: features[_rows(table_used, split)] for split in ("val", "test")}
    logits = {split: _answers(classifier, some) for split, some in held_out.items()}
    temperature = Temperature()
    if config.calibrate == "temperature":
        temperature = fit_temperature(logits["val"], val.labels, table.multiclass)
    classifier.scale_logits(temperature.value)
    scores = {split: as_probabilities(_answers(classifier, some), table.multiclass) for split, some in held_out.items()}
    if not table.multiclass:  # of exclusive classes the most probable is the decision
        classifier.config.thresholds = [
            best_threshold(val.labels[:, c], scores["val"][:, c]) for c in range(len(table.classes))
        ]
    apart, mean = np.ptp(scores["test"], axis=0), scores["test"].mean(axis=0)
    flat = [name for name, is_flat in zip(table.classes, apart < FLAT * mean, strict=True) if is_flat]
    if flat and len(scores["test"]) > 1:
        notes.append(
            f"probabilities of {first_names(flat)} differ by less than a hundredth between the test images: mostly a "
            "probe had too few images to learn from then, or their features do not tell it"
        )
    if probe.not_chosen:
        notes.append(f"no label in val for {', '.join(probe.not_chosen)}: C = {USUAL_STRENGTH} there, not chosen")
    if unreadable:
        listed = done.unreadable_csv
        notes.append(describe_unreadable(unreadable, listed.name if listed.parent == out else listed))
    classifier.config.precision = done.precision
    classifier.seen = Seen.of(whole, table_used, hashes, thumbnails, run_key(out))
    save_classifier(classifier, out / "model")
    test = table_used.split("test")
    report = report_predictions(
        out,
        test,
        scores["test"],
        classifier.config.thresholds,
        bootstraps=config.bootstraps,
        seed=config.bootstrap_seed,
        extra={
            "config": asdict(replace(config, out=str(out))),
            "precision": done.precision,
            "strengths": probe.strengths,
            "strength_not_chosen": probe.not_chosen,
            "unreadable": unreadable,
            "label_fraction": table_used.fraction,
            "threshold_not_chosen": [] if table.multiclass else one_sided(val),
        },
        model=classifier.to(encoder.pos_embed.device),
        prevalence=config.prevalence,
        uncalibrated=logits["test"],
        views=[views.get(path) or "" for path in test.paths] if views else (),
        temperature=temperature_report(
            temperature,
            {split: (table_used.split(split).labels, own) for split, own in logits.items()},
            table.multiclass,
        )
        if config.calibrate == "temperature"
        else None,
        images=prepared_among(inputs),
        workers=config.workers,
        timeout=config.timeout,
        max_memory=config.max_memory,
        title="Linear probe",
        notes=notes,
    )
    train_images = table_used.splits.count("train")
    return ProbeResult(
        out,
        report,
        probe.strengths,
        unreadable,
        notes,
        train_images,
        done.unreadable_csv,
        table_used.fraction,
        probe.not_chosen,
    )


@dataclass
class LinearProbe:
    """A fitted probe: ``sigmoid(features @ weight.T + bias)``, or the softmax of it.

    Attributes:
        weight: ``[C, D]``, bias: ``[C]``, on features as the encoder gives them.
        multiclass: softmax.
        strengths: the C chosen for each class; 0 where training has no positive or no negative, so that the probe says
            the same of every image.
        not_chosen: classes for which validation could not choose it.
    """

    weight: np.ndarray
    bias: np.ndarray
    multiclass: bool
    strengths: list[float]
    not_chosen: list[str] = field(default_factory=list)

    def logits(self, features: np.ndarray) -> np.ndarray:
        """``[N, D]`` to ``[N, C] float64``."""
        return features.astype(np.float64) @ self.weight.T + self.bias

    def probabilities(self, features: np.ndarray) -> np.ndarray:
        """``[N, D]`` to ``[N, C]``."""
        return as_probabilities(self.logits(features), self.multiclass)


def fit_probe(features: np.ndarray, table: LabelTable, strengths: Sequence[float] = STRENGTHS) -> LinearProbe:
    """Logistic regressions on standardised training features; the regularisation with the least loss on validation.

    Args:
        features: ``[N, D]``, rows of ``table``.
        table: labels and splits; nothing of ``test`` is looked at.
        strengths: values of C to choose from; of a class without a known label in ``val`` it is ``USUAL_STRENGTH``.

    Raises:
        TrainingError: a feature is not finite.
    """
    try:
        from sklearn.linear_model import LogisticRegression
        from sklearn.metrics import log_loss
    except ImportError as error:
        raise MissingDependencyError(f"a probe needs scikit-learn: {install('classify')}") from error

    lost = np.flatnonzero(~np.isfinite(features).all(1))
    if len(lost):
        raise TrainingError(
            f"the features of {len(lost)} of {len(table)} images are not finite; the first: {table.paths[lost[0]]}; "
            "look at the image, or take other weights"
        )
    train, val = _rows(table, "train"), _rows(table, "val")
    mean, std = features[train].mean(0, dtype=np.float64), features[train].std(0, dtype=np.float64)
    std = np.where(std > 1e-6, std, 1.0)
    scaled = (features - mean) / std

    def best(target: np.ndarray) -> tuple[np.ndarray, np.ndarray, float]:
        """Coefficients, intercepts and C for targets ``[N]`` (NaN: not known)."""
        known = ~np.isnan(target)
        fit_rows = train & known
        seen = val & known
        if len(np.unique(target[fit_rows])) < 2:  # an exact label fraction may hold one kind alone
            share = (target[fit_rows].sum() + 1) / (fit_rows.sum() + 2)  # Laplace's rule: what is known of the class
            return np.zeros((1, features.shape[1])), np.array([np.log(share / (1 - share))]), 0.0
        candidates = []
        for strength in strengths if seen.any() else (USUAL_STRENGTH,):
            model = LogisticRegression(C=strength, max_iter=2000)
            model.fit(scaled[fit_rows], target[fit_rows].astype(int))
            # a proper score: unlike a ranking it also tells a calibrated fit from one that was shrunk to nothing
            predicted = model.predict_proba(scaled[seen]) if seen.any() else None
            loss = 0.0 if predicted is None else log_loss(target[seen], predicted, labels=model.classes_)
            candidates.append((loss, strength, model))
        _, chosen, model = min(candidates, key=lambda candidate: candidate[:2])
        return model.coef_, model.intercept_, chosen

    if table.multiclass:
        held = table.labels == 1  # NaN, of a class that is not known, would count as the most
        weight, bias, strength = best(np.where(held.any(1), held.argmax(1), np.nan))
        if len(weight) == 1:  # two classes: scikit-learn keeps the second's logit alone
            weight, bias = np.concatenate([-weight, weight]) / 2, np.concatenate([-bias, bias]) / 2
        chosen = [strength] * len(table.classes)
    else:
        fits = [best(table.labels[:, column]) for column in range(len(table.classes))]
        weight, bias = np.concatenate([fit[0] for fit in fits]), np.concatenate([fit[1] for fit in fits])
        chosen = [fit[2] for fit in fits]
    unknown = np.isnan(table.labels[val]).all(axis=0)
    not_chosen = [name for name, lost in zip(table.classes, unknown, strict=True) if lost]
    return LinearProbe(weight / std, bias - (weight / std) @ mean, table.multiclass, chosen, not_chosen)


def as_classifier(
    encoder: Encoder, probe: LinearProbe, table: LabelTable, pool: str, keep: str | None = None
) -> Classifier:
    """The probe as a head on its encoder, so that it can be saved, evaluated and used on new files."""
    if keep is not None:
        encoder.keep = keep
    settings = ClassifierConfig(
        list(table.classes),
        head="probe",
        multiclass=table.multiclass,
        pool=pool,
        contour=encoder.contour,
        splits=table.origin,
    )
    model = Classifier(encoder, settings)
    with torch.no_grad():
        model.head.fc.weight.copy_(torch.from_numpy(probe.weight))
        model.head.fc.bias.copy_(torch.from_numpy(probe.bias))
    return model


@torch.inference_mode()
def _answers(classifier: Classifier, features: np.ndarray) -> np.ndarray:
    """``[N, D] float32`` features to the head's ``[N, C] float32`` logits."""
    pooled = torch.from_numpy(features).to(classifier.head.fc.weight.device)
    return classifier.head.decide(pooled).cpu().numpy()


def _refuse_other_task(out: Path, config: ProbeConfig, table: LabelTable) -> None:
    """Raise a ConfigError if the folder holds results for other labels; the same ones may be probed anew."""
    before = results_of(out)
    if before is None:
        return
    now = {**asdict(config), "classes": table.classes}
    for settings in (before, now):
        settings["data"] = os.path.abspath(settings["data"])
    for name in (*TOLD, "classes"):
        if before[name] != now[name]:
            raise ConfigError(
                f"out: {out} holds results with {name}={before[name]}, not {now[name]}; choose another folder for these"
            )


def _other_settings(out: Path, config: ProbeConfig) -> str:
    """Settings of the results in a folder that are not those of now; empty without results."""
    before, now = results_of(out) or {}, asdict(config)
    passed_over = (*FREE, "data", "classes")
    names = [name for name in now if name not in passed_over and before.get(name, now[name]) != now[name]]
    return ", ".join(f"{name}: {before[name]!r} -> {now[name]!r}" for name in names)


def results_of(out: Path) -> dict | None:
    """Settings and classes of the results in a folder; ``None`` if there are none that a probe wrote whole."""
    try:
        saved = read_json(out / "metrics.json", RUN_JSON)
        found = {**saved["config"], "classes": list(saved["classes"])}
    except (OSError, ValueError, KeyError, TypeError):
        return None
    return found if found.keys() >= {*TOLD} else None


def _claim(out: Path) -> None:
    """Raise a ConfigError if something of the names that a probe writes is another's, or its key is none."""
    # releases before left no mark: their results show whose they are, and a table of features does for itself
    own = results_of(out) is not None and not (out / LOG).exists()
    names = PROBE_FILES
    if is_feature_table(out / FEATURES):
        names = tuple(name for name in PROBE_FILES if name not in TABLE_OF_FEATURES)
    claim_names(out, "probe", names, own)
    check_key(out)


def _rows(table: LabelTable, split: str) -> np.ndarray:
    return np.array([name == split for name in table.splits], bool)


def describe_probe(result: ProbeResult) -> str:
    """What the command prints."""
    from .metrics import format_metrics

    lines = [format_metrics(result.report)]
    if told := describe_temperature(result.report.get("temperature")):
        lines.append(told)
    if result.not_chosen:
        lines.append(f"no label in val for {', '.join(result.not_chosen)}: C = {USUAL_STRENGTH} there, not chosen")
    if result.left_out:
        lines.append(describe_unreadable(result.left_out, result.unreadable_csv))
    lines.append(f"metrics, plots and the model are in {result.out}; all on one page: {result.out / PAGE_FILE}")
    return "\n".join(lines)
