"""The check of GPU machines: its stages pass, fail, hang or miss a tool without stopping each other."""

from __future__ import annotations

import importlib.util
import json
import os
import signal
import subprocess
import sys
import tarfile
import time
from pathlib import Path

import pytest
import torch

ROOT = Path(__file__).parents[2]
if not (ROOT / "tools" / "gpu_check.py").exists():
    pytest.skip("needs the project's tools beside the tests", allow_module_level=True)
sys.path.insert(0, str(ROOT / "tools"))

import gpu_check  # noqa: E402
import stages  # noqa: E402
from stages import Runner, Stage, pytest_verdict  # noqa: E402


def python(code: str) -> list[str]:
    return [sys.executable, "-c", code]


@pytest.fixture
def runner(tmp_path, monkeypatch) -> Runner:
    monkeypatch.setattr(stages, "GRACE", 0.5)
    said: list[str] = []
    made = Runner(tmp_path / "run", tmp_path / "logs", 60, say=said.append)
    made.said = said
    return made


def alive(pid: int) -> bool:
    """Whether a process runs; one that has ended and was not waited for does not."""
    stat = Path(f"/proc/{pid}/stat")
    return stat.exists() and stat.read_text().rsplit(")", 1)[1].split()[0] != "Z"


def test_no_stage_stops_the_next_ones(runner):
    (passed,) = runner.run(Stage("good", python("print('hello')"), 30))
    (failed,) = runner.run(Stage("bad", python("print('what went wrong'); exit(7)"), 30))
    (hung,) = runner.run(Stage("hangs", python("import time; print('now', flush=True); time.sleep(60)"), 1))
    (toolless,) = runner.run(Stage("toolless", python("pass"), 30, tool="no-such-tool"))
    (missing,) = runner.run(Stage("missing", ["no-such-command"], 30))
    (needy,) = runner.run(Stage("needy", python("pass"), 30, needs=("good", "bad")))
    (content,) = runner.run(Stage("content", python("pass"), 30, needs=("good",)))
    (blocked,) = runner.run(Stage("blocked", python("pass"), 30, blocked="no GPU: none", optional=True))
    assert [r.status for r in (passed, failed, hung)] == ["PASS", "FAIL", "TIMEOUT"]
    assert failed.remark == "exit status 7"
    assert 1 <= hung.seconds < 10
    assert (toolless.status, toolless.remark) == ("NOT RUN", "no-such-tool was not found on PATH")
    assert missing.remark == "no-such-command was not found on PATH"
    assert needy.remark == "needs what did not pass: bad"
    assert content.status == "PASS"
    assert blocked.remark == "no GPU: none"
    assert [r.name for r in runner.results if r.fails_the_check] == ["bad", "hangs", "toolless", "missing", "needy"]
    assert runner.tail("good") == "hello"
    assert any("what went wrong" in line for line in runner.said)  # the end of a failed stage's log
    rows = runner.table().splitlines()
    assert [row.split()[0] for row in rows] == [*[r.name for r in runner.results], "all"]
    assert "(optional)" in rows[-2]


@pytest.mark.skipif(not Path("/proc").exists(), reason="looks at processes through Linux's /proc")
def test_children_of_a_hanging_stage_are_ended_too(runner, tmp_path):
    code = (
        "import signal, subprocess, sys, time; signal.signal(signal.SIGTERM, signal.SIG_IGN);"
        f"child = subprocess.Popen([sys.executable, '-c', 'import time; time.sleep(60)']);"
        f"open({str(tmp_path / 'pid')!r}, 'w').write(str(child.pid)); time.sleep(60)"
    )
    (result,) = runner.run(Stage("stubborn", python(code), 2))
    assert result.status == "TIMEOUT"
    pid = int((tmp_path / "pid").read_text())
    deadline = time.monotonic() + 10
    while alive(pid) and time.monotonic() < deadline:
        time.sleep(0.05)
    assert not alive(pid)


def test_stages_side_by_side_and_the_time_of_all(runner, tmp_path):
    waits_for_all = (  # one after the other, the first would wait in vain
        "import pathlib, sys, time; here = pathlib.Path({here!r}); (here / '{name}').touch()\n"
        "while len(list(here.glob('s?'))) < 3: time.sleep(0.01)"
    )
    stages = [Stage(f"s{i}", python(waits_for_all.format(here=str(tmp_path), name=f"s{i}")), 30) for i in range(3)]
    assert {r.status for r in runner.run(*stages)} == {"PASS"}
    short = Runner(tmp_path / "run", tmp_path / "short", 1.5, say=lambda line: None)
    (cut,) = short.run(Stage("long", python("import time; time.sleep(60)"), 60))
    (late,) = short.run(Stage("late", python("pass"), 60))
    assert cut.status == "TIMEOUT"
    assert (late.status, late.remark) == ("NOT RUN", "no time is left")


def test_a_verdict_may_fail_a_stage_that_ended_well(runner):
    (result,) = runner.run(Stage("s", python("pass"), 30, verdict=lambda status: (False, "nothing was built")))
    assert (result.status, result.remark) == ("FAIL", "nothing was built")
    (result,) = runner.run(Stage("t", python("pass"), 30, verdict=lambda status: 1 / 0))
    assert "cannot be read (ZeroDivisionError" in result.remark


SKIP = "import pytest\ndef test_skip(): pytest.skip('late')\n"
OK = "def test_ok(): pass\n"
BAD_ROW = "import pytest\n@pytest.fixture\ndef f():\n    yield\n    pytest.fail('row')\ndef test_row(f): pass\n"


@pytest.mark.parametrize(
    ("body", "skips_fail", "passes", "remark"),
    [
        (OK + "def test_b(): pass", True, True, "2 passed, 0 failed, 0 skipped"),
        (OK + "def test_b(): assert 0", False, False, "1 passed, 1 failed, 0 skipped; first: test_x.test_b"),
        (SKIP, False, False, "0 passed, 0 failed, 1 skipped; late"),
        (OK + SKIP, False, True, "1 passed, 0 failed, 1 skipped"),
        (OK + SKIP, True, False, "1 skipped; late"),
        ("import no_such_module", False, False, "1 failed"),
        ("", False, False, "0 passed"),
        (BAD_ROW, True, False, "0 passed, 1 failed"),
    ],
    ids=["pass", "fail", "skip", "some skip", "skips fail", "import error", "none", "error at the end"],
)
def test_pytest_stages_pass_only_if_something_passed(runner, tmp_path, body, skips_fail, passes, remark):
    (tmp_path / "test_x.py").write_text(body)
    report = tmp_path / "report.xml"
    verdict = pytest_verdict(report, skips_fail)
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", f"--junitxml={report}"]
    command += ["--rootdir", str(tmp_path), str(tmp_path)]
    alone = {"PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1"}  # a start in a tenth of the time
    (result,) = runner.run(Stage("s", command, 60, alone, verdict=verdict))
    assert (result.status == "PASS") == passes
    assert remark in result.remark


# --- the check itself -------------------------------------------------------------------------------------------------
NO_GPU = pytest.mark.skipif(torch.cuda.is_available(), reason="this machine has a GPU")


def run_check(*arguments: str, out: Path, **options) -> subprocess.Popen:
    environment = {**os.environ, "OUT": str(out)}
    command = [sys.executable, str(ROOT / "tools" / "gpu_check.py"), "--work", str(out.parent / "work"), *arguments]
    return subprocess.Popen(
        command, env=environment, cwd=out.parent, text=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, **options
    )


@NO_GPU
def test_without_a_gpu_it_says_so_and_runs_nothing_that_needs_one(tmp_path):
    process = run_check("--skip", "build", out=tmp_path / "out")
    said, _ = process.communicate(timeout=120)
    assert process.returncode == 3
    assert "no GPU: torch" in said.splitlines()[0]
    assert "Traceback" not in said
    assert said.rstrip().splitlines()[-1].endswith("what needs one was not run")
    summary = (tmp_path / "out" / "summary.txt").read_text()
    for name in ("tests", "memcheck", "racecheck", "attention", "pixels", "encoder", "mae", "pretrain"):
        (row,) = (line for line in summary.splitlines() if line.startswith(f"{name} "))
        assert "NOT RUN" in row
        assert "no GPU" in row
    with tarfile.open(tmp_path / "out" / "results.tar.gz") as tar:
        assert any(name.startswith("benchmarks/results/") for name in tar.getnames())


def test_stages_are_named_in_an_error(tmp_path):
    process = run_check("--only", "biuld", out=tmp_path / "out")
    said, _ = process.communicate(timeout=120)
    assert process.returncode == 2
    assert "there is no stage biuld; there are build, doctor, tests" in said


def test_what_was_built_before_serves_a_check_without_a_build(tmp_path):
    """Making the plan must not remove it: `--only table` found nothing built after every build."""
    core = tmp_path / "work" / "site" / "hdxray_fast" / "_core.so"
    core.parent.mkdir(parents=True)
    core.touch()
    process = run_check("--only", "table", out=tmp_path / "out")
    said, _ = process.communicate(timeout=120)
    assert core.exists()
    assert "--- table" in said, said  # it was started
    assert "needs what did not pass" not in said


def test_a_build_starts_without_what_was_built_before(runner, tmp_path, monkeypatch):
    monkeypatch.setattr(gpu_check.Check, "probe", lambda self: {"error": "not asked"})
    check = gpu_check.Check(tmp_path, tmp_path / "out")
    core = check.site / "hdxray_fast" / "_core.so"
    core.parent.mkdir(parents=True)
    core.touch()
    stage = check.build()
    assert core.exists()
    stage.command = python("pass")
    (result,) = runner.run(stage)
    assert (result.status, result.remark) == ("FAIL", "no core was built")


def test_a_report_of_tests_goes_when_they_start_and_not_when_they_are_planned(runner, tmp_path, monkeypatch):
    monkeypatch.setattr(gpu_check.Check, "probe", lambda self: {"error": "not asked"})
    check = gpu_check.Check(tmp_path, tmp_path / "out")
    report = check.logs / "tests.xml"
    report.parent.mkdir(parents=True, exist_ok=True)
    report.write_text("<testsuites/>")
    stage = check.tests()
    assert report.exists()
    stage.command, stage.needs, stage.blocked = python("pass"), (), None
    (result,) = runner.run(stage)
    assert (result.status, result.remark) == ("FAIL", "pytest wrote no report")


def test_a_bar_within_its_noise_is_said(tmp_path):
    figures = {"ours": {"q25": 0.99, "q75": 1.01, "rounds": 5}, "rival": {"name": "eager", "failed": "failed: memory"}}
    noisy = {"name": "eager", "q25": 1.0, "q75": 1.02, "rounds": 5}
    head = {"case": "step", "device": {"name": "GPU 1"}, "bar": 1.0}
    rows = [{**head, **figures, "ratio": None, "bar_met": None}]
    rows.append({**head, **figures, "rival": noisy, "ratio": 1.01, "bar_met": True})
    (tmp_path / "gpu-1").mkdir()
    (tmp_path / "gpu-1" / "gpu_mae.json").write_text(json.dumps({"rows": rows}))
    assert gpu_check.ratios("GPU 1", tmp_path) == [
        "step: no ratio eager, bar 1x not known",
        "step: 1.01x eager, bar 1x within its noise: 0.990 to 1.030",
    ]


def test_a_python_without_torch_is_named(tmp_path):
    check = gpu_check.Check(tmp_path, tmp_path / "out", python=str(tmp_path / "no-python"))
    assert check.no_gpu.startswith("no GPU: torch cannot be imported")
    assert all(stage.blocked for batch in check.plan(tune=True) for stage in batch if stage.name in ("tests", "tune"))


def check_pretrain(check: gpu_check.Check, stage: Stage) -> None:
    """One run among other stages and all of them alone; packages that it needs are named before it begins."""
    assert stage.limit <= 140
    assert int(stage.env["HDXRAY_BENCH_SECONDS"]) + 90 <= stage.limit  # what begins last can end
    alone = {s.name: s for batch in check.plan(tune=False, only=["pretrain"]) for s in batch}["pretrain"]
    assert int(alone.env["HDXRAY_BENCH_SECONDS"]) + 90 <= alone.limit < gpu_check.TOTAL
    check.found = {**check.found, "accelerate": False, "psutil": False}
    blocked = check.pretrain(alone=True).blocked
    assert blocked == "accelerate, psutil missing; training needs the extra train"


def test_training_is_looked_for_in_the_python_at_hand(tmp_path):
    check = gpu_check.Check(tmp_path, tmp_path / "out")
    for name in gpu_check.TRAINING:
        assert check.found[name] == (importlib.util.find_spec(name) is not None)


def test_a_gpu_that_is_there_decides_what_is_compiled_for(tmp_path, monkeypatch):
    found = {"torch": "2.11", "built": "13.0", "gpu": True, "name": "NVIDIA H100", "capability": "90"}
    found |= dict.fromkeys(("xdist", "timeout", "benchmark", *gpu_check.TRAINING), True)
    monkeypatch.setattr(gpu_check.Check, "probe", lambda self: found)
    check = gpu_check.Check(tmp_path, tmp_path / "out")
    assert check.no_gpu is None
    plan = {stage.name: stage for batch in check.plan(tune=True) for stage in batch}
    assert not [stage.name for stage in plan.values() if stage.blocked]
    assert "--config-settings=cmake.define.HDXRAY_CUDA_ARCHITECTURES=80;90" in plan["build"].command
    assert {"--no-index", "--no-deps", "--no-build-isolation"} <= set(plan["build"].command)
    assert "-n" in plan["tests"].command
    assert plan["memcheck"].command[:3] == ["compute-sanitizer", "--tool", "memcheck"]
    assert "not attention" in plan["racecheck"].command
    assert str(ROOT / "tests" / "gpu" / "test_gpu_small.py") in plan["memcheck"].command
    assert plan["mae"].env["HDXRAY_BENCH"] == "quick"
    assert [n for n, s in plan.items() if s.optional] == ["mae_compiled"]
    check_pretrain(check, plan["pretrain"])
    order = list(plan)
    assert order.index("tune") < order.index("attention") < order.index("backends") < order.index("mae")
    for stage in plan.values():
        assert stage.env["PYTHONPATH"].split(os.pathsep)[0] == str(tmp_path / "site")
        for word in stage.command:
            if word.startswith(str(ROOT)) and word.endswith(".py"):
                assert Path(word).is_file(), word


@pytest.mark.skipif(not hasattr(signal, "SIGTERM") or sys.platform == "win32", reason="needs signals")
def test_an_interrupted_check_keeps_what_it_has(tmp_path):
    process = run_check("--only", "build", out=tmp_path / "out", start_new_session=True)
    for line in process.stdout:
        if line.startswith("--- build"):
            break
    time.sleep(1)
    process.send_signal(signal.SIGTERM)
    said, _ = process.communicate(timeout=60)
    assert process.returncode != 0
    assert "interrupted" in (tmp_path / "out" / "summary.txt").read_text()
    assert "Traceback" not in said


@pytest.mark.slow
@NO_GPU
def test_a_machine_without_a_gpu_builds_and_runs_the_doctor(tmp_path, monkeypatch):
    monkeypatch.setenv("SKBUILD_CMAKE_BUILD_TYPE", "Debug")  # in a third of the time
    pytest.importorskip("scikit_build_core", reason="the build back end is not installed")
    pytest.importorskip("pybind11", reason="pybind11 is not installed")
    process = run_check(out=tmp_path / "out")
    said, _ = process.communicate(timeout=1300)
    assert process.returncode == 3, said
    summary = (tmp_path / "out" / "summary.txt").read_text()
    status = {line.split()[0]: line.split()[1] for line in summary.splitlines()[2:] if line.split()}
    assert status["build"] == "PASS", said
    assert status["doctor"] == "PASS", said
    assert status["table"] == "PASS", said
    assert str(tmp_path / "work" / "site") in (tmp_path / "work" / "logs" / "doctor.log").read_text()
