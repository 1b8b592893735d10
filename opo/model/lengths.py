"""How many tokens a model holds, prompt and response together."""

from typing import Any

from opo.errors import UserError

TURNING = ("longrope", "dynamic")  # kinds of rotary positions whose factors are others once a sequence is long


def max_length(model: Any) -> int:
    """The largest number of tokens the model has positions for, and rotates by the same factors whatever follows them."""
    config = model.config.get_text_config()
    sizes = [getattr(config, key, None) for key in ("max_position_embeddings", "n_positions")]
    positions = next((int(size) for size in sizes if size is not None), 2**20)
    return min(positions, _steady(config) or positions)


def refuse_turning(config: Any, length: int) -> None:
    """Raises UserError where a sequence of this length is rotated by other factors than its own beginning.

    The keys of a prompt are then no longer those that the response attends to: nothing can be shared, and what is sampled token
    by token is not what one pass over the sequence computes.
    """
    steady = _steady(config.get_text_config())
    if steady is not None and length > steady:
        raise UserError(
            f"model: its rotary positions have other factors from {steady + 1} tokens on, and a sequence has {length}; allowed are "
            f"prompts and responses of {steady} tokens together"
        )


def _steady(config: Any) -> int | None:
    """The length up to which the rotary factors do not depend on it; None where they never do."""
    rope = getattr(config, "rope_parameters", None) or {}
    kinds = [
        kind for kind in (rope, *rope.values()) if isinstance(kind, dict)
    ]  # one for all layers, or one for each type
    lengths = [
        config.max_position_embeddings if kind["rope_type"] == "dynamic" else kind["original_max_position_embeddings"]
        for kind in kinds
        if kind.get("rope_type") in TURNING
    ]
    return min(lengths, default=None)
