"""Tiled log-probabilities against plain log_softmax, in float64; what a tile may hold; heads that are not plain."""

import weakref
from typing import Any

import pytest
import torch
from largest import Largest
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from transformers import (
    CohereConfig,
    CohereForCausalLM,
    Gemma2Config,
    Gemma2ForCausalLM,
    GPT2Config,
    GPT2LMHeadModel,
    GraniteConfig,
    GraniteForCausalLM,
    LlamaConfig,
    LlamaForCausalLM,
)

from opo.errors import UserError
from opo.model import logprobs
from opo.model.logprobs import Head, TokenStats, token_logprobs

CHUNKS = [(4, 7), (1, 1), (23, 5), (3, 64), (100, 11)]
HEADS = [(False, 1.0, None), (True, 1.0, None), (True, 0.3, None), (False, 1.7, 2.0)]  # bias, scale, softcap


def draw(
    bias: bool = False, scale: float = 1.0, softcap: float | None = None, size: int = 23, vocabulary: int = 31
) -> Any:
    """Hidden states, a head and targets in float64, all that can have a gradient with one."""
    g = torch.Generator().manual_seed(0)
    hidden = torch.randn(size, 6, dtype=torch.float64, generator=g, requires_grad=True)
    weight = torch.randn(vocabulary, 6, dtype=torch.float64, generator=g, requires_grad=True)
    bias_V = torch.randn(vocabulary, dtype=torch.float64, generator=g, requires_grad=True) if bias else None
    targets = torch.randint(0, vocabulary, (size,), generator=g)
    return hidden, Head(weight, bias_V, scale, softcap), targets


def reference(hidden: Tensor, head: Head, targets: Tensor, temperature: float) -> tuple[Tensor, Tensor, Tensor]:
    """Straight from the definitions."""
    logits = head.scale * (hidden @ head.weight_VD.T + (0 if head.bias_V is None else head.bias_V))
    if head.softcap is not None:
        logits = head.softcap * torch.tanh(logits / head.softcap)
    dist = torch.distributions.Categorical(logits=logits / temperature)
    chosen = dist.probs.gather(1, targets[:, None]).squeeze(1)
    return dist.log_prob(targets), dist.entropy(), 1 - 2 * chosen + dist.probs.square().sum(1)


def everything(*args: Any, **kwargs: Any) -> tuple[Tensor, Tensor, Tensor]:
    stats: TokenStats = token_logprobs(*args, with_entropy=True, with_energy=True, **kwargs)
    assert stats.entropies_M is not None
    assert stats.energies_M is not None
    return stats.logprobs_M, stats.entropies_M, stats.energies_M


@pytest.fixture(params=[0, logprobs.KEPT], ids=["recomputed", "kept"])
def kept(request: pytest.FixtureRequest) -> int:
    """The backward pass makes the logits again, or finds them."""
    return request.param


@pytest.mark.parametrize("kind", HEADS)
@pytest.mark.parametrize("chunk", [*CHUNKS, (1000, 1000)])
def test_values_and_gradients_are_those_of_log_softmax(kind: Any, chunk: tuple[int, int], kept: int) -> None:
    hidden, head, targets = draw(*kind)
    leaves = [x for x in (hidden, head.weight_VD, head.bias_V) if x is not None]
    upstream = torch.randn(2, len(targets), dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    expected = reference(hidden, head, targets, 0.7)
    actual = everything(hidden, head, targets, 0.7, chunk=chunk, kept=kept)
    for want, got in zip(expected, actual, strict=True):
        torch.testing.assert_close(got, want, rtol=0, atol=1e-12)
    assert not actual[2].requires_grad
    for weights in (upstream, upstream * torch.tensor([[1.0], [0.0]])):  # with and without a gradient on the entropy
        losses = [(weights[0] * logp).sum() + (weights[1] * entropy).sum() for logp, entropy, _ in (expected, actual)]
        grads = [torch.autograd.grad(loss, leaves, retain_graph=True) for loss in losses]
        for want, got in zip(*grads, strict=True):
            torch.testing.assert_close(got, want, rtol=0, atol=1e-12)


def test_gradcheck(kept: int) -> None:
    hidden, head, targets = draw(bias=True, scale=0.8, softcap=3.0, size=5, vocabulary=9)

    def function(hidden: Tensor, weight: Tensor, bias: Tensor) -> tuple[Tensor, Tensor]:
        return everything(hidden, Head(weight, bias, 0.8, 3.0), targets, 1.3, chunk=(2, 4), kept=kept)[:2]

    assert torch.autograd.gradcheck(function, (hidden, head.weight_VD, head.bias_V))


def test_gradient_of_the_entropy_alone_and_of_a_frozen_head(kept: int) -> None:
    hidden, head, targets = draw()
    frozen = Head(head.weight_VD.detach())
    for mine, reference_head in ((head, head), (frozen, frozen)):
        (want,) = torch.autograd.grad(reference(hidden, reference_head, targets, 1.0)[1].sum(), hidden)
        (got,) = torch.autograd.grad(everything(hidden, mine, targets, 1.0, chunk=(4, 7), kept=kept)[1].sum(), hidden)
        torch.testing.assert_close(got, want, rtol=0, atol=1e-12)


def test_a_tied_head_gets_the_sum_of_both_gradients() -> None:
    embedding = nn.Embedding(31, 6, dtype=torch.float64)
    ids, targets = torch.arange(23) % 31, torch.arange(23) * 7 % 31
    grads = []
    for chunk in ((4, 7), (1000, 1000)):
        logprobs_M = token_logprobs(embedding(ids).tanh(), Head(embedding.weight), targets, chunk=chunk).logprobs_M
        grads.append(torch.autograd.grad(logprobs_M.square().sum(), embedding.weight)[0])
    want = torch.log_softmax(embedding(ids).tanh() @ embedding.weight.T, 1).gather(1, targets[:, None])
    (grad,) = torch.autograd.grad(want.square().sum(), embedding.weight)
    torch.testing.assert_close(grads[0], grad, rtol=0, atol=1e-12)
    torch.testing.assert_close(grads[1], grad, rtol=0, atol=1e-12)


@pytest.mark.parametrize("size", [1e-3, 1.0, 1e3])
def test_float32_holds_at_any_size_of_the_logits(size: float) -> None:
    hidden, head, targets = draw()
    head = Head(head.weight_VD.detach() * size)
    low_hidden, low = hidden.detach().float(), Head(head.weight_VD.float())
    exact = reference(low_hidden.double(), Head(low.weight_VD.double()), targets, 1.0)
    rounding = 1e-6 * max(1.0, 10 * size)  # of a logit of that size, in float32
    for want, got in zip(exact, everything(low_hidden, low, targets, chunk=(4, 7)), strict=True):
        assert got.dtype == torch.float32
        torch.testing.assert_close(got.double(), want, rtol=1e-5, atol=rounding)


def test_bfloat16_logits_are_summed_in_float32(kept: int) -> None:
    hidden, _, targets = draw()
    low_hidden, low = hidden.bfloat16(), nn.Linear(6, 31, dtype=torch.bfloat16)
    logits = low(low_hidden).float()
    want = torch.log_softmax(logits, 1).gather(1, targets[:, None]).squeeze(1)
    got = token_logprobs(low_hidden, low, targets, chunk=(4, 7), kept=kept).logprobs_M
    torch.testing.assert_close(got, want, rtol=1e-6, atol=1e-6)
    want_grads = torch.autograd.grad(want.sum(), (hidden, low.weight, low.bias), retain_graph=True)
    got_grads = torch.autograd.grad(got.sum(), (hidden, low.weight, low.bias))
    for a, b in zip(got_grads, want_grads, strict=True):
        assert a.dtype == b.dtype
        torch.testing.assert_close(a, b, rtol=2e-2, atol=2e-2)


def test_autocast_takes_the_product_as_the_head_would() -> None:
    hidden, _, targets = draw()
    low_hidden, head = hidden.detach().float().requires_grad_(), nn.Linear(6, 31)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        want = torch.log_softmax(head(low_hidden).float(), 1).gather(1, targets[:, None]).squeeze(1)
        for chunk in ((4, 7), (1000, 1000)):
            got = token_logprobs(low_hidden, head, targets, chunk=chunk).logprobs_M
            torch.testing.assert_close(got, want, rtol=1e-6, atol=1e-6)
            (grad,) = torch.autograd.grad(got.sum(), low_hidden)
            assert grad.dtype == torch.float32


class Tiles(TorchDispatchMode):
    """Counts the products of which tiles are made, and at each how many of those before it are alive."""

    def __init__(self) -> None:
        super().__init__()
        self.made: list[weakref.ref[Tensor]] = []
        self.alive: list[int] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        if func is torch.ops.aten.mm.default:
            self.alive.append(sum(tile() is not None for tile in self.made))
            self.made.append(weakref.ref(out))
        return out


def test_logits_are_kept_where_they_are_few_and_wanted_again() -> None:
    hidden, head, targets = draw()

    def tiles(few: int) -> int:
        made: Any = token_logprobs(hidden, head, targets, chunk=(4, 7), kept=few).logprobs_M.grad_fn
        return sum(x is not None and x.shape[-1] in (7, 31 % 7) for x in made.saved_tensors)

    assert (tiles(23 * 31), tiles(23 * 31 - 1)) == (6 * 5, 0)
    for enabled, most in ((True, 6 * 5 - 1), (False, 1)):
        with torch.set_grad_enabled(enabled), Tiles() as tiles_made:
            token_logprobs(hidden, head, targets, chunk=(4, 7), kept=23 * 31)
        assert (len(tiles_made.made), max(tiles_made.alive)) == (6 * 5, most)


def test_no_tensor_grows_with_positions_times_vocabulary() -> None:
    size, vocabulary, chunk = 600, 5000, (64, 512)
    hidden, head, targets = draw(bias=True, size=size, vocabulary=vocabulary)
    with Largest() as tiled:
        logprobs_M, entropies_M, _ = everything(hidden, head, targets, chunk=chunk)
        (logprobs_M.sum() + entropies_M.sum()).backward()
    assert tiled.elements == max(chunk[0] * chunk[1], hidden.numel(), head.weight_VD.numel())
    with Largest() as plain:
        everything(hidden, head, targets, chunk=(size, vocabulary))
    assert plain.elements == size * vocabulary


def test_a_target_outside_the_vocabulary_is_never_a_number() -> None:
    hidden, head, targets = draw()
    targets[3] = 31
    got = token_logprobs(hidden, head, targets, chunk=(4, 7)).logprobs_M
    assert got.isnan().tolist() == [m == 3 for m in range(23)]
    with pytest.raises((IndexError, RuntimeError)):
        token_logprobs(hidden, head, targets)


SMALL: Any = {
    "hidden_size": 32,
    "intermediate_size": 32,
    "num_hidden_layers": 1,
    "num_attention_heads": 1,
    "num_key_value_heads": 1,
    "vocab_size": 40,
    "initializer_range": 0.5,
    "pad_token_id": 0,
    "bos_token_id": 0,
    "eos_token_id": 1,
}
MODELS = {
    "llama": lambda: LlamaForCausalLM(LlamaConfig(**SMALL)),
    "gpt2": lambda: GPT2LMHeadModel(
        GPT2Config(vocab_size=40, n_embd=32, n_layer=1, n_head=1, n_positions=16, initializer_range=0.5)
    ),
    "gemma2": lambda: Gemma2ForCausalLM(Gemma2Config(**SMALL, head_dim=32, final_logit_softcapping=3.0)),
    "cohere": lambda: CohereForCausalLM(CohereConfig(**SMALL, logit_scale=0.25)),
    "granite": lambda: GraniteForCausalLM(GraniteConfig(**SMALL, logits_scaling=8.0)),
}


@pytest.mark.parametrize("name", MODELS)
def test_head_of_a_model_gives_that_models_logits(name: str) -> None:
    torch.manual_seed(0)
    model = MODELS[name]().train()
    ids = torch.tensor([[3, 5, 7, 11]])
    head = Head.of(model)
    assert model.training
    hidden = model.eval().base_model(input_ids=ids).last_hidden_state[0]
    torch.testing.assert_close(head.logits(hidden), model(input_ids=ids).logits[0], rtol=1e-5, atol=1e-5)
    assert head.weight_VD is model.get_output_embeddings().weight
    assert (head.scale, head.softcap) == {"gemma2": (1.0, 3.0), "cohere": (0.25, None), "granite": (0.125, None)}.get(
        name, (1.0, None)
    )


def test_heads_that_are_not_linear_are_refused_by_name() -> None:
    class Doubled(LlamaForCausalLM):
        def forward(self, *args: Any, **kwargs: Any) -> Any:
            out: Any = super().forward(*args, **kwargs)
            out.logits = out.logits * 2
            return out

    with pytest.raises(UserError, match="Doubled turns hidden states into logits"):
        Head.of(Doubled(LlamaConfig(**SMALL)))
    peft = pytest.importorskip("peft")
    wrapped = peft.get_peft_model(LlamaForCausalLM(LlamaConfig(**SMALL)), peft.LoraConfig(target_modules=["lm_head"]))
    with pytest.raises(UserError, match=r"head of LlamaForCausalLM is peft\S*Linear"):
        Head.of(wrapped)


@pytest.mark.parametrize("chunk", [(4, 512), (10_000, 100_000)])  # in tiles and whole
def test_float32_log_probabilities_over_a_large_vocabulary_are_those_of_float64(chunk: tuple[int, int]) -> None:
    """One word above 49,151 unlikely ones: a sum in float32 loses what is small beside what it has."""
    rng = torch.Generator().manual_seed(0)
    weight_VD = torch.randn(49152, 2, generator=rng) * 0.3
    weight_VD[7] = 6.0
    hidden_MD = torch.ones(20, 2)
    found = token_logprobs(hidden_MD, Head(weight_VD), torch.full((20,), 7), chunk=chunk).logprobs_M
    expected = (hidden_MD.double() @ weight_VD.double().T).log_softmax(-1)[:, 7]
    assert (found - expected).abs().max() < 1e-6
