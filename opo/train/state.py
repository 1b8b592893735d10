"""Everything that changes while a run goes on, to and from a checkpoint; how a run is left."""

import signal
from pathlib import Path
from types import FrameType
from typing import Self

import torch
from torch import Tensor

from opo.batch import Rollouts
from opo.config.schema import RunConfig
from opo.errors import StoppedRun
from opo.model.load import restore_model, save_model
from opo.model.policy import Policy
from opo.run.checkpoint import load_checkpoint, save_checkpoint
from opo.run.folder import RunFolder
from opo.train.critic import Critic


class TrainingState:
    """Counters, optimizers and the modules they move. Random streams are functions of the counters, so they need no saving."""

    def __init__(self, config: RunConfig, policy: Policy, critic: Critic | None) -> None:
        self.policy, self.critic = policy, critic
        self.optimizer = _adamw(policy.parameters(), config.optim.learning_rate, config)
        self.critic_optimizer = (
            _adamw(list(critic.parameters()), config.critic.learning_rate, config) if critic else None
        )
        self.step = 0  # rollout batches done
        self.version = 0  # optimizer updates done
        self.tokens = 0  # response tokens generated

    def finish_step(self, rollouts: Rollouts) -> None:
        self.step += 1
        self.tokens += int(rollouts.lengths_N.sum())

    def counters(self) -> dict[str, float]:
        return {"train/step": self.step, "train/updates": self.version, "train/tokens": self.tokens}

    def save(self, folder: RunFolder, keep: int) -> None:
        """Write a checkpoint: the policy as transformers reads it, the rest as tensors and counters."""
        tensors = _optimizer_tensors("optimizer", self.optimizer)
        if self.critic and self.critic_optimizer:
            tensors |= {f"critic/{k}": v for k, v in self.critic.state_dict().items()}
            tensors |= _optimizer_tensors("critic_optimizer", self.critic_optimizer)
        counters = {"step": self.step, "version": self.version, "tokens": self.tokens}
        save_checkpoint(
            folder.path / "checkpoints", self.step, lambda to: save_model(self.policy, to), tensors, counters, keep=keep
        )

    def load(self, checkpoint: Path) -> None:
        """Restore all of it, bit by bit."""
        tensors, counters = load_checkpoint(checkpoint)
        self.step, self.version, self.tokens = counters["step"], counters["version"], counters["tokens"]
        restore_model(self.policy, checkpoint / "policy")
        _restore_optimizer("optimizer", self.optimizer, tensors)
        if self.critic and self.critic_optimizer:
            self.critic.load_state_dict(
                {k.removeprefix("critic/"): v for k, v in tensors.items() if k.startswith("critic/")}
            )
            _restore_optimizer("critic_optimizer", self.critic_optimizer, tensors)


def _adamw(parameters: list[torch.nn.Parameter], rate: float, config: RunConfig) -> torch.optim.AdamW:
    optim = config.optim
    return torch.optim.AdamW(
        parameters,
        lr=rate,
        betas=(optim.beta1, optim.beta2),
        eps=optim.eps,
        weight_decay=optim.weight_decay,
        fused=True,
    )


def _optimizer_tensors(prefix: str, optimizer: torch.optim.Optimizer) -> dict[str, Tensor]:
    state = optimizer.state_dict()["state"]
    return {
        f"{prefix}/{i}/{name}": torch.as_tensor(value) for i, entry in state.items() for name, value in entry.items()
    }


def _restore_optimizer(prefix: str, optimizer: torch.optim.Optimizer, tensors: dict[str, Tensor]) -> None:
    state: dict[int, dict[str, Tensor]] = {}
    for key, value in tensors.items():
        if key.startswith(f"{prefix}/"):
            _, index, name = key.split("/")
            state.setdefault(int(index), {})[name] = value
    optimizer.load_state_dict({"state": state, "param_groups": optimizer.state_dict()["param_groups"]})


class Interrupt:
    """Turns SIGTERM into a wish that the loop grants at the end of a step. Off the main thread it hears nothing."""

    def __init__(self) -> None:
        self.asked = False

    def __enter__(self) -> Self:
        try:
            self._before = signal.signal(signal.SIGTERM, self._hear)
        except ValueError:  # signals reach the main thread alone; a joblib thread is stopped by its parent
            self._before = None
        return self

    def __exit__(self, *_: object) -> None:
        if self._before is not None:
            signal.signal(signal.SIGTERM, self._before)

    def _hear(self, _signal: int, _frame: FrameType | None) -> None:
        self.asked = True

    def leave(self, path: Path, step: int) -> None:
        """Raise StoppedRun if SIGTERM came; call it after the state was saved."""
        if self.asked:
            raise StoppedRun(
                f"{path}: stopped by SIGTERM after step {step} and saved; the same command goes on from there"
            )
