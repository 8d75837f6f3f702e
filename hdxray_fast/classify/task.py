"""What fine-tuning trains: a classifier on labelled radiographs, as the training loop asks for it."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Callable, Iterable
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from ..data.augment import Augmentation, RandAugment
from ..data.film_views import warn_of_learned
from ..data.inputs import prepared_images
from ..data.prepared.duplicates import thumbnails_of
from ..data.prepared.finding import find_some, open_prepared
from ..data.prepared.reading import PreparedSubset
from ..data.prepared.sources import Source
from ..data.quarantine import Quarantined
from ..data.seen import DRAWN_FILE, Seen
from ..data.seen_key import KEY_FILE
from ..data.split_copies import keep_copies_together
from ..data.splits import SPLITS
from ..errors import ConfigError, MissingDependencyError, TrainingError
from ..images.view import VIEWS
from ..models.encoder import Encoder
from ..models.inference import find_precision
from ..models.inputs import encoder_inputs, view_of
from ..ranks import from_main, on_main
from ..terminal import counted
from ..training.data_record import DataRecord, content_digest, prints_of
from ..training.loop import Training
from ..training.processes import weights_from_main
from ..training.run_images import read_images
from ..training.task import Task
from ..weights.create import create_encoder
from ..weights.fingerprint import settings_print
from .batches import LabelledBatch, mix_pixels
from .calibration import Temperature, as_probabilities, fit_temperature, temperature_report
from .classifier import Classifier, ClassifierConfig, save_classifier
from .config import FinetuneConfig
from .data import LabelledRadiographs, SetAside, table_of_readable
from .heads import TEXT_MODEL, embed_names
from .label_table import LabelTable
from .labels import check_table, one_sided, refuse_duplicates, told_of
from .layer_decay import layer_decay_groups
from .loss import class_weights, classification_loss
from .metrics import best_threshold
from .predictions import RESULT_FILES, describe_unreadable, report_predictions
from .selection import BestModel, predict_rows, validation_score


def build_encoder(config: FinetuneConfig) -> Encoder:
    """The encoder that ``config`` starts from, at its size and with its ``keep``."""
    options = {} if config.keep is None else {"keep": config.keep}
    if config.img_size is not None:
        options["img_size"] = config.img_size
    if config.weights is None:
        return create_encoder(config.model, **options)
    return create_encoder(weights=config.weights, **options)


def canvas_size(encoder: Encoder) -> int:
    """Side of the canvases that an encoder takes, pixels; a ConfigError if they are not square."""
    height, width = encoder.img_size
    if height != width:
        raise ConfigError(
            f"img_size: the encoder takes {height} x {width} pixels, radiographs lie on square canvases; give a size"
        )
    return height


class FinetuneTask(Task):
    """A classifier on labelled radiographs.

    Args:
        config: all settings.
        table: what to train, choose and test on.
        whole: the manifest, where the table has some of its rows.
    """

    label = "finetune"
    writes = ("best.safetensors", DRAWN_FILE, KEY_FILE, *RESULT_FILES)
    captures = True

    def __init__(self, config: FinetuneConfig, table: LabelTable, whole: LabelTable | None = None) -> None:
        self.config, self.table, self.whole = config, table, whole or table
        self.notes: list[str] = []
        self.copies: list[str] = []  # notes on near duplicates and views, once images are there
        # what changes no more than places and grey levels is done where pixels are read
        self.views = config.augment == "mild" and not config.mixup
        if config.augment == "mild" and config.mixup:
            self.notes.append(
                "augment mild: mixup mixes pixels, so images are moved as a whole on the CPU, not seen through views"
            )
        self.out = Path(config.out)
        rows = (repr(row) for row in zip(table.paths, table.splits, table.labels.tolist(), strict=True))
        self.labels_digest = content_digest(*table.classes, *rows)  # by which a finished run knows its labels again
        self.key: bytes | None = None  # of the run; the process that writes has it
        self.prepared = open_prepared(config.prepared, img_size=config.img_size) if config.prepared else None
        self.contour = self.prepared.recipe["contour"] if self.prepared else config.contour
        self.best_model = BestModel(self.out / "best.safetensors", anew=config.force)
        self.text, self.text_model = self._embed_names()
        weights = None
        if config.class_weight == "balanced":
            weights = torch.from_numpy(class_weights(table.split("train").labels, table.multiclass))
        self.class_weights = weights

    def find_images(self, training: Training) -> PreparedSubset:
        """The images of the manifest, prepared now or before; the others are listed in ``unreadable.csv``.

        Raises:
            ConfigError: a prepared data set holds none of them.
            TrainingError: too many cannot be read.
        """
        config = self.config
        if self.prepared is None:
            sources = [Source(path) for path in self.table.paths]
            cache = Path(config.cache or self.out / "cache")
            found, bad = read_images(training, sources, cache, size=config.img_size, contour=config.contour)
        else:
            found, bad = self._find_prepared(training)
        rank = training.accelerator.process_index
        listed = self.out / ("unreadable.csv" if training.is_main else f"unreadable.{rank}.csv")
        rows = dict.fromkeys((item.path, item.error, item.reason) for item in bad)
        self.set_aside = SetAside(listed, len(self.table), config.max_bad_share, list(rows))
        if self.prepared is not None and training.is_main:  # files that were read have been listed then
            self.set_aside.write()
        self.set_aside.check()
        return found

    def _find_prepared(self, training: Training) -> tuple[PreparedSubset, list[Quarantined]]:
        found, gone = find_some(self.table.paths, self.prepared, self.config.data, self.whole.paths)
        training.print(f"{counted(len(found), 'radiograph')} in {self.config.prepared}, {len(gone)} not there")
        return found, gone

    def use(self, prepared: PreparedSubset) -> None:
        """Train on these; the rows of the others are left out.

        Raises:
            ConfigError: the same pixels are in two splits, or a class cannot be learned from what is readable.
        """
        config, source = self.config, self.config.data
        self.table, images = table_of_readable(self.table, prepared)
        refuse_duplicates(self.table, images.hashes(), source)
        table, drawn = self.table, self.table.origin.get("drawn", ())
        thumbnails: list[np.ndarray] = []  # of the main process, which alone compares them and saves their signatures

        def find_copies() -> tuple[list[int], list[str]]:
            thumbnails.append(thumbnails_of(images))
            return keep_copies_together(table.splits, table.patients, table.paths, thumbnails[0], drawn)

        kept, self.copies = from_main(find_copies, config.process_timeout)
        self.table, images = table.rows(kept), images.subset(kept)
        exact = config.exact_fractions and config.label_fractions[0] < 1
        check_table(self.table, source, least=0 if exact else 2)
        for found in thumbnails:
            self.seen = Seen.of(self.whole, self.table, images.hashes(), found[kept], self.key)
        self.images = {
            split: images.subset([row for row, own in enumerate(self.table.splits) if own == split]) for split in SPLITS
        }
        # now, while the images are there: what is lost of them later costs no metrics
        told = images.column("view").to_pylist()
        self.copies += warn_of_learned(zip(self.table.paths, told, strict=True))
        of_test = (view for view, split in zip(told, self.table.splits, strict=True) if split == "test")
        self.test_views = [view if view in VIEWS else "" for view in of_test]
        augmentation = {
            "rand": RandAugment(config.augment_operations, config.augment_magnitude),
            "mild": Augmentation(),
            "none": None,
        }[config.augment]
        self.datasets = {
            split: LabelledRadiographs(
                self.images[split],
                self.table.split(split).labels,
                patch_size=self.encoder.patch_size,
                drawn_by=self.images[split].rows if self.prepared else None,
                augmentation=augmentation if split == "train" else None,
                seed=config.seed,
                views=self.views and split == "train",
            )
            for split in SPLITS
        }
        rows = [f"{p}\0{s}" for p, s in zip(self.table.paths, self.table.splits, strict=True)]
        digest = hashlib.sha256("\n".join(rows).encode("utf-8", "surrogateescape") + self.table.labels.tobytes())
        self.fingerprint = digest.hexdigest()[:16]
        self.data_record = self._record(images)

    def _record(self, images: PreparedSubset) -> DataRecord:
        """Images and labels of all splits, and what of the encoder no checkpoint holds."""
        record, table = DataRecord(), self.table
        record.add("readable images", table.paths, prints_of(images.checksums()))
        told = [
            content_digest(split, *table.classes, labels.tobytes())
            for split, labels in zip(table.splits, table.labels, strict=True)
        ]
        record.add("labels or splits", table.paths, told)
        settings = settings_print(self.encoder.config)
        record.add("weights", ["the settings of the encoder"], [settings], setting="weights")
        return record

    # --- what the training loop asks ----------------------------------------------------------------------------------
    def build(self) -> Classifier:
        config = self.config
        encoder = build_encoder(config)
        pool = config.pool or (encoder.pool if encoder.pool == "cls" else "mean")
        settings = ClassifierConfig(
            list(self.table.classes),
            config.head,
            self.table.multiclass,
            pool,
            text_model=self.text_model,
            contour=self.contour,
            splits=self.table.origin,
        )
        model = Classifier(encoder, settings, self.text)
        if config.tune == "head":
            encoder.requires_grad_(False)
        else:
            encoder.set_drop_path(config.drop_path)
        if encoder.pool == "attention":
            encoder.attn_pool.requires_grad_(False)  # the head pools
        self.encoder = encoder
        return model

    def groups(self, model: Classifier, config: FinetuneConfig) -> list[dict]:
        return layer_decay_groups(model.encoder, model.head, config.weight_decay, config.layer_decay)

    def peak_lr(self, images: int) -> float:
        return (5e-4 if self.config.tune == "all" else 2e-3) * math.sqrt(images / 64)

    def loader(self, training: Training, start: int) -> Iterable[dict]:
        return training.loader(
            self.datasets["train"], start, LabelledBatch(self.encoder, self.config, self.table.multiclass)
        )

    def to_device(self, batch: dict, device: torch.device) -> dict:
        if not bool(batch["readable"].all()):
            self._note_unreadable(batch, "train")
        if self.class_weights is not None:
            self.class_weights = self.class_weights.to(device)
        batch = super().to_device(batch, device)
        return mix_pixels(self.encoder, batch) if self.config.mixup else batch

    def weight(self, batch: dict) -> int:
        return batch["known"]

    def loss(self, model: nn.Module, batch: dict) -> tuple[Tensor, dict]:
        drawn, inputs = batch.get("drop_path_keep"), encoder_inputs(self.encoder, batch)
        logits = model(*inputs, drop_path_keep=drawn, view=view_of(batch))
        loss = classification_loss(logits, batch["labels"], self.table.multiclass, self.class_weights)
        return loss, {"unreadable": (~batch["readable"]).sum()}

    def files(self, batch: dict) -> list[str]:
        return [self.images["train"].source(index) for index in batch["index"].tolist()]

    def after_step(self, training: Training, step: int, done: bool) -> dict | None:
        if not done and step % self.config.eval_every:
            return None
        labels = self.datasets["val"].labels
        with training.averaged() as model:
            rows, logits = predict_rows(
                training.accelerator, model, self.datasets["val"], self.config, self._on_unreadable("val"),
                within=training.accelerator.autocast(),
            )  # fmt: skip
            score = validation_score(labels[rows], logits, self.table.multiclass, self.config.select)
            if self.best_model.improved_by(score):
                self.best_model.save(model, {**score, "step": step}, write=training.is_main)
        lost = rows[~np.isfinite(logits).all(1)]
        if len(lost):
            first = self.images["val"].source(int(lost[0]))
            training.print(
                f"warning: step {step}: the logits of {len(lost)} of {len(rows)} validation images are not finite (the "
                f"first is {first}), so this model is not chosen; lower lr, or give precision=fp32"
            )
        return {f"val_{n}": v for n, v in score.items() if n != "score" and v is not None and math.isfinite(v)}

    def state(self) -> dict:
        return {"set_aside": self.set_aside.rows}

    def load_state(self, state: dict) -> None:
        self.set_aside.add([tuple(row) for row in state["set_aside"]])

    # --- the end ------------------------------------------------------------------------------------------------------
    def finish(self, training: Training) -> tuple[dict, dict]:
        """Temperature and thresholds on validation, metrics on test of the best model; it is saved.

        The test split is read here, a share by each process; what comes of it is the main one's to tell, and empty in
        the others.
        """
        best, accelerator = self.best_model.facts, training.accelerator
        if best is None:
            raise TrainingError("no validation gave a finite loss, so no model was chosen; lower lr")
        model = self.build()
        on_main(lambda: self.best_model.load(model), self.config.process_timeout)
        model.encoder.set_drop_path(0.0)
        model = model.to(accelerator.device).eval()
        weights_from_main(accelerator, model)
        found, temperature, bad = {}, Temperature(), []
        for split in ("val", "test"):
            rows, logits = predict_rows(
                accelerator, model, self.datasets[split], self.config,
                lambda batch, split=split: bad.extend(self._unreadable(batch, split)), training.bar, split,
            )  # fmt: skip
            if not len(rows):
                self._note_of_all(training, bad)
                raise TrainingError(f"{self.config.data}: none of the images of {split!r} could be read")
            table = self.table.split(split).rows(rows)
            if split == "val" and self.config.calibrate == "temperature":
                temperature = fit_temperature(logits, table.labels, table.multiclass)
                model.scale_logits(temperature.value)
                logits = logits / np.float32(temperature.value)
            views = [self.test_views[row] for row in rows] if split == "test" else []
            found[split] = table, as_probabilities(logits, table.multiclass), logits * temperature.value
        self._note_of_all(training, bad)
        if not training.is_main:
            return {}, {}
        table, scores, _ = found["val"]
        if not table.multiclass:  # of exclusive classes the most probable is the decision
            model.config.thresholds = [
                best_threshold(table.labels[:, column], scores[:, column]) for column in range(len(table.classes))
            ]
        asked, device = self.config.precision, accelerator.device
        model.config.precision = asked if asked == "fp16" else find_precision(asked, device)
        model.encoder.contour, model.seen = self.contour, self.seen
        save_classifier(model, self.out / "model")
        table, scores, uncalibrated = found["test"]
        notes = [*told_of(self.table), *self.notes, *self.copies]
        if left_out := len(self.set_aside.rows):
            notes.append(describe_unreadable(left_out, "unreadable.csv"))
        settings = self.config.as_dict()
        if self.config.weights is not None:
            del settings["model"]  # of runs without weights alone: these say which encoder it is
        extra = {
            "config": settings,
            "chosen_on_validation": best,
            "train_images": len(self.datasets["train"]),
            "unreadable": left_out,
            "labels_digest": self.labels_digest,
            "label_fraction": self.table.fraction,
            "threshold_not_chosen": [] if table.multiclass else one_sided(found["val"][0]),
        }
        report = report_predictions(
            self.out,
            table,
            scores,
            model.config.thresholds,
            bootstraps=self.config.bootstraps,
            seed=self.config.bootstrap_seed,
            extra=extra,
            model=model,
            prevalence=self.config.prevalence,
            uncalibrated=uncalibrated,
            views=views,
            temperature=temperature_report(
                temperature, {split: (part[0].labels, part[2]) for split, part in found.items()}, table.multiclass
            )
            if self.config.calibrate == "temperature"
            else None,
            images=prepared_images(self.images["test"]) if self.prepared else None,
            workers=self.config.workers,
            timeout=self.config.timeout,
            max_memory=self.config.max_memory,
            title="Fine-tuning",
            notes=notes,
        )
        return report, best

    # --- parts --------------------------------------------------------------------------------------------------------
    def _embed_names(self) -> tuple[Tensor | None, str]:
        wanted = self.config.text
        if self.config.head != "label-query" or wanted == "none":
            return None, ""
        model = TEXT_MODEL if wanted == "auto" else wanted
        try:
            return embed_names(self.table.classes, model), model
        except MissingDependencyError as error:
            if wanted != "auto":
                raise
            self.notes.append(f"label queries are learned vectors: {error}")
            return None, ""

    def _on_unreadable(self, split: str) -> Callable[[dict], None]:
        return lambda batch: self._note_unreadable(batch, split)

    def _note_unreadable(self, batch: dict, split: str) -> None:
        self.set_aside.add([row for *_, row in self._unreadable(batch, split)])

    def _unreadable(self, batch: dict, split: str) -> list[tuple[int, int, tuple]]:
        """Place of the split, number in it, and what :class:`SetAside` is told, of a batch's unreadable images."""
        rows, images = zip(batch["index"].tolist(), batch["error"], strict=True), self.images[split]
        return [(SPLITS.index(split), row, (images.source(row), *error.split(": ", 1))) for row, error in rows if error]

    def _note_of_all(self, training: Training, bad: list[tuple[int, int, tuple]]) -> None:
        """What any process could not read, noted by the main one in the order of the images."""
        told = [(-1, 0, row) for row in self.set_aside.rows] + bad
        if training.accelerator.num_processes > 1:
            from accelerate.utils import gather_object

            told = gather_object(told)
        if training.is_main:
            self.set_aside.add([row for *_, row in sorted(told, key=lambda one: one[:2])])
