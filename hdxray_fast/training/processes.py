"""One process or many: how they find each other, share a model, and agree."""

from __future__ import annotations

import atexit
import contextlib
import os
import signal
from collections.abc import Callable, Iterator, Sequence
from datetime import timedelta
from functools import partial
from typing import TypeVar

import cv2
import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from ..data.reader_pool import worker_count
from ..devices import warn_of_slow_bf16
from ..errors import ConfigError, MissingDependencyError
from ..extras import install
from ..ranks import from_main, launched, naming_lost_processes, part
from .config import TrainingConfig

MOST_WORKERS = 8  # of a data loader, where nobody says how many: a few suffice for samples of a millisecond
GRACE = 600  # seconds that a data loader's worker lives on after SIGTERM, if nobody ends it before
ASKS_TO_SHARD = "ACCELERATE_USE_FSDP"  # of accelerate launch

T = TypeVar("T")


def make_accelerator(precision: str, timeout: int, device: str | None = None):
    """Accelerate's front door: which device, which precision, how many processes (as the launcher set them up).

    Args:
        precision: ``auto``, ``fp32``, ``bf16`` or ``fp16``.
        timeout: seconds after which a process that waits for another gives up.
        device: ``cpu`` or ``cuda``; left out, the best there is.

    Raises:
        MissingDependencyError: Accelerate is not installed.
        ConfigError: the machine cannot compute so, or the processes were not launched as they should be.
        TrainingError: not all processes came.
    """
    try:
        from accelerate import Accelerator
        from accelerate.state import AcceleratorState
        from accelerate.utils import DistributedDataParallelKwargs, InitProcessGroupKwargs
    except ImportError as error:
        raise MissingDependencyError(f"training needs {error.name}; install it with: {install('train')}") from error
    handlers = [
        InitProcessGroupKwargs(timeout=timedelta(seconds=timeout)),
        # buffers are the fixed positions, the same everywhere
        DistributedDataParallelKwargs(gradient_as_bucket_view=True, broadcast_buffers=False),
    ]
    on_gpu = device != "cpu" and torch.cuda.is_available()
    if device == "cuda" and not on_gpu:
        raise ConfigError("device: got 'cuda', and PyTorch finds no GPU here; hdxray-fast doctor says what it finds")
    # Accelerate is told: processes that torchrun starts on a machine without a GPU would not know of each other
    on_cpu = device == "cpu" or not torch.accelerator.is_available()
    if precision == "auto":
        precision = "bf16" if on_gpu and torch.cuda.is_bf16_supported() else "fp32"
    if precision == "bf16" and not on_gpu:
        warn_of_slow_bf16()
    if precision == "fp16" and not on_gpu:
        raise ConfigError("precision: fp16 needs a GPU; accepted here are bf16 and fp32")
    mixed_precision = "no" if precision == "fp32" else precision
    _forget_others(mixed_precision, on_cpu)
    count, before = launched(), dict(os.environ)
    os.environ.pop(ASKS_TO_SHARD, None)  # weights are shared out by :func:`shard`, and not by Accelerate
    try:
        with naming_lost_processes(timeout, lambda: "at the start"):
            accelerator = Accelerator(
                cpu=on_cpu,
                mixed_precision=mixed_precision,
                kwargs_handlers=handlers,
            )
    except ValueError as error:  # what a launcher sets is not there
        # or every later run of this process would fail, too
        AcceleratorState._reset_state(reset_partial_state=True)
        for name in os.environ.keys() - before.keys():  # Accelerate's own
            del os.environ[name]
        raise ConfigError(
            f"{count} processes were launched, and cannot find each other ({error}); launch them with torchrun or "
            "accelerate launch"
        ) from error
    finally:
        if ASKS_TO_SHARD in before:
            os.environ[ASKS_TO_SHARD] = before[ASKS_TO_SHARD]
    if count > 1:
        atexit.register(part)
    if count != accelerator.num_processes:
        raise ConfigError(
            f"{count} processes were launched, but this one knows of {accelerator.num_processes}; launch them with "
            "torchrun or accelerate launch"
        )
    return accelerator


def prepared_by_main(config: TrainingConfig, work: Callable[[], T]) -> T:
    """:func:`.ranks.from_main` for what is done before there is a :class:`.Training`; all processes must call this.

    Raises:
        MissingDependencyError, ConfigError, TrainingError: as for :func:`make_accelerator` and ``from_main``.
    """
    if launched() > 1:
        make_accelerator(config.precision, config.process_timeout, config.device)
    return from_main(work, config.process_timeout)


def _forget_others(precision: str, on_cpu: bool) -> None:
    """Accelerate keeps one precision and one device for the whole of a Python process; a later run may have others."""
    from accelerate.state import AcceleratorState, PartialState

    if PartialState._shared_state and (PartialState().device.type == "cpu") != on_cpu:
        AcceleratorState._reset_state(reset_partial_state=True)
    elif AcceleratorState._shared_state and AcceleratorState().mixed_precision != precision:
        AcceleratorState._reset_state()  # of precision alone: the processes go on knowing of each other


def launcher_shards() -> bool:
    """Whether ``accelerate launch --use_fsdp`` asked for sharding, which :func:`shard` then does."""
    return os.environ.pop(ASKS_TO_SHARD, "false").lower() == "true"


def blocks(model: nn.Module) -> list[nn.Module]:
    """The repeated parts of a model: what its module lists hold, where that is more than a layer."""
    lists = [module for module in model.modules() if isinstance(module, nn.ModuleList)]
    return [block for blocks in lists for block in blocks if any(True for _ in block.children())]


def shard_mesh(device: torch.device, within: str):
    """The processes as FSDP2 sees them: in a row that shares, or for HSDP a row of such rows, each with a copy.

    Args:
        device: of the model.
        within: ``all`` or ``node``, as ``TrainingConfig.shard_within``.

    Raises:
        ConfigError: the launcher does not say which processes are on one node, or these are no equal rows.
    """
    from torch.distributed.device_mesh import init_device_mesh

    world = dist.get_world_size()
    if within == "all":
        return init_device_mesh(device.type, (world,))
    here = int(os.environ.get("LOCAL_WORLD_SIZE", "0"))
    if here < 2 or world % here:
        raise ConfigError(
            f"shard_within: node needs as many processes on each node, and at least 2; there are {here} on this one, "
            f"of {world} (LOCAL_WORLD_SIZE and WORLD_SIZE, which torchrun sets)"
        )
    if here == world:  # one node: nothing to copy
        return init_device_mesh(device.type, (world,))
    # torchrun numbers the processes node by node
    return init_device_mesh(device.type, (world // here, here), mesh_dim_names=("replicate", "shard"))


def shard(model: nn.Module, device: torch.device, bf16: bool, mesh=None) -> nn.Module:
    """FSDP2, in place: each process keeps its share of the weights, gradients and optimizer state.

    Weights are gathered block by block where they are needed. In ``bf16`` they travel and compute so; gradients are
    summed, and weights kept and updated, in fp32.
    """
    from torch.distributed.fsdp import MixedPrecisionPolicy, fully_shard

    mesh = mesh or shard_mesh(device, "all")
    # inputs stay as they are: pixels' scale and shift are float32 for a reason
    policy = MixedPrecisionPolicy(
        param_dtype=torch.bfloat16 if bf16 else None, reduce_dtype=torch.float32, cast_forward_inputs=False
    )
    model.to(device)
    for block in blocks(model):
        fully_shard(block, mesh=mesh, mp_policy=policy)
    # by default the root would stay whole after a forward pass without a backward one, such as validation
    return fully_shard(model, mesh=mesh, mp_policy=policy, reshard_after_forward=True)


def checkpoint_activations(model: nn.Module) -> None:
    """Compute each block again in the backward pass instead of keeping what it needs, in place."""
    for block in blocks(model):
        block.forward = partial(checkpoint, block.forward, use_reentrant=False)


@contextlib.contextmanager
def gradients_stay(model: nn.Module) -> Iterator[None]:
    """Within, backward passes add to gradients without exchanging them between processes."""
    if hasattr(model, "set_requires_gradient_sync"):  # FSDP2
        model.set_requires_gradient_sync(False)
        try:
            yield
        finally:
            model.set_requires_gradient_sync(True)
    else:
        with getattr(model, "no_sync", contextlib.nullcontext)():  # DDP, or a single process
            yield


def loader_workers(asked: int, on_gpu: bool) -> int:
    """Workers of a data loader, of as many as were asked for (-1: by the machine).

    A core stays for each training process, and what is left is shared by those of this machine. On the CPU a step takes
    far longer than reading its batch, and the model wants every core: none.
    """
    if asked >= 0:
        return asked
    here = int(os.environ.get("LOCAL_WORLD_SIZE", "1"))
    return max(1, min(MOST_WORKERS, worker_count(-1) // max(1, here) - 1)) if on_gpu else 0


@contextlib.contextmanager
def one_opencv_thread() -> Iterator[None]:
    """Workers forked within have one thread of OpenCV each, or they would take the cores from each other.

    It is set here and inherited: a forked process that sets it itself waits for threads that it has not got. Of torch's
    own threads its DataLoader takes care.
    """
    before = cv2.getNumThreads()
    cv2.setNumThreads(1)
    try:
        yield
    finally:
        cv2.setNumThreads(before)


def outlive_notice(worker: int) -> None:
    """A data loader's worker puts off its end after SIGTERM: torchrun and Slurm send it to the whole process group, but
    the training process, which ends its workers itself, still has a step to finish and a checkpoint to write."""
    signal.signal(signal.SIGTERM, lambda signum, frame: signal.alarm(GRACE))
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # a terminal's Ctrl-C is for the main process, which ends them


def broadcast_from_main(accelerator, tensor: Tensor | None, shape: Sequence[int], dtype: torch.dtype) -> Tensor:
    """The main process' ``tensor``, on the host of every process; it travels between their devices.

    Args:
        accelerator: of the run; all of its processes must call this, and know shape and dtype.
        tensor: on the host; of the main process alone.
        shape, dtype: of it.
    """
    device = accelerator.device
    if accelerator.is_main_process:
        sent = tensor.to(device).contiguous()
    else:
        sent = torch.empty(shape, dtype=dtype, device=device)
    dist.broadcast(sent, src=0)
    return tensor if accelerator.is_main_process else sent.cpu()


def weights_from_main(accelerator, model: nn.Module) -> None:
    """Give every process the main one's weights, in place; all of them must call this with models of one make."""
    if accelerator.num_processes > 1:
        for tensor in model.state_dict().values():
            dist.broadcast(tensor, src=0)


def sum_over(accelerator, values: dict[str, int | float | Tensor]) -> dict[str, int | float]:
    """Sums over all processes, which must all call this with the same names."""
    if accelerator.num_processes == 1:
        return {k: v.item() if isinstance(v, Tensor) else v for k, v in values.items()}
    row = torch.stack([torch.as_tensor(v, device=accelerator.device).double() for v in values.values()])
    sums = accelerator.reduce(row, "sum").tolist()
    whole = {
        k: not (v.is_floating_point() if isinstance(v, Tensor) else isinstance(v, float)) for k, v in values.items()
    }
    return {k: int(v) if whole[k] else v for k, v in zip(values, sums, strict=True)}
