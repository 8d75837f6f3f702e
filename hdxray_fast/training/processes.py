"""One process or many: how they find each other, share a model, agree, and notice that one of them is gone."""

from __future__ import annotations

import atexit
import contextlib
import os
import signal
from collections.abc import Callable, Iterator, Sequence
from datetime import timedelta
from functools import partial
from typing import Any

import cv2
import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from ..data.reader_pool import worker_count
from ..errors import ConfigError, MissingDependencyError, TrainingError

MOST_WORKERS = 8  # of a data loader, where nobody says how many: a few suffice for samples of a millisecond
GRACE = 600  # seconds that a data loader's worker lives on after SIGTERM, if nobody ends it before
MAIN_FAILED = "the main process of this run failed; its own output says why"
GLOO_TALK = ("gloo", "connection closed", "connection reset", "socket", "broken pipe", "timed out")


def make_accelerator(precision: str, timeout: int):
    """Accelerate's front door: which device, which precision, how many processes (as the launcher set them up).

    Args:
        precision: ``auto``, ``fp32``, ``bf16`` or ``fp16``.
        timeout: seconds after which a process that waits for another gives up.

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
        raise MissingDependencyError(
            f"training needs {error.name}; install it with: pip install 'hdxray-fast[train]'"
        ) from error
    handlers = [
        InitProcessGroupKwargs(timeout=timedelta(seconds=timeout)),
        # buffers are the fixed positions, the same everywhere
        DistributedDataParallelKwargs(gradient_as_bucket_view=True, broadcast_buffers=False),
    ]
    if precision == "auto":
        precision = "bf16" if torch.cuda.is_available() and torch.cuda.is_bf16_supported() else "fp32"
    if precision == "fp16" and not torch.cuda.is_available():
        raise ConfigError("precision: fp16 needs a GPU; accepted here are bf16 and fp32")
    mixed_precision = "no" if precision == "fp32" else precision
    _forget_other_precision(mixed_precision)
    launched, before = int(os.environ.get("WORLD_SIZE", "1")), dict(os.environ)
    try:
        with naming_lost_processes(timeout, lambda: "at the start"):
            accelerator = Accelerator(
                # without this, processes that torchrun starts on a machine without a GPU would not know of each other
                cpu=not torch.accelerator.is_available(),
                mixed_precision=mixed_precision,
                kwargs_handlers=handlers,
            )
    except ValueError as error:  # what a launcher sets is not there
        # or every later run of this process would fail, too
        AcceleratorState._reset_state(reset_partial_state=True)
        for name in os.environ.keys() - before.keys():  # Accelerate's own
            del os.environ[name]
        raise ConfigError(
            f"{launched} processes were launched, and cannot find each other ({error}); launch them with torchrun or "
            "accelerate launch"
        ) from error
    if launched > 1:
        atexit.register(_part)
    if launched != accelerator.num_processes:
        raise ConfigError(
            f"{launched} processes were launched, but this one knows of {accelerator.num_processes}; launch them with "
            "torchrun or accelerate launch"
        )
    return accelerator


def _part() -> None:
    """At the end of a process of several over gloo: threads of its own that still run then would abort it."""
    if dist.is_available() and dist.is_initialized() and dist.get_backend() == "gloo":
        dist.destroy_process_group()


def _forget_other_precision(wanted: str) -> None:
    """Accelerate keeps one precision for the whole of a Python process; a later run may have another."""
    from accelerate.state import AcceleratorState

    if AcceleratorState._shared_state and AcceleratorState().mixed_precision != wanted:
        AcceleratorState._reset_state()  # of precision alone: the processes go on knowing of each other


def launcher_shards() -> bool:
    """Whether ``accelerate launch --use_fsdp`` asked for sharding, which :func:`shard` then does."""
    return os.environ.pop("ACCELERATE_USE_FSDP", "false").lower() == "true"


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


@contextlib.contextmanager
def naming_lost_processes(timeout: int, when: Callable[[], str]) -> Iterator[None]:
    """An error that means that another process is gone, or late, says so.

    Raises:
        TrainingError: in place of such an error.
    """
    try:
        yield
    except RuntimeError as error:
        text = str(error)
        lost = isinstance(error, getattr(dist, "DistError", ())) or any(word in text.lower() for word in GLOO_TALK)
        alone = os.environ.get("WORLD_SIZE", "1") == "1"
        if alone or not lost or isinstance(error, TrainingError):
            raise
        first = text.strip().splitlines()[0][:300]
        raise TrainingError(
            f"{when()}: another process of this run is gone or has not answered for {timeout} s ({first}). Its own "
            "output says why; start all of them again with --resume auto"
        ) from error


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


def on_main(accelerator, work: Callable[[], None]) -> None:
    """The main process does ``work``, the others wait for it; if it fails, all of them fail.

    Raises:
        TrainingError: on the other processes, where ``work`` failed; the main process raises its own error.
    """
    failure: Exception | None = None
    if accelerator.is_main_process:
        try:
            work()
        except Exception as error:
            failure = error
    failed = torch.tensor(float(failure is not None), device=accelerator.device)
    if accelerator.reduce(failed, "sum").item():
        raise failure or TrainingError(MAIN_FAILED)


def patient_barrier(accelerator) -> Callable[[], None]:
    """A barrier with a day's patience, for the end of work that takes some processes longer than others.

    Must be called by all of them before the work; so must what it returns, when they have done theirs.
    """
    if accelerator.num_processes == 1:
        return lambda: None
    group = _patient_group()
    return lambda: dist.barrier(group)


def from_main(accelerator, work: Callable[[], Any], timeout: int) -> Any:
    """What ``work`` gives, done by the main process alone; the others wait for it, a day if need be, and get a copy.

    Args:
        accelerator: of the run; all of its processes must call this.
        work: its result must be picklable.
        timeout: seconds of patience with a process that is gone, for the error.

    Raises:
        TrainingError: on the other processes, where ``work`` failed or the main process is gone; the main process
            raises its own error.
    """
    if accelerator.num_processes == 1:
        return work()
    with naming_lost_processes(timeout, lambda: "at the start"):
        group = _patient_group()
        result, failure = None, None
        if accelerator.is_main_process:
            try:
                result = work()
            except Exception as error:
                failure = error
        told = [(result, failure is not None)]
        dist.broadcast_object_list(told, src=0, group=group)
    if failure is not None:
        raise failure
    result, failed = told[0]
    if failed:
        raise TrainingError(MAIN_FAILED)
    return result


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


def _patient_group():
    return dist.new_group(backend="gloo", timeout=timedelta(days=1))
