"""The optimizer: its rate over a run, its state as tensors, and how much of the weights a step moves."""

import math

import torch
from torch import Tensor, nn

from opo.config.schema import OptimConfig

SAMPLED = 2**16  # weights that are looked at; a share of them is known to 0.2 % (one standard error)


def optimizer_of(parameters: list[nn.Parameter], rate: float, optim: OptimConfig) -> torch.optim.Optimizer:
    """The optimizer of these parameters with everything but the rate from the config."""
    if optim.method == "sgd":
        return torch.optim.SGD(parameters, lr=rate, weight_decay=optim.weight_decay)
    return torch.optim.AdamW(
        parameters,
        lr=rate,
        betas=(optim.beta1, optim.beta2),
        eps=optim.eps,
        weight_decay=optim.weight_decay,
        fused=True,
    )


def learning_rate(base: float, schedule: str, warmup_steps: int, update: int, total_updates: int) -> float:
    """The rate of update number `update` (from 0): linear warm-up, then constant, or linear or cosine decay to zero at the end."""
    if update < warmup_steps:
        return base * (update + 1) / warmup_steps
    progress = (update - warmup_steps) / max(1, total_updates - warmup_steps)
    decay = {"constant": 1.0, "linear": 1 - progress, "cosine": (1 + math.cos(math.pi * progress)) / 2}
    return base * decay[schedule]


def take_step(optimizer: torch.optim.Optimizer, rate: float | None = None) -> float:
    """One update at this rate (none: the optimizer's own); gradients are dropped. The share of sampled weights that moved."""
    parameters = [p for group in optimizer.param_groups for p in group["params"]]
    before = sampled_weights(parameters)
    for group in optimizer.param_groups if rate is not None else ():
        group["lr"] = rate
    optimizer.step()
    optimizer.zero_grad(set_to_none=True)
    return float((sampled_weights(parameters) != before).double().mean())


@torch.no_grad()
def sampled_weights(parameters: list[nn.Parameter]) -> Tensor:
    """At most about `SAMPLED` of the weights, evenly spaced, the same ones each time: a copy of all would cost their memory."""
    stride = -(-sum(p.numel() for p in parameters) // SAMPLED)
    return torch.cat([p.flatten()[:: max(1, stride)].clone() for p in parameters])


def optimizer_tensors(prefix: str, optimizer: torch.optim.Optimizer) -> dict[str, Tensor]:
    """The optimizer's state as `prefix/<number of the parameter>/<name>`."""
    state = optimizer.state_dict()["state"]
    return {
        f"{prefix}/{i}/{name}": torch.as_tensor(value) for i, entry in state.items() for name, value in entry.items()
    }


def restore_optimizer(prefix: str, optimizer: torch.optim.Optimizer, tensors: dict[str, Tensor]) -> None:
    """Put back what `optimizer_tensors` gave, bit by bit."""
    state: dict[int, dict[str, Tensor]] = {}
    for key, value in tensors.items():
        if key.startswith(f"{prefix}/"):
            _, index, name = key.split("/")
            state.setdefault(int(index), {})[name] = value
    optimizer.load_state_dict({"state": state, "param_groups": optimizer.state_dict()["param_groups"]})
