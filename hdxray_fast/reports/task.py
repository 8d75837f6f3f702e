"""A report model as the training loop sees it: its studies, its loss, and what is kept of it."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Iterable
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from ..data.augment import Augmentation
from ..data.prepared.duplicates import thumbnails_of
from ..data.prepared.finding import find_some, open_prepared
from ..data.prepared.reading import PreparedSubset
from ..data.prepared.sources import Source
from ..data.quarantine import Quarantined, write_quarantine
from ..data.radiograph_dataset import RadiographDataset
from ..data.seen import DRAWN_FILE, Seen
from ..data.seen_key import KEY_FILE
from ..errors import ConfigError, TrainingError
from ..models.encoder import Encoder
from ..ranks import from_main, together
from ..terminal import visible
from ..training.batches import batches_of
from ..training.data_record import DataRecord, content_digest, prints_of
from ..training.loop import Training
from ..training.optimizer import parameter_groups
from ..training.run_folder import begun_settings
from ..training.run_images import read_images
from ..training.task import Task
from ..weights.create import create_encoder
from ..weights.fingerprint import settings_print, weights_print
from .batches import ReadyStudies, ReadyStudy, StudyDataset, copies_left_out, ready_studies
from .cleaning import cleaner, mostly_chinese
from .config import ReportConfig
from .features import FeatureStore
from .metrics import conventions, score_reports
from .model import ReportModel, create_report_model
from .predictions import Prediction, write_predictions
from .saving import save_report_model
from .studies import StudyTable
from .study_list import Studies
from .text_tokenizers import ReportTokenizer, load_tokenizer, train_tokenizer
from .unknown_words import left_out_note, refuse_mostly_unknown, require_targets, unknown_warning
from .validated import Validated, few_to_validate
from .visual_tokens import Views


class ReportTask(Task):
    """A report model on studies.

    Attributes:
        config: as given, with the frequency floor of the tokenizer, which ``config.json`` is to tell.
    """

    label = "report train"
    writes = ("validation.csv", DRAWN_FILE, KEY_FILE)
    compiles = False  # a language model of any make
    captures = False  # texts differ in length from step to step, and a language model looks at its own mask

    def __init__(self, config: ReportConfig, table: StudyTable) -> None:
        self.config, self.table, self.notes = config, table, list(table.notes)
        self.studies = {"train": table.split("train"), config.validate_split: table.split(config.validate_split)}
        if not self.studies["train"]:
            raise ConfigError(f"data: {config.data} has no study in the split 'train'")
        wrong = [study.named for study in self.studies["train"] if study.language != config.language]
        if wrong:
            raise ConfigError(
                f"language: {len(wrong)} training studies are not in {config.language!r} (the first is {wrong[0]}); a "
                "model writes one language"
            )
        if mostly_chinese(study.report for study in self.studies["train"]) != (config.language == "zh"):
            raise ConfigError(
                f"language: got {config.language!r}, but the training reports are "
                f"{'not Chinese' if config.language == 'zh' else 'Chinese'}; give language (--language), one of 'en' "
                "and 'zh'"
            )
        self.clean = cleaner(config.cleaning_name)
        texts = [self.clean(report) for report in self.studies["train"].column("report")]
        self.config = config.with_floor(texts, begun_settings(config))
        self.cache = Path(config.cache or Path(config.out) / "cache")
        self.tokenizer = self._make_tokenizer(texts)
        if self.tokenizer is not None:  # a language model's comes with its weights
            refuse_mostly_unknown(*self._unknown(texts))  # before films are read
        self.best, self.best_step, self.scores = math.nan, 0, []
        self.features: FeatureStore | None = None
        self.key: bytes | None = None

    def _make_tokenizer(self, texts: list[str]) -> ReportTokenizer | None:
        config = self.config
        if config.decoder == "language-model":
            return None
        kind = config.tokenizer_kind
        if kind is None:
            return load_tokenizer(config.tokenizer)
        patients = [study.patient or study.id for study in self.studies["train"]]
        return train_tokenizer(texts, kind, patients=patients, **config.vocabulary)

    def _unknown(self, texts: list[str]) -> tuple[float, str | None]:
        """The share of their tokens that the tokenizer does not know, and what is said of it."""
        config, share = self.config, self.tokenizer.unknown_share(texts)
        floors = (None, None) if config.tokenizer_kind is None else (config.min_frequency, config.min_patients)
        return share, unknown_warning(share, *floors, replaceable=config.decoder != "language-model")

    # --- what Training asks for -------------------------------------------------------------------------------------
    def build(self) -> ReportModel:
        config = self.config
        model = create_report_model(self._make_encoder(), self.tokenizer, config.model_config)
        self.tokenizer = model.tokenizer
        if not config.encoder_lr:
            model.encoder.requires_grad_(False)
        else:
            for part in (model.encoder.fc_norm, getattr(model.encoder, "attn_pool", None)):
                if part is not None:  # pool features, which no report is read off
                    part.requires_grad_(False)
        self.model = model
        return model

    def _make_encoder(self) -> Encoder:
        config = self.config
        size = {} if config.img_size is None else {"img_size": config.img_size}
        if config.weights is None:
            return create_encoder(config.encoder, **size)
        return create_encoder(weights=config.weights, **size)

    def groups(self, model: ReportModel, config: ReportConfig) -> list[dict]:
        peak = config.lr or self.peak_lr(config.batch_size)
        groups = parameter_groups(model.visual, config.weight_decay)
        groups += parameter_groups(model.decoder, config.weight_decay)
        for group in parameter_groups(model.encoder, config.weight_decay):
            groups.append({**group, "lr_scale": config.encoder_lr / peak})
        return [group for group in groups if group["params"]]

    def peak_lr(self, images: int) -> float:
        return 2e-4

    def loader(self, training: Training, start: int) -> Iterable[dict]:
        return training.loader(self.train_set, start, collate_fn=self.train_set.collate)

    def to_device(self, batch: dict, device: torch.device) -> dict:
        moved = super().to_device(batch, device)
        for name in ("views", "plan"):
            if batch.get(name) is not None:
                moved[name] = batch[name].to(device, non_blocking=True)
        return moved

    def weight(self, batch: dict) -> int:
        return batch["words"]

    def loss(self, model: nn.Module, batch: dict) -> tuple[Tensor, dict]:
        smoothing = self.config.label_smoothing
        arguments = self._arguments(batch)
        return model(batch["targets"], batch["views"], label_smoothing=smoothing, **arguments), {}

    def _arguments(self, batch: dict) -> dict:
        """What the model reads of a batch: features, or radiographs and the plan of their patches."""
        if self.features is not None:
            return self.features.arguments(batch)
        return self.model.inputs(batch)

    def files(self, batch: dict) -> list[str]:
        return [path for i in batch["index"].tolist() for path in self.train.studies[i].images]

    def after_step(self, training: Training, step: int, done: bool) -> dict | None:
        every = self.config.validate_every
        if not (done or (every and step % every == 0)):
            return None
        if not self.validation:
            self._keep(training, step, Validated(self.config.validate_split, 0))
            return None
        scores = self._validate(training)
        score = scores.get(self.config.metric, math.nan)
        self.scores.append({"step": step, **scores})
        if not self.best > score:  # the first, or better; of equals the later one, which was taught for longer
            self.best, self.best_step = score, step
            self._keep(training, step, Validated(self.config.validate_split, len(self.validation), scores["bleu4"]))
        shown = f"{self.config.metric} {score:.4f} (best {self.best:.4f} at step {self.best_step})"
        training.print(f"step {step}: {self.config.validate_split} {shown}")
        return {f"{self.config.validate_split}_{name}": value for name, value in scores.items()}

    def state(self) -> dict:
        return {"best": None if math.isnan(self.best) else self.best, "best_step": self.best_step}

    def load_state(self, state: dict) -> None:
        self.best = math.nan if state["best"] is None else state["best"]
        self.best_step = state["best_step"]
        # the model has its checkpoint's encoder by now; those from before there were records do not tell which it was
        if self.features is not None and weights_print(self.model.encoder) != self.features.weights:
            raise ConfigError(
                f"weights: {self.config.weights or self.config.encoder} is another encoder than when the run was "
                "started; resume needs the same one, or choose another folder"
            )

    # --- the parts --------------------------------------------------------------------------------------------------
    def read_images(self, training: Training) -> None:
        """Canvas and contour of every radiograph, targets of every report; of a frozen encoder the features too."""
        config = self.config
        wanted = dict(self.studies)
        if config.validate_split == "val":
            wanted["val"] = wanted["val"][: config.validate_studies]
        images, bad = self._find_images(training, wanted)
        ready, notes = {}, []
        for split, studies in wanted.items():
            ready[split], found = ready_studies(studies, images, bad if split == "train" else (), config.max_views)
            notes += found if split == "train" else [f"{split}: {note}" for note in found]
        thumbnails: list[np.ndarray] = []  # of the main process, which alone compares them and saves their signatures

        def without_copies() -> tuple[dict[str, ReadyStudies], list[str]]:
            thumbnails.append(thumbnails_of(images))
            found = copies_left_out(ready, thumbnails[0], self.table.drawn)
            return ready, found

        ready, found = from_main(without_copies, config.process_timeout)
        notes += found
        if not ready["train"]:
            raise TrainingError(f"none of the {len(wanted['train'])} training studies has a readable radiograph")
        texts = [self.clean(report) for report in ready["train"].studies.column("report")]
        share, warning = self._unknown(texts)
        targets, cut = require_targets(texts, self.tokenizer, config.max_length, share, warning)
        if cut:
            notes.append(
                f"{cut} of {len(texts)} training reports are longer than {config.max_length} tokens and are cut there "
                "(max_length)"
            )
        if note := left_out_note(share if not warning else 0.0, config.vocabulary):
            notes.append(note)
        self.notes += notes
        self.train = train = ready["train"].with_targets(targets)
        self.validation = (train if config.validate_split == "train" else ready["val"])[: config.validate_studies]
        digest = hashlib.sha256()
        for place, row in enumerate(train):
            text = f"{row.study.id} {row.target} {row.study.images}"
            digest.update(("\n" * (place > 0) + text).encode("utf-8", "surrogateescape"))
        self.fingerprint = digest.hexdigest()[:16]
        self.data_record = self._record(images, train)
        for pictures in thumbnails:
            self.seen = self._seen(images, [train, *([ready["val"]] if "val" in ready else [])], pictures)
        patch_size = self.model.encoder.patch_size
        plain = RadiographDataset(images, patch_size=patch_size, bits=8)
        augmentation = Augmentation() if config.augment else None
        changed = RadiographDataset(
            images, patch_size=patch_size, augmentation=augmentation, seed=config.seed, views=config.augment, bits=8
        )
        if not config.encoder_lr:
            self.features = self._compute_features(training, plain, [*train, *self.validation])
            seen = sorted({number for row in train for number in row.images})
            self.model.visual.standardise(self.features.for_standardising(seen))
        self.train_set = StudyDataset(train, changed, self.model, self.features)
        self.validation_set = StudyDataset(self.validation, plain, self.model, self.features)
        for note in self.notes:
            training.print(f"note: {visible(note)}")
        training.print(
            f"{len(train)} studies to train on, {len(self.validation)} to validate on ({config.validate_split}); "
            f"{len(self.tokenizer)} tokens"
        )
        if warning:
            training.print(f"warning: {warning}")
            self.notes.append(warning)
        given = "val" in self.table.drawn, config.val_share, config.validate_studies
        if few := few_to_validate(config.validate_split, len(self.validation), *given):
            training.print(f"warning: {few}")
            self.notes.append(few)
        if not self.validation:
            training.print(
                "warning: nobody validates, so no model is chosen: the last one is kept; raise val_share, or set "
                "validate_split to train"
            )

    def _record(self, images: PreparedSubset, train: ReadyStudies) -> DataRecord:
        """Radiographs and reports, and the weights that no checkpoint holds or that features were computed with."""
        record, model = DataRecord(), self.model
        record.add("readable images", images.sources(), prints_of(images.checksums()))
        for kind, rows in (("training studies", train), ("validation studies", self.validation)):
            told = [content_digest(row.study.report, str(row.target), *row.study.images) for row in rows]
            names = ["; ".join(row.study.images) for row in rows]  # files can be found, and ids are the patients'
            record.add(kind, names, told, former=[row.study.id for row in rows])
        weights = {"the settings of the encoder": settings_print(model.encoder.config)}
        if not self.config.encoder_lr:
            weights["the frozen encoder"] = weights_print(model.encoder)
        record.add("weights", weights.keys(), weights.values(), setting="weights")
        if self.config.decoder == "language-model":
            name, own = self.config.language_model, model.decoder.frozen_print()
            record.add("language models", [name], [own], setting="language_model")
        return record

    def _seen(self, images: PreparedSubset, used: list[ReadyStudies], thumbnails: np.ndarray) -> Seen:
        """Whom and what training and validation use, radiograph by radiograph."""
        hashes = images.hashes()
        numbers = [number for studies in used for row in studies for number in row.images]
        part = StudyTable(Studies(row.study for studies in used for row in studies for _ in row.images))
        return Seen.of(self.table, part, [hashes[number] for number in numbers], thumbnails[numbers], self.key)

    @property
    def canvas_size(self) -> int:
        """Side of the radiographs, pixels; a ConfigError if the encoder takes none that are square."""
        height, width = self.model.encoder.img_size
        if height != width:
            raise ConfigError(f"weights: the encoder takes {height} x {width} images, reports are read off square ones")
        return height

    def _find_images(self, training: Training, wanted: dict[str, Studies]) -> tuple[PreparedSubset, list[Quarantined]]:
        config = self.config
        paths = dict.fromkeys(
            path for studies in wanted.values() for study in studies for path in study.images[: config.max_views]
        )
        if config.prepared is not None:
            prepared = open_prepared(config.prepared, img_size=self.canvas_size, contour=config.contour)
            found, bad = find_some(list(paths), prepared, config.data)
            training.print(f"{len(found)} radiographs in {visible(config.prepared)}")
            if training.is_main:
                write_quarantine(training.out / "unreadable.csv", bad)
            return found, bad
        sources = [Source(path) for path in paths]
        return read_images(training, sources, self.cache, size=self.canvas_size, contour=config.contour)

    def _compute_features(
        self, training: Training, images: RadiographDataset, studies: Iterable[ReadyStudy]
    ) -> FeatureStore:
        """Every process computes its share; all wait for each other."""
        accelerator = training.accelerator
        store = FeatureStore(self.cache / "features", images, self.model, accelerator.mixed_precision)
        numbers = sorted({number for row in studies for number in row.images})
        mine = numbers[accelerator.process_index :: accelerator.num_processes]
        self.model.encoder.to(accelerator.device).eval()
        with together(self.config.process_timeout), training.bar(len(mine), "features") as bar:
            store.fill(
                self.model, mine, accelerator.device, accelerator.autocast, bar.update, workers=self.config.workers
            )
        return store

    def _validate(self, training: Training) -> dict[str, float]:
        """Scores of the texts written for the validation studies; every process writes its share of them."""
        from accelerate.utils import gather_object

        accelerator, size = training.accelerator, self.config.batch_size
        mine = range(accelerator.process_index, len(self.validation), accelerator.num_processes)
        texts: list[tuple[int, str]] = []
        bar = training.bar(len(mine), "write", "study", leave=False)
        with together(self.config.process_timeout), training.averaged() as model, bar:
            keys = [[(0, i) for i in mine[first : first + size]] for first in range(0, len(mine), size)]
            dataset, device = self.validation_set, accelerator.device
            for read in batches_of(dataset, keys, self.config.workers, device, dataset.collate):
                batch = self.to_device(read, device)
                with accelerator.autocast():
                    written = write_batch(model, self._arguments(batch), batch["views"], self.config)
                texts += zip(read["index"].tolist(), written, strict=True)
                bar.update(len(written))
        found = dict(gather_object(texts))
        generated = [found[i] for i in range(len(self.validation))]
        studies = [row.study for row in self.validation]
        if training.is_main:
            rows = [Prediction(s.id, text, s.report, s.language) for s, text in zip(studies, generated, strict=True)]
            write_predictions(training.out / "validation.csv", rows)
        convention = conventions(self.config.language)[0]
        references = [study.report for study in studies]
        scores = from_main(
            lambda: score_reports(generated, references, convention, meteor=False).as_dict(),
            self.config.process_timeout,
        )
        numbers = {name: value for name, value in scores.items() if isinstance(value, float)}
        return {**numbers, "different": len(set(generated))}

    def _keep(self, training: Training, step: int, validated: Validated) -> None:
        """Save the model as the best so far."""
        with training.averaged() as model:
            if training.is_main:
                model.encoder.contour, model.seen, model.validated = self.config.contour, self.seen, validated
                save_report_model(model, training.out / "model")


def write_batch(model: ReportModel, arguments: dict, views: Views, config: ReportConfig) -> list[str]:
    """Texts for a batch given as :meth:`ReportModel.forward` takes it."""
    view_tokens = arguments.get("view_tokens")
    if view_tokens is None:
        tokens, plan = arguments.get("tokens"), arguments["plan"]
        if tokens is None:
            view_tokens = model.view_tokens(arguments["images"], plan, arguments["scale"], arguments["shift"])
        else:
            view_tokens = model.resample(tokens, plan)
    return model.write(view_tokens, views, config.writing)[0]
