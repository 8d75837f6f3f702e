"""The training loop: it learns, resumes bit for bit, and fails by name."""

from __future__ import annotations

import json
import multiprocessing
import os
import random
import shutil
import signal
import subprocess
import sys
import time
import warnings
import zipfile

import cv2
import numpy as np
import pytest
import torch
from caps import limits
from prepared_helpers import prepare
from recorded_graph import RecordedGraphs, attention_as_on_a_gpu
from tiny_training import TINY_PRETRAINING

import hdxray_fast as hx
from hdxray_fast.errors import ConfigError, TrainingError
from hdxray_fast.files import checksum
from hdxray_fast.models import layers
from hdxray_fast.ops.plan import of_one_size
from hdxray_fast.pretrain.config import PretrainConfig
from hdxray_fast.pretrain.task import run_pretraining
from hdxray_fast.training import graphs, loop
from hdxray_fast.training.trees import shape_of

for package in ("accelerate", "safetensors", "tqdm", "pyarrow"):
    pytest.importorskip(package)

pytestmark = pytest.mark.usefixtures("two_blocks")
SMALL = {**TINY_PRETRAINING, "ratio_inside": 0.8, "ratio_outside": 0.6}


def config(radiographs, out, **changes) -> PretrainConfig:
    return PretrainConfig(data=str(radiographs), out=str(out), **{**SMALL, "steps": 4, **changes})


def log_of(out) -> list[dict]:
    return [json.loads(line) for line in (out / "log.jsonl").read_text().splitlines()]


def losses_of(out) -> list[float]:
    return [line["loss"] for line in log_of(out)]


@pytest.mark.parametrize("decoder", ["cross", "self"])
def test_loss_falls_and_everything_is_written(radiographs, tmp_path, decoder):
    out = tmp_path / "run"
    steps = 60
    options = {"decoder": decoder, "lr": 2e-3, "norm_pix_loss": False, "predict": 1.0, "augment": False}
    result = run_pretraining(config(radiographs / "0.png", out, steps=steps, **options), progress=False)
    assert result.finished
    assert len(result.losses) == steps
    assert np.mean(result.losses[-5:]) < 0.6 * np.mean(result.losses[:3])
    assert [line["step"] for line in log_of(out)] == list(range(1, steps + 1))
    picture = cv2.imread(str(result.picture))
    assert picture is not None and picture.shape == (480 + 3 * 44, 5 * 480 + 4 * 12, 3)  # of one radiograph
    model = hx.load_model(out / "model")
    assert not any(torch.isnan(parameter).any() for parameter in model.parameters())
    assert not (out / "unreadable.csv").exists()  # there is nothing to list


@pytest.mark.parametrize("decoder", ["cross", "self"])
def test_nothing_in_a_step_looks_at_a_value(radiographs, tmp_path, monkeypatch, decoder):
    """Steps are recorded by a stand-in for CUDA graphs, to which waiting is an error, and replayed."""
    options = {"steps": 10, "ema": 0.9, "grad_accum": 2, "decoder": decoder, "ratio_inside": 0.5, "ratio_outside": 0.5}
    whole = run_pretraining(config(radiographs, tmp_path / "now", **options), progress=False)
    made = []
    monkeypatch.setattr(layers, "attention", attention_as_on_a_gpu)
    monkeypatch.setattr(loop, "graphs_for", lambda device: made.append(RecordedGraphs(device)) or made[-1])
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        recorded = run_pretraining(config(radiographs, tmp_path / "recorded", **options), progress=False)
    assert made[0].recorded >= 1
    assert made[0].replayed >= 5
    assert recorded.losses == pytest.approx(whole.losses, rel=5e-3)  # rounded by sizes, sums are of another order
    assert recorded.baseline == pytest.approx(whole.baseline, rel=1e-5)
    for name in ("lr", "tokens_kept"):
        assert [line[name] for line in log_of(tmp_path / "recorded")] == [
            line[name] for line in log_of(tmp_path / "now")
        ]
    monkeypatch.setattr(graphs, "MOST_GRAPHS", 0)
    unrecorded = run_pretraining(config(radiographs, tmp_path / "unrecorded", **options), progress=False)
    assert made[-1].recorded == 0
    assert recorded.losses == unrecorded.losses  # to the bit


def test_resume_gives_the_same_curve_and_weights(radiographs, tmp_path):
    options = {"steps": 7, "save_every": 2, "ema": 0.9, "grad_accum": 2}
    whole = run_pretraining(config(radiographs, tmp_path / "whole", **options), progress=False)

    class Stop(Exception):
        pass

    def stop_at_five(line):
        if line["step"] == 5:
            raise Stop

    with pytest.raises(Stop):
        run_pretraining(config(radiographs, tmp_path / "cut", **options), progress=False, on_step=stop_at_five)
    resumed = run_pretraining(config(radiographs, tmp_path / "cut", resume="auto", **options), progress=False)
    assert len(resumed.losses) == 3  # steps 5 to 7, after the checkpoint of step 4
    assert losses_of(tmp_path / "cut") == whole.losses
    a, b = (hx.load_model(tmp_path / name / "model").state_dict() for name in ("whole", "cut"))
    assert all(torch.equal(a[name], b[name]) for name in a)


def test_workers_do_not_change_the_curve(radiographs, tmp_path):
    curves = [
        run_pretraining(config(radiographs, tmp_path / str(n), workers=n, steps=3), progress=False).losses
        for n in (0, 2)
    ]
    assert curves[0] == curves[1]


def test_sigterm_saves_and_stops(radiographs, tmp_path):
    def terminate(line):
        if line["step"] == 2:
            os.kill(os.getpid(), signal.SIGTERM)

    out = tmp_path / "run"
    result = run_pretraining(config(radiographs, out, steps=50, save_every=50), progress=False, on_step=terminate)
    assert not result.finished and len(result.losses) <= 4
    assert list((out / "checkpoints").glob("step_*"))


def test_sigterm_to_the_readers_too_saves_and_stops(radiographs, tmp_path):
    """As a scheduler sends it: to all processes of the group."""

    def terminate(line):
        if line["step"] == 2:
            for child in multiprocessing.active_children():
                os.kill(child.pid, signal.SIGTERM)
            os.kill(os.getpid(), signal.SIGTERM)

    out = tmp_path / "run"
    options = {"steps": 50, "save_every": 50, "workers": 2}
    result = run_pretraining(config(radiographs, out, **options), progress=False, on_step=terminate)
    assert not result.finished and len(result.losses) <= 4
    assert list((out / "checkpoints").glob("step_*"))
    assert not multiprocessing.active_children()


def test_tensorboard_events_are_written(radiographs, tmp_path):
    pytest.importorskip("tensorboard")
    run_pretraining(config(radiographs, tmp_path / "run", tensorboard=True, steps=1), progress=False)
    assert list((tmp_path / "run").rglob("events.out.tfevents*"))


def test_a_folder_with_a_run_is_not_overwritten(radiographs, tmp_path):
    run_pretraining(config(radiographs, tmp_path / "run", steps=1), progress=False)
    with pytest.raises(ConfigError, match="already holds a run"):
        run_pretraining(config(radiographs, tmp_path / "run", steps=1, resume="never"), progress=False)
    with pytest.raises(ConfigError, match=r"lr: None -> 0\.5"):
        run_pretraining(config(radiographs, tmp_path / "run", steps=1, lr=0.5, resume="auto"), progress=False)


def test_a_run_whose_checkpoints_are_gone_says_that_it_begins_anew(radiographs, tmp_path):
    out, options = tmp_path / "run", {"steps": 2, "save_every": 1}
    run_pretraining(config(radiographs, out, **options), progress=False)
    shutil.rmtree(out / "checkpoints")
    before = (out / "model" / "model.safetensors").read_bytes()
    for _ in range(2):  # a refusal leaves nothing that a second try would go by
        with pytest.raises(ConfigError, match="is finished and its checkpoints were removed"):
            run_pretraining(config(radiographs, out, **options), progress=False)
    (out / "checkpoints").mkdir()
    with pytest.raises(ConfigError, match="is finished and its checkpoints were removed"):
        run_pretraining(config(radiographs, out, **options), progress=False)
    assert (out / "model" / "model.safetensors").read_bytes() == before
    shutil.rmtree(out / "model")
    with pytest.warns(UserWarning, match=r"run/checkpoints: has no checkpoint, .* had come to step 2; it begins anew"):
        again = run_pretraining(config(radiographs, out, resume="auto", **options), progress=False)
    assert (again.start, len(again.losses)) == (0, 2)


@pytest.mark.parametrize("change", [{"step": 10**12}, {"step": "2"}, {"images_per_step": None}, {"task": [1]}])
def test_a_state_that_no_run_goes_on_from_is_named(radiographs, tmp_path, change):
    out, options = tmp_path / "run", {"steps": 2, "save_every": 2}
    run_pretraining(config(radiographs, out, **options), progress=False)
    folder = out / "checkpoints" / "step_00000002"
    state = json.loads((folder / "state.json").read_text()) | change
    (folder / "state.json").write_text(json.dumps(state))
    sums = json.loads((folder / "checksums.json").read_text()) | {"state.json": checksum(folder / "state.json")}
    (folder / "checksums.json").write_text(json.dumps(sums))
    with limits(), warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)
        with pytest.raises((hx.CheckpointError, ConfigError), match=r"step_00000002|batch_size"):
            run_pretraining(config(radiographs, out, resume="auto", **options), progress=False)


def test_the_command_says_since_when_the_loss_fell(radiographs, tmp_path, capsys):
    from hdxray_fast.cli.pretrain import run_pretrain_command

    settings = config(radiographs, tmp_path / "run", steps=3, save_every=1).as_dict()
    run_pretrain_command(**settings)
    first = capsys.readouterr().out
    shutil.rmtree(tmp_path / "run" / "checkpoints" / "step_00000003")
    run_pretrain_command(**{**settings, "resume": "auto"})
    losses = losses_of(tmp_path / "run")
    assert f"loss {losses[0]:.4f} -> {losses[2]:.4f}\n" in first
    again = f"loss {losses[2]:.4f} -> {losses[2]:.4f} since step 3, where it went on\n"
    assert again in capsys.readouterr().out


def test_resume_refuses_other_images(radiographs, tmp_path):
    run_pretraining(config(radiographs, tmp_path / "run", steps=2, save_every=1), progress=False)
    (radiographs / "4.png").unlink()
    with pytest.raises(ConfigError, match=r"other readable images \(1 gone, such as .*4\.png\) than"):
        run_pretraining(config(radiographs, tmp_path / "run", steps=2, save_every=1, resume="auto"), progress=False)


def test_resume_refuses_an_image_that_changed_under_its_name(radiographs, tmp_path):
    options = {"steps": 2, "save_every": 1}
    run_pretraining(config(radiographs, tmp_path / "run", **options), progress=False)
    touched = (radiographs / "1.png").read_bytes()
    (radiographs / "1.png").unlink()
    (radiographs / "1.png").write_bytes(touched)  # another date, the same image
    run_pretraining(config(radiographs, tmp_path / "run", resume="auto", **options), progress=False)
    pixels = cv2.imread(str(radiographs / "2.png"), cv2.IMREAD_GRAYSCALE)
    pixels[75] ^= 64  # one row
    cv2.imwrite(str(radiographs / "2.png"), pixels)
    with pytest.raises(
        ConfigError, match=r"^data: these are other readable images \(1 changed, such as .*2\.png\) than"
    ):
        run_pretraining(config(radiographs, tmp_path / "run", resume="auto", **options), progress=False)


def test_resume_refuses_a_prepared_set_whose_images_changed(radiographs, tmp_path):
    options = {"steps": 1, "save_every": 1}
    recipe = {"img_size": SMALL["img_size"], "min_side": 1}
    prepare([radiographs], tmp_path / "set", **recipe)
    run_pretraining(config(tmp_path / "set", tmp_path / "run", **options), progress=False)
    cv2.imwrite(str(radiographs / "3.png"), 255 - cv2.imread(str(radiographs / "3.png")))
    shutil.rmtree(tmp_path / "set")
    prepare([radiographs], tmp_path / "set", **recipe)
    with pytest.raises(ConfigError, match=r"other readable images \(1 changed, such as .*3\.png\) than"):
        run_pretraining(config(tmp_path / "set", tmp_path / "run", resume="auto", **options), progress=False)


def test_unreadable_files_are_quarantined_and_the_run_goes_on(radiographs, tmp_path, capsys):
    (radiographs / "torn.png").write_bytes((radiographs / "0.png").read_bytes()[:200])
    result = run_pretraining(config(radiographs, tmp_path / "run", steps=1), progress=False)
    assert len(result.images) == 5
    assert "torn.png" in (tmp_path / "run" / "unreadable.csv").read_text()
    assert "torn.png" in capsys.readouterr().err


def test_a_loss_that_is_not_finite_names_step_and_files_and_keeps_the_state(radiographs, tmp_path):
    with pytest.raises(TrainingError, match=r"step \d+: loss .*\.png") as caught:
        run_pretraining(config(radiographs, tmp_path / "run", steps=60, lr=1e30, clip_grad=0.0), progress=False)
    (folder,) = (tmp_path / "run" / "failed").iterdir()
    assert str(folder) in str(caught.value)
    state = json.loads((folder / "state.json").read_text())
    assert len(state["files"]) == 2 and (folder / "model.safetensors").exists()


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        ({"steps": 0}, "steps"),
        ({"ratio_inside": 1.5}, "ratio_inside"),
        ({"predict": 0.0}, "predict"),
        ({"lr": -1.0}, "lr"),
        ({"ratio_inside": 0.0, "ratio_outside": 0.0}, "ratio_inside"),
        ({"seed": -1}, "seed"),
        ({"threads": -1}, "threads"),
        ({"workers": -5}, "workers"),
        ({"clip_grad": -1.0}, "clip_grad"),
        ({"steps": "3"}, "^steps: got '3', accepted is a whole number"),
        ({"steps": 2.5}, "^steps: got 2.5, accepted is a whole number"),
        ({"workers": True}, "^workers: got True, accepted is a whole number"),
        ({"lr": "fast"}, "wrong type"),
        ({"lr": float("inf")}, "^lr: inf"),
        ({"seed": 1 << 64}, "^seed: .* below 2"),
        ({"shuffle": "block"}, "^shuffle: got 'block', accepted are global, blocks"),
        ({"schedule": "WSD"}, "^schedule: got 'WSD', accepted are cosine, wsd"),
        ({"precision": "float16"}, "^precision: got 'float16', accepted are auto, fp32, bf16"),
        ({"shard": "no"}, "^shard: got 'no', accepted are True and False"),
    ],
)
def test_settings_are_checked_by_name(changes, named):
    with pytest.raises(ConfigError, match=named):
        PretrainConfig(data="x", out="y", **changes)


def test_numbers_of_numpy_are_numbers():
    config = PretrainConfig(data="x", out="y", seed=np.int64(3), batch_size=np.int32(4))
    assert (type(config.seed), config.seed, config.batch_size) == (int, 3, 4) and json.dumps(config.as_dict())


@pytest.mark.slow
def test_kill_9_at_any_moment_then_resume_gives_the_same_curve(radiographs, tmp_path):
    """Twice killed without notice, at moments nobody chose; the curve equals the uninterrupted one bit for bit."""

    def command(out, *extra):
        options = {**SMALL, "steps": 24, "save_every": 3}
        words = [
            f"--{name.replace('_', '-')}={str(value).lower() if isinstance(value, bool) else value}"
            for name, value in options.items()
        ]
        return [
            sys.executable,
            "-m",
            "hdxray_fast",
            "pretrain",
            f"--data={radiographs}",
            f"--out={out}",
            *words,
            *extra,
        ]

    subprocess.run(command(tmp_path / "whole"), check=True, capture_output=True)
    out = tmp_path / "cut"
    rng = random.Random(os.getpid())
    for target in (5, 14):
        process = subprocess.Popen(command(out, "--resume=auto"), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        deadline = time.monotonic() + 120
        while time.monotonic() < deadline and process.poll() is None:
            if (out / "log.jsonl").exists() and len((out / "log.jsonl").read_text().splitlines()) >= target:
                break
            time.sleep(0.005)
        time.sleep(rng.uniform(0, 0.1))
        process.kill()
        process.wait()
    subprocess.run(command(out, "--resume=auto"), check=True, capture_output=True)
    assert losses_of(out) == losses_of(tmp_path / "whole") and len(losses_of(out)) == 24


@pytest.mark.parametrize(
    ("changes", "named"),
    [({"model": "vit_typo"}, "vit_typo"), ({"img_size": 129}, "129"), ({"data": "nowhere"}, "nowhere")],
)
def test_a_mistake_leaves_the_folder_free_for_the_next_try(radiographs, tmp_path, changes, named):
    wrong = {"data": str(radiographs), "out": str(tmp_path / "run"), **SMALL, "steps": 1, **changes}
    with pytest.raises(hx.HDXrayError, match=named):
        run_pretraining(PretrainConfig(**wrong), progress=False)
    assert run_pretraining(config(radiographs, tmp_path / "run", steps=1), progress=False).finished


def test_a_run_inside_its_data_never_trains_on_its_own_pictures(radiographs):
    options = {"steps": 2, "save_every": 1}
    run_pretraining(config(radiographs, radiographs / "run", **options), progress=False)
    again = run_pretraining(config(radiographs, radiographs / "run", resume="auto", **options), progress=False)
    beside = run_pretraining(config(radiographs, radiographs / "other", **options), progress=False)
    assert len(again.images) == len(beside.images) == 5


def test_quarantine_is_written_when_nothing_is_readable(tmp_path):
    (tmp_path / "bad").mkdir()
    (tmp_path / "bad" / "x.png").write_text("no picture")
    with pytest.raises(TrainingError, match=r"x\.png"):
        run_pretraining(config(tmp_path / "bad", tmp_path / "run"), progress=False)
    assert "x.png" in (tmp_path / "run" / "unreadable.csv").read_text()


def test_a_prepared_data_set_gives_the_curve_of_its_files(radiographs, tmp_path):
    """Of 8 bits the very same; of 16 nearly, since the pixels are finer."""
    prepare = prepared_set(radiographs, tmp_path)
    options = {"steps": 3, "batch_size": 3, "picture_every": 2}
    files = run_pretraining(config(radiographs, tmp_path / "files", **options), progress=False)
    eight = run_pretraining(config(prepare(8), tmp_path / "eight", **options), progress=False)
    sixteen = run_pretraining(config(prepare(16), tmp_path / "sixteen", **options), progress=False)
    assert eight.losses == files.losses
    assert sixteen.losses != files.losses and sixteen.losses == pytest.approx(files.losses, rel=0.05)
    assert cv2.imread(str(sixteen.picture)).shape == cv2.imread(str(files.picture)).shape
    assert len(eight.images) == 5


def test_an_archive_gives_the_curve_of_its_files(radiographs, tmp_path):
    with zipfile.ZipFile(tmp_path / "all.zip", "w") as archive:
        for path in sorted(radiographs.iterdir()):
            archive.write(path, path.name)
        archive.writestr("torn.png", b"no picture")
    options = {"steps": 3, "batch_size": 3}
    files = run_pretraining(config(radiographs, tmp_path / "files", **options), progress=False)
    archived = run_pretraining(config(tmp_path / "all.zip", tmp_path / "archived", **options), progress=False)
    assert archived.losses == files.losses and len(archived.images) == 5
    assert "all.zip::torn.png" in (tmp_path / "archived" / "unreadable.csv").read_text()


def test_several_are_read_one_after_the_other_each_name_once(radiographs, tmp_path):
    files = sorted(radiographs.iterdir())
    (tmp_path / "folder").mkdir()
    shutil.move(files[4], tmp_path / "folder" / "x.png")
    with zipfile.ZipFile(tmp_path / "some.zip", "w") as archive:
        archive.write(files[3], "3.png")
    (tmp_path / "list.csv").write_text(f"image\n{files[1]}\n{files[0]}\n{files[1]}\n")
    several = [str(tmp_path / name) for name in ("list.csv", "folder", "some.zip", "folder")]
    settings = {**config(".", tmp_path / "run", steps=1).as_dict(), "data": several}
    result = run_pretraining(PretrainConfig(**settings), progress=False)
    names = [files[1], files[0], tmp_path / "folder" / "x.png", f"{tmp_path / 'some.zip'}::3.png"]
    assert result.images.sources() == list(map(str, names))
    assert json.loads((tmp_path / "run" / "config.json").read_text())["data"] == several
    assert PretrainConfig(**{**settings, "data": several[:1]}).data == several[0]
    for whole in ("s3://bucket/chest", str(prepared_set(radiographs, tmp_path)(8))):
        with pytest.raises(ConfigError, match=rf"^data: {whole} is a whole set, and several are "):
            run_pretraining(PretrainConfig(**{**settings, "data": [several[0], whole]}), progress=False)


def test_workers_read_a_prepared_data_set(radiographs, tmp_path):
    data = prepared_set(radiographs, tmp_path)(8)
    curves = [
        run_pretraining(config(data, tmp_path / str(n), workers=n, steps=3), progress=False).losses for n in (0, 2)
    ]
    assert curves[0] == curves[1]


def test_a_prepared_data_set_of_another_kind_is_refused(radiographs, tmp_path):
    data = prepared_set(radiographs, tmp_path)(8)
    with pytest.raises(ConfigError, match=r"img_size: .* was prepared with 128, and not with 256"):
        run_pretraining(config(data, tmp_path / "run", img_size=256), progress=False)
    with pytest.raises(ConfigError, match=r"contour: .* was prepared with rectangle, and not with prior"):
        run_pretraining(config(data, tmp_path / "run", contour="prior"), progress=False)
    (data / "lookup.arrow").unlink()
    with pytest.raises(ConfigError, match="merge"):
        run_pretraining(config(data, tmp_path / "run"), progress=False)
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("prepared", [True, False])
def test_two_runs_never_share_a_folder(radiographs, tmp_path, prepared):
    from filelock import FileLock

    data = prepared_set(radiographs, tmp_path)(8) if prepared else radiographs
    (tmp_path / "run").mkdir()
    held = FileLock(tmp_path / "run" / ".run.lock")
    with held, pytest.raises(ConfigError, match=r"out: another run is at work in .*run; wait for its end"):
        run_pretraining(config(data, tmp_path / "run"), progress=False)
    assert [path.name for path in (tmp_path / "run").iterdir()] == [".run.lock"]


def test_a_flipped_byte_in_a_cache_costs_one_read_and_no_start(radiographs, tmp_path):
    """The run that meets it goes on with the file; the next start makes the shard again."""
    whole = run_pretraining(config(radiographs, tmp_path / "whole"), progress=False)
    cache = tmp_path / "whole" / "cache"
    (shard,) = cache.rglob("00000.bin")
    content = bytearray(shard.read_bytes())
    content[1000] ^= 1
    shard.write_bytes(content)
    with pytest.warns(UserWarning, match="is damaged or gone; its images are read from their own files"):
        met = run_pretraining(config(radiographs, tmp_path / "met", cache=str(cache)), progress=False)
    assert not list(cache.rglob("00000.parquet"))
    with warnings.catch_warnings():
        warnings.filterwarnings("error", message=".*is damaged or gone")
        mended = run_pretraining(config(radiographs, tmp_path / "mended", cache=str(cache)), progress=False)
    assert met.losses == mended.losses == whole.losses


def test_a_damaged_shard_is_named_in_training(radiographs, tmp_path):
    data = prepared_set(radiographs, tmp_path)(8)
    (shard,) = (path for path in (data / "shards").iterdir() if path.suffix not in {".json", ".parquet"})
    content = bytearray(shard.read_bytes())
    content[1000] ^= 255
    shard.write_bytes(content)
    with pytest.raises(hx.HDXrayError, match=r"image of row \d is damaged"):
        run_pretraining(config(data, tmp_path / "run", steps=4), progress=False)


def prepared_set(radiographs, tmp_path):
    pytest.importorskip("pyarrow")
    from hdxray_fast.data.prepared.config import PrepareConfig
    from hdxray_fast.data.prepared.run import run_prepare

    def prepare(bits: int):
        out = tmp_path / f"set{bits}"
        options = {"img_size": 128, "contour": "rectangle", "bits": bits, "workers": 0}
        run_prepare(PrepareConfig([str(radiographs)], str(out), **options), progress=False)
        return out

    return prepare


def test_plans_of_a_step_get_one_shape():
    generator = torch.Generator().manual_seed(0)
    plans = []
    for share in (0.3, 0.6, 0.9):
        inside = torch.rand(4, 8, 8, generator=generator) < share
        plans.append(hx.plan_masks(inside, torch.ones_like(inside), 0.9, 0.4))
    alike = of_one_size(plans)
    assert len({shape_of(plan) for plan in plans}) == 3
    assert len({shape_of(plan) for plan in alike}) == 1
    most = max(plan.keep_ids.shape[0] for plan in plans)
    for before, after in zip(plans, alike, strict=True):
        assert most <= after.keep_ids.shape[0] <= 1.06 * most
        assert torch.equal(before.keep_cu_seqlens, after.keep_cu_seqlens)
