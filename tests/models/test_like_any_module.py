"""Whatever is done to a layer of the encoder takes effect: layers are read only while they are plain."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from torch.nn.utils import parametrizations, prune
from torch.utils._python_dispatch import TorchDispatchMode

import hdxray_fast as hx
from hdxray_fast.models import layers, selection
from hdxray_fast.models.layers import GeluLinear, Mlp
from hdxray_fast.models.patch_embed import build_patch_embed

SIZES = {"img_size": 64, "embed_dim": 32, "depth": 2, "num_heads": 2, "in_chans": 1}
READ = ["blocks.1.mlp.fc2", "patch_embed.proj"]  # what a plain encoder reads instead of calling


def encoder_of(**changes) -> nn.Module:
    torch.manual_seed(0)
    return hx.create_encoder("vit_tiny_patch16", **{**SIZES, **changes})


def images_of(batch: int = 2) -> torch.Tensor:
    return torch.randn(batch, 1, 64, 64, generator=torch.Generator().manual_seed(1))


def plan_of(batch: int = 2) -> hx.MaskPlan:
    inside = torch.rand(batch, 4, 4, generator=torch.Generator().manual_seed(2)) < 0.5
    return hx.plan_masks(inside, torch.ones_like(inside), 0.6, 0.3)


def features(encoder: nn.Module, packed: bool) -> torch.Tensor:
    if packed:
        return encoder(images_of(), plan_of(), 1.0, 0.0).values
    return encoder.forward_features(images_of())


PACKED = pytest.mark.parametrize("packed", [False, True], ids=["dense", "packed"])


@PACKED
@pytest.mark.parametrize("name", READ)
def test_hooks_fire_and_change_nothing(name, packed):
    encoder, fired = encoder_of(), []
    plain = features(encoder, packed)
    layer = encoder.get_submodule(name)
    layer.register_forward_pre_hook(lambda *_: fired.append("before"))
    layer.register_forward_hook(lambda *_: fired.append("after"))
    layer.register_full_backward_hook(lambda *_: fired.append("back"))
    hooked = features(encoder, packed)
    hooked.square().sum().backward()
    assert fired == ["before", "after", "back"]
    torch.testing.assert_close(hooked, plain, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("name", READ)
def test_a_hook_may_change_the_output(name):
    encoder = encoder_of()
    plain = features(encoder, False)
    handle = encoder.get_submodule(name).register_forward_hook(lambda module, given, output: output * 0)
    assert not torch.allclose(features(encoder, False), plain, atol=1e-3)
    handle.remove()
    assert torch.equal(features(encoder, False), plain)


def test_global_hooks_fire():
    seen = []
    handle = nn.modules.module.register_module_forward_hook(lambda module, *_: seen.append(module))
    try:
        encoder = encoder_of()
        features(encoder, False)
    finally:
        handle.remove()
    assert all(encoder.get_submodule(name) in seen for name in READ)


def test_a_probe_on_the_patch_embedding_sees_the_grid():
    """As class activation maps want it: [B, D, gh, gw]."""
    encoder, seen = encoder_of(), []
    encoder.patch_embed.proj.register_forward_hook(lambda module, given, output: seen.append(output))
    features(encoder, False)
    assert seen[0].shape == (2, 32, 4, 4)


@PACKED
@pytest.mark.parametrize("stem", ["patch16", "stem64"])
def test_called_or_read_the_embedding_is_the_same(stem, packed):
    torch.manual_seed(0)
    patch = 64 if stem == "stem64" else 16
    embed = build_patch_embed(stem, patch, 3, 24).double()
    rows, grid = torch.randn(2 * 3 * 2, patch * patch * 3, dtype=torch.float64), None if packed else (2, 3, 2)
    read = embed(rows, grid)
    embed.proj.register_forward_hook(lambda *_: None)
    torch.testing.assert_close(embed(rows, grid), read)


class Adapter(nn.Module):
    """As LoRA has it: the layer, frozen, and a low-rank one beside it."""

    def __init__(self, layer: nn.Module) -> None:
        super().__init__()
        self.base = layer.requires_grad_(False)
        shape = layer.weight.shape
        self.down = nn.Parameter(torch.randn(2, shape[1:].numel()) * 0.1)
        self.up = nn.Parameter(torch.randn(shape[0], 2) * 0.1)

    @property
    def weight(self):
        return self.base.weight

    @property
    def bias(self):
        return self.base.bias

    def delta(self):
        return (self.up @ self.down).view_as(self.base.weight)

    def forward(self, x):
        if isinstance(self.base, nn.Conv2d):
            return self.base(x) + nn.functional.conv2d(x, self.delta(), stride=self.base.stride)
        return self.base(x) + nn.functional.linear(x, self.delta())


@pytest.mark.parametrize("name", READ)
def test_an_adapter_learns_and_merging_it_changes_nothing(name):
    encoder = encoder_of()
    parent, _, last = name.rpartition(".")
    adapter = Adapter(encoder.get_submodule(name))
    setattr(encoder.get_submodule(parent), last, adapter)
    active = features(encoder, False)
    active.square().sum().backward()
    assert adapter.up.grad.abs().sum() > 0
    with torch.no_grad():
        adapter.base.weight += adapter.delta()
    setattr(encoder.get_submodule(parent), last, adapter.base)
    torch.testing.assert_close(features(encoder, False), active, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("how", ["pruned", "weight norm", "spectral norm", "old weight norm"])
@pytest.mark.parametrize("name", READ)
def test_reparametrised_layers_train(name, how):
    encoder = encoder_of()
    layer = encoder.get_submodule(name)
    if how == "pruned":
        prune.l1_unstructured(layer, "weight", 0.5)
    elif how == "old weight norm":
        with pytest.warns(FutureWarning):
            nn.utils.weight_norm(layer)
    else:
        {"weight norm": parametrizations.weight_norm, "spectral norm": parametrizations.spectral_norm}[how](layer)
    optimizer = torch.optim.SGD(encoder.parameters(), lr=1e-2)
    losses = []
    for _ in range(3):  # the second backward pass was the one that failed
        loss = features(encoder, True).square().mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[2] < losses[0]
    if how == "pruned":
        assert (layer.weight == 0).float().mean() >= 0.49


def test_offloaded_layers_are_fetched(tmp_path):
    """The weights of layers lie elsewhere, and come in where a layer is called."""
    accelerate = pytest.importorskip("accelerate")
    for offload in ("cpu", "disk"):
        encoder = encoder_of(pool="mean")
        plain = encoder(images_of())
        if offload == "cpu":
            accelerate.cpu_offload(encoder, execution_device=torch.device("cpu"))
        else:
            accelerate.disk_offload(encoder, tmp_path, execution_device=torch.device("cpu"))
        torch.testing.assert_close(encoder(images_of()), plain, rtol=1e-5, atol=1e-5)


class Products(TorchDispatchMode):
    """Counts matrix products."""

    def __init__(self) -> None:
        super().__init__()
        self.count = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        self.count += func in (torch.ops.aten.mm.default, torch.ops.aten.addmm.default)
        return func(*args, **(kwargs or {}))


def test_gradients_that_nobody_wants_are_not_computed():
    counts = {}
    for frozen in ("nothing", "fc2", "all"):
        torch.manual_seed(0)
        mlp, x = Mlp(8, 32), torch.randn(5, 8, requires_grad=True)
        for name, parameter in mlp.named_parameters():
            parameter.requires_grad_(not (frozen == "all" or name.startswith(frozen)))
        out = mlp(x).sum()
        with Products() as products:
            out.backward()
        counts[frozen] = products.count
        assert (mlp.fc2.weight.grad is None) == (frozen != "nothing")
    assert counts == {"nothing": 4, "fc2": 3, "all": 2}


def test_second_derivatives_are_right():
    inputs = [torch.randn(shape, dtype=torch.float64, requires_grad=True) for shape in ((3, 4), (5, 4), (5,))]
    assert torch.autograd.gradcheck(GeluLinear.apply, inputs)
    assert torch.autograd.gradgradcheck(GeluLinear.apply, inputs)


def test_second_derivatives_of_an_encoder(monkeypatch):
    encoder, images = encoder_of(), images_of(1).requires_grad_()

    weights = torch.randn(1, 17, 32, generator=torch.Generator().manual_seed(3))

    def second() -> torch.Tensor:
        with torch.nn.attention.sdpa_kernel(torch.nn.attention.SDPBackend.MATH):  # the others have no second derivative
            out = (encoder.forward_features(images) * weights).sum()
        (first,) = torch.autograd.grad(out, images, create_graph=True)
        return torch.autograd.grad(first.square().sum(), images)[0]

    found = second()
    monkeypatch.setattr(layers, "is_plain", lambda *_: False)
    torch.testing.assert_close(found, second(), rtol=1e-3, atol=1e-5)
    assert found.abs().sum() > 0


def test_functional_transforms_of_an_mlp():
    torch.manual_seed(0)
    mlp, x = Mlp(4, 16), torch.randn(6, 3, 4)
    parameters = dict(mlp.named_parameters())

    def loss(weights, rows):
        return torch.func.functional_call(mlp, weights, rows).square().mean()

    torch.testing.assert_close(torch.func.vmap(mlp)(x), mlp(x))
    per_sample = torch.func.vmap(torch.func.grad(loss), (None, 0))(parameters, x)
    for index in (0, 5):
        expected = torch.autograd.grad(mlp(x[index]).square().mean(), list(parameters.values()))
        for (name, found), one in zip(per_sample.items(), expected, strict=True):
            torch.testing.assert_close(found[index], one, msg=name)


class Tagged(torch.Tensor):
    """Data with metadata, as MONAI's MetaTensor: every operation must be told what becomes of the tag."""

    def __new__(cls, data, tag):
        made = torch.Tensor._make_subclass(cls, data)
        made.tag = tag
        return made

    @classmethod
    def __torch_function__(cls, func, types, args=(), kwargs=None):
        result = super().__torch_function__(func, types, args, kwargs or {})
        for value in result if isinstance(result, (list, tuple)) else [result]:
            if isinstance(value, Tagged):
                tags = [arg.tag for arg in args if isinstance(arg, Tagged)]
                assert len(value) == len(tags[0]) if value.ndim else True, "a batch without its metadata"
                value.tag = tags[0]
        return result


LAID_OUT = {
    "channels last": lambda x: x.contiguous(memory_format=torch.channels_last),
    "transposed": lambda x: x.transpose(2, 3).contiguous().transpose(2, 3),
    "rotated": lambda x: torch.rot90(torch.rot90(x, 1, (2, 3)).contiguous(), -1, (2, 3)),
    "permuted": lambda x: x.permute(2, 3, 0, 1).contiguous().permute(2, 3, 0, 1),
    "every second": lambda x: x.repeat_interleave(2, 3)[..., ::2],
    "tagged": lambda x: Tagged(x, list(range(len(x)))),
}


@PACKED
@pytest.mark.parametrize("layout", LAID_OUT)
@pytest.mark.parametrize("dtype", [torch.uint8, torch.float32], ids=str)
def test_images_may_lie_in_memory_as_they_like(layout, dtype, packed):
    encoder = encoder_of(in_chans=3)
    images = (torch.rand(2, 3, 64, 64, generator=torch.Generator().manual_seed(4)) * 255).to(dtype)
    found = []
    for given in (images, LAID_OUT[layout](images)):
        given = given.requires_grad_() if dtype.is_floating_point and layout != "tagged" else given
        out = encoder(given, plan_of(), 1 / 64, -2.0).values if packed else encoder.forward_features(given)
        found.append(out.detach())
        if given.requires_grad:
            found.append(torch.autograd.grad(out.square().mean(), given)[0])
    half = len(found) // 2
    for left, right in zip(found[:half], found[half:], strict=True):
        assert type(right) is torch.Tensor
        assert torch.equal(left, right)


@pytest.mark.parametrize("layout", LAID_OUT)
def test_an_auto_encoder_takes_them_too(layout):
    torch.manual_seed(0)
    sizes = {"depth": 1, "embed_dim": 32, "num_heads": 2, "decoder_embed_dim": 32, "decoder_depth": 1}
    model = hx.create_mae("vit_tiny_patch16", img_size=64, in_chans=3, **sizes)
    images = (torch.rand(2, 3, 64, 64) * 255).to(torch.uint8)
    losses = [model(given, plan_of(), 1 / 64, -2.0).loss for given in (images, LAID_OUT[layout](images))]
    assert torch.equal(*losses)


@pytest.mark.parametrize("keep", ["valid", "contour"])
def test_a_selection_of_patches_takes_metadata(keep):
    encoder = encoder_of(keep=keep, pool="mean")
    images = (torch.rand(2, 1, 64, 64) * 255).to(torch.uint8)
    inside = torch.rand(2, 4, 4) < 0.5
    assert torch.equal(encoder(images, inside=inside), encoder(Tagged(images, [0, 1]), inside=inside))


def test_fixed_positions_stay_fixed():
    encoder, mae = encoder_of(), hx.create_mae("vit_tiny_patch16", img_size=64, depth=1)
    for model in (encoder, mae):
        model.requires_grad_(True)
        for parameter in model.parameters():
            parameter.requires_grad = True
        before = {name: tensor.clone() for name, tensor in model.state_dict().items() if "pos_embed" in name}
        assert before
        optimizer = torch.optim.AdamW(model.parameters(), lr=0.1)
        out = model.forward_features(images_of()) if model is encoder else model(images_of(), plan_of()).loss
        out.square().mean().backward()
        optimizer.step()
        assert all(torch.equal(model.state_dict()[name], tensor) for name, tensor in before.items())
    learned = encoder_of(learned_positions=True)
    assert "pos_embed" in dict(learned.named_parameters())
    learned.set_input_size(96)
    assert learned.pos_embed.requires_grad and learned.pos_embed.shape == (1, 37, 32)
    encoder.set_input_size(96)
    assert "pos_embed" in dict(encoder.named_buffers()) and encoder.pos_embed.shape == (1, 37, 32)


@pytest.mark.parametrize("keep", ["valid", "contour"])
def test_a_compiled_encoder_looks_for_the_chest_before_one_graph(monkeypatch, keep):
    from torch._dynamo.testing import CompileCounter

    calls = []
    monkeypatch.setattr(
        selection, "_find_inside", lambda images, *_: calls.append(1) or torch.rand(len(images), 4, 4) < 0.5
    )
    encoder = encoder_of(keep=keep, pool="mean").eval()
    counter = CompileCounter()
    compiled = torch.compile(encoder, backend=counter)
    for seed in range(6):
        images = (torch.rand(2, 1, 64, 64, generator=torch.Generator().manual_seed(seed)) * 255).to(torch.uint8)
        torch.manual_seed(seed)
        found = compiled(images)
        torch.manual_seed(seed)
        torch.testing.assert_close(found, encoder(images), rtol=1e-4, atol=1e-5)
    assert len(calls) == (12 if keep == "contour" else 0)
    assert counter.frame_count <= 2  # for the first number of patches, and then for all


def test_gradients_by_transforms_of_functions():
    """``torch.func.grad`` gives what ``backward`` gives, of an encoder and of an auto-encoder with a plan."""
    mae = hx.create_mae("vit_tiny_patch16", img_size=64, depth=1, decoder_depth=1, decoder_embed_dim=32)
    images, plan = images_of(), plan_of()
    for model, run in (
        (encoder_of(pool="mean"), lambda model, weights: torch.func.functional_call(model, weights, (images,))),
        (mae, lambda model, weights: torch.func.functional_call(model, weights, (images, plan)).loss),
    ):
        parameters = dict(model.named_parameters())
        found = torch.func.grad(lambda weights, model=model, run=run: run(model, weights).square().mean())(parameters)
        expected = torch.autograd.grad(run(model, parameters).square().mean(), list(parameters.values()))
        for (name, one), other in zip(found.items(), expected, strict=True):
            torch.testing.assert_close(one, other, msg=name)


def test_a_batch_of_batches():
    encoder = encoder_of(pool="mean")
    images = images_of(6).unflatten(0, (3, 2))
    torch.testing.assert_close(torch.func.vmap(encoder)(images), torch.stack([encoder(batch) for batch in images]))


def test_float64_is_refused_by_name():
    with pytest.raises(hx.ArgumentError, match="images: got dtype float64"):
        encoder_of().double()(images_of().double())
    with pytest.raises(hx.ArgumentError, match="dtype: the weights are float64"):
        encoder_of().double()(torch.zeros(images_of().shape, dtype=torch.uint8))
    with pytest.raises(hx.ArgumentError, match="dtype: the weights are float64"):
        encoder_of().double()(images_of())


@pytest.mark.parametrize("decoder", ["self", "cross"])
def test_models_are_made_where_torch_makes_layers(decoder):
    """Under ``torch.device("cuda")`` nothing stays behind on the CPU; here shown with ``meta``."""
    with torch.device("meta"):
        model = hx.create_mae("vit_tiny_patch16", decoder=decoder, img_size=64, depth=1, decoder_depth=1)
        images = torch.empty(2, 1, 64, 64)
    assert all(tensor.is_meta for tensor in model.state_dict().values())
    assert model.encoder.forward_features(images).shape == (2, 17, 192)
    model.encoder.keep = "contour"
    with pytest.raises(hx.ArgumentError, match=r"inside: .* on meta"):
        model.encoder(images.to(torch.uint8))


def test_gradients_of_single_samples_and_jacobians():
    from torch.func import functional_call, grad, jacrev, vmap

    encoder = encoder_of(pool="mean")
    parameters, images = dict(encoder.named_parameters()), images_of(3)

    def loss(values, image):
        return functional_call(encoder, values, (image[None],)).square().sum()

    together = vmap(grad(loss), (None, 0))(parameters, images)
    for index in range(3):
        alone = grad(loss)(parameters, images[index])
        for name, value in alone.items():
            torch.testing.assert_close(together[name][index], value, rtol=1e-4, atol=1e-5)
    assert jacrev(lambda x: encoder(x)[:, :2])(images[:1]).shape == (1, 2, *images[:1].shape)


def test_forward_mode_is_refused_and_not_lost():
    import torch.autograd.forward_ad as forward_ad

    images = images_of(1)
    with forward_ad.dual_level(), pytest.raises(NotImplementedError, match="forward-mode"):
        encoder_of(pool="mean")(forward_ad.make_dual(images, torch.ones_like(images)))
