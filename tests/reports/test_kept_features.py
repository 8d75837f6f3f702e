"""What a frozen encoder makes of radiographs: nothing waits for a batch of it, and what is kept is what it gives."""

from __future__ import annotations

from contextlib import nullcontext
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from no_waits import late_order, stand_in
from report_model_makers import ENGLISH, small_encoder

pytest.importorskip("transformers")

from hdxray_fast.data.radiographs import read_radiograph
from hdxray_fast.models.inputs import as_batch
from hdxray_fast.reports.features import FeatureStore
from hdxray_fast.reports.model import create_report_model
from hdxray_fast.reports.model_config import ReportModelConfig
from hdxray_fast.reports.text_tokenizers import train_tokenizer

CPU = torch.device("cpu")
SMALL = {"width": 48, "heads": 4, "ffn": 48, "layers": 1, "visual_tokens": 4, "max_length": 20}


class Radiographs(torch.utils.data.Dataset):
    """As :class:`hdxray_fast.data.radiograph_dataset.RadiographDataset` gives them."""

    def __init__(self, size: int, patch_size: int) -> None:
        rng = np.random.default_rng(0)
        arrays = [rng.integers(0, 256, (90, 60 + 20 * i), dtype=np.uint8) for i in range(5)]
        self.batches = [as_batch([read_radiograph(array, "", size, patch_size)]) for array in arrays]
        self.images = SimpleNamespace(key="image {}".format)

    def __getitem__(self, key: tuple[int, int]) -> dict[str, torch.Tensor]:
        sample = {name: tensor[0] for name, tensor in self.batches[key[1]].items()}
        return {**sample, "index": torch.tensor(key[1]), "draw": torch.tensor(key[1])}


@pytest.mark.parametrize("keep", ["all", "contour"])
@pytest.mark.parametrize("pool", ["grid", "attention"])
def test_features_are_kept_without_a_wait(tmp_path, monkeypatch, pool, keep):
    torch.manual_seed(1)
    tokenizer = train_tokenizer(ENGLISH, "word", min_frequency=1, min_patients=1, digits=True)
    config = ReportModelConfig(**SMALL, pool=pool, keep=keep)
    model = create_report_model(small_encoder(), tokenizer, config).eval()
    images = Radiographs(model.encoder.img_size[0], model.encoder.patch_size)
    store = FeatureStore(tmp_path / "features", images, model)
    done: list[int] = []
    with stand_in(monkeypatch) as device:
        assert store.fill(model, [4, 0, 1, 2, 3], CPU, nullcontext, lambda: done.append(1), batch_size=2) == 5
        assert device.events == late_order(3)
    assert len(done) == 5
    assert store.fill(model, range(5), CPU, nullcontext, lambda: done.append(1)) == 0

    for number in range(5):
        kept = store.load(number)
        with torch.no_grad():
            inputs = model.inputs(images.batches[number])
            tokens = model.encoder.encode(**inputs)
            if pool == "grid":
                (expected,), (known,) = model.resample(tokens, inputs["plan"])
                assert torch.equal(kept["known"], known)
            else:
                expected = tokens.values
                assert torch.equal(kept["ids"], inputs["plan"].keep_ids)
        assert kept["values"].dtype == torch.float16
        torch.testing.assert_close(kept["values"].float(), expected, rtol=2e-3, atol=2e-3)
