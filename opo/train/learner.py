"""The learner: policy, critic where there is one, their optimizers and counters.

One update is four things: token weights, forward and backward pass, the rollout-trainer mismatch check, the step.
"""

import copy
import math
from dataclasses import replace
from functools import partial
from pathlib import Path

import torch
from torch import Tensor

from opo.algorithms import ALGORITHMS, token_weights
from opo.batch import Rollouts
from opo.config.schema import RunConfig
from opo.errors import UserError
from opo.model.gradient import OpenPass, accumulate, clip_gradients, gradient_norm, open_pass
from opo.model.load import restore_model, save_model
from opo.model.policy import BatchScores, Policy
from opo.parallel.first import SharedFolder
from opo.parts.chosen import Parts
from opo.parts.gradients import LookAhead
from opo.run.checkpoint import checkpoint_step, load_checkpoint, save_checkpoint
from opo.train.critic import Critic, update_critic
from opo.train.mismatch import Mismatch, MismatchCheck, measure_mismatch, truncated_ratios
from opo.train.optimizer import learning_rate, optimizer_of, optimizer_tensors, restore_optimizer, take_step
from opo.train.step_metrics import UpdateTally
from opo.train.update import loss_of, minibatch, needs_reference, stop_nonfinite, unit_weights


class Learner:
    """The state that training changes. Random streams are functions of the counters, so they need no saving."""

    def __init__(self, config: RunConfig, policy: Policy, path: Path) -> None:
        """`policy` as it is at the start of the run; `path` is the run's folder, for certificate.json and a batch with a non-finite gradient."""
        optim = config.optim
        self.config, self.path = config, path
        self.policy = replace(policy, token_budget=optim.tokens_per_microbatch, shared_prefix=optim.shared_prefix)
        keep_initial = config.kl_init_every > 0 or needs_reference(config.algo)
        frozen = copy.deepcopy(policy.model).requires_grad_(False) if keep_initial else None
        self.initial = replace(self.policy, model=frozen) if keep_initial else None
        self.critic = Critic(self.policy) if "values_NT" in ALGORITHMS[config.algo.name].needs else None
        self.world = policy.world
        if self.world.size > 1 and config.parallel.mode == "sharded":
            from opo.parallel.sharded import shard

            self.policy = shard(self.policy)
        self.optimizer = optimizer_of(self.policy.parameters(), optim.learning_rate, optim)
        self.critic_optimizer = (
            optimizer_of(list(self.critic.parameters()), config.critic.learning_rate, optim) if self.critic else None
        )
        self.parts = Parts(config.algo)
        behaviour = getattr(self.parts.sampler, "behaviour", False)
        self.check = MismatchCheck.open(path, config.certificate, config.algo.updates_per_rollout, behaviour)
        self.check.path = self.check.path if self.world.is_first else None  # every rank judges, the first one writes
        self.step = 0  # rollout batches done
        self.version = 0  # optimizer updates done
        self.tokens = 0  # response tokens generated

    @property
    def done(self) -> bool:
        """Whether the run has taken its steps, or generated its tokens."""
        tokens = self.config.tokens
        return self.step >= self.config.steps or (tokens is not None and self.tokens >= tokens)

    def update(self, rollouts: Rollouts, tokens: int | None = None) -> dict[str, float]:
        """All updates of one rollout batch, for which `tokens` tokens were generated (none given: its own), and their metrics.

        The first update takes the sampler's log-probabilities as the policy's, so that every importance ratio is one; its own
        forward pass then measures how far the trainer's are from them. Raises StoppedRun, the batch on disk, where a gradient is
        not finite, and MismatchBreach where the batch is not on-policy and must be.
        """
        algo, corrects = self.config.algo, self.config.certificate.on_breach == "correct"
        assert rollouts.logprobs_NT is not None
        loss = loss_of(algo, rollouts)
        on_policy_NT, entropy_NT = token_weights(loss, rollouts.logprobs_NT), self.entropy_weights(rollouts)
        tally = UpdateTally(rollouts, on_policy_NT)
        for update in range(algo.updates_per_rollout):
            prompts = minibatch(self.config, self.step, update)
            rows = rollouts.rows_of(prompts)
            current_NT, weights_NT, opened = rollouts.logprobs_NT, on_policy_NT, None
            if update > 0:
                moved, opened = open_pass(self.policy, rollouts, prompts, on_policy_NT, entropy_NT)
                current_NT = current_NT.index_copy(0, rows, moved.logprobs_NT[rows])
                weights_NT = token_weights(loss, current_NT)
            elif corrects and self._breach(measured := self.policy.measure(rollouts, prompts), rollouts, rows):
                tally.row["mismatch/corrected"] = 1.0
                inside_NT = torch.zeros_like(rollouts.mask_NT).index_copy(0, rows, rollouts.mask_NT[rows])
                weights_NT = weights_NT * truncated_ratios(
                    current_NT, measured.logprobs_NT, inside_NT, self.config.certificate.cap
                )
            forward, weights_NT = self.backward(rollouts, prompts, weights_NT, entropy_NT, opened)
            tally.add(rows, current_NT, weights_NT)
            if self.parts.gradient is not None:
                self.parts.gradient.estimate(self.policy.parameters())
            norm = gradient_norm(self.policy.parameters())
            if not (math.isfinite(norm) and bool(forward.logprobs_NT.isfinite().all())):  # on every rank or on none
                self.world.by_first(
                    partial(stop_nonfinite, self.path, self.step, rollouts, weights_NT, forward.logprobs_NT)
                )
            if update == 0:
                if not corrects:
                    self._breach(forward, rollouts, rows)
                tally.first(rows, forward, self._mismatch(forward, rollouts, rows))
            tally.step(norm, *self._step(norm))
            if self.critic is not None and self.critic_optimizer is not None:
                tally.critic(*update_critic(self.critic, self.critic_optimizer, rollouts, prompts, self.config))
            self.version += 1
        if isinstance(self.parts.gradient, LookAhead):
            self.parts.gradient.extrapolate(self.policy.parameters())
        self.step += 1
        self.tokens += int(rollouts.lengths_N.sum()) if tokens is None else tokens
        return tally.metrics()

    def backward(
        self,
        rollouts: Rollouts,
        prompts: list[int],
        weights_NT: Tensor,
        entropy_NT: Tensor | None,
        opened: OpenPass | None = None,
    ) -> tuple[BatchScores, Tensor]:
        """Leave the gradients of an update on these prompts in the parameters; what the pass saw, and the weights after the mask."""
        if self.parts.mask is not None:
            advantages_NT = (weights_NT / unit_weights(self.config.algo, rollouts)).nan_to_num(0.0)
            weights_NT = weights_NT * self.parts.mask(self.policy, rollouts, advantages_NT, self._rate())
        # the loss averages over the batch: rescaled, these prompts' rows alone average as the batch does
        scale = rollouts.num_prompts / len(prompts)
        bonus_NT = None if entropy_NT is None else entropy_NT * scale
        return accumulate(self.policy, rollouts, prompts, weights_NT * scale, bonus_NT, opened), weights_NT

    def _mismatch(self, forward: BatchScores, rollouts: Rollouts, rows: Tensor) -> Mismatch:
        """Between sampler and trainer, over these rows."""
        assert rollouts.logprobs_NT is not None
        return measure_mismatch(rollouts.logprobs_NT[rows], forward.logprobs_NT[rows], rollouts.mask_NT[rows])

    def _breach(self, forward: BatchScores, rollouts: Rollouts, rows: Tensor) -> bool:
        """The mismatch check of the first update on a batch: true where its weights have to be corrected."""
        return self.check.check(self.step + 1, rollouts.versions, self.version, self._mismatch(forward, rollouts, rows))

    def entropy_weights(self, rollouts: Rollouts) -> Tensor | None:
        """c_nt with sum_nt c_nt H_nt the terms on entropies, on the scale of the loss's policy term, (N, T); None without any."""
        algo, part = self.config.algo, self.parts.regulariser
        if not algo.entropy_coef and part is None:
            return None
        slopes_NT: Tensor | float = algo.entropy_coef
        if part is not None:
            slopes_NT = slopes_NT + part.slopes(rollouts, self.step, self.config.steps)
        return slopes_NT * unit_weights(algo, rollouts)

    def _rate(self) -> float:
        config, optim = self.config, self.config.optim
        total = config.steps * config.algo.updates_per_rollout
        return learning_rate(optim.learning_rate, optim.schedule, optim.warmup_steps, self.version, total)

    def _step(self, norm: float) -> tuple[bool, float, float]:
        """Clip and move the policy: whether the gradient was clipped, the rate, and the share of weights that moved."""
        clipped, rate = clip_gradients(self.policy.parameters(), norm, self.config.optim.max_grad_norm), self._rate()
        return clipped, rate, self.world.mean(take_step(self.optimizer, rate))

    def counters(self) -> dict[str, float]:
        return {"train/step": self.step, "train/updates": self.version, "train/tokens": self.tokens}

    def save(self, folder: SharedFolder, keep: int) -> None:
        """Write a checkpoint: the policy as transformers reads it, the rest as tensors and counters, whole however they are cut."""
        tensors = optimizer_tensors("optimizer", self.optimizer) | self.parts.tensors()
        if self.critic and self.critic_optimizer:
            tensors |= {f"critic/{k}": v for k, v in self.critic.state_dict().items()}
            tensors |= optimizer_tensors("critic_optimizer", self.critic_optimizer)
        counters = {"step": self.step, "version": self.version, "tokens": self.tokens}
        ahead = self.parts.gradient if isinstance(self.parts.gradient, LookAhead) else None
        if ahead is not None:  # what is kept is where the policy stands
            ahead.land(self.policy.parameters())
        whole, to = Policy(self.policy.whole(), self.policy.tokenizer), folder.path / "checkpoints"
        saver = partial(save_model, whole)
        self.world.by_first(
            lambda: save_checkpoint(to, self.step, saver, tensors, counters, keep=keep, run=folder.of_first.wandb_id)
        )
        if ahead is not None:
            ahead.extrapolate(self.policy.parameters())

    def load(self, checkpoint: Path) -> None:
        """Restore all of it, bit by bit."""
        tensors, counters = load_checkpoint(checkpoint)
        known = (
            isinstance(counters, dict)
            and [type(counters.get(name)) for name in ("step", "version", "tokens")] == [int] * 3
        )
        if not known or counters["step"] != checkpoint_step(checkpoint):
            raise UserError(
                f"{checkpoint / 'trainer.json'}: damaged, its counters are not those of this step; remove {checkpoint} to go on from the "
                "checkpoint before it"
            )
        self.step, self.version, self.tokens = counters["step"], counters["version"], counters["tokens"]
        whole = Policy(self.policy.whole(), self.policy.tokenizer)
        restore_model(whole, checkpoint / "policy")
        self.policy.take(whole.model)
        restore_optimizer("optimizer", self.optimizer, tensors)
        self.parts.restore(tensors)
        if isinstance(self.parts.gradient, LookAhead):
            self.parts.gradient.extrapolate(self.policy.parameters())
        if self.critic and self.critic_optimizer:
            own = {k.removeprefix("critic/"): v for k, v in tensors.items() if k.startswith("critic/")}
            self.critic.load_state_dict(own)
            restore_optimizer("critic_optimizer", self.critic_optimizer, tensors)
