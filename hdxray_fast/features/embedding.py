"""Images in, features out: files, folders, arrays or tensors to one vector each, in memory or as a resumable table."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor, nn

from ..data.inputs import Input, list_inputs, prepared_among, require_prepared_for
from ..data.quarantine import Quarantined
from ..data.radiographs import Radiograph, read_ahead
from ..data.reader_pool import MAX_MEMORY, TIMEOUT, check_caps
from ..devices import find_device
from ..errors import ArgumentError, ArgumentTypeError, ImageReadError
from ..images.perceptual_hash import no_thumbnails
from ..images.picture import readable
from ..models.encoder import Encoder
from ..models.inference import Inference, modes_kept, one_late
from ..models.inputs import EncoderInputs, as_batch, encoder_inputs, patches_to_keep
from ..models.layers import check_count
from ..models.selection import sent
from ..ops.plan import MaskPlan
from ..progress import progress_bar
from ..weights.create import create_encoder
from ..weights.model_state import unwrapped
from ..weights.shipped import PRETRAINED

if TYPE_CHECKING:
    from PIL.Image import Image


@dataclass
class Embeddings:
    """One row per readable image.

    Attributes:
        features: ``[N, D] float32``.
        sources: ``N`` paths as given (``"<array 0>"`` for arrays).
        confidence: ``[N] float32``, of the chest contour, 0 to 1; NaN for tensors.
        flagged: ``[N] bool``, the contour is not to be relied on.
        provenance_ids: ``N`` hashes of the stored pixels; empty for tensors.
        kept: ``[N] int32``, patches the encoder looked at.
        quarantined: images that could not be read.
        thumbnails: ``[N, 48, 48] uint8``, small pictures of equalised greys, to find near duplicates; of tensors
            none.
        views: ``N`` views, ``"frontal"``, ``"lateral"``, ``"other"``, or ``""`` where neither header nor pixels tell;
            pixels do with the contour method ``network`` alone.
    """

    features: np.ndarray
    sources: list[str]
    confidence: np.ndarray
    flagged: np.ndarray
    provenance_ids: list[str]
    kept: np.ndarray
    quarantined: list[Quarantined] = field(default_factory=list)
    thumbnails: np.ndarray = field(default_factory=no_thumbnails)
    views: list[str] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.views = self.views or [""] * len(self.sources)

    def __len__(self) -> int:
        return len(self.sources)

    def __repr__(self) -> str:
        count, width = self.features.shape
        return f"Embeddings({count} rows of {width} numbers, {len(self.quarantined)} images that cannot be read)"

    @classmethod
    def join(cls, parts: Sequence[Embeddings], width: int) -> Embeddings:
        """All rows of ``parts``, in order; ``width`` is that of a feature, for the case that there is none."""
        columns = ("features", "confidence", "flagged", "kept")
        empty = (np.zeros((0, width), np.float32), np.zeros(0, np.float32), np.zeros(0, bool), np.zeros(0, np.int32))
        joined = {
            name: np.concatenate([none, *(getattr(part, name) for part in parts)])
            for name, none in zip(columns, empty, strict=True)
        }
        return cls(
            **joined,
            sources=[source for part in parts for source in part.sources],
            provenance_ids=[key for part in parts for key in part.provenance_ids],
            quarantined=[bad for part in parts for bad in part.quarantined],
            thumbnails=np.concatenate([no_thumbnails(), *(part.thumbnails for part in parts)]),
            views=[view for part in parts for view in part.views],
        )


def embed(
    images: str | os.PathLike | Tensor | np.ndarray | Image | Iterable[str | os.PathLike | Tensor | np.ndarray | Image],
    encoder: Encoder | str | os.PathLike = PRETRAINED,
    *,
    pool: str | None = None,
    keep: str | None = None,
    batch_size: int = 4,
    workers: int = 0,
    device: str | torch.device | None = None,
    progress: bool = False,
    precision: str = "auto",
    compile: str = "auto",
    timeout: float = TIMEOUT,
    max_memory: int = MAX_MEMORY,
) -> Embeddings:
    """Features of radiographs.

    Args:
        images: a file, a folder, a CSV manifest or a prepared data set, or a list of them; or PIL images, or arrays or
            tensors ``[H, W]`` of any integer or float dtype (bright = dense), ``[H, W, 3]``, ``[H, W, 4]`` or ``[3, H,
            W]`` in colour, one or a list of them; or an array ``[N, H, W]`` of N images (``[3, H, W]``, which may be
            either, stands in a list: ``[array]`` is one image, ``list(array)`` are three); or a tensor or array ``[B,
            C, H, W]`` of the encoder's size, taken as it is (no canvas is made, so ``keep="contour"`` looks for the
            contours in it).
        encoder: an encoder, which is put on ``device`` and is in evaluation mode meanwhile, or weights for
            :func:`hdxray_fast.create_encoder`; left out, the pre-trained one that comes with the package.
        pool: ``"cls"``, ``"mean"`` or ``"attention"``; left out, the encoder's, or ``"mean"``.
        keep: ``"all"``, ``"valid"`` or ``"contour"``; left out, the encoder's.
        batch_size: images at once.
        workers: processes that read files ahead; 0 reads in this process, without caps.
        device: where the encoder runs; left out, a GPU if there is one.
        progress: show a progress bar.
        precision: ``"fp32"``, ``"bf16"``, or ``"auto"``: bf16 on GPUs that have it, fp32 elsewhere. Features are
            float32.
        compile: ``"on"``, ``"off"``, or ``"auto"``: the encoder goes through ``torch.compile`` on a GPU, for
            150,000 images and more. Where that fails a warning says so, and it goes on without.
        timeout: seconds that reading a file may take.
        max_memory: MiB that reading a file may take.

    Returns:
        A row per readable image, in order; the others are in ``quarantined``.

    Raises:
        ArgumentError, ArgumentTypeError: an argument is not as described.
        ConfigError: a path does not exist or names no image, or a cap is not above 0.
        ImageReadError: not one of the images can be read; it names the first.
    """
    check_count("batch_size", batch_size)
    check_caps(timeout, max_memory)
    encoder = unwrapped(encoder)
    with modes_kept(encoder) if isinstance(encoder, nn.Module) else contextlib.nullcontext():
        job = Embedder(encoder, pool=pool, keep=keep, device=device, precision=precision, compile=compile)
        reading = {"workers": workers, "timeout": timeout, "max_memory": max_memory}
        return _embed(images, job, batch_size, progress, reading)


def _embed(images, job: Embedder, batch_size: int, progress: bool, reading: dict) -> Embeddings:
    if isinstance(images, Tensor) and images.ndim in (2, 3):
        images = [images]
    if isinstance(images, Tensor) or (isinstance(images, np.ndarray) and images.ndim == 4):
        return job.tensor(torch.as_tensor(images), batch_size)
    jobs = list(_sources(images))
    require_prepared_for(prepared_among(jobs).values(), job.encoder.img_size[0], job.contour)
    found = Embeddings.join(
        list(job.batches(jobs, batch_size=batch_size, progress=progress, **reading)), job.encoder.num_features
    )
    if jobs and not len(found):
        first = found.quarantined[0]
        others = f" (none of {len(jobs) - 1} others can be read either)" if len(jobs) > 1 else ""
        raise ImageReadError(first.path, first.reason + others)
    return found


class PooledFeatures(nn.Module):
    """An encoder's feature of each image, pooled in another way than its own."""

    def __init__(self, encoder: Encoder, pool: str) -> None:
        super().__init__()
        self.encoder, self.pool = encoder, pool

    def forward(self, images, plan=None, scale=None, shift=None) -> Tensor:
        """``[B, D]``; arguments as for :meth:`.Encoder.encode`."""
        encoder = self.encoder
        patches = encoder.grid_size[0] * encoder.grid_size[1] if plan is None else plan.longest[0]
        tokens = encoder.encode(images, plan, scale, shift)
        return encoder.pool_tokens(tokens, self.pool, patches + encoder.num_prefix_tokens)


class Embedder:
    """An encoder made ready to embed; see :func:`embed` for the arguments.

    Attributes:
        precision: ``"fp32"`` or ``"bf16"``, what it computes in.
        label: what is told how far it is.
        contour: how the contours of files and arrays are found: the encoder's way.
    """

    label = "embed"

    def __init__(
        self,
        encoder: Encoder | str | os.PathLike,
        *,
        pool: str | None = None,
        keep: str | None = None,
        device: str | torch.device | None = None,
        precision: str = "auto",
        compile: str = "auto",
    ) -> None:
        if isinstance(encoder, str | os.PathLike):
            encoder = create_encoder(weights=encoder)
        if not isinstance(encoder, Encoder):
            raise ArgumentTypeError(
                f"encoder: got {type(encoder).__name__}, accepted are an Encoder and weights for one"
            )
        self.pool = pool or encoder.pool or "mean"
        self.keep = keep or encoder.keep
        if self.keep not in ("all", "valid", "contour"):
            raise ArgumentError(f"keep: got {keep!r}, accepted are 'all', 'valid' and 'contour'")
        if self.pool not in ("cls", "mean", "attention"):
            raise ArgumentError(f"pool: got {pool!r}, accepted are 'cls', 'mean' and 'attention'")
        self.device = find_device(device)
        self.encoder, self.contour = encoder, encoder.contour
        self._inference = Inference(self._model(), self.device, precision=precision, compile=compile)
        self.precision = self._inference.precision

    @property
    def width(self) -> int:
        """Numbers that come of an image."""
        return self.encoder.num_features

    def _model(self) -> nn.Module:
        """What gives ``[B, D]`` for the arguments of :meth:`.Encoder.encode`."""
        return PooledFeatures(self.encoder, self.pool)

    def batches(
        self,
        jobs: Sequence[Input],
        *,
        batch_size: int = 4,
        workers: int = 0,
        progress: bool = False,
        on_image: Callable[[Radiograph | Quarantined], None] | None = None,
        timeout: float = TIMEOUT,
        max_memory: int = MAX_MEMORY,
        done: int = 0,
    ) -> Iterator[Embeddings]:
        """Embed images a batch at a time, in order; ``done`` others were embedded before, for the bar."""
        height, width = self.encoder.img_size
        if height != width:
            raise ArgumentError(
                f"encoder: takes {height} x {width} pixels, files and arrays are laid on square canvases; make one "
                "with a square img_size, or give a tensor [B, C, H, W]"
            )
        check_count("batch_size", batch_size)
        if isinstance(workers, bool) or not isinstance(workers, int) or workers < 0:
            raise ArgumentError(f"workers: got {workers!r}, accepted is an int of at least 0")
        caps = {"timeout": timeout, "max_memory": max_memory}
        read = read_ahead(jobs, height, self.encoder.patch_size, workers, self.contour, **caps)
        self._expect(len(jobs), batch_size)
        with progress_bar(done + len(jobs), self.label, done=done, show=progress and bool(jobs)) as bar:
            for rows in self._rows(_batched(read, batch_size, on_image)):
                bar.update(len(rows) + len(rows.quarantined))
                yield rows

    def _rows(self, batches: Iterator[tuple[list[Radiograph], list[Quarantined]]]) -> Iterator[Embeddings]:
        for (batch, bad), found in one_late(batches, self._radiographs, self.device):
            if not batch:
                yield replace(Embeddings.join([], self.width), quarantined=bad)
                continue
            features, kept = found
            yield Embeddings(
                features=features.numpy(),
                sources=[item.source for item in batch],
                confidence=np.array([item.confidence for item in batch], np.float32),
                flagged=np.array([item.flagged for item in batch]),
                provenance_ids=[item.provenance_id for item in batch],
                kept=kept.numpy(),
                quarantined=bad,
                thumbnails=np.stack([item.thumbnail for item in batch]),
                views=[item.view for item in batch],
            )

    def tensor(self, images: Tensor, batch_size: int = 4) -> Embeddings:
        """Embed ``[B, C, H, W]`` as it is."""
        parts: list[Embeddings] = []
        self._expect(len(images), batch_size)
        for chunk, (features, kept) in one_late(images.split(batch_size), self._tensor, self.device):
            count, first = len(chunk), sum(map(len, parts))
            names = [f"<array {first + i}>" for i in range(count)]
            nan, no = np.full(count, np.nan, np.float32), np.zeros(count, bool)
            parts.append(Embeddings(features.numpy(), names, nan, no, [""] * count, kept.numpy()))
        return Embeddings.join(parts, self.encoder.num_features)

    def _expect(self, images: int, batch_size: int) -> None:
        self._batch_size = batch_size
        self._inference.expect(images)

    def _radiographs(self, batch_and_bad: tuple[list[Radiograph], list[Quarantined]]) -> tuple[Tensor, ...]:
        batch, _ = batch_and_bad
        if not batch:
            return ()
        return self._features(encoder_inputs(self.encoder, as_batch(batch, self.device), self.keep))

    def _tensor(self, chunk: Tensor) -> tuple[Tensor, Tensor]:
        plan = patches_to_keep(self.encoder, chunk, None, None, self.keep)  # where the images are: most often the host
        plan = None if plan is None else sent(plan, self.device)
        return self._features(EncoderInputs(sent(chunk, self.device), plan, None, None))

    def _features(self, inputs: EncoderInputs) -> tuple[Tensor, Tensor]:
        """On the device, not waited for: features ``[B, D] float32``, patches that were looked at ``[B] int32``."""
        features = self._inference(*inputs, whole=len(inputs.images) == self._batch_size)
        return features, _kept(inputs.plan, self.encoder, features)


def _kept(plan: MaskPlan | None, encoder: Encoder, features: Tensor) -> Tensor:
    if plan is not None:
        return plan.keep_counts
    patches = encoder.grid_size[0] * encoder.grid_size[1]
    return torch.full((len(features),), patches, dtype=torch.int32, device=features.device)


def _batched(
    items: Iterable[Radiograph | Quarantined], size: int, on_image: Callable | None
) -> Iterator[tuple[list[Radiograph], list[Quarantined]]]:
    """The radiographs among ``size`` images at a time, and what of these could not be read: which images share a batch
    does not hang on the others before them."""
    batch: list[Radiograph] = []
    bad: list[Quarantined] = []
    for item in items:
        if on_image is not None:
            on_image(item)
        (bad if isinstance(item, Quarantined) else batch).append(item)
        if len(batch) + len(bad) == size:
            yield batch, bad
            batch, bad = [], []
    if batch or bad:
        yield batch, bad


def _sources(images: object) -> Iterator[Input]:
    """Everything that ``images`` names."""
    if isinstance(images, str | os.PathLike) or hasattr(images, "getbands"):  # one path, or one PIL image
        images = [images]
    if isinstance(images, np.ndarray):
        if images.ndim not in (2, 3):
            raise ArgumentError(
                f"images: got shape {list(images.shape)}, accepted are [H, W], [H, W, 3], [N, H, W], [B, C, H, W]"
            )
        colour = images.ndim == 3 and images.shape[2] in (3, 4)
        if images.ndim == 3 and images.shape[0] == 3 and not colour:
            raise ArgumentError(
                f"images: got shape {list(images.shape)}, which may be one image in colour or three images; give "
                "[array] for the one, list(array) for the three"
            )
        images = [images] if images.ndim == 2 or colour else list(images)
    if not isinstance(images, Iterable):
        raise ArgumentTypeError(
            f"images: got {type(images).__name__}, accepted are paths, arrays, tensors and PIL images"
        )
    arrays = 0
    for image in images:
        if isinstance(image, str | os.PathLike):
            yield from list_inputs([image], argument="images")
        else:
            yield Input(readable(image), f"<array {arrays}>")
            arrays += 1
