"""lightning: a backbone in a LightningModule trains, resumes, is unfrozen and averaged as a plain ViT is."""

from __future__ import annotations

import copy
import warnings

import pytest
import torch
from integrations_helpers import same
from torch import nn


@pytest.fixture
def lightning(timm):
    return pytest.importorskip("lightning", reason="lightning is not installed: make integrations")


@pytest.fixture
def loader():
    data = torch.utils.data.TensorDataset(torch.rand(8, 1, 64, 64) * 2 - 1, torch.randint(0, 3, (8,)))
    return torch.utils.data.DataLoader(data, batch_size=2)


def module(lightning, backbone):
    class Classify(lightning.LightningModule):
        def __init__(self):
            super().__init__()
            self.backbone = backbone
            torch.manual_seed(3)
            self.head = nn.Linear(32, 3)
            self.example_input_array = torch.zeros(1, 1, 64, 64)

        def forward(self, images):
            return self.head(self.backbone(images))

        def training_step(self, batch, index):
            loss = nn.functional.cross_entropy(self(batch[0]), batch[1])
            self.log("loss", loss)
            return loss

        def predict_step(self, batch, index):
            return self(batch[0])

        def configure_optimizers(self):
            learned = [parameter for parameter in self.parameters() if parameter.requires_grad]
            return torch.optim.SGD(learned, lr=0.05)

    return Classify()


def trainer(lightning, folder, **options):
    warnings.filterwarnings("ignore", module="lightning")
    return lightning.Trainer(
        accelerator="cpu", logger=False, enable_progress_bar=False, default_root_dir=folder, **options
    )


@pytest.mark.parametrize("precision", ["32-true", "bf16-mixed"])
def test_training_is_that_of_a_plain_vit(lightning, pair, loader, tmp_path, precision):
    logits = []
    for backbone in (pair.ours, pair.plain):
        model = module(lightning, backbone.train())
        run = trainer(lightning, tmp_path, max_epochs=2, precision=precision, accumulate_grad_batches=2)
        run.fit(model, loader)
        assert run.global_step == 4
        logits.append(torch.cat(run.predict(model, loader)).float())
    same(*logits, tolerance=1e-3 if precision == "32-true" else 0.05)


def test_a_checkpoint_resumes(lightning, pair, loader, tmp_path):
    straight = module(lightning, copy.deepcopy(pair.ours))
    trainer(lightning, tmp_path / "a", max_epochs=2, enable_checkpointing=False).fit(straight, loader)
    first = module(lightning, copy.deepcopy(pair.ours))
    run = trainer(lightning, tmp_path / "b", max_epochs=1)
    run.fit(first, loader)
    run.save_checkpoint(tmp_path / "half.ckpt")
    second = module(lightning, copy.deepcopy(pair.ours))
    trainer(lightning, tmp_path / "c", max_epochs=2, enable_checkpointing=False).fit(
        second, loader, ckpt_path=tmp_path / "half.ckpt"
    )
    for ours, other in zip(straight.parameters(), second.parameters(), strict=True):
        torch.testing.assert_close(ours, other, rtol=0, atol=0)


def test_a_frozen_backbone_is_unfrozen_but_for_its_fixed_positions(lightning, loader, tmp_path):
    from lightning.pytorch.callbacks import BackboneFinetuning

    import hdxray_fast as hx

    encoder = hx.create_encoder("vit_tiny_patch16", img_size=64, depth=2, embed_dim=32, num_heads=2, pool="mean")
    before = copy.deepcopy(encoder)
    model = module(lightning, encoder)
    unfreeze = BackboneFinetuning(unfreeze_backbone_at_epoch=1, backbone_initial_lr=0.05, verbose=False)
    trainer(lightning, tmp_path, max_epochs=2, callbacks=[unfreeze], enable_checkpointing=False).fit(model, loader)
    assert torch.equal(encoder.pos_embed, before.pos_embed)
    assert not torch.equal(encoder.blocks[0].mlp.fc1.weight, before.blocks[0].mlp.fc1.weight)


def test_the_summary_counts_what_a_plain_vits_does(lightning, pair):
    from lightning.pytorch.utilities.model_summary import ModelSummary

    counts = []
    for backbone in (pair.ours, pair.plain):
        summary = ModelSummary(module(lightning, backbone), max_depth=1)
        assert summary.out_sizes[0] == [1, 32]
        counts.append(summary.total_parameters)
    assert counts[0] == counts[1]


def test_averaged_weights(lightning, pair, loader, tmp_path):
    from lightning.pytorch.callbacks import StochasticWeightAveraging

    logits = []
    for backbone in (pair.ours, pair.plain):
        model = module(lightning, backbone)
        average = StochasticWeightAveraging(swa_lrs=0.01, swa_epoch_start=1)
        trainer(lightning, tmp_path, max_epochs=3, callbacks=[average], enable_checkpointing=False).fit(model, loader)
        with torch.no_grad():
            logits.append(model.eval()(next(iter(loader))[0]))
    same(*logits, tolerance=1e-3)
