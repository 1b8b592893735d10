"""How a Gram pass is fitted into memory, from what the model keeps for its backward pass (`opo.plan.kept`)."""

from typing import Any, NamedTuple

from analysis.score_gram.recompute import decoder_layers
from opo.plan.kept import KeptPerRow


class Passes(NamedTuple):
    """How the responses to one prompt go through the model."""

    responses: int  # that are in it at once
    recompute: bool  # each decoder layer in the backward pass


def planned_passes(model: Any, num_responses: int, length: int, budget: float) -> Passes:
    """All responses at once if what they keep fits into `budget` bytes, else recomputing layers (a forward pass more), else in blocks besides.

    `model` is the policy's, with weights or on paper (`opo.plan.shape`); `length` are the tokens of prompt and response.
    """
    recompute = bool(decoder_layers(model)) and num_responses * row_bytes(model, length, False) > budget
    return Passes(max(2, int(budget / row_bytes(model, length, recompute))), recompute)


def row_bytes(model: Any, length: int, recompute: bool) -> float:
    """What one response keeps: all that its layers keep, or the input of each and one layer at work."""
    row, layers = KeptPerRow.of(model, by_response=True).bytes(length), len(decoder_layers(model))
    if not recompute:
        return row
    width = model.config.get_text_config().hidden_size * next(model.parameters()).element_size()
    return row / layers + layers * width * length
