"""The training loop, on one page.

It reads as GRPO would, with what OPO leaves out left out:

- no importance ratio and no clipping: one update per freshly sampled batch, so the ratio is one (off-policy forms are a number,
  `algo.updates_per_rollout`, and an algorithm that has a ratio);
- no reference model and no KL penalty (made only when `algo.kl_coef` is not zero);
- no critic (made only for an algorithm that asks for values);
- no division by the group's standard deviation, and a baseline weighted by length in place of the mean;
- no length or token-mean normalisation: the loss is a sum over tokens, whose gradient is that of expected reward.

What is left: sample, score, weigh the scores, step. Which algorithm it is, the loop does not know: a loss is a function of token
log-probabilities, and its gradient there is all that reaches the model (opo/train/update.py).
"""

import copy
from dataclasses import replace
from pathlib import Path

from opo.algorithms import ALGORITHMS
from opo.config.schema import RunConfig, to_dict
from opo.model.load import load_policy, max_length
from opo.rewards.runner import RewardRunner
from opo.rollout.base import Sampling
from opo.rollout.collect import Collector, stop_token_ids
from opo.rollout.factory import make_sampler
from opo.run.folder import RunFolder
from opo.system.seeding import generator_for
from opo.system.threads import use_machine
from opo.tasks import make_task
from opo.tracking import Tracker
from opo.train.critic import Critic
from opo.train.heldout import evaluate
from opo.train.mismatch import Certificate
from opo.train.prepare import needs_reference, prepare
from opo.train.progress import Progress
from opo.train.state import Interrupt, TrainingState
from opo.train.step_metrics import Clock, batch_metrics
from opo.train.update import update_on


def train(config: RunConfig, path: Path) -> None:
    """Run `config` in the folder `path`, going on from its newest checkpoint where there is one.

    Raises UserError for a configuration or folder that cannot be used, StoppedRun after SIGTERM (saved) and where a loss or
    gradient is not finite (the batch is on disk).
    """
    use_machine(config.threads)
    folder = RunFolder.open(path, to_dict(config))
    if folder.done:
        print(f"{path}: finished already, nothing to do")
        return
    with folder.held():
        _train(config, folder)


def _train(config: RunConfig, folder: RunFolder) -> None:
    """The run itself, in its open folder."""
    path = folder.path
    task = make_task(config.task, config.reward.function)
    policy = load_policy(config.model, config.rollout.temperature, config.device)
    policy = replace(policy, stop_token_ids=stop_token_ids(policy.tokenizer, task.stop))
    keep_initial = config.kl_init_every > 0 or needs_reference(config.algo)
    initial = replace(policy, model=copy.deepcopy(policy.model).requires_grad_(False)) if keep_initial else None
    critic = Critic(policy) if "values_NT" in ALGORITHMS[config.algo.name].needs else None
    state = TrainingState(config, policy, critic)
    if checkpoint := folder.latest_checkpoint():
        state.load(checkpoint)
    folder.truncate_metrics(state.step)
    sampling = Sampling(
        config.rollout.group_size,
        config.rollout.max_new_tokens,
        config.rollout.temperature,
        config.rollout.top_p,
        config.rollout.top_k,
        stop_token_ids=policy.stop_token_ids,
    )
    with (
        Tracker.open(folder, config.tracking, config) as tracker,
        RewardRunner(task, config.reward.timeout_s, config.reward.workers) as rewards,
        make_sampler(config, policy) as sampler,
        Progress(config, path) as progress,
        Interrupt() as interrupt,
    ):
        certificate = Certificate.open(folder.path, config.certificate)
        collector = Collector(task, policy.tokenizer, sampler, rewards, max_length(policy.model))
        sampler.load_weights(policy.model, state.version)
        while state.step < config.steps:
            clock = Clock()
            first_prompt = state.step * config.rollout.num_prompts
            generator = generator_for(config.seed, "rollout", state.step)
            batch = collector.collect(first_prompt, config.rollout.num_prompts, sampling, generator)
            clock.lap("time/rollout_s")
            rollouts = prepare(batch, state.step, config, policy, initial, critic, collector)
            clock.lap("time/logprob_s")
            metrics = update_on(rollouts, config, policy, critic, state, certificate, path)
            clock.lap("time/update_s")
            metrics |= batch_metrics(batch)
            sampler.load_weights(policy.model, state.version)
            state.finish_step(rollouts)
            last = state.step == config.steps
            if config.evaluate.every and (state.step % config.evaluate.every == 0 or last):
                metrics |= evaluate(collector, config.evaluate, sampling, config.seed)
                clock.lap("time/eval_s")
            metrics |= state.counters() | clock.metrics(rollouts)
            if config.tracking.completions_every and (state.step % config.tracking.completions_every == 0 or last):
                tracker.completions(state.step, batch.rows(config.tracking.completions))
            tracker.log(state.step, metrics)
            progress.show(state.step, metrics, batch)
            if last or interrupt.asked or (config.checkpoint.every and state.step % config.checkpoint.every == 0):
                state.save(folder, config.checkpoint.keep)
            if not last:
                interrupt.leave(path, state.step)
    folder.finish()
