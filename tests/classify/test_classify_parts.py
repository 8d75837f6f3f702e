"""What fine-tuning is made of: losses over known labels, class weights, stochastic depth, learning rates by layer."""

from __future__ import annotations

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from cache_helpers import cached
from full_disk import files_no_larger_than

import hdxray_fast as hx
from hdxray_fast.classify.batches import mix_labels, mix_pixels
from hdxray_fast.classify.classifier import Classifier, ClassifierConfig
from hdxray_fast.classify.config import FinetuneConfig
from hdxray_fast.classify.data import LabelledRadiographs, SetAside
from hdxray_fast.classify.layer_decay import layer_decay_groups
from hdxray_fast.classify.loss import class_weights, classification_loss, known_labels
from hdxray_fast.classify.selection import BestModel
from hdxray_fast.data.augment import Augmentation
from hdxray_fast.errors import CheckpointError
from hdxray_fast.models.inputs import encoder_inputs, view_of
from hdxray_fast.models.layers import Block, drop_path
from hdxray_fast.ops.view import view_images_ref

NAN = float("nan")


def test_loss_is_pytorchs_over_the_known_labels():
    logits = torch.randn(5, 3)
    labels = torch.tensor([[1, 0, NAN], [0, NAN, NAN], [1, 1, 1], [0, 0, 0], [NAN, 1, 0]])
    weights = torch.tensor([2.0, 0.5, 1.0])
    known = ~labels.isnan()
    assert int(known_labels(labels, False)) == int(known.sum()) == 11
    expected = F.binary_cross_entropy_with_logits(logits[known], labels[known])
    torch.testing.assert_close(classification_loss(logits, labels), expected)
    each = F.binary_cross_entropy_with_logits(logits, labels.nan_to_num(), pos_weight=weights, reduction="none")
    torch.testing.assert_close(classification_loss(logits, labels, weights=weights), each[known].mean())
    half = torch.full((5, 3), 0.3)  # mixup
    torch.testing.assert_close(classification_loss(logits, half), F.binary_cross_entropy_with_logits(logits, half))


def test_loss_of_exclusive_classes_is_cross_entropy():
    logits = torch.randn(4, 3)
    kind = torch.tensor([0, 2, 1, 2])
    labels = F.one_hot(kind, 3).float()
    torch.testing.assert_close(classification_loss(logits, labels, True), F.cross_entropy(logits, kind))
    labels[1] = NAN
    assert int(known_labels(labels, True)) == 3
    seen = [0, 2, 3]
    torch.testing.assert_close(classification_loss(logits, labels, True), F.cross_entropy(logits[seen], kind[seen]))


@pytest.mark.parametrize("multiclass", [False, True])
def test_a_batch_without_labels_has_no_loss_and_no_gradient(multiclass):
    logits = torch.randn(2, 3, requires_grad=True)
    loss = classification_loss(logits, torch.full((2, 3), NAN), multiclass)
    assert loss.item() == 0
    loss.backward()
    assert torch.equal(logits.grad, torch.zeros(2, 3))


def test_class_weights():
    labels = np.array([[1, 0], [0, 0], [0, NAN], [0, 1]], np.float32)
    np.testing.assert_allclose(class_weights(labels), [3, 2])
    exclusive = np.eye(3, dtype=np.float32)[[0, 0, 0, 1, 2, 2]]
    from sklearn.utils.class_weight import compute_class_weight

    kinds = exclusive.argmax(1)
    expected = compute_class_weight("balanced", classes=np.arange(3), y=kinds)
    np.testing.assert_allclose(class_weights(exclusive, True), expected, rtol=1e-6)
    assert class_weights(np.zeros((10**4, 1), np.float32)) == 100  # bounded, whatever the imbalance


def test_stochastic_depth_drops_whole_images_and_keeps_the_mean():
    cu_seqlens = torch.tensor([0, 4, 4, 11, 12], dtype=torch.int32)
    rows = torch.ones(12, 3)
    total = torch.zeros(12, 3)
    for _ in range(400):
        dropped = drop_path(rows, 0.25, cu_seqlens)
        for first, last in ((0, 4), (4, 11), (11, 12)):
            assert len(dropped[first:last].unique()) == 1
        total += dropped
    assert (total / 400 - 1).abs().max() < 0.15
    dense = drop_path(torch.ones(64, 2, 3), 0.5, None)
    assert set(dense.flatten().tolist()) == {0.0, 2.0}
    assert (dense.flatten(1).std(1) == 0).all()


def test_stochastic_depth_keeps_the_images_it_is_told_to():
    torch.manual_seed(0)
    encoder = hx.create_encoder("vit_tiny_patch16", img_size=64, depth=3, embed_dim=24, num_heads=3).train()
    encoder.set_drop_path(0.5)
    images, keep = torch.rand(4, 1, 64, 64), torch.ones(3, 2, 4, dtype=torch.bool)
    keep[1:, :, 0] = False  # the first image goes through the first block alone
    keep[2, 1, 1] = False
    told = encoder.encode(images, drop_path_keep=keep).values.unflatten(0, (4, -1))
    for checkpointed in (False, True):
        encoder.set_grad_checkpointing(checkpointed)
        alone = [encoder.encode(images[i : i + 1], drop_path_keep=keep[:, :, i : i + 1]).values for i in range(4)]
        torch.testing.assert_close(torch.stack(alone), told)
    first = encoder.blocks[0](encoder.add_prefix(encoder.patch_embed(patches_of(images[:1]))))
    torch.testing.assert_close(told[:1], encoder.norm(first))
    torch.testing.assert_close(encoder.eval().encode(images, drop_path_keep=keep), encoder.encode(images))


def patches_of(images: torch.Tensor) -> torch.Tensor:  # [B, 1, 64, 64] -> [B, 16, 256]
    return images.unfold(2, 16, 16).unfold(3, 16, 16).flatten(4).flatten(1, 3)


def test_stochastic_depth_is_for_training_alone():
    block = Block(24, 3, 2.0)
    x, cu_seqlens = torch.randn(7, 24), torch.tensor([0, 3, 7], dtype=torch.int32)
    expected = block.eval()(x, cu_seqlens, 4)
    block.drop_path = 0.9
    torch.testing.assert_close(block(x, cu_seqlens, 4), expected)
    torch.manual_seed(0)
    assert not torch.allclose(block.train()(x, cu_seqlens, 4), expected)
    encoder = hx.create_encoder("vit_tiny_patch16", img_size=64, depth=3, embed_dim=24, num_heads=3)
    names = set(encoder.state_dict())
    encoder.set_drop_path(0.4)
    assert [block.drop_path for block in encoder.blocks] == [0, 0.2, 0.4]
    assert set(encoder.state_dict()) == names
    with pytest.raises(hx.ArgumentError, match=r"^drop_path: "):
        encoder.set_drop_path(1.0)


def small_classifier(head="linear", classes=("a", "b"), text=None, **settings) -> Classifier:
    encoder = hx.create_encoder("vit_tiny_patch16", img_size=64, depth=2, embed_dim=24, num_heads=3, **settings)
    return Classifier(encoder, ClassifierConfig(list(classes), head=head), text)


@pytest.mark.parametrize("head", ["linear", "attention", "label-query"])
def test_learning_rates_fall_towards_the_input(head):
    model = small_classifier(head, learned_positions=True)
    groups = layer_decay_groups(model.encoder, model.head, 0.05, 0.5)
    scale, decay = {}, {}
    for group in groups:
        for parameter in group["params"]:
            assert id(parameter) not in scale
            scale[id(parameter)], decay[id(parameter)] = group["lr_scale"], group["weight_decay"]
    assert set(scale) == {id(p) for p in model.parameters() if p.requires_grad}
    of = dict(model.named_parameters())
    expected = {"encoder.patch_embed": 0.125, "encoder.cls_token": 0.125, "encoder.pos_embed": 0.125}
    expected |= {"encoder.blocks.0.": 0.25, "encoder.blocks.1.": 0.5, "encoder.norm": 1, "head.": 1}
    for name, parameter in of.items():
        want = next(value for prefix, value in expected.items() if name.startswith(prefix))
        assert scale[id(parameter)] == want, name
        plain = parameter.ndim <= 1 or name.endswith(("_token", "pos_embed", "queries", "query"))
        assert decay[id(parameter)] == (0 if plain else 0.05), name
    model.encoder.requires_grad_(False)
    frozen = layer_decay_groups(model.encoder, model.head, 0.05, 0.5)
    assert {id(p) for group in frozen for p in group["params"]} == {id(p) for p in model.head.parameters()}


@pytest.fixture
def dataset(radiographs, tmp_path):
    paths = sorted(radiographs.glob("*.png"))
    images, _ = cached(paths, tmp_path / "cache", size=64)
    labels = np.array([[1, 0], [0, 1], [NAN, 1], [1, 1], [0, 0]], np.float32)
    return LabelledRadiographs(images, labels, patch_size=16)


def batch_of(dataset, rows):
    samples = [dataset[0, row] for row in rows]
    return torch.utils.data.default_collate(samples)


@pytest.mark.filterwarnings("ignore:.*is damaged or gone")
def test_a_file_that_is_gone_adds_nothing(dataset, tmp_path):
    assert bool(dataset[0, 1]["readable"])
    for path in (*(tmp_path / "cache").rglob("*.bin"), dataset.radiographs.name(1)):
        with open(path, "wb"):
            pass
    batch = batch_of(dataset, [0, 1, 2])
    assert batch["readable"].tolist() == [True, False, True]
    assert batch["labels"][1].isnan().all()
    assert [bool(error) for error in batch["error"]] == [False, True, False]
    for keep in ("all", "valid", "contour"):
        model = small_classifier(keep=keep)
        logits = model(*encoder_inputs(model.encoder, batch))
        assert torch.isfinite(logits).all()
        classification_loss(logits, batch["labels"]).backward()
        assert all(torch.isfinite(p.grad).all() for p in model.parameters() if p.grad is not None)


@pytest.mark.filterwarnings("ignore:.*is damaged or gone")
def test_mildly_augmented_samples_are_views(dataset, tmp_path):
    """One that is gone goes with the others; every sample of a batch has a map and a table."""
    images, options = dataset.radiographs.images, {"patch_size": 16, "augmentation": Augmentation(), "seed": 3}
    seen = LabelledRadiographs(images, dataset.labels, views=True, **options)
    assert torch.equal(seen[1, 2]["pixels"], dataset[0, 2]["pixels"])
    by_another = LabelledRadiographs(images, dataset.labels, views=True, drawn_by=range(100, 105), **options)
    assert not torch.equal(seen[1, 2]["affine"], by_another[1, 2]["affine"])
    moved = LabelledRadiographs(images, dataset.labels, **options)
    batch, expected = batch_of(seen, range(5)), batch_of(moved, range(5))
    assert torch.equal(batch["inside"], expected["inside"]) and torch.equal(
        batch["labels"].isnan(), expected["labels"].isnan()
    )
    shown = view_images_ref(batch["pixels"], view_of(batch)).int()
    assert (shown - expected["pixels"].int()).abs().float().mean() < 0.2
    for path in (*(tmp_path / "cache").rglob("*.bin"), dataset.radiographs.name(1)):
        with open(path, "wb"):
            pass
    batch = batch_of(LabelledRadiographs(images, dataset.labels, views=True, **options), [0, 1])
    assert batch["readable"].tolist() == [True, False]
    assert torch.equal(view_images_ref(batch["pixels"], view_of(batch))[1], torch.zeros(1, 64, 64, dtype=torch.uint8))


@pytest.mark.parametrize("views", [False, True])
def test_sixteen_bits_are_shown_as_predict_shows_them(dataset, monkeypatch, views):
    images = dataset.radiographs.images
    plain = [image.pixels for image in images]
    finer = [(pixels.astype(np.uint16) * 257 + 100).clip(0, 65535).astype(np.uint16) for pixels in plain]
    read = type(images).__getitem__
    monkeypatch.setattr(type(images), "__getitem__", lambda self, i: read(self, i)._replace(pixels=finer[i]))
    options = {"augmentation": Augmentation(), "views": True} if views else {}
    sample = LabelledRadiographs(images, dataset.labels, patch_size=16, **options)[0, 3]
    assert torch.equal(sample["pixels"][0], torch.from_numpy(plain[3].copy()))
    if views:
        assert sample["table"].dtype == torch.uint8
    else:
        assert float(sample["scale"]) == float(dataset[0, 3]["scale"])


def mix(encoder, batch, *share):
    return mix_pixels(encoder, mix_labels({**batch, "share": torch.tensor(share).expand(len(batch["pixels"]))}))


def test_mixup_mixes_what_the_model_sees(dataset):
    batch = batch_of(dataset, [0, 1, 3, 4])
    model = small_classifier(keep="contour").eval()
    images, _, scale, shift = encoder_inputs(model.encoder, batch)
    torch.testing.assert_close(model(*encoder_inputs(model.encoder, mix(model.encoder, batch, 1.0)))[0].shape, (2,))
    mixed = mix(model.encoder, batch, 0.7)
    seen = images.float() * scale.view(-1, 1, 1, 1) + shift.view(-1, 1, 1, 1)
    torch.testing.assert_close(mixed["pixels"], 0.7 * seen + 0.3 * seen[[1, 0, 3, 2]])
    torch.testing.assert_close(mixed["labels"][1], torch.tensor([0.3, 0.7]))
    assert torch.equal(mixed["inside"], batch["inside"] | batch["inside"][[1, 0, 3, 2]])
    each = mix(model.encoder, batch, 1.0, 0.7, 0.2, 0.0)
    torch.testing.assert_close(each["pixels"][1], mixed["pixels"][1])
    torch.testing.assert_close(each["pixels"][[0, 3]], seen[[0, 2]])
    torch.testing.assert_close(each["labels"][2], 0.2 * batch["labels"][2] + 0.8 * batch["labels"][3])
    fixed = small_classifier(normalisation=(0.5, 0.25))
    mixed = mix(fixed.encoder, batch, 1.0)
    torch.testing.assert_close(mixed["pixels"], (batch["pixels"].float() / 255 - 0.5) / 0.25)
    expected = fixed(*encoder_inputs(fixed.encoder, batch))
    torch.testing.assert_close(fixed(*encoder_inputs(fixed.encoder, mixed)), expected, rtol=1e-4, atol=1e-5)
    unknown = mix(model.encoder, batch_of(dataset, [0, 2]), 0.5)
    assert unknown["labels"][:, 0].isnan().all()
    assert not unknown["labels"][:, 1].isnan().any()


def test_set_aside_files_are_counted_once_and_limited(tmp_path):
    aside = SetAside(tmp_path / "unreadable.csv", total=10, limit=0.2)
    aside.add([("a.png", "ImageReadError", "cut short")])
    aside.add([("a.png", "ImageReadError", "cut short"), ("b.png", "ImageReadError", "empty")])
    assert (tmp_path / "unreadable.csv").read_text().splitlines()[1:] == [
        "a.png,ImageReadError,cut short",
        "b.png,ImageReadError,empty",
    ]
    with pytest.raises(hx.TrainingError, match=r"3 of 10 images cannot be read.*max_bad_share=0.2.*c.png: gone"):
        aside.add([("c.png", "ImageReadError", "gone")])


def test_a_full_disk_is_named_with_the_best_model_which_stays(tmp_path):
    """safetensors has an error of its own for it."""
    best = BestModel(tmp_path / "best.safetensors")
    best.save(torch.nn.Linear(3, 2), {"score": 0.5, "loss": 1.0})
    before = best.path.read_bytes()
    with files_no_larger_than(50), pytest.raises(CheckpointError, match=r"best\.safetensors: cannot be written \("):
        best.save(torch.nn.Linear(3, 2), {"score": 0.6, "loss": 1.0})
    assert [path.name for path in tmp_path.iterdir()] == ["best.safetensors"]
    assert best.path.read_bytes() == before


def test_steps_that_follow_from_other_epochs_are_not_told(tmp_path):
    def run(**settings) -> FinetuneConfig:
        return FinetuneConfig(data="labels.csv", out=str(tmp_path), batch_size=2, **settings).with_steps(8, 1)

    assert run(epochs=2).differences(run(epochs=1).as_dict()) == ["epochs: 1 -> 2"]
    assert run(steps=5).differences(run(steps=4).as_dict()) == ["steps: 4 -> 5"]
