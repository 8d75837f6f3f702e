"""An encoder with a head: radiographs in, one probability per class out; saved and loaded as one folder."""

from __future__ import annotations

import json
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from ..data.seen import SEEN_FILE, Seen
from ..data.seen_key import KEY, key_of, without_digests
from ..errors import ArgumentError, ArgumentTypeError, CheckpointError
from ..files import save_tensors, written_whole
from ..models.encoder import Encoder, Tokens
from ..models.encoder_config import EncoderConfig
from ..models.inputs import patches_to_keep
from ..models.transform import Transform
from ..ops.compiling import writes_graph
from ..ops.plan import MaskPlan
from ..ops.view import View
from ..regular_files import read_json, reason_of, what_else
from ..terminal import visible
from ..weights.hub_files import label_keys
from ..weights.model_folders import MODEL_FILE, load_model, model_folder, read_tensors, write_folder
from ..weights.stored_sizes import check_room, stored_in
from .heads import LabelQueryHead, LinearHead, build_head

HEAD_FILE = "head.safetensors"
CLASSIFIER_FILE = "classifier.json"
FORMAT = "hdxray_fast.classifier"
ARCHITECTURE = ("head", "pool", "text_dim")  # the settings that a head is built from


@dataclass
class ClassifierConfig:
    """What a classifier is, beside its encoder; JSON-able.

    Attributes:
        classes: names.
        head: ``"linear"``, ``"attention"``, ``"label-query"`` or ``"probe"``.
        multiclass: exactly one class holds: probabilities are a softmax, otherwise a sigmoid each.
        pool: of the linear head and the probe.
        text_dim: width of the names' text embeddings, 0 for none.
        text_model: what embedded them, for names asked about later.
        thresholds: a class is called present from this probability on, chosen on validation.
        temperature: what the logits were divided by, fitted on validation; it is in the head's last layer.
        precision: what it computed in when thresholds and temperature were chosen; blank where that is not known.
        contour: how the contours of its training images were found.
        splits: a hash of the patients in the manifest it was made with, under the run's key, and how splits were drawn
            there.
    """

    classes: list[str]
    head: str = "linear"
    multiclass: bool = False
    pool: str = "mean"
    text_dim: int = 0
    text_model: str = ""
    thresholds: list[float] = field(default_factory=list)
    contour: str = "network"
    splits: dict = field(default_factory=dict)
    temperature: float = 1.0
    precision: str = ""

    def __post_init__(self) -> None:
        if not self.classes or len(set(self.classes)) != len(self.classes):
            raise ArgumentError(f"classes: got {self.classes}, accepted is a list of different names")
        if any(visible(name) != name for name in self.classes):
            raise ArgumentError(f"classes: got {self.classes}, accepted are names without control characters")
        self.thresholds = list(self.thresholds) or [0.5] * len(self.classes)


class Classifier(nn.Module):
    """An encoder and a head.

    Args:
        encoder: any encoder; its ``keep`` says which patches are looked at.
        config: see :class:`ClassifierConfig`.
        text: ``[C, T]`` embeddings of the class names, for the label-query head.

    Attributes:
        seen: whom and what it was trained on; ``None`` where that is not known.
        key: of the run it comes from, with which hashes of its patients are made; ``None`` where that is not at hand.
    """

    def __init__(self, encoder: Encoder, config: ClassifierConfig, text: Tensor | None = None) -> None:
        super().__init__()
        self.seen: Seen | None = None
        self.key: bytes | None = None
        if not isinstance(encoder, Encoder):
            raise ArgumentTypeError(f"encoder: got {type(encoder).__name__}, accepted is an Encoder (create_encoder)")
        self.encoder, self.config = encoder, config
        if text is None and config.text_dim:
            text = torch.zeros(len(config.classes), config.text_dim)
        config.text_dim = 0 if text is None else text.shape[1]
        self.head = build_head(
            config.head,
            encoder.num_features,
            config.classes,
            encoder.config.num_heads,
            pool=config.pool,
            num_prefix=encoder.num_prefix_tokens,
            text=text,
        )

    @property
    def classes(self) -> list[str]:
        """Names of the classes, in the order of the logits."""
        return list(self.config.classes)

    def transform(self) -> Transform:
        """What brings one picture to what the model takes, ``[C, S, S] float32``; see :meth:`.Encoder.transform`."""
        return self.encoder.transform()

    def no_weight_decay(self) -> set[str]:
        """Names of parameters that weight decay leaves alone, for timm's optimizers."""
        return {f"encoder.{name}" for name in self.encoder.no_weight_decay()}

    def group_matcher(self, coarse: bool = False) -> dict[str, Any]:
        """As that of the encoder; the head comes behind its last block."""
        of_encoder = self.encoder.group_matcher(coarse)
        blocks = [(pattern.replace("^", r"^encoder\."), order) for pattern, order in of_encoder["blocks"]]
        return {"stem": of_encoder["stem"].replace("^", r"^encoder\."), "blocks": blocks}

    def forward(
        self,
        images: Tensor,  # [B, C, H, W]
        plan: MaskPlan | None = None,
        scale: float | Tensor | None = None,
        shift: float | Tensor | None = None,
        new_names: Tensor | None = None,  # [C', T]
        *,
        inside: Tensor | None = None,  # [B, gh, gw] bool
        valid: Tensor | None = None,  # [B, gh, gw] bool
        drop_path_keep: Tensor | None = None,  # [depth, 2, B] bool
        view: View | None = None,
    ) -> Tensor:
        """Logits ``[B, num_classes]``.

        Args:
            images, plan, scale, shift, inside, valid: as for :meth:`hdxray_fast.models.encoder.Encoder.forward`, so
                that without a plan the encoder's ``keep`` says which patches are looked at.
            new_names: text embeddings of names that were never trained; their logits follow: ``[B, num_classes + C']``.
            drop_path_keep, view: as for :meth:`hdxray_fast.models.encoder.Encoder.encode`; grids are of the view too.

        Raises:
            ArgumentError: see there; or contours would have to be looked for in images that are seen through a view.
        """
        if plan is None:
            if view is not None and inside is None and self.encoder.keep == "contour":
                raise ArgumentError("inside: is needed with a view (or a plan), for contours are looked for in images")
            plan = patches_to_keep(self.encoder, images, inside, valid)
        if scale is None and shift is None and view is None:
            scale, shift = self.encoder.pixel_scale(images, valid)
        tokens = self.encoder.encode(images, plan, scale, shift, drop_path_keep, view)
        grid = self.encoder.grid_of(images)
        if plan is None and new_names is None and writes_graph():
            patches = self.encoder.num_prefix_tokens + grid[0] * grid[1]
            return self.classify_dense(tokens.values.unflatten(0, (-1, patches)))
        longest = (grid[0] * grid[1] if plan is None else plan.longest[0]) + self.encoder.num_prefix_tokens
        logits = self.classify(tokens, longest)
        if new_names is None:
            return logits
        if not isinstance(self.head, LabelQueryHead):
            raise ArgumentError(f"new_names: the head {self.config.head!r} knows its own classes alone")
        values = self.encoder.fc_norm(tokens.values)
        return torch.cat([logits, self.head.answer(values, tokens.cu_seqlens, longest, new_names)], dim=1)

    def classify(self, tokens: Tokens, longest: int | None = None) -> Tensor:
        """Tokens of the encoder to logits ``[B, num_classes]``."""
        return classify_tokens(self.encoder, self.head, tokens, longest)

    def classify_dense(self, x: Tensor, kept: Tensor | None = None) -> Tensor:  # [B, S, D], [B, S] bool
        """:meth:`classify` of dense tokens, those that are ``kept`` (left out, all), in standard operations."""
        if isinstance(self.head, LinearHead):
            return self.head.decide(self.encoder.fc_norm(self.head.pooled_dense(x, kept)))
        return self.head.forward_dense(self.encoder.fc_norm(x), kept)

    @torch.no_grad()
    def scale_logits(self, temperature: float) -> None:
        """Divide all logits, of new names too, by a temperature.

        In the weights of the last layer, so that whatever holds the head, an exported graph or transformers' model,
        gives the same probabilities.
        """
        for tensor in (self.head.fc.weight, self.head.fc.bias):
            tensor.div_(temperature)
        self.config.temperature *= temperature

    def probabilities(self, logits: Tensor) -> Tensor:
        """``[B, num_classes] float32``, in which logits above 17 are all 1; :func:`.predict` gives ``float64``."""
        return logits.float().softmax(-1) if self.config.multiclass else logits.float().sigmoid()


def classify_tokens(encoder: Encoder, head: nn.Module, tokens: Tokens, longest: int | None = None) -> Tensor:
    """Tokens of ``encoder`` to logits ``[B, C]`` of a head that :func:`.build_head` made for it."""
    if isinstance(head, LinearHead):  # where the encoder's last norm comes after pooling, it does here too
        return head.decide(encoder.fc_norm(head.pooled(*tokens)))
    return head(encoder.fc_norm(tokens.values), tokens.cu_seqlens, longest)


def save_classifier(model: Classifier, directory: str | Path) -> Path:
    """Write encoder, head, settings and what it has seen into one folder, each file whole or not at all.

    It is a folder for transformers' ``AutoModelForImageClassification`` too. What it tells of patients are hashes made
    with the run's key, which is not among the files; without a record of what it has seen, nothing.
    """
    config = model.config
    if model.seen is None:
        config = replace(config, splits=config.splits if KEY in config.splits else without_digests(config.splits))
    elif model.seen.origin:
        config = replace(config, splits=model.seen.origin)
    labels = label_keys(config.classes, config.multiclass)
    labels["classifier"] = {key: getattr(config, key) for key in ARCHITECTURE}
    directory = write_folder(model.encoder, directory, labels, {"contour": config.contour})
    head = {name: tensor.detach().contiguous().cpu() for name, tensor in model.head.state_dict().items()}
    with written_whole(directory / HEAD_FILE) as temporary:
        save_tensors(head, temporary)
    with written_whole(directory / CLASSIFIER_FILE) as temporary:
        temporary.write_text(settings_text(config))
    if model.seen is None:
        (directory / SEEN_FILE).unlink(missing_ok=True)  # of a model that was here before
    else:
        model.seen.save(directory / SEEN_FILE)
    return directory


def settings_text(config: ClassifierConfig) -> str:
    """Contents of ``classifier.json``."""
    return json.dumps({"format": FORMAT, **vars(config)}, indent=1) + "\n"


def read_settings(path: Path) -> dict:
    """What ``classifier.json`` says, a field of :class:`ClassifierConfig` each.

    Raises:
        CheckpointError: it is missing, damaged, or is no file of this package.
    """
    try:
        settings = read_json(path)
    except FileNotFoundError as error:
        folder, what = path.parent, f"{path}: is missing"
        if not folder.is_dir():
            what = f"{folder}: is missing"
        elif (folder / "log.jsonl").is_file() or (folder / "checkpoints").is_dir():
            what = f"{folder}: is a training that has not ended (the same finetune command goes on with it)"
        raise CheckpointError(f"{what}; a classifier is the folder that probe or finetune wrote") from error
    except NotADirectoryError as error:
        reason = what_else(path.parent) or "is a file"
        raise CheckpointError(
            f"{path.parent}: {reason}; a classifier is the folder that probe or finetune wrote"
        ) from error
    except (OSError, ValueError) as error:
        raise CheckpointError(f"{path}: is damaged or cannot be read ({reason_of(error)})") from error
    if not isinstance(settings, dict) or settings.pop("format", None) != FORMAT:
        raise CheckpointError(f"{path}: describes no classifier of this package")
    return settings


def read_head(directory: Path) -> dict[str, Tensor]:
    """The head's tensors in the folder of a classifier: of ``head.safetensors``, or beside the encoder's, where
    transformers has saved them.

    Raises:
        CheckpointError: they are in neither, or a file is damaged.
    """
    path = directory / HEAD_FILE
    if path.is_file():
        return read_tensors(path)
    tensors = read_tensors(directory / MODEL_FILE)
    head = {name.removeprefix("head."): tensor for name, tensor in tensors.items() if name.startswith("head.")}
    if not head:
        raise CheckpointError(f"{path}: {what_else(path) or 'is missing'}, and {directory / MODEL_FILE} holds no head")
    return head


def check_head_room(directory: Path, encoder: EncoderConfig, config: ClassifierConfig) -> None:
    """Refuse settings of a head that is far larger than the weights beside them.

    Raises:
        CheckpointError: names what is too large.
    """
    path = directory / HEAD_FILE if (directory / HEAD_FILE).is_file() else directory / MODEL_FILE
    classes, prefix = config.classes, encoder.class_token + encoder.reg_tokens

    def build() -> nn.Module:
        text = torch.zeros(len(classes), config.text_dim) if config.text_dim else None
        dim, heads = encoder.embed_dim, encoder.num_heads
        return build_head(config.head, dim, classes, heads, pool=config.pool, num_prefix=prefix, text=text)

    check_room(directory / CLASSIFIER_FILE, stored_in(path), build, {})


def load_classifier(directory: str | Path) -> Classifier:
    """The classifier that :func:`save_classifier` wrote, or transformers' ``save_pretrained``, in evaluation mode.

    Args:
        directory: the folder, or that of the run it lies in.

    Raises:
        CheckpointError: a file is missing, damaged, or does not belong to the others.
    """
    directory = model_folder(directory, CLASSIFIER_FILE)
    settings = read_settings(directory / CLASSIFIER_FILE)
    encoder = load_model(directory)
    if not isinstance(encoder, Encoder):
        raise CheckpointError(f"{directory}: holds an auto-encoder, a classifier's encoder is needed")
    try:
        config = ClassifierConfig(**settings)
        check_head_room(directory, encoder.config, config)
        model = Classifier(encoder, config)
        model.head.load_state_dict(read_head(directory))
    except (RuntimeError, TypeError, ValueError) as error:
        reason = " ".join(str(error).split())
        raise CheckpointError(f"{directory / HEAD_FILE}: does not fit {CLASSIFIER_FILE} ({reason})") from error
    model.seen, model.key = Seen.load(directory / SEEN_FILE), key_of(directory / SEEN_FILE)
    return model.eval()
