"""The training loop, on one page.

It reads as GRPO would, without the parts that OPO leaves out:

- no importance ratio and no clipping: one update per freshly sampled batch, so the ratio is one (off-policy training is set by
  `algo.updates_per_rollout`, and an algorithm that has a ratio);
- no reference model and no KL penalty (made only when `algo.kl_coef` is not zero);
- no critic (made only for an algorithm that asks for values);
- no division by the group's standard deviation, and a baseline weighted by length in place of the mean;
- no length or token-mean normalisation: the loss is a sum over tokens, whose gradient is that of expected reward.

What is left: sample, score, weigh the scores, step. The loop does not depend on the algorithm: a loss is a function of token
log-probabilities, and its gradient there is all that reaches the model (opo/train/learner.py).
"""

from dataclasses import replace
from pathlib import Path

from opo.config.schema import RunConfig, to_dict
from opo.model.load import load_policy
from opo.parallel.first import SharedFolder, first_only
from opo.rollout.collect import open_collector
from opo.system.threads import use_machine
from opo.system.world import World
from opo.tasks import make_task
from opo.tracking import Tracker
from opo.train.heldout import evaluate
from opo.train.interrupt import Interrupt
from opo.train.learner import Learner
from opo.train.prepare import draw, prepare
from opo.train.progress import Progress
from opo.train.step_metrics import Clock, batch_metrics


def train(config: RunConfig, path: Path) -> None:
    """Run `config` in the folder `path`, resuming from its newest checkpoint where there is one.

    Raises UserError for a configuration or folder that cannot be used, StoppedRun after SIGTERM (saved) and where a loss or
    gradient is not finite (the batch is on disk).
    """
    use_machine(config.threads)
    with World.join() as world:
        world.same(to_dict(config))
        folder = SharedFolder(path, to_dict(config), world)
        if folder.done:
            world.say(f"{path}: finished already, nothing to do")
            return
        with folder.held():
            _train(config, folder, world)


def _train(config: RunConfig, folder: SharedFolder, world: World) -> None:
    """The run itself, in its open folder."""
    path, count = folder.path, config.rollout.num_prompts
    task = make_task(config.task, config.reward.functions)
    policy = replace(load_policy(config.model, config.rollout.temperature, config.device), world=world)
    learner = Learner(config, policy, path)
    if checkpoint := folder.latest_checkpoint():
        learner.load(checkpoint)
    folder.truncate_metrics(learner.step)
    with (
        first_only(world, lambda: Tracker.open(folder.of_first, config.tracking, config)) as tracker,
        open_collector(learner.policy, task, config.model, config.rollout, config.reward, learner.version) as collector,
        first_only(world, lambda: Progress(config, path)) as progress,
        Interrupt(world) as interrupt,
    ):
        collector.look_ahead(learner.step * count, (config.steps - learner.step) * count)
        collector.look_ahead(0, config.evaluate.num_prompts if config.evaluate.every else 0, "eval")
        while not learner.done:
            clock, before = Clock(world), collector.sampled.tokens
            batch = draw(learner, collector)
            clock.lap("time/rollout_s")
            rollouts = prepare(batch, learner, collector)
            clock.lap("time/logprob_s")
            metrics = learner.update(rollouts, collector.sampled.tokens - before) | batch_metrics(batch)
            clock.lap("time/update_s")
            collector.sampler.load_weights(learner.policy.whole(), learner.version)
            step, last = learner.step, learner.done
            if config.evaluate.every and (step % config.evaluate.every == 0 or last):
                metrics |= evaluate(collector, config.evaluate, config.seed)
                clock.lap("time/eval_s")
            metrics |= learner.counters() | clock.metrics(rollouts)
            if config.tracking.completions_every and (step % config.tracking.completions_every == 0 or last):
                tracker.completions(step, batch.rows(config.tracking.completions))
            tracker.log(step, metrics)
            progress.show(step, metrics, batch)
            if interrupt.heard() or last or (config.checkpoint.every and step % config.checkpoint.every == 0):
                learner.save(folder, config.checkpoint.keep)
                folder.seal()
            if not last:
                interrupt.leave(path, step)
    folder.finish(learner.step)
