"""How many numbers a Gram pass holds at once: fewer take more time, and never change the result."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Buffers:
    """Sizes of what is held beside the activations, in numbers."""

    logits: int = 2**22  # computed at once
    kept_logits: int = 2**26  # gradients of logits; more of them are computed again for each slice of the vocabulary
    gradients: int | None = None  # of one parameter; None: what stays in the cache of a CPU, what fills a GPU

    def gradients_on(self, device: str) -> int:
        """`device` is the type, as cuda."""
        return self.gradients or (2**26 if device == "cuda" else 2**20)


USUAL = Buffers()
