"""Batch after batch through a model: nothing waits for a batch; precision, and compiling where it pays."""

from __future__ import annotations

from types import SimpleNamespace

import numpy as np
import pytest
import torch
from no_waits import Waited, late_order, stand_in
from torch import nn
from torch._dynamo.exc import BackendCompilerFailed
from torch._dynamo.testing import CompileCounter

import hdxray_fast as hx
from hdxray_fast.classify.classifier import Classifier, ClassifierConfig
from hdxray_fast.classify.config import FinetuneConfig
from hdxray_fast.classify.evaluation import predict
from hdxray_fast.classify.selection import predict_rows
from hdxray_fast.features.embedding import PooledFeatures
from hdxray_fast.models import inference
from hdxray_fast.models.encoder import Encoder
from hdxray_fast.models.inference import Inference, find_precision, one_late
from hdxray_fast.models.inputs import as_batch, encoder_inputs, sent_batch

CPU = torch.device("cpu")


@pytest.fixture
def images():
    rng = np.random.default_rng(0)
    return [rng.integers(0, 256, (150, 90 + 20 * i), dtype=np.uint8) for i in range(5)]


@pytest.fixture
def files(images, tmp_path):
    cv2 = pytest.importorskip("cv2")
    paths = [tmp_path / f"{i}.png" for i in range(len(images))]
    assert all(cv2.imwrite(str(path), image) for path, image in zip(paths, images, strict=True))
    return paths


def small(**options) -> Encoder:
    torch.manual_seed(1)
    options = {"img_size": 64, "depth": 2, "embed_dim": 48, "num_heads": 3, "contour": "rectangle", **options}
    return hx.create_encoder("vit_tiny_patch16", **options).eval()


def classifier(head: str, **options) -> Classifier:
    encoder = small(**options)
    return Classifier(encoder, ClassifierConfig(["a", "b"], head=head, contour="rectangle")).eval()


@pytest.mark.parametrize("there", [False, True])
def test_a_cpu_without_bf16_instructions_is_told_of(there, monkeypatch, recwarn):
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: {"avx2": True, "avx512_bf16": there}, raising=False)
    for precision in ("auto", "fp32", "bf16"):
        find_precision(precision, torch.device("cpu"))
    assert [str(one.message) for one in recwarn] == [
        "precision: this CPU has no bf16 instructions, fp32 is several times as fast"
    ] * (not there)


@pytest.mark.parametrize("keep", ["all", "valid", "contour"])
@pytest.mark.parametrize("pool", ["cls", "mean", "attention"])
def test_embed_waits_for_no_batch(images, monkeypatch, keep, pool):
    encoder = small(keep=keep, pool=pool)
    expected = hx.embed(images, encoder, batch_size=2)
    with stand_in(monkeypatch) as device:
        found = hx.embed(images, encoder, batch_size=2)
    assert device.events == late_order(3)
    np.testing.assert_array_equal(found.features, expected.features)
    np.testing.assert_array_equal(found.kept, expected.kept)
    assert found.sources == expected.sources


@pytest.mark.parametrize("normalisation", ["per_image", (0.5, 0.25)])
def test_tensors_are_embedded_without_a_wait(monkeypatch, normalisation):
    encoder = small(keep="contour", normalisation=normalisation)
    pixels = torch.randint(0, 256, (5, 1, 64, 64), dtype=torch.uint8)
    expected = hx.embed(pixels, encoder, batch_size=2).features
    with stand_in(monkeypatch) as device:
        found = hx.embed(pixels, encoder, batch_size=2).features
    assert device.events == late_order(3)
    np.testing.assert_array_equal(found, expected)


@pytest.mark.parametrize("head", ["linear", "attention", "label-query"])
def test_predict_waits_for_no_batch(files, monkeypatch, head):
    model = classifier(head, keep="contour")
    expected = predict(files, model, batch_size=2)
    with stand_in(monkeypatch) as device:
        found = predict(files, model, batch_size=2)
    assert device.events == late_order(3)
    np.testing.assert_array_equal(found.probabilities, expected.probabilities)


def test_a_table_waits_for_no_batch(files, tmp_path, monkeypatch):
    """The features of a probe."""
    parquet = pytest.importorskip("pyarrow.parquet")
    encoder = small(keep="contour")
    hx.embed_files(files, tmp_path / "a.parquet", encoder, batch_size=2, progress=False)
    with stand_in(monkeypatch) as device:
        hx.embed_files(files, tmp_path / "b.parquet", encoder, batch_size=2, progress=False)
    assert device.events == late_order(3)
    assert parquet.read_table(tmp_path / "a.parquet").equals(parquet.read_table(tmp_path / "b.parquet"))


class Labelled(torch.utils.data.Dataset):
    """Samples as validation reads them, the fourth of which cannot be read."""

    def __init__(self, images: list[np.ndarray]) -> None:
        from hdxray_fast.data.radiographs import read_radiograph

        self.batches = [as_batch([read_radiograph(image, "", 64, 16, "rectangle")]) for image in images]

    def __len__(self) -> int:
        return len(self.batches)

    def __getitem__(self, key: tuple[int, int]) -> dict:
        _, row = key
        sample = {name: tensor[0] for name, tensor in self.batches[row].items()}
        return {
            **sample,
            "index": torch.tensor(row),
            "readable": torch.tensor(row != 3),
            "error": "" if row != 3 else "!",
        }


def test_validation_waits_for_no_batch(images, monkeypatch, tmp_path):
    model, dataset, unreadable = classifier("attention", keep="contour"), Labelled(images), []
    config = FinetuneConfig(data="labels.csv", out=str(tmp_path), batch_size=2)

    def run():
        return predict_rows(None, model, dataset, config, lambda batch: unreadable.append(batch["error"]))

    rows, logits = run()
    with stand_in(monkeypatch) as device:
        late_rows, late_logits = run()
    assert device.events == late_order(3)
    assert rows.tolist() == late_rows.tolist() == [0, 1, 2, 4]
    np.testing.assert_array_equal(logits, late_logits)
    assert unreadable == [["", "!"]] * 2


def test_processes_share_batches_and_have_the_logits_of_one(images, monkeypatch, tmp_path):
    """To the last bit; whoever has a batch less meets the others in one that nobody counts."""
    utils = pytest.importorskip("accelerate.utils")
    monkeypatch.setattr(utils, "gather_object", lambda part: part)
    model, dataset = classifier("attention", keep="contour"), Labelled(images)
    config = FinetuneConfig(data="labels.csv", out=str(tmp_path), batch_size=2)

    def rows_of(accelerator):
        unreadable = []
        rows, logits = predict_rows(accelerator, model, dataset, config, lambda batch: unreadable.append(batch))
        return rows.tolist(), logits, len(unreadable)

    whole, parts = rows_of(None), [rows_of(SimpleNamespace(process_index=rank, num_processes=2)) for rank in (0, 1)]
    assert [rows for rows, _, _ in parts] == [[0, 1, 4], [2]] and whole[0] == [0, 1, 2, 4]
    place = [whole[0].index(row) for rows, _, _ in parts for row in rows]
    np.testing.assert_array_equal(np.concatenate([logits for _, logits, _ in parts]), whole[1][place])
    assert [bad for *_, bad in parts] == [0, 1]


def test_the_stand_in_tells_of_waits(images, monkeypatch):
    """What the loops did before: plans of grids on the device, and answers looked at at once."""
    from hdxray_fast.data.radiographs import read_radiograph

    encoder = small(keep="contour")
    batch = as_batch([read_radiograph(image, "", 64, 16, "rectangle") for image in images])
    with stand_in(monkeypatch) as device, torch.no_grad():
        there = device.sent_batch(batch, CPU)
        answer = encoder.encode(*encoder_inputs(encoder, there)).values
        for look in (torch.Tensor.cpu, torch.Tensor.tolist, torch.Tensor.numpy, lambda t: bool(t.isfinite().all())):
            with pytest.raises(Waited):
                look(answer)
        with pytest.raises(Waited):
            answer[0, 0].item()
        with pytest.raises(Waited):
            answer.nonzero()
        grids = {name: device.sent(batch[name], CPU) for name in ("inside", "valid")}
        with pytest.raises(Waited):
            encoder_inputs(encoder, {**there, **grids})


def test_plans_stay_where_they_are_made(images):
    from hdxray_fast.data.radiographs import read_radiograph

    batch = as_batch([read_radiograph(image, "", 64, 16, "rectangle") for image in images])
    moved = sent_batch({**batch, "error": ["x"]}, torch.device("meta"))
    assert {name: value.device.type for name, value in moved.items() if name != "error"} == {
        "pixels": "meta", "scale": "meta", "shift": "meta", "inside": "cpu", "valid": "cpu",
    }  # fmt: skip
    assert moved["error"] == ["x"]


def test_on_the_cpu_an_answer_is_there_at_once():
    asked = []

    def compute(number: int) -> tuple:
        asked.append(number)
        return (torch.tensor(number),)

    for number, (found,) in one_late(range(3), compute, CPU):
        assert asked[-1] == number == int(found)
    assert list(one_late([], compute, CPU)) == []


def test_precision_and_compile_are_words():
    assert (find_precision("auto", CPU), find_precision("bf16", CPU)) == ("fp32", "bf16")
    with pytest.raises(hx.ArgumentError, match=r"^precision: got 'fp8', accepted are 'auto', 'fp32', 'bf16'"):
        hx.embed(np.zeros((9, 9), np.uint8), small(), precision="fp8")
    with pytest.raises(hx.ArgumentError, match=r"^compile: got 'yes', accepted are 'auto', 'on', 'off'"):
        hx.embed(np.zeros((9, 9), np.uint8), small(), compile="yes")


def test_bf16_is_the_autocast_of_the_encoder_and_features_stay_float32(images):
    encoder = small(keep="valid", pool="mean")
    found = hx.embed(images, encoder, precision="bf16").features
    exact = hx.embed(images, encoder).features
    assert found.dtype == np.float32
    assert not np.array_equal(found, exact)
    np.testing.assert_allclose(found, exact, rtol=0.1, atol=0.05)


def test_a_table_holds_to_its_precision(files, tmp_path):
    pytest.importorskip("pyarrow")
    encoder, out = small(), tmp_path / "features.parquet"
    hx.embed_files(files, out, encoder, progress=False)
    with pytest.raises(hx.ConfigError, match=r"other settings \(precision: fp32 -> bf16\)"):
        hx.embed_files(files, out, encoder, progress=False, precision="bf16")


def test_tables_from_before_precision_was_told_go_on(files, tmp_path):
    parquet = pytest.importorskip("pyarrow.parquet")
    import json

    encoder, out = small(), tmp_path / "features.parquet"
    hx.embed_files(files[:2], out, encoder, progress=False)
    table = parquet.read_table(out)
    told = json.loads(table.schema.metadata[b"hdxray_fast"])
    assert told.pop("precision") == "fp32"
    parquet.write_table(table.replace_schema_metadata({b"hdxray_fast": json.dumps(told).encode()}), out)
    done = hx.embed_files(files, out, encoder, progress=False)
    assert (done.rows, done.new) == (5, 3)


def through(monkeypatch, backend) -> None:
    compile_ = torch.compile
    monkeypatch.setattr(torch, "compile", lambda model: compile_(model, backend=backend, fullgraph=True))


@pytest.mark.parametrize("keep", ["all", "contour"])
def test_compiled_features_are_the_features(images, monkeypatch, keep):
    """One graph for all batches, whatever they keep; the last, smaller one goes without."""
    encoder = small(keep=keep, pool="mean")
    expected = hx.embed(images, encoder, batch_size=2, compile="off").features
    torch._dynamo.reset()
    counter = CompileCounter()
    through(monkeypatch, counter)
    found = hx.embed(images, encoder, batch_size=2, compile="on").features
    assert counter.frame_count == 1
    np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-6)


def test_one_graph_whatever_is_kept(monkeypatch):
    """Also where the longest image of a batch is in another class of sizes."""
    encoder = small(img_size=256, keep="contour", pool="mean")
    torch._dynamo.reset()
    counter = CompileCounter()
    through(monkeypatch, counter)
    model = PooledFeatures(encoder, "mean")
    ready = Inference(model, CPU, compile="on")
    ready.expect(4)
    longest = set()
    for kept in (20, 130, 256, 7):
        inside = torch.zeros(2, 16, 16, dtype=torch.bool)
        inside.view(2, -1)[:, :kept] = True
        batch = {"pixels": torch.randint(0, 256, (2, 1, 256, 256), dtype=torch.uint8), "inside": inside}
        batch |= {"valid": torch.ones_like(inside), "scale": torch.ones(2), "shift": torch.zeros(2)}
        inputs = encoder_inputs(encoder, batch)
        longest.add(inputs.plan.longest[0])
        with torch.no_grad():
            torch.testing.assert_close(ready(*inputs), model(*inputs))
    assert len(longest) == 2 and counter.frame_count == 1


def test_where_compiling_fails_it_goes_on_without_and_says_so_once(images, monkeypatch):
    def fails(graph, inputs):
        raise BackendCompilerFailed(fails, RuntimeError("no such instruction"), None)

    encoder = small()
    expected = hx.embed(images, encoder, batch_size=1).features
    torch._dynamo.reset()
    through(monkeypatch, fails)
    with pytest.warns(UserWarning, match="could not be compiled .*goes on without") as told:
        found = hx.embed(images, encoder, batch_size=1, compile="on").features
    assert len(told) == 1
    np.testing.assert_array_equal(found, expected)


@pytest.mark.parametrize(("word", "device", "images", "compiles"), [
    ("auto", "cpu", 10**6, False),
    ("auto", "cuda", inference.ENOUGH_IMAGES, True),
    ("auto", "cuda", inference.ENOUGH_IMAGES - 1, False),
    ("off", "cuda", 10**6, False),
    ("on", "cpu", 1, True),
    ("on", "cpu", 0, False),
])  # fmt: skip
def test_it_is_compiled_where_that_pays(monkeypatch, word, device, images, compiles):
    model = nn.Identity()
    monkeypatch.setattr(inference, "find_precision", lambda *_: "fp32")
    monkeypatch.setattr(nn.Module, "to", lambda self, device: self)  # this machine may have no such device
    ready = Inference(model, torch.device(device), compile=word)
    ready.expect(images)
    assert ready.compiles == compiles
