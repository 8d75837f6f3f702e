"""Every operator of the package, as PyTorch's registry lists them: opcheck, gradcheck, and a formula of its FLOPs.

A new operator fails here until it has samples.
"""

from __future__ import annotations

import pytest
import torch
from operator_samples import REGISTERED, SAMPLES, operator
from torch import Tensor
from torch.autograd import gradcheck, gradgradcheck
from torch.utils._pytree import tree_map_only
from torch.utils.flop_counter import flop_registry

from hdxray_fast.ops import native

LINEAR = ("gather_patches", "gather_patches_backward")
# there is no second derivative; PyTorch says so
ONCE = ("attention_backward", "mix_maps_backward", "reconstruction_loss_backward", "scale_loss_gradient")
CONSTANT = ("view_patches",)  # no gradient flows to images seen through a view
every_operator = pytest.mark.parametrize("name", REGISTERED)
needs_core = pytest.mark.skipif(native.core is None, reason=f"the native core is not built: {native.why_missing}")


def test_all_operators_have_samples():
    assert sorted(SAMPLES) == REGISTERED


@needs_core
@every_operator
def test_opcheck(name):
    for arguments in SAMPLES[name]():
        torch.library.opcheck(operator(name).default, arguments, rtol=1e-3, atol=1e-5)


@needs_core
@every_operator
def test_fake_outputs_have_the_strides_of_real_ones(name):
    """opcheck passes over the strides of outputs that it does not compare, and a compiler relies on all of them."""
    from torch._subclasses.fake_tensor import FakeTensorMode

    for arguments in SAMPLES[name]():
        with torch.no_grad():
            real = operator(name)(*arguments)
            with FakeTensorMode() as mode:
                fake = operator(name)(*tree_map_only(Tensor, mode.from_tensor, arguments))
        for a, b in zip(*((t,) if isinstance(t, Tensor) else t or () for t in (real, fake)), strict=True):
            assert (a.shape, a.stride(), a.dtype, a.device) == (b.shape, b.stride(), b.dtype, b.device)


@needs_core
@pytest.mark.filterwarnings("ignore:Input .* is not a double precision:UserWarning")
@every_operator
def test_gradcheck(name):
    """The first output, as a function of the tensors that need gradients; those after it have none."""
    checked = 0
    for arguments in SAMPLES[name]():
        places = [i for i, a in enumerate(arguments) if isinstance(a, Tensor) and a.requires_grad]
        inputs = tuple(arguments[i] for i in places)
        if name in ONCE or not inputs or inputs[0].dtype not in (torch.float32, torch.float64):
            continue

        def function(*tensors, arguments=arguments, places=places):
            changed = dict(zip(places, tensors, strict=True))
            out = operator(name)(*(changed.get(i, a) for i, a in enumerate(arguments)))
            return out if isinstance(out, Tensor) else out[0]

        # float32 is enough: central differences of linear and quadratic functions are exact, however long the step
        exact = {} if inputs[0].dtype == torch.float64 else {"eps": 0.5, "atol": 1e-4, "rtol": 1e-4}
        assert gradcheck(function, inputs, **exact)
        if name in LINEAR:
            assert gradgradcheck(function, inputs, **exact)
        checked += 1
    assert checked or name in ONCE + CONSTANT


@every_operator
def test_flops_are_known(name):
    assert operator(name) in flop_registry
