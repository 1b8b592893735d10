"""The gradient that each algorithm would give the optimizer, on the same rollouts: any loss with its parts, by the trainer's own path.

A record is a batch of P prompts, answered K times with G responses to each prompt by the policy that is looked at. Of replicate k every
row gets one gradient g_k: the trainer prepares the batch (reference, values, entropies, shaped rewards, filter) and takes the backward pass
of its first update on it. Beside it stands u_k, REINFORCE with the leave-one-out baseline on the same responses, for which E[u] = grad E[r].
Replicates are independent given the prompts, so the moments of `analysis.variance.compare` hold with batches in place of groups:

    E|g|^2, |E g|^2, <E g, grad E[r]>, |E g - grad E[r]|^2     from products of different replicates

Nothing is assumed of the row: weights on tokens, coupled prompts, entropy terms, masks by hidden states and losses of several terms are
measured alike, at one backward pass each. Intervals are over records.

What a row remembers (a critic, moments of rewards or gradients, a history of entropies) is empty at the start, as in a run; in
mid-training it is fitted first on batches of the same policy that are not measured. A sampler of responses draws its own batches for the same prompts. Two
kinds of parts are left out of the measurement, since they are not estimates from one batch: a sampler of prompts, and a gradient
estimator that averages over steps; for these the row says what a single batch gives.
"""

import hashlib
import json
import tempfile
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from analysis.study.pools import PoolFolder
from analysis.variance.compare import moments_from_gram
from analysis.zoo.config import ZooConfig
from analysis.zoo.rows import Row
from opo import algorithms
from opo.algorithms import token_weights
from opo.baselines import leave_one_out
from opo.batch import Rollouts
from opo.cli.compose import composed
from opo.config.load import load_config
from opo.config.parts import PromptCurriculum
from opo.config.schema import ModelConfig, RunConfig
from opo.model.gradient import accumulate
from opo.model.load import load_policy
from opo.model.policy import Policy
from opo.parts.chosen import Parts
from opo.rollout.collect import Collected, Collector, open_collector
from opo.run.checkpoint import checkpoints
from opo.system.atomic import write_text
from opo.system.pace import Pace
from opo.system.records import read_sealed, sealed
from opo.system.seeding import generator_for, seed_for
from opo.system.terminal import say
from opo.system.threads import use_machine
from opo.tasks import make_task
from opo.train.critic import update_critic
from opo.train.learner import Learner
from opo.train.prepare import draw, prepare
from opo.train.update import loss_of

REFERENCE = "leave_one_out"
POLICIES = ("start", "middle")
FIELDS = ("second", "signal", "reference", "cross", "error")


def measure(config: ZooConfig, folder: Path, policy_name: str, middle: Path, which: int, of: int) -> None:
    """Measure what is missing of the records which, which + of, ... at one policy; `middle` is the run that ends in mid-training."""
    use_machine(1)
    files = record_files(config, folder, policy_name)
    rows = [(row, run_config(config, row)) for row in config.rows]
    missing = {
        number: [r for r in rows if not is_measured(files[number], *r)] for number in range(which, config.batches, of)
    }
    wanted = {row: run for mine in missing.values() for row, run in mine}
    if not wanted:
        return
    bench = Bench.of(config, middle if policy_name == "middle" else None, next(iter(wanted.values())))
    with bench, tempfile.TemporaryDirectory() as scratch:
        learners = {row: bench.learner(row_config, Path(scratch)) for row, row_config in wanted.items()}
        todo = [(number, mine) for number, mine in missing.items() if mine]
        pace = Pace(len(todo))
        for done, (number, mine) in enumerate(todo, 1):
            measured = bench.record(number, {row: learners[row] for row, _ in mine})
            add(
                files[number],
                {row.name: {"digest": digest(run)} | measured[row.name] for row, run in mine}
                | {REFERENCE: measured[REFERENCE]},
            )
            if pace.due(done):
                say(f"{policy_name}: batch {done}/{pace.total}  {pace.line(done, 'batch')}")


def run_config(config: ZooConfig, row: Row) -> RunConfig:
    """The run of a row, on batches of the size that is measured."""
    run = load_config(composed("train", row.training(config.overrides, config.seed, config.tokens)))
    return replace(
        run, kl_init_every=0, rollout=replace(run.rollout, num_prompts=config.prompts, group_size=config.group_size)
    )


def record_files(config: ZooConfig, folder: Path, policy_name: str) -> list[Path]:
    """One file a record. Raises UserError where the folder holds records of another setting."""
    keys = ("overrides", "prompts", "group_size", "replicates", "memory_batches", "seed")
    setting = {key: getattr(config, key) for key in keys}
    setting |= {"tokens": config.tokens} if policy_name == "middle" else {}
    measured = PoolFolder(folder / "measured" / policy_name, setting)
    measured.start()
    path = measured.path
    return [path / f"record-{number:03d}.json" for number in range(config.batches)]


def digest(run: RunConfig) -> str:
    """Of everything about a row that its gradients depend on: its keys, and the source of its loss."""
    keys = json.dumps([asdict(run.algo), asdict(run.optim)], sort_keys=True, default=str)
    source = Path(algorithms.__path__[0], f"{run.algo.name}.py").read_text(encoding="utf-8")
    return hashlib.sha256((keys + source).encode()).hexdigest()[:16]


def is_measured(file: Path, row: Row, run: RunConfig) -> bool:
    return file.exists() and read_sealed(file).get(row.name, {}).get("digest") == digest(run)


def add(file: Path, rows: dict[str, dict[str, Any]]) -> None:
    known = read_sealed(file) if file.exists() else {}
    write_text(file, json.dumps(sealed(known | rows), indent=1, sort_keys=True) + "\n")


@dataclass
class Bench:
    """A policy, its sampler, and the policy that training began with."""

    config: ZooConfig
    run: RunConfig
    model: ModelConfig
    start: Policy
    policy: Policy
    collector: Collector | None = None

    @classmethod
    def of(cls, config: ZooConfig, middle: Path | None, run: RunConfig) -> "Bench":
        def loaded(model: ModelConfig) -> Policy:
            policy = load_policy(replace(model, compute="float32"), run.rollout.temperature, run.device)
            return replace(policy, token_budget=run.optim.tokens_per_microbatch, shared_prefix=run.optim.shared_prefix)

        start, model = loaded(run.model), run.model
        if middle is not None:
            model = replace(run.model, name="pretrained", path=str(checkpoints(middle / "checkpoints")[-1] / "policy"))
        return cls(config, run, model, start, start if middle is None else loaded(model))

    def __enter__(self) -> "Bench":
        task = make_task(self.run.task, self.run.reward.functions)
        self.opened = open_collector(self.policy, task, self.model, self.run.rollout, self.run.reward)
        self.collector = self.opened.__enter__()
        return self

    def __exit__(self, *error: Any) -> None:
        self.opened.__exit__(*error)

    def learner(self, run: RunConfig, scratch: Path) -> Learner:
        """The trainer of a row at this policy, with what it would remember by now."""
        algo = replace(run.algo, gradient=None)
        if isinstance(algo.sampler, PromptCurriculum):
            algo = replace(algo, sampler=None)
        learner = Learner(replace(run, algo=algo), self.policy, scratch)
        if learner.initial is not None:
            learner.initial = replace(learner.initial, model=self.start.model)
        if self.policy is not self.start and (learner.critic or learner.parts.tensors() or learner.parts.mask):
            for number in range(self.config.memory_batches):
                self._remember(learner, number)
        return learner

    def _remember(self, learner: Learner, number: int) -> None:
        """One batch of this policy for critic and parts, as a step would do it; the policy stands still."""
        assert self.collector is not None
        run = replace(learner.config, seed=seed_for(self.config.seed, "memory", number))
        learner.config, learner.step = run, self.config.batches + number
        rollouts = prepare(draw(learner, self.collector), learner, self.collector)
        self.gradient(learner, rollouts)
        if learner.critic is not None and learner.critic_optimizer is not None:
            for _ in range(run.algo.updates_per_rollout):
                update_critic(
                    learner.critic, learner.critic_optimizer, rollouts, list(range(rollouts.num_prompts)), run
                )

    def record(self, number: int, learners: dict[Row, Learner]) -> dict[str, dict[str, float]]:
        """Moments of every row on one batch of prompts."""
        assert self.collector is not None
        config = self.config
        batches = [
            self.collector.collect(
                number * config.prompts, config.prompts, generator_for(config.seed, "zoo", number, k)
            )
            for k in range(config.replicates)
        ]
        plain_KD = torch.stack([self.reference(batch.rollouts) for batch in batches])
        moments = {REFERENCE: _moments(plain_KD, plain_KD)}
        for row, learner in learners.items():
            memory = {name: value.clone() for name, value in learner.parts.tensors().items()}
            own_KD = torch.stack(
                [self._replicate(learner, memory, number, k, batch) for k, batch in enumerate(batches)]
            )
            moments[row.name] = _moments(own_KD, plain_KD)
        return moments

    def _replicate(self, learner: Learner, memory: dict[str, Tensor], number: int, k: int, batch: Collected) -> Tensor:
        """One gradient of a row; what it learns from the batch is forgotten."""
        assert self.collector is not None
        learner.parts = Parts(learner.config.algo)
        if memory:
            learner.parts.restore({name: value.clone() for name, value in memory.items()})
        learner.config = replace(learner.config, seed=seed_for(self.config.seed, "replicate", number, k))
        learner.step = number
        if learner.parts.sampler is not None:
            batch = draw(learner, self.collector)
        return self.gradient(learner, prepare(batch, learner, self.collector))

    def gradient(self, learner: Learner, rollouts: Rollouts) -> Tensor:
        """Minus the gradient of the first update on a batch, (D,)."""
        assert rollouts.logprobs_NT is not None
        self.policy.model.zero_grad(set_to_none=True)
        weights_NT = token_weights(loss_of(learner.config.algo, rollouts), rollouts.logprobs_NT)
        learner.backward(rollouts, list(range(rollouts.num_prompts)), weights_NT, learner.entropy_weights(rollouts))
        return self._taken()

    def reference(self, rollouts: Rollouts) -> Tensor:
        """u: leave-one-out, for which the mean is grad E[r]."""
        self.policy.model.zero_grad(set_to_none=True)
        advantages_PG = (rollouts.rewards_PG - leave_one_out(rollouts.rewards_PG)).nan_to_num(0.0)
        weights_NT = advantages_PG.view(-1, 1) * rollouts.mask_NT / rollouts.scored_N.sum().clamp(min=1)
        accumulate(self.policy, rollouts, list(range(rollouts.num_prompts)), weights_NT)
        return self._taken()

    def _taken(self) -> Tensor:
        parts = [torch.zeros_like(p) if p.grad is None else p.grad for p in self.policy.parameters()]
        flat_D = -torch.cat([part.flatten().cpu() for part in parts])
        self.policy.model.zero_grad(set_to_none=True)
        return flat_D


def _moments(own_KD: Tensor, plain_KD: Tensor) -> dict[str, float]:
    both_RD = torch.cat([own_KD, plain_KD]).double()
    eye_KR = np.eye(len(own_KD), len(both_RD))
    moments = moments_from_gram(both_RD @ both_RD.T, eye_KR, np.roll(eye_KR, len(own_KD), 1))
    return {name: float(getattr(moments, name)[0]) for name in FIELDS}


def load_records(
    config: ZooConfig, folder: Path, policy_name: str, names: Sequence[str]
) -> dict[str, dict[str, np.ndarray]]:
    """By row, each moment at every record, (R,); rows that lack a record are left out."""
    records = [read_sealed(file) if file.exists() else {} for file in record_files(config, folder, policy_name)]
    whole = [name for name in (REFERENCE, *names) if all(name in record for record in records)]
    return {name: {field: np.array([record[name][field] for record in records]) for field in FIELDS} for name in whole}
