"""Settings of training a report model, from Python, YAML and the command line alike."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import ClassVar, Literal

from ..errors import ConfigError
from ..images.contour_methods import ContourMethod
from ..training.config import TrainingConfig
from .cleaning import DEFAULT_CLEANERS, cleaner
from .layouts import LAYOUTS
from .model_config import ReportModelConfig, ReportModelSettings
from .studies import SECTIONS, check_language
from .text_tokenizers import KINDS, MIN_FREQUENCY, MIN_PATIENTS, frequency_floor
from .writing_options import WritingOptions

METRICS = ("bleu1", "bleu2", "bleu3", "bleu4", "rouge_l", "cider_d")
EARLIER = {"min_patients": 1, "digits": True}  # of runs begun before these could be chosen
AUGMENTED = "augment changes the images, of which a frozen encoder's features are computed once; give encoder_lr"


@dataclass(frozen=True, kw_only=True)
class ReportConfig(TrainingConfig, ReportModelSettings):
    """Training of a report model.

    Args:
        data: ``annotation.json`` of R2Gen, a CSV with images and reports, the folder of IU X-ray's XML reports or of
            MIMIC-CXR, as ``layout`` says.
        images: folder that relative image paths start from.
        prepared: data set of ``hdxray-fast prepare`` that holds the radiographs, prepared with this ``contour``; they
            are then not read from their files.
        layout: ``r2gen``, ``csv``, ``iu-xray`` or ``mimic-cxr``; told by what ``data`` is by default.
        image_column: the CSV column of the images' files, where it goes by none of the usual names.
        patient_column: likewise, that of the patients.
        sections: ``findings``, ``impression`` or ``both``.
        report_column: the CSV column that holds the report.
        language: ``en`` or ``zh``, of reports that do not say.
        val_share: share of the patients to validate on, where the data have no such split.
        test_share: share of the patients kept for a test, likewise.
        split_seed: of splits drawn here, whatever ``seed`` is.
        cleaning: how reports are cleaned before they are taught: ``none``, ``english``, ``chinese``,
            ``r2gen-iu-xray`` or ``r2gen-mimic-cxr``; by the language by default.
        tokenizer: ``word``, ``bpe`` or ``character``, trained on the training reports, or the name or path of a
            Hugging Face tokenizer; words for English and characters for Chinese by default, and a language model's own.
        min_frequency: tokens seen less often are unknown; by default 3 for words (1 where 3 would leave more than 5 %
            of them unknown, as in small sets), 2 for BPE, 1 for characters.
        vocab_size: most tokens.
        min_patients: words in the training reports of fewer patients are unknown, for a name may be among them and the
            vocabulary is part of the model; 5 by default, 1 keeps all, as R2Gen does. BPE merges nothing of such words.
        digits: keep words with digits in the vocabulary, as R2Gen does; left out by default.
        weights: of the encoder: ``pretrained`` for the one that comes with the package, a run or model folder,
            ``hf:org/name`` or ``timm:name``; left out, ``pretrained``, or ``encoder`` if that is given.
        encoder: encoder preset to begin with untrained, in place of ``weights``: for many films, or as a baseline.
        img_size: canvas side, pixels; the weights' own, or 1280, by default.
        contour: how the chest contour is found: ``network``, ``classical``, ``prior`` or ``rectangle``.
        cache: folder for canvases, contours and features computed once; ``<out>/cache`` by default.
        prompt: two texts, before and after the visual tokens of a language model.
        lr: peak learning rate of everything behind the encoder; 2e-4 by default.
        encoder_lr: peak learning rate of the encoder; 0 freezes it, and its features are computed once.
        label_smoothing: share of the target's probability that is spread over all words.
        augment: rotate, zoom, shift and re-expose the radiographs slightly; never mirrored.
        validate_every: steps between validations by generated text; 0 for the last step only.
        validate_split: ``val``; ``train`` to see how much is known by heart.
        validate_studies: most studies of a validation.
        metric: what makes a model the best: ``bleu1`` to ``bleu4``, ``rouge_l`` or ``cider_d``.
        num_beams: beams of validation.
        no_repeat_ngram_size: 3 blocks repeated trigrams in validation; 0 allows them.
    """

    FREE_ON_RESUME: ClassVar[frozenset[str]] = TrainingConfig.FREE_ON_RESUME | {"cache"}

    data: str
    images: str | None = None
    prepared: str | None = None
    layout: str | None = None
    image_column: str | None = None
    patient_column: str | None = None
    sections: str = "findings"
    report_column: str | None = None
    val_share: float = 0.1
    test_share: float = 0.2
    split_seed: int = 0
    cleaning: str | None = None
    tokenizer: str | None = None
    min_frequency: int | None = None
    vocab_size: int = 8000
    min_patients: int | None = None
    digits: bool | None = None
    weights: str | None = None
    encoder: str | None = None
    img_size: int | None = None
    contour: ContourMethod = "network"
    cache: str | None = None
    prompt: list[str] | None = None
    encoder_lr: float = 5e-5
    label_smoothing: float = 0.0
    augment: bool = False
    validate_every: int = 500
    validate_split: Literal["val", "train"] = "val"
    validate_studies: int = 200
    metric: str = "bleu4"
    num_beams: int = 3
    no_repeat_ngram_size: int = 0

    def __post_init__(self) -> None:
        if not (self.data and self.out):
            raise ConfigError("data and out must both be named: the studies, and a folder for the run")
        super().__post_init__()

    def _check(self) -> None:
        super()._check()
        self._at_least(1, "vocab_size", "img_size", "validate_studies", "min_frequency", "min_patients")
        self._at_least(0, "encoder_lr", "validate_every", "split_seed")
        self._share("val_share", "test_share", "label_smoothing")
        check_language(self.language)
        for name, accepted in (("metric", METRICS), ("sections", SECTIONS), ("layout", (None, *LAYOUTS))):
            if getattr(self, name) not in accepted:
                raise ConfigError(f"{name}: got {getattr(self, name)!r}, accepted are {', '.join(map(str, accepted))}")
        cleaner(self.cleaning_name)
        if self.augment and not self.encoder_lr:
            raise ConfigError(AUGMENTED)
        if self.prompt is not None and len(self.prompt) != 2:
            raise ConfigError(f"prompt: got {len(self.prompt)} texts, accepted are two: before and after the image")
        if self.decoder == "language-model" and self.tokenizer is not None:
            raise ConfigError("tokenizer: a language model reads its own tokens; leave the tokenizer out")
        _ = self.model_config, self.writing

    @property
    def cleaning_name(self) -> str:
        """Name of the cleaning function."""
        return self.cleaning or DEFAULT_CLEANERS[self.language]

    @property
    def tokenizer_kind(self) -> str | None:
        """Kind of the tokenizer that is trained on the reports; ``None`` if it is a Hugging Face one."""
        if self.decoder == "language-model":
            return None
        kind = self.tokenizer or ("character" if self.language == "zh" else "word")
        return kind if kind in KINDS else None

    @property
    def vocabulary(self) -> dict:
        """What decides on a token, as :func:`.text_tokenizers.train_tokenizer` takes it; empty if none is trained."""
        if self.tokenizer_kind is None:
            return {}
        return {name: getattr(self, name) for name in ("min_frequency", "vocab_size", "min_patients", "digits")}

    def with_floor(self, texts: Sequence[str], begun: dict | None = None) -> ReportConfig:
        """The same with what decides on a word of the vocabulary, where a tokenizer is trained and that is not given.

        Args:
            texts: cleaned training reports.
            begun: settings of the run that is resumed, if one is: it keeps its own, whatever would be chosen now.
        """
        kind = self.tokenizer_kind
        if kind is None:
            return self
        chosen = {"min_patients": MIN_PATIENTS, "digits": False} if begun is None else EARLIER | begun
        if self.min_frequency is None:
            chosen["min_frequency"] = frequency_floor(texts, kind) if begun is None else _floor_of(begun, kind)
        names = ("min_frequency", "min_patients", "digits")
        return replace(self, **{name: chosen[name] for name in names if getattr(self, name) is None})

    def differences(self, other: dict) -> list[str]:
        """As inherited; what ``other`` does not tell of its vocabulary is what it had."""
        kind = self.tokenizer_kind
        if kind is not None and self.min_frequency is not None:
            other = {**EARLIER, **other, "min_frequency": _floor_of(other, kind)}
        return super().differences(other)

    @property
    def model_config(self) -> ReportModelConfig:
        """Settings of the model."""
        prompt = None if self.prompt is None else tuple(self.prompt)
        settings = {name: getattr(self, name) for name in ReportModelSettings.__dataclass_fields__}
        return ReportModelConfig(**settings, cleaning=self.cleaning_name, prompt=prompt)

    @property
    def writing(self) -> WritingOptions:
        """How text is generated for validation."""
        return WritingOptions(num_beams=self.num_beams, no_repeat_ngram_size=self.no_repeat_ngram_size)


def _floor_of(saved: dict, kind: str) -> int:
    """The frequency floor of a run by its settings; those of earlier versions have it only where it was given."""
    return saved.get("min_frequency") or MIN_FREQUENCY[kind]
