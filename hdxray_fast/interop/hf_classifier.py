"""A classifier as a transformers model: ``AutoModelForImageClassification.from_pretrained(folder)``."""

from __future__ import annotations

from dataclasses import fields
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from transformers.modeling_outputs import ImageClassifierOutput
from transformers.utils import cached_file

from ..classify.classifier import (
    CLASSIFIER_FILE,
    HEAD_FILE,
    Classifier,
    ClassifierConfig,
    classify_tokens,
    read_settings,
    settings_text,
)
from ..classify.heads import build_head
from ..classify.loss import classification_loss
from ..errors import ArgumentError, ArgumentTypeError, CheckpointError
from ..files import written_whole
from ..weights.hub_files import CLASSIFIER_CLASS, label_keys
from ..weights.model_folders import MODEL_FILE, encoder_tensors, read_tensors
from ..weights.stored_sizes import stored_in
from .hf_base import PREFIX, HDXrayPreTrainedModel
from .hf_config import CONFIG_WORDS, HDXrayConfig

PROBLEMS = ("single_label_classification", "multi_label_classification")
UNKNOWN = -100  # a class number, in transformers as in PyTorch
_FIELDS = {field.name for field in fields(ClassifierConfig)} - {"classes", "multiclass"}
_OF_A_RUN = ("thresholds", "splits", "precision")
_HUB = ("cache_dir", "force_download", "local_files_only", "proxies", "revision", "subfolder", "token")


class HDXrayForImageClassification(HDXrayPreTrainedModel):
    """An encoder (the attribute ``encoder``) and a head (``head``), those of a :class:`.Classifier`.

    ``id2label`` of the config names the classes; ``problem_type`` says whether one of them holds
    (``"single_label_classification"``) or any number (``"multi_label_classification"``), and left out, the first labels
    say so, as everywhere in transformers; one class alone is held to be present or not. ``classifier={"head": ...}`` in
    the config chooses the head of a new one: ``"linear"``, ``"attention"`` or ``"label-query"``.
    """

    _keys_to_ignore_on_load_unexpected = [r"^decoder\."]  # noqa: RUF012 (transformers asks for a list)

    def __init__(self, config: HDXrayConfig) -> None:
        super().__init__(config)
        settings = classifier_config(config)
        labels = label_keys(settings.classes, settings.multiclass)  # numbers as numbers, not as JSON's words
        config.id2label, config.label2id = labels["id2label"], labels["label2id"]
        self.num_labels = len(settings.classes)
        text = torch.zeros(self.num_labels, settings.text_dim) if settings.text_dim else None
        self.head = build_head(
            settings.head,
            config.embed_dim,
            settings.classes,
            config.num_heads,
            pool=settings.pool,
            num_prefix=self.encoder.num_prefix_tokens,
            text=text,
        )
        self.post_init()

    def forward(
        self,
        pixel_values: Tensor | None = None,  # [B, C, H, W] uint8, uint16 or float
        labels: Tensor | None = None,  # [B] int64, or [B, num_labels]
        inside: Tensor | None = None,  # [B, gh, gw] bool
        valid: Tensor | None = None,  # [B, gh, gw] bool
        output_attentions: bool | None = None,
        output_hidden_states: bool | None = None,
        interpolate_pos_encoding: bool | None = None,
        return_dict: bool | None = None,
    ) -> ImageClassifierOutput | tuple[Tensor, ...]:
        """A logit for each class, and the loss where there are labels.

        Args:
            pixel_values, inside, valid, output_attentions, output_hidden_states, interpolate_pos_encoding, return_dict:
                as for :meth:`.HDXrayModel.forward`.
            labels: class numbers ``[B]``, -100 where not known; or ``[B, num_labels]``, 0 to 1 for each class, NaN
                where not known.

        Returns:
            ``loss``, the mean over the known labels of the cross-entropy, or of the binary cross-entropies;
            ``logits [B, num_labels]`` float32; ``hidden_states`` as there.

        Raises:
            ArgumentError, ArgumentTypeError: an argument is not as described.
        """
        self.check_inputs(pixel_values, output_attentions, interpolate_pos_encoding)
        output_hidden_states = self.wants("output_hidden_states", output_hidden_states)
        tokens, states, plan, longest = self.encoder.encode_depths(
            pixel_values, inside=inside, valid=valid, all_depths=output_hidden_states
        )
        logits = classify_tokens(self.encoder, self.head, tokens, longest)
        hidden = None
        if output_hidden_states:
            hidden = tuple(self.encoder.tokens_on_grid(state, plan, longest) for state in states)
        loss = None if labels is None else self._loss(logits, labels)
        if loss is not None and self.training:  # what was chosen for other weights is not saved with these
            self.config.classifier = {
                name: value for name, value in (self.config.classifier or {}).items() if name not in _OF_A_RUN
            }
        outputs = ImageClassifierOutput(loss=loss, logits=logits, hidden_states=hidden)
        return outputs if self.wants("return_dict", return_dict) else outputs.to_tuple()

    def _loss(self, logits: Tensor, labels: Tensor) -> Tensor:
        labels = labels.to(logits.device)
        if self.config.problem_type is None:
            one = self.num_labels > 1 and not labels.is_floating_point()
            self.config.problem_type = PROBLEMS[0] if one else PROBLEMS[1]
        shape = list(labels.shape)
        if self.config.problem_type == PROBLEMS[0] and shape == [len(logits)]:
            labels = labels.long()
            total = F.cross_entropy(logits.float(), labels, reduction="sum")
            return total / (labels != UNKNOWN).sum().clamp(min=1)  # of a batch where nothing is known 0, not NaN
        if shape == [len(logits)] and self.num_labels == 1:
            labels = labels[:, None]
        if labels.shape != logits.shape:
            raise ArgumentError(
                f"labels: got shape {shape} for logits {list(logits.shape)} of a {self.config.problem_type}, accepted "
                "is [B, num_labels], and [B] where one class holds"
            )
        labels = labels.float().masked_fill(labels == UNKNOWN, float("nan"))
        return classification_loss(logits, labels, self.config.problem_type == PROBLEMS[0])

    def to_classifier(self) -> Classifier:
        """A :class:`.Classifier` around the same encoder and head, for :func:`hdxray_fast.predict` and the like."""
        classifier = Classifier(self.encoder, classifier_config(self.config))
        classifier.head = self.head
        return classifier.train(self.training)

    @classmethod
    def from_classifier(cls, classifier: Classifier) -> HDXrayForImageClassification:
        """A model around the encoder and the head of ``classifier``, which it shares."""
        if not isinstance(classifier, Classifier):
            raise ArgumentTypeError(f"classifier: got {type(classifier).__name__}, accepted is a Classifier")
        settings = classifier.config
        labels = label_keys(settings.classes, settings.multiclass)
        config = HDXrayConfig(classifier=_beside(vars(settings)), **labels)
        config.take(classifier.encoder.config)
        with torch.device("meta"):
            model = cls(config)
        model.encoder, model.head = classifier.encoder, classifier.head
        return model.train(classifier.training)

    @classmethod
    def from_pretrained(cls, pretrained_model_name_or_path, *args, config: Any = None, **kwargs):
        """As transformers has it: the folder of a classifier (``hdxray-fast finetune``, ``probe``, ``save_pretrained``)
        opens as that classifier, the folder of an encoder with a new head.

        Labels of another number than a classifier's need ``ignore_mismatched_sizes=True``: its head begins anew.

        Raises:
            CheckpointError: the weights do not fit, or a classifier's folder has no head; nothing is returned then.
        """
        source = pretrained_model_name_or_path
        want_info = kwargs.pop("output_loading_info", False)
        hub = {name: kwargs[name] for name in _HUB if kwargs.get(name) is not None}
        asked: dict = {}
        if not isinstance(config, HDXrayConfig):
            asked = {name: kwargs.pop(name) for name in list(kwargs) if name in CONFIG_WORDS}
            config = HDXrayConfig.from_pretrained(config or source, **hub, **asked)
        if (file := _file(source, CLASSIFIER_FILE, hub)) is not None:
            _complete(config, read_settings(file), bool({"num_labels", "id2label", "label2id"} & set(asked)))
        trained = file is not None or CLASSIFIER_CLASS in (config.architectures or [])
        path = source
        if (head := _file(source, HEAD_FILE, hub)) is not None:  # this package's own folder: in two files
            encoder = _model_file(source, hub)
            cls._check_room(Path(source) / CLASSIFIER_FILE, stored_in(encoder, head), config)
            tensors = encoder_tensors(read_tensors(encoder))
            state = {PREFIX + name: tensor for name, tensor in tensors.items()}
            state |= {f"head.{name}": tensor for name, tensor in read_tensors(head).items()}
            kwargs = {name: value for name, value in kwargs.items() if name not in hub} | {"state_dict": state}
            path = None
        model, info = cls._load(source, path, *args, config=config, output_loading_info=True, **kwargs)
        if trained and (lost := sorted(name for name in info["missing_keys"] if name.startswith("head."))):
            raise CheckpointError(f"{source}: is a classifier whose weights lack {lost[0]}; nothing was loaded")
        model.name_or_path = model.config.name_or_path = str(source)
        return (model, info) if want_info else model

    def may_be_new(self, name: str) -> bool:
        """A head may: it is trained next."""
        return name.startswith("head.")

    def initialise(self, names: set[str]) -> None:
        """Give the named parameters the values of a new model.

        Raises:
            CheckpointError: they are of a head whose queries are the texts of its classes' names.
        """
        if "head.text" in names:
            raise CheckpointError(
                "its head knows its classes by embeddings of their names, which a new one would lack; pass "
                "classifier={'head': 'label-query'} for one that learns a vector per class"
            )
        super().initialise(names)

    def _names_to_save(self, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
        """All as they are: whoever trains on (transformers' Trainer) looks for the head in the same file."""
        return tensors

    def _write_beside(self, folder: Path) -> None:
        from .hf_images import HDXrayImageProcessor

        settings = classifier_config(self.config)
        super()._write_beside(folder, settings.classes)
        if settings.contour != "network":
            processor = HDXrayImageProcessor.from_config(self.config.encoder_config(), contour=settings.contour)
            processor.save_pretrained(folder)
        with written_whole(folder / CLASSIFIER_FILE) as temporary:
            temporary.write_text(settings_text(settings))
        (folder / HEAD_FILE).unlink(missing_ok=True)  # of a classifier that this one replaces


def classifier_config(config: HDXrayConfig) -> ClassifierConfig:
    """What ``config`` says of the classifier, in this package's words.

    Raises:
        ArgumentError: it is of another kind than a classifier of this package can be.
    """
    if config.problem_type not in (None, *PROBLEMS):
        raise ArgumentError(f"problem_type: got {config.problem_type!r}, accepted are {', '.join(PROBLEMS)}")
    settings = dict(config.classifier or {})
    if unknown := sorted(set(settings) - _FIELDS):
        raise ArgumentError(
            f"classifier: {unknown[0]!r} is no setting of it, accepted are {', '.join(sorted(_FIELDS))}"
        )
    names = {int(index): str(name) for index, name in config.id2label.items()}
    if sorted(names) != list(range(len(names))):
        raise ArgumentError(f"id2label: numbers {sorted(names)}, accepted are 0 to {len(names) - 1}")
    classes = [names[index] for index in range(len(names))]
    if len(settings.get("thresholds", classes)) != len(classes):
        del settings["thresholds"]  # they were chosen for other classes
    one = config.problem_type == PROBLEMS[0] or (config.problem_type is None and len(classes) > 1)
    return ClassifierConfig(classes, multiclass=one, **settings)


def _complete(config: HDXrayConfig, settings: dict, labels_asked: bool) -> None:
    """What ``classifier.json`` tells, as far as nobody has said otherwise."""
    config.classifier = {**_beside(settings), **(config.classifier or {})}
    unnamed = config.num_labels == 2 and list(config.id2label.values()) == ["LABEL_0", "LABEL_1"]
    if unnamed and not labels_asked:
        labels = label_keys(settings["classes"], settings["multiclass"])
        config.id2label, config.label2id = labels["id2label"], labels["label2id"]
        config.problem_type = config.problem_type or labels["problem_type"]


def _beside(settings: dict) -> dict:
    return {name: value for name, value in settings.items() if name in _FIELDS}


def _file(source: Any, name: str, hub: dict) -> Path | None:
    """A file of a folder, or of a repository on the hub; ``None`` if it has none."""
    if source is None:  # a config and a state dict are all there is
        return None
    try:
        found = cached_file(source, name, **hub)
    except OSError:
        return None
    return None if found is None else Path(found)


def _model_file(source: Any, hub: dict) -> Path:
    found = _file(source, MODEL_FILE, hub)
    return Path(source) / hub.get("subfolder", "") / MODEL_FILE if found is None else found
