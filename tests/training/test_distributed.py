"""Several processes over gloo on the CPU: they learn what one learns, share checkpoints with it, and end together."""

from __future__ import annotations

import csv
import importlib.util
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path
from unittest import mock

import cv2
import pytest
import torch
from tiny_encoders import tiny_of
from toy_radiographs import draw_radiograph

import hdxray_fast as hx
from hdxray_fast.pretrain.config import PretrainConfig
from hdxray_fast.pretrain.task import run_pretraining
from hdxray_fast.ranks import MAIN_FAILED

for package in ("accelerate", "safetensors", "tqdm", "pyarrow"):
    pytest.importorskip(package)

pytestmark = [
    pytest.mark.skipif(not torch.distributed.is_available(), reason="this PyTorch has no torch.distributed"),
    pytest.mark.usefixtures("two_blocks"),
]

WORKER = Path(__file__).parents[1] / "helpers" / "distributed_runs.py"
STEPS = 6
SMALL = {
    "model": "vit_tiny_patch16",
    "img_size": 128,
    "decoder_embed_dim": 64,
    "decoder_depth": 2,
    "contour": "rectangle",
    "tensorboard": False,
    "picture_every": 3,
    "threads": 1,
    "workers": 0,
    "ratio_inside": 0.8,
    "ratio_outside": 0.5,
    "steps": STEPS,
    "ema": 0.8,
    "save_every": 3,
    "process_timeout": 60,
}
BLOCKS = {"shuffle": "blocks", "shuffle_block": 2, "nodes": 2}
DAMAGED = {"damaged_ddp": {}, "damaged_fsdp": {"shard": True}}
LOOKS = {"now": {}, "late": {}, "sharded": {"shard": True}}


def start(runs: list[dict], folder: Path, processes: int = 2, a_node: int = 0) -> list[subprocess.Popen]:
    """The processes that a launcher would start, each under our eyes."""
    with socket.socket() as probe:
        probe.bind(("localhost", 0))
        port = probe.getsockname()[1]
    listed = folder / "runs.json"
    listed.write_text(json.dumps(runs))
    started = []
    for rank in range(processes):
        env = {
            **os.environ,
            "RANK": str(rank),
            "LOCAL_RANK": str(rank % (a_node or processes)),
            "WORLD_SIZE": str(processes),
            "LOCAL_WORLD_SIZE": str(a_node or processes),
            "MASTER_ADDR": "localhost",
            "MASTER_PORT": str(port),
            "OMP_NUM_THREADS": "1",
        }
        with (folder / f"output_{rank}.txt").open("w") as output:
            command = [sys.executable, str(WORKER), str(listed)]
            options = {"env": env, "stdout": output, "stderr": subprocess.STDOUT, "start_new_session": True}
            started.append(subprocess.Popen(command, **options))
    return started


def finish(processes: list[subprocess.Popen], folder: Path, seconds: float = 600) -> list[int]:
    try:
        return [process.wait(seconds) for process in processes]
    except subprocess.TimeoutExpired:
        pytest.fail(f"processes hang{said(folder)}")
    finally:
        for process in processes:
            if process.poll() is None:
                process.kill()


def play(runs: list[dict], folder: Path, **processes) -> None:
    """Several runs, one after the other, some of which fail on purpose; :func:`errors` tells of each."""
    codes = finish(start(runs, folder, **processes), folder)
    assert set(codes) <= {0, 1}, said(folder)  # no signal


def said(folder: Path) -> str:
    return "".join(f"\n{path.name}: {path.read_text()[-3000:]}" for path in sorted(folder.glob("output_*.txt")))


def result(out: Path, rank: int = 0) -> dict:
    file = out / f"result_{rank}.json"
    if not file.exists():
        pytest.fail(f"{out.name} did not end, or a run before it{said(out.parent)}")
    return json.loads(file.read_text())


def errors(out: Path, processes: int = 2) -> list[str]:
    """What ended a run that was played, on those processes that it failed on."""
    found = [result(out, rank) for rank in range(processes)]
    return [f"{each['error']}: {each['message']}" for each in found if "error" in each]


def log_of(out: Path) -> list[dict]:
    return [json.loads(line) for line in (out / "log.jsonl").read_text().splitlines()]


def until(out: Path, step: int, processes: list[subprocess.Popen]) -> None:
    """Wait until the log has reached a step."""
    log = out / "log.jsonl"
    deadline = time.monotonic() + 120
    while time.monotonic() < deadline and all(process.poll() is None for process in processes):
        if log.exists() and len(log.read_text().splitlines()) >= step:
            return
        time.sleep(0.02)
    pytest.fail(f"{log} never reached step {step}")


@pytest.fixture(scope="module")
def images(tmp_path_factory) -> Path:
    """Radiographs of many shapes: unequal numbers of patches."""
    folder = tmp_path_factory.mktemp("images")
    for seed in range(9):
        cv2.imwrite(str(folder / f"{seed}.png"), draw_radiograph(seed, height=150, width=150 - 12 * seed))
    return folder


@pytest.fixture(scope="module")
def runs(two_blocks, images, tmp_path_factory) -> Path:
    """One process with batches of four; then two processes in several ways, four images a step each."""
    root = tmp_path_factory.mktemp("runs")
    common = {**SMALL, "data": str(images), "cache": str(root / "cache")}
    run_pretraining(PretrainConfig(out=str(root / "one"), batch_size=4, **common), progress=False)
    half_way(root / "one", root / "from_one")
    half_way(root / "one", root / "from_one_sharded")
    variants = {
        "ddp": {"batch_size": 2},
        "ddp_in_parts": {"batch_size": 1, "grad_accum": 2},
        "fsdp": {"batch_size": 2, "shard": True},
        "fsdp_in_parts": {"batch_size": 1, "grad_accum": 2, "shard": True, "checkpoint_activations": True},
        "from_one": {"batch_size": 2, "resume": "auto"},
        "from_one_sharded": {"batch_size": 2, "resume": "auto", "shard": True},
    }
    listed = [{"config": {**common, "out": str(root / name), **more}} for name, more in variants.items()]
    listed += [{**run, "late": True} for run in also_late(listed)]
    listed.append({"config": {**common, "out": str(root / "blocks"), "batch_size": 2, **BLOCKS}})
    if have_classify():
        listed.append(
            {"finetune": finetuning(images, root, "finetune_sharded", batch_size=1, grad_accum=2, shard=True)}
        )
    for name, more in (("poisoned", {"shard": True}), ("poisoned_late", {})):
        config = {**common, "out": str(root / name), "batch_size": 2, **more}
        listed.append({"config": config, "poison": 2, "late": name == "poisoned_late"})
    play(listed, root)
    return root


@pytest.fixture(scope="module")
def later(runs, images, tmp_path_factory) -> Path:
    """Two processes again: what goes on from ``runs``, and runs to which something happens."""
    root = tmp_path_factory.mktemp("later")
    common = {**SMALL, "data": str(images), "cache": str(runs / "cache"), "batch_size": 2}
    listed = [
        {"config": {**common, "out": str(root / name), "resume": "auto", **more}} for name, more in DAMAGED.items()
    ]
    for name in DAMAGED:
        shutil.copytree(runs / name.removeprefix("damaged_"), root / name, ignore=shutil.ignore_patterns("result_*"))
        shutil.rmtree(root / name / "model")
        with (root / name / "checkpoints" / f"step_{STEPS:08d}" / "optimizer.safetensors").open("r+b") as file:
            file.truncate(100)
    half_way(runs / "blocks", root / "blocks")
    listed.append({"config": {**common, **BLOCKS, "out": str(root / "blocks"), "resume": "auto"}})
    shutil.copytree(runs / "cache", root / "cache")
    (shard,) = (root / "cache").rglob("00000.bin")
    content = bytearray(shard.read_bytes())
    content[1000] ^= 1
    shard.write_bytes(content)
    flipped = {**common, "cache": str(root / "cache")}
    listed += [{"config": {**flipped, "out": str(root / name)}} for name in ("met", "mended")]
    clock = {**common, "save_every": 0, "picture_every": 0, "keep_checkpoints": 99}
    listed += [
        {"config": {**clock, "out": str(root / f"{name}_{kind}"), **way}, "late": name == "late", **more}
        for name, way in LOOKS.items()
        for kind, more in (("due", {"due": [2]}), ("full", {"due": [2], "full": 3 if name == "late" else 2}))
    ]
    killing = {**common, "cache": str(root / "without_4"), "workers": 1}
    listed += [{"config": {**killing, "out": str(root / name)}, "killer": "4.png"} for name in ("first", "second")]
    with mock.patch.dict(os.environ, PYTHONPATH=os.pathsep.join([str(WORKER.parent), *sys.path])):  # for the killer
        play(listed, root)
    return root


@pytest.fixture(scope="module")
def by_four(runs, images, tmp_path_factory) -> Path:
    """Four processes, two to a node."""
    root = tmp_path_factory.mktemp("by_four")
    common = {**SMALL, "data": str(images), "cache": str(runs / "cache"), "batch_size": 1}
    within = {"shard": True, "shard_within": "node"}
    half_way(runs / "one", root / "from_one")
    half_way(runs / "blocks", root / "blocks")
    listed = [
        {"config": {**common, **within, "out": str(root / "run")}},
        {"config": {**common, **within, "out": str(root / "from_one"), "resume": "auto"}},
        {"config": {**common, **BLOCKS, "out": str(root / "blocks"), "resume": "auto"}},
    ]
    play(listed, root, processes=4, a_node=2)
    return root


def also_late(listed: list[dict]) -> list[dict]:
    """The copied ones once more, looked at late as on GPUs."""
    configs = [run["config"] for run in listed]
    copied = [config for config in configs if not config.get("shard") and "resume" not in config]
    return [{"config": {**config, "out": f"{config['out']}_late"}} for config in copied]


def have_classify() -> bool:
    return all(importlib.util.find_spec(package) for package in ("sklearn", "pandas", "matplotlib"))


def finetuning(images: Path, root: Path, out: str, **changes) -> dict:
    """Settings of a fine-tuning on nine images; three validate: two batches for one process, one for the other."""
    labels = root / "labels.csv"
    rows = [f"{i}.png,p{i},{i % 2},{'train' if i < 4 else 'val' if i < 7 else 'test'}" for i in range(9)]
    labels.write_text("\n".join(["image,patient,sick,split", *rows]) + "\n")
    same = {
        name: SMALL[name]
        for name in ("model", "img_size", "contour", "tensorboard", "threads", "workers", "process_timeout")
    }
    options = {"steps": 3, "eval_every": 1, "drop_path": 0.3, "bootstraps": 0, "precision": "fp32", **same, **changes}
    return {"data": str(labels), "images": str(images), "out": str(root / out), **options}


def half_way(source: Path, target: Path) -> None:
    """The run as it was after step 3."""
    shutil.copytree(source, target, ignore=shutil.ignore_patterns("result_*"))
    shutil.rmtree(target / "checkpoints" / f"step_{STEPS:08d}")
    shutil.rmtree(target / "model")


@pytest.mark.slow
@pytest.mark.parametrize("name", ["ddp", "ddp_in_parts", "ddp_late", "ddp_in_parts_late", "fsdp", "fsdp_in_parts"])
def test_two_processes_learn_what_one_learns(runs, name):
    """Ragged batches, dealt out evenly, in one or two parts, copied or sharded, activations kept or computed again."""
    assert not errors(runs / name)
    assert result(runs / name) == result(runs / name, 1)
    ours, alone = log_of(runs / name), log_of(runs / "one")
    for line, reference in zip(ours, alone, strict=True):
        for number in ("loss", "baseline", "grad_norm"):
            assert line[number] == pytest.approx(reference[number], rel=1e-6 if number != "grad_norm" else 1e-5), number
        assert (line["step"], line["lr"], line["tokens_kept"]) == tuple(
            reference[key] for key in ("step", "lr", "tokens_kept")
        )
    a, b = (hx.load_model(runs / run / "model").state_dict() for run in (name, "one"))
    for key in b:  # AdamW moves a weight whose gradient is rounding noise by up to lr, here 3.5e-4, a step
        torch.testing.assert_close(a[key], b[key], rtol=1e-4, atol=5e-5)


LAUNCHERS = {
    "torchrun": ["torch.distributed.run", "--standalone", "--nproc-per-node", "2"],
    "accelerate": ["accelerate.commands.launch", "--multi_gpu", "--num_processes", "2", "--main_process_port", "0"],
    "accelerate fsdp": [
        "accelerate.commands.launch", "--use_fsdp", "--fsdp_version", "2", "--num_processes", "2",
        "--main_process_port", "0",
    ],
}  # fmt: skip


@pytest.fixture(scope="module")
def alone(runs, images) -> list[float]:
    """Losses of one process, of all blocks: those that commands start know of no others."""
    common = {**SMALL, "data": str(images), "cache": str(runs / "cache")}
    with tiny_of(12):
        return run_pretraining(PretrainConfig(out=str(runs / "alone"), batch_size=4, **common), progress=False).losses


@pytest.mark.slow
@pytest.mark.parametrize("launcher", LAUNCHERS)
def test_launchers_start_processes_that_learn_together(runs, images, alone, tmp_path, launcher):
    """The command line as the manual has it, without a GPU."""
    pytest.importorskip("jsonargparse")
    settings = {**SMALL, "data": images, "cache": runs / "cache", "out": tmp_path / "run", "batch_size": 2}
    arguments = [
        f"--{name.replace('_', '-')}={str(value).lower() if isinstance(value, bool) else value}"
        for name, value in settings.items()
    ]
    command = [sys.executable, "-m", *LAUNCHERS[launcher], "-m", "hdxray_fast", "pretrain", *arguments]
    env = {**os.environ, "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": "", "HF_HOME": str(tmp_path)}
    done = subprocess.run(command, env=env, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr[-3000:]
    assert f"2 processes, {'weights shared out (FSDP2)' if 'fsdp' in launcher else 'a copy each (DDP)'}" in done.stderr
    losses = [line["loss"] for line in log_of(tmp_path / "run")]
    assert losses == pytest.approx(alone, rel=1e-6)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["ddp", "fsdp"])
def test_saved_by_two_resumed_by_one(runs, images, tmp_path, name):
    half_way(runs / name, tmp_path / "run")
    config = PretrainConfig(
        **{**SMALL, "data": str(images), "cache": str(runs / "cache"), "out": str(tmp_path / "run")},
        batch_size=4,
        resume="auto",
    )
    losses = run_pretraining(config, progress=False).losses
    assert losses == pytest.approx([line["loss"] for line in log_of(runs / name)[3:]], rel=1e-6)
    assert [line["step"] for line in log_of(tmp_path / "run")] == list(range(1, STEPS + 1))


@pytest.mark.slow
@pytest.mark.parametrize("name", ["from_one", "from_one_sharded"])
def test_saved_by_one_resumed_by_two(runs, name):
    assert not errors(runs / name)
    losses = result(runs / name)["losses"]
    assert losses == pytest.approx([line["loss"] for line in log_of(runs / "one")[3:]], rel=1e-6)


@pytest.mark.slow
@pytest.mark.parametrize("name", DAMAGED)
def test_a_damaged_checkpoint_is_passed_over_by_both(runs, later, name):
    """The main process finds the damage; the other follows it to the checkpoint before, copied or sharded."""
    assert not errors(later / name)
    whole = result(runs / name.removeprefix("damaged_"))
    assert result(later / name)["losses"] == result(later / name, 1)["losses"]
    assert result(later / name)["losses"] == pytest.approx(whole["losses"][3:], rel=1e-6)
    assert (later / name / "checkpoints" / f"damaged_step_{STEPS:08d}").is_dir()


@pytest.mark.slow
def test_blocks_of_two_nodes_resume_bit_for_bit(runs, later, by_four):
    """Two nodes of one process each, then of two each, which have the same images in every step.

    The sums of four processes depend on how gradients are put together in buckets, which a start decides anew.
    """
    assert not errors(runs / "blocks") + errors(later / "blocks") + errors(by_four / "blocks", 4)
    whole, resumed = ([line["loss"] for line in log_of(root / "blocks")] for root in (runs, later))
    assert resumed == whole and len(whole) == STEPS
    models = [(root / "blocks" / "model" / "model.safetensors").read_bytes() for root in (runs, later)]
    assert models[0] == models[1]
    assert result(by_four / "blocks")["losses"] == pytest.approx(whole[3:], rel=1e-6)


@pytest.mark.slow
def test_sharded_fine_tuning_validates_on_few_images(runs, images, tmp_path):
    if not have_classify():
        pytest.skip("the extra classify is not installed")
    from hdxray_fast.classify.config import FinetuneConfig
    from hdxray_fast.classify.finetune import run_finetuning

    assert not errors(runs / "finetune_sharded")
    run_finetuning(FinetuneConfig(**finetuning(images, tmp_path, "alone", batch_size=4)), progress=False)
    ours, alone = log_of(runs / "finetune_sharded"), log_of(tmp_path / "alone")
    for line, reference in zip(ours, alone, strict=True):
        for number in ("loss", "val_loss", "val_auroc"):
            assert line[number] == pytest.approx(reference[number], rel=1e-5), number
    # the test was shared, too: what is written is what the model answers in one process
    done = runs / "finetune_sharded"
    with (done / "predictions.csv").open(newline="") as stream:
        rows = {Path(row["image"]).name: float(row["sick"]) for row in csv.DictReader(stream)}
    answers = hx.predict([images / name for name in rows], done / "model", batch_size=1, precision="fp32")
    assert list(rows) == ["7.png", "8.png"]
    assert list(rows.values()) == pytest.approx(answers.probabilities[:, 0].tolist(), abs=1e-6)


@pytest.mark.slow
def test_checkpoints_are_the_same_files_whoever_wrote_them(runs):
    from safetensors.torch import load_file

    for file in ("model", "optimizer", "ema"):
        one, two, sharded = (
            load_file(runs / name / "checkpoints" / "step_00000003" / f"{file}.safetensors")
            for name in ("one", "ddp", "fsdp")
        )
        assert one.keys() == two.keys() == sharded.keys()
        assert all(one[key].shape == two[key].shape == sharded[key].shape for key in one)
        assert all(one[key].dtype == two[key].dtype == sharded[key].dtype for key in one)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["poisoned", "poisoned_late"])
def test_a_loss_that_is_no_number_on_one_process_ends_both_and_names_the_files_of_both(runs, name):
    messages = [result(runs / name, rank) for rank in (0, 1)]
    assert [message["error"] for message in messages] == ["TrainingError"] * 2
    assert all("step 2: loss nan" in message["message"] for message in messages)
    (folder,) = (runs / name / "failed").iterdir()
    assert json.loads((folder / "state.json").read_text())["step"] == 1
    assert len(json.loads((folder / "state.json").read_text())["files"]) == 4
    assert (folder / "model.safetensors").exists()


@pytest.mark.slow
@pytest.mark.parametrize("name", LOOKS)
def test_the_main_process_clock_decides_for_both_and_a_full_disk_of_its_ends_both(later, name):
    """The others learn of either with the numbers of a step: one step later where steps are looked at late."""
    due, full = later / f"{name}_due", later / f"{name}_full"
    assert not errors(due)
    saved = sorted(int(path.name[-8:]) for path in (due / "checkpoints").iterdir())
    assert saved == [3 if name == "late" else 2, STEPS]
    assert result(due) == result(due, 1)
    ours, others = result(full), result(full, 1)
    assert ours["error"] == "CheckpointError" and "no room" in ours["message"]
    assert others == {"error": "TrainingError", "message": MAIN_FAILED}
    assert not list((full / "checkpoints").iterdir())


@pytest.mark.slow
def test_two_nodes_of_two_share_within_and_copy_across(runs, by_four):
    """HSDP: the losses and the checkpoint of one process; what it saves one process goes on from, and the reverse."""
    assert not errors(by_four / "run", 4) + errors(by_four / "from_one", 4)
    alone = [line["loss"] for line in log_of(runs / "one")]
    assert "4 processes, weights shared out within each node (FSDP2)" in (by_four / "output_0.txt").read_text()
    assert [line["loss"] for line in log_of(by_four / "run")] == pytest.approx(alone, rel=1e-6)
    assert result(by_four / "from_one", 3)["losses"] == pytest.approx(alone[3:], rel=1e-6)
    from safetensors.torch import load_file

    for file in ("model", "optimizer", "ema"):
        name = Path("checkpoints", "step_00000003", f"{file}.safetensors")
        ours, theirs = load_file(by_four / "run" / name), load_file(runs / "one" / name)
        assert ours.keys() == theirs.keys()
        for key in theirs:
            torch.testing.assert_close(ours[key], theirs[key], rtol=1e-3, atol=5e-5)


def test_sharing_within_a_node_needs_to_know_the_nodes(monkeypatch):
    from hdxray_fast.training import processes

    monkeypatch.setattr(processes.dist, "get_world_size", lambda: 6)
    for here in ("", "1", "4"):
        monkeypatch.setenv("LOCAL_WORLD_SIZE", here or "0")
        with pytest.raises(hx.HDXrayError, match=r"^shard_within: node needs as many processes on each node"):
            processes.shard_mesh(torch.device("cpu"), "node")


@pytest.mark.slow
@pytest.mark.parametrize("how", [signal.SIGKILL, signal.SIGSTOP])
def test_when_one_process_is_gone_the_other_says_so(images, tmp_path, how):
    """Killed, the connection breaks; frozen, the patience of the other ends."""
    out = tmp_path / "run"
    config = {**SMALL, "data": str(images), "out": str(out), "batch_size": 1, "steps": 10_000, "process_timeout": 10}
    processes = start([{"config": config}], tmp_path)
    until(out, 2, processes)
    processes[1].send_signal(how)
    assert processes[0].wait(60) == 1
    processes[1].kill()
    message = result(out)
    assert message["error"] == "TrainingError"
    assert "another process of this run is gone or has not answered for 10 s" in message["message"]
    assert message["message"].startswith("step ")


@pytest.mark.slow
@pytest.mark.parametrize("late", [False, True])
def test_a_notice_to_one_process_stops_both_at_the_same_step(images, tmp_path, late):
    """As torchrun and Slurm send it: to the process and to the workers that read its files."""
    out = tmp_path / "run"
    endless = {"steps": 10_000, "save_every": 10_000, "workers": 1}
    config = {**SMALL, "data": str(images), "out": str(out), "batch_size": 1, **endless}
    processes = start([{"config": config, "late": late}], tmp_path)
    until(out, 2, processes)
    os.killpg(processes[1].pid, signal.SIGTERM)
    assert finish(processes, tmp_path) == [0, 0]
    results = [result(out, rank) for rank in (0, 1)]
    assert results[0] == results[1] and not results[0]["finished"]
    (folder,) = (out / "checkpoints").iterdir()
    assert json.loads((folder / "state.json").read_text())["step"] == len(results[0]["losses"])


@pytest.mark.slow
def test_a_file_that_kills_its_reader_costs_itself_alone(later):
    """No process that trains reads it, in this run or the next, and nobody reads it for another."""
    for package in ("loky", "pebble"):
        pytest.importorskip(package)
    for name in ("first", "second"):
        assert not errors(later / name)
        rows = (later / name / "unreadable.csv").read_text().splitlines()
        assert len(rows) == 2 and '4.png,BrokenProcessPool,"the process that read it died' in rows[1]
        assert [line["step"] for line in log_of(later / name)] == list(range(1, STEPS + 1))
    assert result(later / "first") == result(later / "second", 1)


@pytest.mark.slow
def test_a_flipped_byte_in_a_cache_stops_no_process(runs, later):
    """Each reads the image from its file; the losses stay, and the next start makes the shard again."""
    assert not errors(later / "met") + errors(later / "mended")
    texts = [(later / f"output_{rank}.txt").read_text() for rank in (0, 1)]
    assert any("is damaged or gone; its images are read from their own files" in text for text in texts)
    for name in ("met", "mended"):
        assert result(later / name) == result(runs / "ddp")
    (shard,) = (later / "cache").rglob("00000.bin")
    assert shard.stat().st_size == 0 and list((later / "cache").rglob("00001.bin"))


PATIENCE, LONGER = 6, 9  # seconds


@pytest.mark.slow
@pytest.mark.parametrize("task", ["pretrain", "finetune", "report"])
def test_preparation_may_outlast_the_patience(images, tmp_path, task):
    """The main process alone reads, however long it takes; all of them compute features, however unequal their shares.

    What cannot be read is listed once, and every process knows of it.
    """
    folder, out = tmp_path / "images", tmp_path / "run"
    shutil.copytree(images, folder)
    (folder / "bad.png").write_text("no picture")
    if task == "pretrain":
        run = {"config": {**SMALL, "data": str(folder), "out": str(out), "batch_size": 2, "process_timeout": PATIENCE}}
    elif task == "finetune":
        if not have_classify():
            pytest.skip("the extra classify is not installed")
        options = {"batch_size": 2, "process_timeout": PATIENCE, "max_bad_share": 0.5}
        run = {"finetune": finetuning(folder, tmp_path, "run", **options)}
        with (tmp_path / "labels.csv").open("a") as stream:
            stream.write("bad.png,p9,1,train\n")
    else:
        pytest.importorskip("transformers")
        run = {"report": reporting(folder, tmp_path, "run", process_timeout=PATIENCE)}
    codes = finish(start([{**run, "slow": LONGER}], tmp_path), tmp_path)
    assert codes == [0, 0], "".join(path.read_text()[-3000:] for path in sorted(tmp_path.glob("output_*.txt")))
    listed = (out / "unreadable.csv").read_text().splitlines()
    assert listed[0] == "path,error,reason" and len(listed) == 2 and "bad.png" in listed[1]
    assert len(log_of(out)) == (6 if task == "pretrain" else 3)


def reporting(images: Path, root: Path, out: str, **changes) -> dict:
    """Settings of a report training on nine studies with a frozen encoder, and one study whose image is damaged."""
    studies = root / "studies.csv"
    rows = [f'r{name},{name}.png,"The {"left" if number % 2 else "right"} lung is clear.",train'
            for number, name in enumerate([*map(str, range(9)), "bad"])]  # fmt: skip
    studies.write_text("\n".join(["id,image,report,split", *rows]) + "\n")
    small = {"width": 16, "heads": 2, "ffn": 16, "layers": 1, "visual_tokens": 4, "max_length": 12, "num_beams": 1}
    same = {name: SMALL[name] for name in ("img_size", "contour", "tensorboard", "threads", "workers")}
    return {
        "data": str(studies), "images": str(images), "out": str(root / out), "encoder": SMALL["model"],
        "encoder_lr": 0.0, "min_frequency": 1, "min_patients": 1, "digits": True,
        "validate_split": "train", "steps": 3, "batch_size": 2,
        **small, **same, **changes,
    }  # fmt: skip


def test_processes_that_do_not_know_of_each_other_are_refused(images, tmp_path, monkeypatch):
    monkeypatch.setenv("WORLD_SIZE", "2")  # without the rest of what a launcher sets
    with pytest.raises(hx.HDXrayError, match="2 processes were launched"):
        run_pretraining(PretrainConfig(data=str(images), out=str(tmp_path / "run"), **SMALL), progress=False)
    monkeypatch.delenv("WORLD_SIZE")
    done = run_pretraining(PretrainConfig(data=str(images), out=str(tmp_path / "run"), **SMALL), progress=False)
    assert done.finished  # this process has learned better
