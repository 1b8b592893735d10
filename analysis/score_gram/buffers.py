"""How many numbers a Gram pass holds at once: fewer take more time, and never change the result."""

from dataclasses import dataclass

import torch


@dataclass(frozen=True)
class Buffers:
    """Sizes of what is held beside the activations, in numbers."""

    logits: int = 2**22  # computed at once
    kept_logits: int = (
        2**26
    )  # gradients of logits; where there are more, they are computed again for each slice of the vocabulary
    gradients: int | None = None  # of one parameter; None: what stays in the cache of a CPU, what fills a GPU

    def gradients_on(self, device: torch.device) -> int:
        return self.gradients or (2**26 if device.type == "cuda" else 2**20)


USUAL = Buffers()
