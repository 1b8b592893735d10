"""The optimizer: its rate over a run, its state as tensors, and how much of the weights a step moves."""

import math
from typing import Any

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
    return torch.cat([_own_part(p).flatten()[:: max(1, stride)].clone() for p in parameters])


def _own_part(parameter: Any) -> Tensor:
    """The rank's part of a parameter that is cut over the ranks; else the whole of it."""
    return parameter.to_local() if hasattr(parameter, "to_local") else parameter


def optimizer_tensors(prefix: str, optimizer: torch.optim.Optimizer) -> dict[str, Tensor]:
    """The optimizer's state as `prefix/<number of the parameter>/<name>`, whole; all ranks have to ask for it together."""
    state = optimizer.state_dict()["state"]
    whole = {f"{prefix}/{i}/{name}": value for i, entry in state.items() for name, value in entry.items()}
    return {k: v.full_tensor() if hasattr(v, "full_tensor") else torch.as_tensor(v) for k, v in whole.items()}


def restore_optimizer(prefix: str, optimizer: torch.optim.Optimizer, tensors: dict[str, Tensor]) -> None:
    """Put back what `optimizer_tensors` gave, bit by bit."""
    state: dict[int, dict[str, Tensor]] = {}
    parameters = [p for group in optimizer.param_groups for p in group["params"]]
    for key, value in tensors.items():
        if key.startswith(f"{prefix}/"):
            _, index, name = key.split("/")
            state.setdefault(int(index), {})[name] = _cut_like(value, parameters[int(index)])
    optimizer.load_state_dict({"state": state, "param_groups": optimizer.state_dict()["param_groups"]})


def _cut_like(whole: Tensor, parameter: Any) -> Tensor:
    """The tensor as the parameter is cut over the ranks; as it is where the parameter is whole."""
    if not hasattr(parameter, "to_local"):
        return whole
    from opo.parallel.sharded import cut_like

    return cut_like(whole, parameter)
