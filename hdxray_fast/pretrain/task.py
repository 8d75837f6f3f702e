"""Pre-training: files to a contour-masked auto-encoder, with checkpoints that survive ``kill -9``."""

from __future__ import annotations

import contextlib
import hashlib
import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from ..data.augment import Augmentation
from ..data.prepared.cache import refuse_foreign_cache
from ..data.prepared.chunk_store import ChunkStore, is_address
from ..data.prepared.finding import open_prepared, require_recipe
from ..data.prepared.reading import PreparedSet, PreparedSubset, is_prepared
from ..data.prepared.sources import Source, run_sources
from ..data.prepared.streamed_set import StreamedSet
from ..data.radiograph_dataset import RadiographDataset
from ..errors import CheckpointError, ConfigError
from ..images.panels import left_out_if_it_fails, stack, tile, write_image
from ..models.mae import MaskedAutoencoder, create_mae
from ..models.presets import ENCODERS
from ..ops.gather import gather_patches
from ..ops.loss import reconstruction_loss
from ..ops.plan import MaskPlan
from ..ops.view import View
from ..ranks import on_main, together
from ..terminal import are
from ..training.checkpoints import checkpoint_folders
from ..training.data_record import DataRecord, prints_of
from ..training.loop import Training
from ..training.run_folder import CHECKPOINTS, as_begun, begun_settings
from ..training.run_images import read_images
from ..training.task import Task
from ..weights.model_folders import describe_model, load_model, save_model
from .batches import PlannedBatch, planned
from .blocks import blocks_ahead, node_count, require_room
from .config import PretrainConfig
from .held_out import HeldOut, held_out_rows, looks_of, patients_of
from .reconstruction import PICTURED, how_to_read, prune_pictures, reconstruction_picture
from .start import new_model, started_model


@dataclass
class PretrainResult:
    """What a run did.

    Attributes:
        out: its folder.
        losses: loss of each step this process ran.
        baseline: loss of predicting each patch by its own mean, in the first step.
        seconds_per_step: median over the steps this process ran.
        images: radiographs trained on; ``None`` before they are known.
        picture: the last picture written.
        finished: all steps were run (False after SIGTERM).
        start: steps that lay behind when it began.
    """

    out: Path
    losses: list[float] = field(default_factory=list, repr=False)
    baseline: float = math.nan
    seconds_per_step: float = math.nan
    images: PreparedSet | PreparedSubset | None = None
    picture: Path | None = None
    finished: bool = False
    start: int = 0


def run_pretraining(
    config: PretrainConfig, *, progress: bool = True, on_step: Callable[[dict], None] | None = None
) -> PretrainResult:
    """Pre-train as ``config`` says.

    Writes under ``config.out`` what :mod:`.training.loop` lists, ``unreadable.csv``, ``pictures/``, and at the
    end ``model/`` (for :func:`hdxray_fast.load_model`).

    Args:
        config: all settings.
        progress: show progress bars.
        on_step: called with each log line's dict.

    Raises:
        ConfigError: settings that contradict each other, the data, or the run found in ``config.out``.
        TrainingError: no readable image, or a loss that is not finite (state saved under ``failed/``).
        CheckpointError: there are checkpoints, and none can be read.
    """
    config = as_begun(config)
    out = Path(config.out)
    cache = Path(config.cache) if config.cache else out / "cache"
    task = PretrainTask(config)
    training = Training(config, task, progress=progress, on_step=on_step)
    sources: list[Source] = []  # of the main process, which alone looks through folders and reads files

    def list_sources() -> None:
        workers = 0 if config.workers == 0 else 1
        options = {"exclude": (out, cache), "image_column": config.image_column, "workers": workers}
        sources.extend(run_sources(config.data, config.images, **options))

    images: PreparedSet | PreparedSubset | None = None
    store: ChunkStore | None = None
    several = config.sources if len(config.sources) > 1 else []
    if whole := next((one for one in several if is_address(one) or is_prepared(one)), None):
        raise ConfigError(
            f"data: {whole} is a whole set, and several are folders, files, manifests and archives; prepare them into "
            "one set, or give this one alone"
        )
    if is_address(config.data):
        store = ChunkStore(config.data)
        told, _ = store.settings()
        require_recipe(told["recipe"], config.data, img_size=config.img_size, contour=config.contour)
        require_room(config, told["images"], told["bytes"], task.nodes)
    elif not several and is_prepared(config.data):
        images = open_prepared(config.data, img_size=config.img_size, contour=config.contour)
    else:
        refuse_foreign_cache(cache, config.img_size, config.contour)
        on_main(list_sources, config.process_timeout)
    with training.claimed():
        if task.loaded:
            training.print(task.loaded)
        if store is not None:
            with together(config.process_timeout):  # one process of each machine fetches the index
                images = StreamedSet(store, cache, config.max_cache << 20)
        elif images is None:
            images, _ = read_images(training, sources, cache, size=config.img_size, contour=config.contour)
        if config.val_share:
            patients = patients_of(config, images)
            kept, held = held_out_rows(patients, looks_of(images), config.val_share, config.seed)
            training.print(f"{are(len(held), 'radiograph')} held out, {len(kept)} trained on")
            if not any(patients):
                training.print("note: no patient is known, so that one with several may be on both sides (val_share)")
            task.use(images.subset(kept), images.subset(held))
        else:
            task.use(images)
        done = training.run()
        if done.finished:
            model = training.whole_model()
            if model is not None:
                save_model(model, out / "model")
    return PretrainResult(
        out, done.losses, task.baseline, done.seconds_per_step, task.images, task.picture, done.finished, done.start
    )


class PretrainTask(Task):
    """A masked auto-encoder on radiographs."""

    label = "pretrain"
    writes = ("pictures",)
    captures = True

    def __init__(self, config: PretrainConfig) -> None:
        self.config = config
        self.loaded = ""  # what became of the weights it starts from
        self._settings: dict | None = None  # of the model, once there is one
        self.nodes = node_count(config)
        self.images: PreparedSet | PreparedSubset | None = None
        self.held_out: PreparedSubset | None = None
        self.validation: HeldOut | None = None
        self.baseline = math.nan
        self.picture: Path | None = None

    def use(self, images: PreparedSet | PreparedSubset, held_out: PreparedSubset | None = None) -> None:
        """Train on these, and never on those that are held out."""
        config = self.config
        self.images, self.held_out = images, held_out
        names = "\n".join(images.sources()).encode("utf-8", "surrogateescape")
        self.fingerprint = hashlib.sha256(names).hexdigest()[:16]
        self.data_record = DataRecord()
        self.data_record.add("readable images", images.sources(), prints_of(images.checksums()))
        patch_size = ENCODERS[config.model]["patch_size"]
        if held_out is not None:
            self.validation = HeldOut(config, held_out, patch_size, self.predict)
        self.dataset = RadiographDataset(
            images,
            patch_size=patch_size,
            augmentation=Augmentation(min_scale=config.min_scale) if config.augment else None,
            seed=config.seed,
            views=config.augment,
        )

    def build(self) -> MaskedAutoencoder:
        if self._settings is not None:  # again: the weights it began with may be gone
            model = create_mae(**self._settings)
        elif self.config.weights is None:
            model = new_model(self.config)
        else:
            model, self.loaded = self._started()
        self._settings = model.config
        self.predict = self.config.predict or model.default_predict
        return model

    def _started(self) -> tuple[MaskedAutoencoder, str]:
        """With the weights that a run begins with; where it is gone on with, its checkpoint may do without them."""
        try:
            return started_model(self.config)
        except CheckpointError:
            saved = checkpoint_folders(Path(self.config.out) / CHECKPOINTS) if begun_settings(self.config) else []
            for folder in reversed(saved):
                with contextlib.suppress(CheckpointError):
                    return load_model(folder), f"weights: {self.config.weights} cannot be read; the checkpoint has all"
            raise

    def peak_lr(self, images: int) -> float:
        return min(5e-4 * math.sqrt(images / 8), 2.4e-3)

    def loader(self, training: Training, start: int) -> Iterable[dict]:
        costs = self.dataset.kept_patches(self.config.ratio_inside, self.config.ratio_outside)
        order = None
        if self.config.shuffle == "blocks":
            rank, world = training.accelerator.process_index, training.accelerator.num_processes
            order = blocks_ahead(self.config, self.images, self.nodes, rank, world)
        return training.loader(self.dataset, start, PlannedBatch(self.config, self.predict), costs, order)

    def to_device(self, batch: dict, device: torch.device) -> dict:
        batch = super().to_device(batch, device)
        view = View(batch.pop("affine"), batch.pop("table")) if "affine" in batch else None
        return {**batch, "view": view}

    def weight(self, batch: dict) -> int:
        return batch["predicted"]

    def loss(self, model: nn.Module, batch: dict) -> tuple[Tensor, dict]:
        baseline = self._mean_patch_loss(batch) if math.isnan(self.baseline) else self.baseline
        output = model(batch["pixels"], batch["plan"], batch["scale"], batch["shift"], batch["view"])
        return output.loss, {"baseline": baseline, "tokens_kept": batch["plan"].keep_cu_seqlens[-1]}

    def files(self, batch: dict) -> list[str]:
        return [self.dataset.name(index) for index in batch["index"].tolist()]

    def after_step(self, training: Training, step: int, done: bool) -> dict | None:
        if step == 1:  # over all processes, of whom each has seen its own batches only
            self.baseline = training.numbers["baseline"]
        every = self.config.picture_every
        if every and step % every == 0 and not done:
            self._draw(training, step)
        if self.validation is None or not (done or step % self.config.val_every == 0):
            return None
        with training.averaged() as model:
            return {"val_loss": self.validation.loss(training, self, model)}

    def at_save(self, training: Training, step: int) -> None:
        if self.config.picture_every is None or step == self.config.steps:
            self._draw(training, step)

    def state(self) -> dict:
        return {"baseline": self.baseline, **({"nodes": self.nodes} if self.config.shuffle == "blocks" else {})}

    def load_state(self, state: dict) -> None:
        self.baseline = state["baseline"]
        if self.config.shuffle == "blocks" and state["nodes"] != self.nodes:
            raise ConfigError(
                f"nodes: the run in {self.config.out} shuffles blocks of {state['nodes']} nodes, and not of "
                f"{self.nodes}, whose order is another; go on with --nodes {state['nodes']}, on as many processes each"
            )

    def json_files(self, model: nn.Module) -> dict[str, dict]:
        return describe_model(model)

    def _mean_patch_loss(self, batch: dict) -> Tensor:
        """Loss of the best constant per patch: what a model has to beat to have learned any structure."""
        plan, norm_pix_loss = batch["plan"], self.config.norm_pix_loss
        options = {"scale": batch["scale"], "shift": batch["shift"], "view": batch["view"]}
        target = gather_patches(batch["pixels"], plan, which="predict", **options)  # [N_predict, p*p]
        flat = torch.zeros_like(target) if norm_pix_loss else target.mean(1, keepdim=True).expand_as(target)
        loss, _ = reconstruction_loss(batch["pixels"], flat.contiguous(), plan, norm_pix_loss=norm_pix_loss, **options)
        return loss

    def _draw(self, training: Training, step: int) -> None:
        """Some radiographs, held out if any are, unaugmented and each under a mask that never changes; every masked
        patch is predicted. A picture that cannot be made is left out, with a warning.

        The main process alone draws, unless weights are shared out: then no process has a model without the others,
        and all of them leave out what one cannot read.
        """
        if not (training.is_main or training.sharded):
            return
        path = training.out / "pictures" / f"step_{step:08d}.png"
        shown, whose = (self.held_out, "held out") if self.held_out is not None else (self.images, "trained on")
        samples: list[tuple[dict[str, Tensor], MaskPlan]] = []
        with left_out_if_it_fails(path):
            samples = self._pictured(shown, training.accelerator.device)
        if training.sharded and training.sum({"unread": int(not samples)})["unread"]:
            return
        caption = f"step {step}: {self.config.model}, {self.config.decoder} decoder; this radiograph is {whose}"
        rows: list[np.ndarray] = []
        # shared weights are gathered by all processes together: what fails in one of them ends them all
        with contextlib.nullcontext() if training.sharded else left_out_if_it_fails(path):
            rows = [reconstruction_picture(training.model, *sample, caption) for sample in samples]
        if not (rows and training.is_main):
            return
        with left_out_if_it_fails(path):
            path.parent.mkdir(exist_ok=True)
            write_image(path, tile([stack(rows)], how_to_read(step, self.config.norm_pix_loss)))
            self.picture = path
            prune_pictures(path.parent, self.config.keep_pictures)

    def _pictured(
        self, shown: PreparedSet | PreparedSubset, device: torch.device
    ) -> list[tuple[dict[str, Tensor], MaskPlan]]:
        """Batches of one radiograph, evenly from all, and what is hidden of each."""
        plain = RadiographDataset(shown, patch_size=self.dataset.patch_size, bits=8)  # as a picture has
        count = min(PICTURED, len(shown))
        samples = []
        for number in range(count):
            sample = plain[0, number * len(shown) // count]
            sample = {name: value[None].to(device) for name, value in sample.items()}
            samples.append((sample, planned(self.config, sample, predict=1.0, fixed=True)))
        return samples
