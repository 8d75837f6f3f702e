"""Which model is kept: predictions on validation, a score, and the best weights so far on disk."""

from __future__ import annotations

import contextlib
import json
import math
import os
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch

from ..errors import CheckpointError
from ..files import save_tensors, written_whole
from ..models.inference import autocast, find_precision, one_late
from ..models.inputs import encoder_inputs, sent_batch
from ..ranks import together
from ..regular_files import check_tensors, load_tensors, parse_json
from ..training.batches import batches_of
from ..training.checkpoints import whole_state
from .calibration import as_probabilities
from .classifier import Classifier
from .config import FinetuneConfig
from .data import LabelledRadiographs
from .loss import classification_loss


@torch.no_grad()
def predict_rows(
    accelerator,
    model: Classifier,
    dataset: LabelledRadiographs,
    config: FinetuneConfig,
    on_unreadable: Callable[[dict], None],
    bar: Callable | None = None,
    label: str = "",
    within: contextlib.AbstractContextManager | None = None,
) -> tuple[np.ndarray, np.ndarray]:
    """Logits of a data set's images as they are.

    Args:
        accelerator: of the training, whose processes share the work and all get all rows; ``None`` does it alone.
            Batches, and what comes of them to the last bit, are the same either way.
        model: in evaluation mode.
        dataset: without augmentation.
        config: batch size, workers and precision.
        on_unreadable: called with a batch of this process that holds an image which cannot be read.
        bar: makes a progress bar, named ``label``.
        within: a block that computes in some precision; the one that a saved model computes in by default.

    Returns:
        Rows ``[N'] int64`` of the images that could be read, ascending, and their logits ``[N', C] float32``.
    """
    rank, world = (accelerator.process_index, accelerator.num_processes) if accelerator else (0, 1)
    device = model.encoder.pos_embed.device
    size, count = config.batch_size, len(dataset)
    keys = [[(0, row) for row in range(i, min(count, i + size))] for i in range(rank * size, count, world * size)]
    own = len(keys)
    # where the model is sharded all processes meet in each batch: who has none left repeats an image
    keys += [[(0, 0)]] * (-(-count // (world * size)) - own)
    batches = batches_of(dataset, keys, config.workers, device)

    def compute(batch: dict) -> tuple[torch.Tensor]:
        return (model(*encoder_inputs(model.encoder, sent_batch(batch, device))).float(),)

    rows, logits = [], []
    with contextlib.ExitStack() as stack:
        images = sum(map(len, keys[:own]))
        progress = stack.enter_context(bar(images, label)) if bar else None
        if accelerator is not None:
            stack.enter_context(together(config.process_timeout))
        stack.enter_context(within or _as_saved(config, device))
        for number, (batch, (found,)) in enumerate(one_late(batches, compute, device)):
            if number >= own:
                continue
            good = batch["readable"]
            if not bool(good.all()):
                on_unreadable(batch)
            rows += batch["index"][good].tolist()
            logits.append(found.numpy()[good.numpy()])
            if progress is not None:
                progress.update(len(good))
    width = len(model.config.classes)
    part = np.array(rows, np.int64), np.concatenate([np.zeros((0, width), np.float32), *logits])
    if world == 1:
        return part
    from accelerate.utils import gather_object

    parts = gather_object([part])
    rows, logits = (np.concatenate([piece[i] for piece in parts]) for i in range(2))
    order = np.argsort(rows)
    return rows[order], logits[order]


def _as_saved(config: FinetuneConfig, device: torch.device) -> contextlib.AbstractContextManager:
    if config.precision == "fp16":
        return torch.autocast(device.type, torch.float16)
    return autocast(find_precision(config.precision, device), device)


def validation_score(labels: np.ndarray, logits: np.ndarray, multiclass: bool, select: str) -> dict[str, float | None]:
    """Loss, mean AUROC and mean AUPRC (of the classes that have both kinds of label; None if none has), and the score.

    Logits that are no numbers give a loss that is none, and no ranking.

    Args:
        labels, logits: ``[N, C]``.
        multiclass: exactly one class holds.
        select: ``"auroc"``, ``"auprc"`` or ``"loss"``; where a ranking is not defined, the loss stands in for it.

    Returns:
        ``{"loss", "auroc", "auprc", "score"}``; the larger the score the better.
    """
    from sklearn.metrics import average_precision_score, roc_auc_score

    if not np.isfinite(logits).all():
        return {"loss": math.nan, "auroc": None, "auprc": None, "score": math.nan}
    loss = float(classification_loss(torch.from_numpy(logits), torch.from_numpy(labels), multiclass))
    scores = as_probabilities(logits, multiclass)
    ranked: dict[str, list[float]] = {"auroc": [], "auprc": []}
    for column in range(labels.shape[1]):
        known = ~np.isnan(labels[:, column])
        truth, score = labels[known, column], scores[known, column]
        if truth.size and truth.min() != truth.max():
            ranked["auroc"].append(float(roc_auc_score(truth, score)))
            ranked["auprc"].append(float(average_precision_score(truth, score)))
    found = {"loss": loss, **{name: float(np.mean(values)) if values else None for name, values in ranked.items()}}
    score = -loss if select == "loss" or found[select] is None else found[select]
    return {**found, "score": score}


class BestModel:
    """The weights with the best validation score so far, in one file that is whole or absent.

    Args:
        path: safetensors file; its metadata hold score and step. It is looked at here and now, so that all processes
            have seen the same before one of them writes.
        anew: what is there counts for nothing.

    Attributes:
        facts: score and step of what is kept; ``None`` if nothing is.
    """

    def __init__(self, path: Path, anew: bool = False) -> None:
        self.path = path
        self.facts = self.read() if os.path.lexists(path) and not anew else None

    def improved_by(self, score: dict[str, float]) -> bool:
        """Whether ``score`` is better than what is kept; at equal scores the smaller loss is."""
        if not math.isfinite(score["loss"]):
            return False
        if self.facts is None:
            return True
        return (score["score"], -score["loss"]) > (self.facts["score"], -self.facts["loss"])

    def save(self, model: Classifier, facts: dict, write: bool = True) -> None:
        """Keep these weights; where they are sharded, every process must call this.

        Raises:
            CheckpointError: the file cannot be written; the one before it is as it was.
        """
        from safetensors import SafetensorError

        self.facts = facts
        tensors = whole_state(model, write)
        if write:
            try:
                with written_whole(self.path) as temporary:
                    save_tensors(tensors, temporary, {"facts": json.dumps(facts)})
            except (OSError, SafetensorError) as error:
                raise CheckpointError(
                    f"{self.path}: cannot be written ({error}); the one before it is whole: make room, and the run "
                    "goes on"
                ) from error

    def read(self) -> dict:
        """Score and step of what is kept.

        Raises:
            CheckpointError: the file is missing or damaged.
        """
        from safetensors import SafetensorError, safe_open

        try:
            check_tensors(self.path)
            with safe_open(self.path, "pt") as stream:
                return parse_json(stream.metadata()["facts"])
        except (OSError, SafetensorError, KeyError, TypeError, ValueError) as error:
            raise CheckpointError(f"{self.path}: is missing or damaged ({error}); no model was chosen yet") from error

    def load(self, model: Classifier) -> None:
        """Fill ``model`` with what is kept.

        Raises:
            CheckpointError: the file is missing, damaged, or of another model.
        """
        from safetensors import SafetensorError

        try:
            model.load_state_dict(load_tensors(self.path))
        except (OSError, SafetensorError, RuntimeError) as error:
            raise CheckpointError(f"{self.path}: cannot be loaded ({error})") from error
