"""Second moments of Adam from a checkpoint, as the optimizer uses them."""

from pathlib import Path

import pytest
import torch
from small import small_gpt2

from analysis.score_gram.adam_metric import adam_metric
from analysis.score_gram.core import score_gram
from opo.errors import UserError
from opo.run.checkpoint import save_checkpoint
from opo.train.optimizer import optimizer_tensors


@pytest.fixture
def trained(tmp_path: Path):
    """A model after two steps of AdamW, and its checkpoint."""
    model, rng = small_gpt2(), torch.Generator().manual_seed(0)
    optimizer = torch.optim.AdamW(list(model.parameters()), lr=1e-3, betas=(0.9, 0.8), weight_decay=0.0)
    squares = {name: torch.zeros_like(p) for name, p in model.named_parameters()}
    for share in (0.8 * 0.2, 0.2):
        for name, p in model.named_parameters():
            p.grad = torch.randn(p.shape, generator=rng, dtype=p.dtype)
            squares[name] += share * p.grad**2 / (1 - 0.8**2)
        optimizer.step()
    (tmp_path / "config.yaml").write_text("optim: {beta2: 0.8}\n")
    path = save_checkpoint(
        tmp_path / "checkpoints", 2, lambda to: None, optimizer_tensors("optimizer", optimizer), {"step": 2}
    )
    return model, path, squares


def test_the_moments_are_those_that_the_next_step_divides_by(trained):
    model, path, squares = trained
    found = adam_metric(path, model)
    assert set(found) == set(squares)
    for name, expected in squares.items():
        torch.testing.assert_close(found[name], expected, rtol=1e-12, atol=0.0)
    ids = torch.randint(3, 29, (4, 9), generator=torch.Generator().manual_seed(1))
    mask = torch.ones_like(ids)
    fast, slow = (score_gram(model, ids, mask, mask, metric=found, method=m) for m in ("hooks", "loop"))
    assert (fast - slow).norm() < 1e-8 * slow.norm()
    assert (fast - score_gram(model, ids, mask, mask)).norm() > 1e-2 * fast.norm()


def test_a_checkpoint_of_another_model_is_refused(trained):
    model, path, _ = trained
    model.transformer.wte.weight.requires_grad_(False)
    with pytest.raises(UserError, match=r"no second moments of transformer\.wpe\.weight"):
        adam_metric(path, model, beta2=0.8)
    model.transformer.wte.weight.requires_grad_(True)
    model.transformer.ln_f.bias.requires_grad_(False)
    with pytest.raises(UserError, match="moved more than the"):
        adam_metric(path, model)
    (path.parent.parent / "config.yaml").unlink()
    with pytest.raises(UserError, match="give beta2="):
        adam_metric(path, model)
