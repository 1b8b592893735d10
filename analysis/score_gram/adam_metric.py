"""The optimizer's metric: Adam's second moments from a checkpoint, for `score_gram(metric=...)`.

Adam moves along P^{-1} g with P = diag(sqrt(v) + eps), so <z_n, P^{-1} z_m> is the inner product that its steps use: a direction that
with large past gradients counts less. The checkpoint's running mean is divided by 1 - beta2^step, as the optimizer does.
"""

from pathlib import Path

import yaml
from torch import Tensor, nn

from analysis.score_gram.core import trainable_parameters
from opo.errors import UserError
from opo.run.checkpoint import load_checkpoint


def adam_metric(checkpoint: Path | str, model: nn.Module, beta2: float | None = None) -> dict[str, Tensor]:
    """Second moments v of every trainable parameter by name, from a folder `checkpoints/step-NNNNNN` of a training of this model.

    `beta2` is by default the run's own. Raises UserError where the checkpoint is damaged, or its optimizer moved other parameters.
    """
    folder = Path(checkpoint)
    tensors, _ = load_checkpoint(folder)
    if beta2 is None:
        run = folder.parent.parent / "config.yaml"
        if not run.is_file():
            raise UserError(f"{checkpoint}: is not in a run folder (no {run}); give beta2=")
        beta2 = float(yaml.safe_load(run.read_text(encoding="utf-8"))["optim"]["beta2"])
    parameters, second_moments = trainable_parameters(model), {}
    for i, (parameter, name) in enumerate(parameters.items()):
        mean, step = (tensors.get(f"optimizer/{i}/{key}") for key in ("exp_avg_sq", "step"))
        if mean is None or step is None or mean.shape != parameter.shape:
            raise UserError(
                f"{checkpoint}: its optimizer has no second moments of {name}, shape {tuple(parameter.shape)}"
            )
        second_moments[name] = mean.double() / (1 - beta2 ** float(step))
    if f"optimizer/{len(parameters)}/step" in tensors:
        raise UserError(
            f"{checkpoint}: its optimizer moved more than the {len(parameters)} trainable parameters of this model"
        )
    return second_moments
