"""lightly: contrastive and distilled pre-training of the encoder, step by step that of a plain ViT."""

from __future__ import annotations

import copy

import pytest
import torch
from integrations_helpers import same


@pytest.fixture
def lightly(timm):
    return pytest.importorskip("lightly", reason="lightly is not installed: make integrations")


def learn(model, loss_of, steps: int = 3):
    optimizer = torch.optim.SGD([p for p in model.parameters() if p.requires_grad], lr=0.05)
    for _ in range(steps):
        optimizer.zero_grad()
        loss = loss_of()
        loss.backward()
        optimizer.step()
    return loss.detach()


def test_simclr(lightly, pair):
    from lightly.loss import NTXentLoss
    from lightly.models.modules import SimCLRProjectionHead

    views = [torch.rand(4, 1, 64, 64) * 2 - 1 for _ in range(2)]
    torch.manual_seed(1)
    head = SimCLRProjectionHead(32, 32, 16)
    losses = []
    for backbone in (pair.ours, pair.plain):
        model = torch.nn.Sequential(backbone, copy.deepcopy(head)).train()
        losses.append(learn(model, lambda model=model: NTXentLoss()(*(model(view) for view in views))))
    same(*losses)


def test_dino_with_a_momentum_teacher(lightly, pair):
    from lightly.loss import DINOLoss
    from lightly.models.modules import DINOProjectionHead
    from lightly.models.utils import deactivate_requires_grad, update_momentum

    views = [torch.rand(4, 1, 64, 64) * 2 - 1 for _ in range(2)]

    def with_head(backbone):
        torch.manual_seed(1)
        return torch.nn.Sequential(backbone, DINOProjectionHead(32, 32, 16, 64, batch_norm=False)).train()

    losses, teachers = [], []
    for backbone in (pair.ours, pair.plain):
        student, teacher = with_head(backbone), with_head(copy.deepcopy(backbone))
        deactivate_requires_grad(teacher)
        criterion = DINOLoss(output_dim=64, warmup_teacher_temp_epochs=1)

        def loss_of(student=student, teacher=teacher, criterion=criterion):
            update_momentum(student, teacher, m=0.9)
            targets = [teacher(view) for view in views]
            return criterion(targets, [student(view) for view in views], epoch=0)

        losses.append(learn(student, loss_of))
        teachers.append(teacher[0].eval()(views[0]))
    same(*losses)
    same(*teachers, tolerance=1e-3)


def test_its_masked_vit_is_timms_alone(lightly, timm):
    """It reads the insides of timm's own class; `hx.create_mae` is the counterpart here."""
    from lightly.models.modules import MaskedVisionTransformerTIMM

    import hdxray_fast  # noqa: F401

    options = {"img_size": 64, "in_chans": 1, "depth": 1, "embed_dim": 32, "num_heads": 2}
    masked = MaskedVisionTransformerTIMM(timm.create_model("hdxray_vit_tiny_patch16_1280", **options))
    with pytest.raises(AttributeError):
        masked.encode(torch.zeros(1, 1, 64, 64), idx_keep=torch.arange(9)[None])
