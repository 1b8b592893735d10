"""How linear layers multiply: the products against torch's own, and their gradients."""

import pytest
import torch
from torch.nn import functional as F

from opo.model.precision import ONEDNN, LinearLayers, linear, packed_weight


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
@pytest.mark.parametrize("shape", [(5, 7), (2, 3, 7), (0, 7), (1, 1, 7)])
@pytest.mark.parametrize("bias", [True, False])
def test_a_product_is_that_of_torch(dtype, shape, bias, generator):
    x, weight = torch.randn(shape, generator=generator).to(dtype), torch.randn(7, 4, generator=generator).to(dtype).t()
    b = torch.randn(4, generator=generator).to(dtype) if bias else None
    torch.testing.assert_close(linear(x, weight, b), F.linear(x, weight, b))


@pytest.mark.skipif(not ONEDNN, reason="needs oneDNN on an x86 processor")
def test_a_packed_weight_multiplies_as_the_weight_it_copies(generator):
    x, weight, bias = (torch.randn(shape, generator=generator) for shape in [(33, 576), (1536, 576), (1536,)])
    packed = packed_weight(weight, 32)
    expected = F.linear(x.double(), weight.double(), bias.double())
    assert (linear(x, packed, bias) - expected).norm() <= 1e-5 * expected.norm()
    weight.zero_()
    assert (linear(x, packed, bias) - expected).norm() <= 1e-5 * expected.norm()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("frozen", [None, "x", "weight"])
def test_linear_layers_have_the_gradients_of_torch(dtype, frozen, generator):
    tensors = {"x": (2, 5, 7), "weight": (4, 7), "bias": (4,)}
    given = {k: torch.randn(s, generator=generator).requires_grad_(k != frozen) for k, s in tensors.items()}
    slope = torch.randn(2, 5, 4, generator=generator)
    wanted = [t for t in given.values() if t.requires_grad]
    expected = torch.autograd.grad((F.linear(*given.values()) * slope).sum(), wanted)
    with LinearLayers(dtype):
        out = F.linear(*given.values())
    actual = torch.autograd.grad((out * slope).sum(), wanted)
    tolerance = 1e-5 if dtype == torch.float32 else 2e-2
    for a, b in zip(actual, expected, strict=True):
        assert a.dtype == torch.float32
        assert (a - b).norm() <= tolerance * b.norm()


def test_a_linear_layer_is_the_same_with_and_without_a_gradient(generator):
    x, weight, bias = (torch.randn(shape, generator=generator) for shape in [(301, 128), (512, 128), (512,)])
    with LinearLayers():
        measured = F.linear(x, weight, bias)
        differentiated = F.linear(x, weight.requires_grad_(), bias)
    assert torch.equal(measured, differentiated)
    assert not measured.requires_grad
    assert differentiated.requires_grad


def test_a_model_may_change_a_product_in_place(generator):
    x, weight = torch.randn(2, 3, 7, generator=generator), torch.randn(4, 7, generator=generator).requires_grad_()
    with LinearLayers():
        product = F.linear(x, weight).clamp_(min=-0.5)  # as OLMo's clip_qkv does
    (gradient,) = torch.autograd.grad(product.sum(), weight)
    torch.testing.assert_close(gradient, torch.einsum("btr,btc->rc", (product > -0.5).float(), x))


def test_a_product_outside_a_context_can_be_differentiated(generator):
    x, weight = torch.randn(3, 7, generator=generator), torch.randn(4, 7, generator=generator).requires_grad_()
    (gradient,) = torch.autograd.grad(linear(x, weight).sum(), weight)
    torch.testing.assert_close(gradient, x.sum(0).expand(4, 7))
