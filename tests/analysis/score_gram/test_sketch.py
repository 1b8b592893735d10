"""The random projection: unbiased, with the error that it promises and reports."""

import pytest
import torch
from scores import batch, relative
from small import small_gpt2, small_llama

from analysis.score_gram.core import score_gram
from analysis.score_gram.layers import Dense
from analysis.score_gram.sketch import SketchAccumulator, sketch_gram, summary


def sketches(gradients_NRC: torch.Tensor, dim: int, seeds: range) -> torch.Tensor:
    """(seeds, N, N) estimates of the Gram of these gradients."""
    n, rows, columns = gradients_NRC.shape
    found = []
    for seed in seeds:
        accumulator = SketchAccumulator(n, dim, seed, {}, torch.device("cpu"))
        accumulator.take("w", torch.Size((rows, columns)), [Dense(gradients_NRC)], torch.float64)
        found.append(summary(accumulator.sketch_ND, accumulator.squared_norms["w"]).gram_NN)
    return torch.stack(found)


def correlated() -> torch.Tensor:
    """Gradients that share a direction, with columns of very unequal size, as large activations make them."""
    rng = torch.Generator().manual_seed(0)
    own, shared = (torch.randn(size, 60, 50, generator=rng, dtype=torch.float64) for size in (4, 1))
    return (own + shared) * torch.logspace(0, 1, 50)


def test_the_estimate_is_unbiased_and_its_error_is_the_promised_one():
    gradients = correlated()
    exact = gradients.flatten(1) @ gradients.flatten(1).T
    norms = exact.diagonal()
    for dim in (16, 256):
        found = sketches(gradients, dim, range(300))
        promised = ((torch.outer(norms, norms) + exact.square()) / dim).sqrt()
        bias = (found.mean(0) - exact) / (promised / 300**0.5)
        assert bias.abs().max() < 4.5  # 16 entries, in standard errors of the mean
        ratio = found.std(0) / promised
        assert ratio.min() > 0.85
        assert ratio.max() < 1.15  # so that sixteen times the dimensions make a quarter of the error


def test_it_agrees_with_the_exact_gram_within_the_error_that_it_reports():
    model, inputs = small_gpt2(), batch()
    exact = score_gram(model, **inputs)
    small, large = (sketch_gram(model, **inputs, dim=dim, seed=3) for dim in (64, 16384))
    assert relative(large.squared_norms_N, exact.diagonal()) < 1e-10
    for sketch in (small, large):
        seen = exact != 0
        assert ((sketch.gram_NN - exact).abs()[seen] / sketch.standard_error_NN[seen]).max() < 4
        assert sketch.relative_error < 3 * (2 / sketch.dim) ** 0.5
    assert large.relative_error < small.relative_error
    assert (large.gram_NN[3] == 0).all()


def test_blocks_and_repetition_give_the_same_projection():
    model, inputs = small_llama(), batch()
    whole = sketch_gram(model, **inputs, dim=128, seed=1)
    blocks = sketch_gram(model, **inputs, dim=128, seed=1, responses_per_pass=2)
    assert relative(blocks.gram_NN, whole.gram_NN) < 1e-4  # float32 model
    assert torch.equal(sketch_gram(model, **inputs, dim=128, seed=1).gram_NN, whole.gram_NN)
    assert relative(sketch_gram(model, **inputs, dim=128, seed=2).gram_NN, whole.gram_NN) > 1e-3


def test_the_metric_applies_to_sketches_too():
    model, inputs = small_gpt2(), batch()
    moments = {name: torch.full_like(p, 4.0) for name, p in model.named_parameters()}
    plain = sketch_gram(model, **inputs, dim=64, seed=0)
    scaled = sketch_gram(model, **inputs, dim=64, seed=0, metric=moments, metric_eps=0.0)
    assert relative(scaled.gram_NN, plain.gram_NN / 2) < 1e-10


def test_dimensions_below_one_are_refused():
    with pytest.raises(ValueError, match="dim=0"):
        sketch_gram(small_gpt2(), **batch(), dim=0)
