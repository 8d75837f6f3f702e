"""Pre-training: files to a contour-masked auto-encoder, with checkpoints that survive ``kill -9``."""

from __future__ import annotations

import contextlib
import hashlib
import json
import math
import os
import signal
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import torch
from torch import nn

from .config import PretrainConfig
from .data import Augmentation, RadiographDataset, StepSampler
from .errors import ConfigError, MissingDependencyError, TrainingError
from .files import written_whole
from .mae import create_mae
from .masking import MaskPlan, plan_masks
from .ops.gather import gather_patches
from .ops.loss import reconstruction_loss
from .optim import averaged_model, parameter_groups, warmup_cosine
from .plots import write_image
from .prepare import PreparedImage, Quarantined, list_images, prepare_images, write_quarantine
from .reconstruction import reconstruction_picture
from .run_state import checkpoint_folder, prune_checkpoints, resume_latest, save_checkpoint, truncate_log

PICTURE_EPOCH = 2**31 - 1  # the picture's mask: always the same, and none that training draws


@dataclass
class PretrainResult:
    """What a run did.

    Attributes:
        out: its folder.
        losses: loss of each step this process ran.
        baseline: loss of predicting each patch by its own mean, on the first batch.
        seconds_per_step: median over the steps this process ran.
        images: radiographs trained on.
        picture: the last picture written.
        finished: all steps were run (False after SIGTERM).
    """

    out: Path
    losses: list[float] = field(default_factory=list)
    baseline: float = math.nan
    seconds_per_step: float = math.nan
    images: list[PreparedImage] = field(default_factory=list)
    picture: Path | None = None
    finished: bool = False


def run_pretraining(
    config: PretrainConfig, *, progress: bool = True, on_step: Callable[[dict], None] | None = None
) -> PretrainResult:
    """Pre-train as ``config`` says.

    Writes under ``config.out``: ``config.json``, ``log.jsonl`` (a line per step), ``quarantine.csv``, ``pictures/``,
    ``checkpoints/``, ``tensorboard/``, and at the end ``model/`` (for :func:`hdxray_fast.load_model`).

    Args:
        config: all settings.
        progress: show progress bars.
        on_step: called with each log line's dict.

    Raises:
        ConfigError: settings that contradict each other, the data, or the run found in ``config.out``.
        TrainingError: no readable image, or a loss that is not finite (state saved under ``failed/``).
        CheckpointError: there are checkpoints, and none can be read.
    """
    return _Run(config, progress, on_step or (lambda line: None)).run()


class _Run:
    """State of one run, so that each stage below reads as one paragraph."""

    def __init__(self, config: PretrainConfig, progress: bool, on_step: Callable[[dict], None]) -> None:
        try:
            from accelerate import Accelerator
            from tqdm.auto import tqdm
        except ImportError as error:
            raise MissingDependencyError(
                f"pre-training needs {error.name}; install it with: pip install 'hdxray-fast[train]'"
            ) from error
        if config.threads:
            torch.set_num_threads(config.threads)
        self.config, self.on_step = config, on_step
        self.out = Path(config.out)
        self.log = self.out / "log.jsonl"
        self.checkpoints = self.out / "checkpoints"
        self.cache = Path(config.cache) if config.cache else self.out / "cache"
        self.accelerator = Accelerator(
            mixed_precision=_precision(config.precision),
            log_with="tensorboard" if config.tensorboard else None,
            project_dir=str(self.out),
        )
        self.bar = lambda **options: tqdm(
            disable=not (progress and self.accelerator.is_main_process), dynamic_ncols=True, **options
        )
        self.stop_requested = False

    def run(self) -> PretrainResult:
        result = PretrainResult(self.out)
        # settings that contradict each other show here, before hours of preparation and before anything is written
        model, optimizer, schedule = self._build()
        paths = list_images(self.config.data, self.config.images, exclude=(self.out, self.cache))
        self._claim_folder()
        result.images = self._prepare(paths)
        dataset = self._dataset(result.images)
        ema = averaged_model(model, self.config.ema)
        start, result.baseline = self._restore(model, optimizer, ema, result.images)
        predict = self.config.predict or model.default_predict
        wrapped, optimizer = self.accelerator.prepare(model, optimizer)
        if self.config.tensorboard:
            options = {"tensorboard": {"purge_step": start + 1}}
            self.accelerator.init_trackers("tensorboard", init_kwargs=options)
        bar = self.bar(total=self.config.steps, initial=start, unit="step", desc="pretrain")
        with self._graceful_stop(), bar:
            self._train(wrapped, model, optimizer, schedule, ema, dataset, predict, start, bar, result)
        self.accelerator.end_training()
        if result.finished and self.accelerator.is_main_process:
            from .checkpoint import save_model

            if ema is not None:
                model.load_state_dict(ema.module.state_dict())
            save_model(model, self.out / "model")
        return result

    def _claim_folder(self) -> None:
        """Refuse to mix two runs in one folder; write this run's settings down."""
        saved = self.out / "config.json"
        started = self.log.exists() or any(self.checkpoints.glob("step_*"))
        if saved.exists() and started:
            if self.config.resume == "never":
                raise ConfigError(
                    f"out: {self.out} already holds a run; continue it with resume=auto (--resume auto), "
                    "or choose another folder"
                )
            try:
                differences = self.config.differences(json.loads(saved.read_text()))
            except ValueError as error:
                raise ConfigError(f"out: {saved} is damaged ({error}); choose another folder") from error
            if differences:
                raise ConfigError(
                    f"out: {self.out} holds a run with other settings ({'; '.join(differences)}); "
                    "resume with the same ones, or choose another folder"
                )
        if self.accelerator.is_main_process:
            try:
                self.checkpoints.mkdir(parents=True, exist_ok=True)
                (self.out / "pictures").mkdir(exist_ok=True)
                with written_whole(saved) as temporary:
                    temporary.write_text(json.dumps(self.config.as_dict(), indent=1))
            except OSError as error:
                raise ConfigError(f"out: cannot write to {self.out} ({error.strerror})") from error
        self.accelerator.wait_for_everyone()

    def _prepare(self, paths: list[Path]) -> list[PreparedImage]:
        """Canvas and contour of every file; unreadable ones are listed and set aside."""
        config = self.config
        quarantine = self.out / "quarantine.csv"
        bad: list[Quarantined] = []

        def done(item: PreparedImage | Quarantined) -> None:
            if isinstance(item, Quarantined):
                bad.append(item)
            bar.update()

        with self.accelerator.main_process_first():  # the others then find everything cached
            workers = (os.cpu_count() or 1) if config.workers < 0 else config.workers
            if not self.accelerator.is_main_process:
                workers = 0
            with self.bar(total=len(paths), unit="image", desc="canvas + contour") as bar:
                try:
                    prepared, bad = prepare_images(
                        paths,
                        self.cache,
                        size=config.img_size,
                        contour=config.contour,
                        workers=workers,
                        on_done=done,
                    )
                finally:
                    if self.accelerator.is_main_process:
                        write_quarantine(quarantine, bad)
        for item in bad:
            self.accelerator.print(f"unreadable: {item.path}: {item.reason}")
        flagged = sum(image.flagged for image in prepared)
        self.accelerator.print(
            f"{len(prepared)} radiographs ready, {flagged} with a contour of low confidence, "
            f"{len(bad)} set aside in {quarantine}"
        )
        return prepared

    def _dataset(self, images: list[PreparedImage]) -> RadiographDataset:
        config = self.config
        return RadiographDataset(
            images,
            size=config.img_size,
            patch_size=64 if "stem64" in config.model else 16,
            contour=config.contour,
            augmentation=Augmentation() if config.augment else None,
            seed=config.seed,
        )

    def _build(self):
        config = self.config
        torch.manual_seed(config.seed)
        width, depth = config.decoder_size
        model = create_mae(
            config.model,
            decoder=config.decoder,
            img_size=config.img_size,
            norm_pix_loss=config.norm_pix_loss,
            decoder_embed_dim=width,
            decoder_depth=depth,
        )
        images = config.batch_size * config.grad_accum * self.accelerator.num_processes
        peak = config.lr or min(5e-4 * math.sqrt(images / 8), 2.4e-3)
        optimizer = torch.optim.AdamW(
            parameter_groups(model, config.weight_decay), lr=peak, betas=(0.9, config.beta2), fused=True
        )
        return model, optimizer, lambda step: peak * warmup_cosine(step, config.steps, config.warmup)

    def _restore(self, model: nn.Module, optimizer, ema: nn.Module | None, images: list[PreparedImage]):
        """Step to go on from, and the baseline; the log loses the lines that the checkpoint does not cover."""
        self.fingerprint = hashlib.sha256("\n".join(image.path for image in images).encode()).hexdigest()[:16]
        state = resume_latest(self.checkpoints, model, optimizer, ema) if self.config.resume == "auto" else None
        start = state["step"] if state else 0
        if state and state["images"] != self.fingerprint:
            raise ConfigError(
                f"data: {self.config.data} names other readable images than when the run in {self.out} was started; "
                "resume needs the same ones"
            )
        if self.accelerator.is_main_process:
            truncate_log(self.log, start)
        if state:
            self.accelerator.print(f"resumed at step {start} of {self.config.steps}")
        return start, state["baseline"] if state else math.nan

    def _loader(self, dataset: RadiographDataset, start: int) -> torch.utils.data.DataLoader:
        config, accelerator = self.config, self.accelerator
        sampler = StepSampler(
            len(dataset),
            config.batch_size,
            first=start * config.grad_accum,
            last=config.steps * config.grad_accum,
            seed=config.seed,
            rank=accelerator.process_index,
            world_size=accelerator.num_processes,
        )
        on_gpu = accelerator.device.type == "cuda"
        # on the CPU a step takes far longer than reading its batch, and the model wants every core
        workers = config.workers if config.workers >= 0 else (min(8, os.cpu_count() or 1) if on_gpu else 0)
        return torch.utils.data.DataLoader(dataset, batch_sampler=sampler, num_workers=workers, pin_memory=on_gpu)

    def _train(self, wrapped, model, optimizer, schedule, ema, dataset, predict, start, bar, result) -> None:
        config, accelerator = self.config, self.accelerator
        batches = iter(self._loader(dataset, start))
        durations = []
        step = start
        wrapped.train()
        while step < config.steps and not self.stop_requested:
            began = time.perf_counter()
            rate = schedule(step)
            for group in optimizer.param_groups:
                group["lr"] = rate
            loss, indices, kept = 0.0, [], 0
            for micro in range(config.grad_accum):
                batch = next(batches)
                indices += batch["index"].tolist()
                batch = {name: value.to(accelerator.device, non_blocking=True) for name, value in batch.items()}
                plan = self._plan(batch, predict)
                kept += plan.keep_ids.numel()
                if math.isnan(result.baseline):
                    result.baseline = self._mean_patch_loss(batch, plan)
                last = micro == config.grad_accum - 1
                with contextlib.nullcontext() if last else accelerator.no_sync(wrapped):
                    output = wrapped(batch["pixels"], plan, batch["scale"], batch["shift"])
                    accelerator.backward(output.loss / config.grad_accum)
                loss += accelerator.reduce(output.loss.detach(), "mean").item() / config.grad_accum
            limit = config.clip_grad or math.inf
            norm = float(accelerator.clip_grad_norm_(wrapped.parameters(), limit))
            if not (math.isfinite(loss) and math.isfinite(norm)):
                files = [result.images[index].path for index in indices]
                self._fail(step, loss, norm, files, model, optimizer, ema)
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)
            if ema is not None:
                ema.update_parameters(model)
            step += 1
            durations.append(time.perf_counter() - began)
            images = config.batch_size * config.grad_accum * accelerator.num_processes
            self._record(step, loss, rate, norm, kept, images / durations[-1], bar, result)
            done = step == config.steps
            if accelerator.is_main_process:
                if done or (config.picture_every and step % config.picture_every == 0):
                    result.picture = self._picture(model, dataset, step)
                if done or self.stop_requested or step % config.save_every == 0:
                    state = {"step": step, "baseline": result.baseline, "images": self.fingerprint}
                    save_checkpoint(checkpoint_folder(self.checkpoints, step), model, optimizer, state, ema)
                    prune_checkpoints(self.checkpoints, config.keep_checkpoints)
        result.finished = step == config.steps
        if durations:
            result.seconds_per_step = sorted(durations)[len(durations) // 2]

    def _plan(self, batch: dict, predict: float, picture: bool = False) -> MaskPlan:
        config = self.config
        return plan_masks(
            batch["inside"],
            batch["valid"],
            ratio_inside=config.ratio_inside,
            ratio_outside=config.ratio_outside,
            strategy=config.strategy,
            predict=predict,
            seed=config.seed,
            epoch=PICTURE_EPOCH if picture else 0,
            index=batch["draw"],
            patch_size=batch["pixels"].shape[-1] // batch["inside"].shape[-1],
        )

    def _mean_patch_loss(self, batch: dict, plan: MaskPlan) -> float:
        """Loss of the best constant per patch: what a model has to beat to have learned any structure."""
        options = {"scale": batch["scale"], "shift": batch["shift"]}
        target = gather_patches(batch["pixels"], plan, which="predict", **options)  # [N_predict, p*p]
        flat = torch.zeros_like(target) if self.config.norm_pix_loss else target.mean(1, keepdim=True).expand_as(target)
        loss, _ = reconstruction_loss(
            batch["pixels"], flat.contiguous(), plan, norm_pix_loss=self.config.norm_pix_loss, **options
        )
        return float(loss)

    def _record(self, step, loss, rate, norm, kept, images_per_s, bar, result) -> None:
        result.losses.append(loss)
        line = {
            "step": step,
            "loss": loss,
            "baseline": result.baseline,
            "lr": rate,
            "grad_norm": norm,
            "tokens_kept": kept,
            "images_per_s": round(images_per_s, 4),
        }
        if self.accelerator.is_main_process:
            with self.log.open("a", encoding="utf-8") as stream:
                stream.write(json.dumps(line) + "\n")
            if self.config.tensorboard:
                self.accelerator.log({key: value for key, value in line.items() if key != "step"}, step=step)
        bar.set_postfix(loss=f"{loss:.4f}", images_per_s=f"{images_per_s:.2f}", refresh=False)
        bar.update()
        self.on_step(line)

    def _picture(self, model, dataset: RadiographDataset, step: int) -> Path:
        """The first radiograph, unaugmented, under one mask that never changes; every masked patch predicted."""
        plain = RadiographDataset(
            dataset.images, size=dataset.size, patch_size=dataset.patch_size, contour=dataset.contour
        )
        sample = {name: value[None].to(self.accelerator.device) for name, value in plain[0, 0].items()}
        plan = self._plan(sample, predict=1.0, picture=True)
        caption = f"step {step}: {self.config.model}, {self.config.decoder} decoder"
        panel = reconstruction_picture(model, sample, plan, caption)
        path = self.out / "pictures" / f"step_{step:08d}.png"
        write_image(path, panel)
        return path

    def _fail(self, step, loss, norm, files, model, optimizer, ema) -> None:
        """Keep the state that led to a loss that is not finite, name the files, and stop."""
        folder = checkpoint_folder(self.out / "failed", step + 1)
        if self.accelerator.is_main_process:
            state = {"step": step, "images": self.fingerprint, "files": files}
            save_checkpoint(folder, model, optimizer, state, ema)
        raise TrainingError(
            f"step {step + 1}: loss {loss}, gradient norm {norm}: not finite. The batch: {', '.join(files)}. "
            f"The state before this step is in {folder}; look at the files, or lower lr"
        )

    @contextlib.contextmanager
    def _graceful_stop(self):
        """SIGTERM (a scheduler's notice) ends the run after the step at hand, with a checkpoint."""

        def request(signum, frame):
            self.stop_requested = True

        try:
            previous = signal.signal(signal.SIGTERM, request)
        except ValueError:  # not the main thread: the caller owns the signals
            yield
            return
        try:
            yield
        finally:
            signal.signal(signal.SIGTERM, previous)


def _precision(wanted: str) -> str:
    if wanted == "auto":
        return "bf16" if torch.cuda.is_available() and torch.cuda.is_bf16_supported() else "no"
    return "bf16" if wanted == "bf16" else "no"
