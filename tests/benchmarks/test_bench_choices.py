"""What measurements become in the package: the table of attention backends, and the kernels' configurations."""

from __future__ import annotations

import json
import math
import sys
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"
if not (BENCHMARKS / "backend_table.py").exists():
    pytest.skip("needs the project's benchmarks beside the tests", allow_module_level=True)
sys.path.insert(0, str(BENCHMARKS))

import backend_table  # noqa: E402
import tune_attention  # noqa: E402
from harness.attention_cases import Shape  # noqa: E402
from harness.gpu import HostClock  # noqa: E402

pytest.importorskip("hdxray_fast.ops.attention_table", reason="the attention has no table of backends to write")

DENSE = {"layout": "dense", "head_dim": 64, "dtype": "bfloat16", "longest": 6401, "training": True}
PACKED = {**DENSE, "layout": "packed"}
SHORT = {**PACKED, "longest": 820}


def write_results(folder: Path, device: str, *entries: list[dict], measured: str = "2027-01-01T00:00:00+00:00") -> None:
    """A results file with a row for each list of backend times."""
    rows = [
        {
            "case": f"case {n}",
            "device": {"kind": "cuda", "name": device},
            "versions": {"torch": "2.11.0", "triton": "3.6.0"},
            "measured": measured,
            "extra": {"backend_times": times, "tokens_k": n},
        }
        for n, times in enumerate(entries)
    ]
    path = folder / device.lower().replace(" ", "-") / "gpu_attention.json"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps({"bench": "gpu_attention", "rows": rows}))


def chosen(table: Path, device: str) -> dict[str, str]:
    return {name: c["backend"] for name, c in json.loads(table.read_text())[device]["choices"].items()}


# --- backends ---------------------------------------------------------------------------------------------------------
def test_the_fastest_backend_of_each_class_is_chosen(tmp_path):
    write_results(
        tmp_path,
        "GPU A",
        [
            {**DENSE, "ms": {"triton": 4.0, "flash": 5.0, "cudnn": 3.5}},
            {**PACKED, "ms": {"triton": 4.1, "varlen": 5.0}},
        ],
        [{**SHORT, "ms": {"triton": 0.5, "varlen": 0.4}}],
        [{**SHORT, "training": False, "ms": {}}],
    )
    table = tmp_path / "table.json"
    assert backend_table.merge(table, backend_table.measured(tmp_path))
    names = {backend_table.class_name(e): e for e in (DENSE, PACKED, SHORT)}
    assert len(names) == 3
    expected = dict(zip(names, ["cudnn", "triton", "varlen"], strict=True))
    assert chosen(table, "GPU A") == expected  # and nothing for the class without times
    entry = json.loads(table.read_text())["GPU A"]
    assert (entry["torch"], entry["triton"], entry["measured"][:4]) == ("2.11.0", "3.6.0", "2027")
    assert entry["choices"][backend_table.class_name(DENSE)]["ms"] == {"cudnn": 3.5, "flash": 5.0, "triton": 4.0}


def test_writing_twice_changes_nothing_and_other_devices_stay(tmp_path):
    table = tmp_path / "table.json"
    table.write_text("{}\n")
    assert not backend_table.merge(table, backend_table.measured(tmp_path))
    assert table.read_text() == "{}\n"
    write_results(tmp_path / "a", "GPU A", [{**DENSE, "ms": {"triton": 4.0, "flash": 5.0}}])
    write_results(tmp_path / "b", "GPU B", [{**DENSE, "ms": {"triton": 6.0, "flash": 5.0}}])
    assert backend_table.merge(table, backend_table.measured(tmp_path / "a"))
    assert backend_table.merge(table, backend_table.measured(tmp_path / "b"))
    text = table.read_text()
    assert not backend_table.merge(table, backend_table.measured(tmp_path / "b"))
    assert table.read_text() == text
    name = backend_table.class_name(DENSE)
    assert (chosen(table, "GPU A"), chosen(table, "GPU B")) == ({name: "triton"}, {name: "flash"})
    write_results(tmp_path / "a", "GPU A", [{**SHORT, "ms": {"triton": 1.0}}], measured="2027-02-01T00:00:00+00:00")
    assert backend_table.merge(table, backend_table.measured(tmp_path / "a"))
    assert chosen(table, "GPU A") == {name: "triton", backend_table.class_name(SHORT): "triton"}


def test_cases_of_one_class_count_together():
    cases = [{"triton": 10.0, "varlen": 11.0}, {"triton": 0.2, "varlen": 0.1}]
    assert backend_table.choice(cases)["backend"] == "varlen"  # 10 % slower in one, twice as fast in the other
    assert backend_table.choice([{"triton": 3.0, "flash": 1.0}, {"triton": 2.0}])["backend"] == "triton"  # runs in both


def test_the_packages_table_is_by_device():
    assert isinstance(json.loads(backend_table.TABLE.read_text()), dict)
    for found in json.loads(backend_table.TABLE.read_text()).values():
        assert {"measured", "torch", "triton", "choices"} <= set(found)


# --- configurations ---------------------------------------------------------------------------------------------------
@dataclass(frozen=True)
class Config:
    m: int


class FakeConfigs:
    """As hdxray_fast.ops.triton.configs, with a file of its own."""

    Config = Config
    KERNELS = ("forward", "dq")

    def __init__(self, folder: Path) -> None:
        self.MEASURED = folder / "configs_measured.json"

    def candidates(self, kernel, head_dim, dtype, arch):
        return [Config(head_dim), Config(128)]

    def measured_key(self, kernel, head_dim, dtype, longest):
        return f"{kernel} {head_dim} {dtype} {'long' if longest > 1024 else 'short'}"

    def write_measured(self, device, choices, path):
        path.write_text(json.dumps({device: {k: {"m": c.m} for k, c in choices.items()}}))


def test_choices_are_of_what_was_timed_and_keep_what_was_known(tmp_path, monkeypatch):
    configs = FakeConfigs(tmp_path)
    monkeypatch.setattr(tune_attention, "ROOT", tmp_path / "sources")
    (tmp_path / "sources" / "hdxray_fast" / "ops" / "triton").mkdir(parents=True)
    configs.MEASURED.write_text(json.dumps({"GPU A": {"forward 96 bf16 long": {"m": 7}}}))
    forward, dq, ragged = "forward, 12 x D=64, 6401 tokens", "dq, 16 x D=32, 6401 tokens", "forward, 12 x D=64, ragged"
    done = {
        forward: {'{"m": 64}': 2e-3, '{"m": 128}': 1e-3},
        dq: {'{"m": 128}': 1e-3},  # its default is not timed yet
        ragged: {'{"m": 64}': 2e-3, '{"m": 128}': "OutOfResources: shared memory"},
    }
    tune_attention.write_choices(configs, "GPU A", "sm90", done)
    expected = {"forward 64 bf16 long": {"m": 128}, "forward 64 bf16 short": {"m": 64}}
    assert json.loads(configs.MEASURED.read_text())["GPU A"] == {"forward 96 bf16 long": {"m": 7}, **expected}
    sources = tmp_path / "sources" / "hdxray_fast" / "ops" / "triton" / "configs_measured.json"
    assert json.loads(sources.read_text())["GPU A"] == expected


def test_every_candidate_of_every_shape_is_a_job_with_the_default_first(tmp_path):
    jobs = list(tune_attention.jobs(FakeConfigs(tmp_path).candidates, ("forward", "dq"), "sm90"))
    assert len(jobs) == 2 * 2 * len(tune_attention.SHAPES)
    assert [j.config.m for j in jobs[:4]] == [64, 128, 64, 128]
    assert jobs[0].key == '{"m": 64}'


def test_a_wrong_configuration_is_not_timed():
    right = (torch.ones(4), torch.arange(4.0))
    assert tune_attention.seconds_of(lambda i: right, right, HostClock()) >= 0
    for wrong in ((torch.ones(4), torch.zeros(4)), (torch.full((4,), math.nan), torch.arange(4.0))):
        with pytest.raises(ArithmeticError, match="wrong result"):
            tune_attention.seconds_of(lambda i, wrong=wrong: wrong, right, HostClock())


def test_shapes_are_those_of_the_models():
    shapes = [make() for make in tune_attention.SHAPES.values()]
    assert [(s.heads, s.head_dim, s.max_q > 1024) for s in shapes] == [(12, 64, True), (16, 32, True), (12, 64, False)]
    assert all(isinstance(s, Shape) and s.dtype is torch.bfloat16 for s in shapes)


@pytest.mark.skipif(torch.cuda.is_available(), reason="this machine has a GPU")
def test_tuning_without_a_gpu_says_so(monkeypatch):
    monkeypatch.setattr(sys, "argv", ["tune_attention.py"])
    with pytest.raises(SystemExit, match="tuning needs a GPU"):
        tune_attention.main()
