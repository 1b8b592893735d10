"""Inputs of an algorithm beyond rewards and the sampler's log-probabilities, computed once per rollout batch."""

from dataclasses import replace

from torch import Tensor

from opo.algorithms import ALGORITHMS, token_weights
from opo.batch import Rollouts
from opo.kl import kl_estimate
from opo.model.answer_gains import answer_gains
from opo.model.score_norms import squared_score_norms
from opo.parts.filters import drawn
from opo.parts.gradients import HessianCorrected, hessian_vector
from opo.parts.guides import GuidedStart
from opo.parts.samplers import PromptCurriculum
from opo.rollout.collect import Collected, Collector
from opo.system.seeding import generator_for, rng_for
from opo.train.learner import Learner
from opo.train.update import loss_of, needs_reference


def draw(learner: Learner, collector: Collector) -> Collected:
    """The scored responses of the next step, from the run's sampler or from the policy to the next prompts of the stream.

    Raises UserError where the scorer failed for every one of them: such a run learns nothing, however long it goes on.
    """
    config, step, sampler = learner.config, learner.step, learner.parts.sampler
    count = config.rollout.num_prompts
    if isinstance(sampler, GuidedStart):
        assert learner.initial is not None
        return sampler.collect(
            collector, learner.policy, count, step, config.seed, guide=learner.initial, version=learner.version
        )
    if sampler is not None:
        batch = sampler.collect(collector, learner.policy, count, step, config.seed)
    else:
        batch = collector.collect(step * count, count, generator_for(config.seed, "rollout", step))
    learner.world.by_first(lambda: batch.refuse_failed_rewards(collector.task))
    return batch


def prepare(batch: Collected, learner: Learner, collector: Collector) -> Rollouts:
    """The batch's rollouts with reference log-probabilities, KL rewards, values and greedy rewards, each only where it is used."""
    rollouts, config, policy, step = batch.rollouts, learner.config, learner.policy, learner.step
    algo, parts = config.algo, learner.parts
    needs = (*ALGORITHMS[algo.name].needs, *parts.needs)
    if isinstance(parts.sampler, PromptCurriculum):
        parts.sampler.learn(rollouts)
    if parts.shaper is not None:
        rollouts = rollouts.with_(rewards_PG=parts.shaper(rollouts))
    prompts = list(range(rollouts.num_prompts))
    measured = config.kl_init_every and step % config.kl_init_every == 0
    if learner.initial is not None and (needs_reference(algo) or measured):
        reference_NT = learner.initial.measure(rollouts, prompts).logprobs_NT
        rollouts = rollouts.with_(reference_logprobs_NT=reference_NT)
        if algo.kl_coef and algo.kl_placement == "reward":
            # both from the trainer's own pass: exactly zero where the policy is the reference, so that nothing is whitened there
            own_NT = policy.measure(rollouts, prompts).logprobs_NT
            estimate_NT = kl_estimate(own_NT, reference_NT, algo.kl_estimator)
            rollouts = rollouts.with_(kl_rewards_NT=-algo.kl_coef * estimate_NT * rollouts.mask_NT)
    if learner.critic is not None:
        rollouts = rollouts.with_(values_NT=learner.critic.values(rollouts))
    if "greedy_rewards_P" in needs:
        greedy = replace(collector.sampling, group_size=1, temperature=1.0, top_p=1.0, top_k=0, greedy=True)
        unused = generator_for(config.seed, "greedy", step)
        best = collector.collect(batch.prompts[0].index, rollouts.num_prompts, unused, greedy)
        rollouts = rollouts.with_(greedy_rewards_P=best.rollouts.rewards_PG[:, 0])
    if "reference_rewards_P" in needs:
        rollouts = rollouts.with_(reference_rewards_P=reference_rewards(batch, learner, collector))
    if "answer_gains_NT" in needs:
        ids = [collector.tokenizer.encode(prompt.answer, add_special_tokens=False) for prompt in batch.prompts]
        gains_NT = answer_gains(policy, rollouts, ids, algo.hyperparameters["step_tokens"])
        rollouts = rollouts.with_(answer_gains_NT=gains_NT)
    if "logit_energy_NT" in needs or "entropies_NT" in needs:
        token_scores = policy.measure(rollouts, prompts, energy=True)
        rollouts = rollouts.with_(logit_energy_NT=token_scores.energies_NT, entropies_NT=token_scores.entropies_NT)
    if "score_norm2_PG" in needs:
        rollouts = rollouts.with_(score_norm2_PG=squared_score_norms(policy, rollouts))
    if isinstance(parts.gradient, HessianCorrected):
        correct(parts.gradient, batch, learner, collector)
    if parts.filter is not None:
        weights_PG = parts.filter.weights(rollouts.rewards_PG)
        rollouts = drawn(rollouts, weights_PG, generator_for(config.seed, "filter", step))
    return rollouts


def reference_rewards(batch: Collected, learner: Learner, collector: Collector) -> Tensor:
    """Reward of one response of the reference policy to each prompt of the batch, (P,)."""
    assert learner.initial is not None
    one = replace(collector.sampling, group_size=1)
    generator = generator_for(learner.config.seed, "reference", learner.step)
    _, ids = collector.prompts(batch.prompts[0].index, len(batch.prompts))
    collector.sampler.load_weights(learner.initial.model, learner.version)
    answered = collector.respond(batch.prompts, ids, generator, one)
    collector.sampler.load_weights(learner.policy.whole(), learner.version)
    return answered.rollouts.rewards_PG[:, 0]


def correct(part: HessianCorrected, batch: Collected, learner: Learner, collector: Collector) -> None:
    """Give the gradient estimator its correction for the last step, from a second batch to the same prompts."""
    config, policy, step = learner.config, learner.policy, learner.step
    share = float(rng_for(config.seed, "between", step).random())
    with part.between(policy.parameters(), share) as moved:
        if moved is None:
            return
        collector.sampler.load_weights(policy.model, learner.version)
        ids = batch.rollouts.prompt_ids
        second = collector.respond(batch.prompts, ids, generator_for(config.seed, "second", step)).rollouts
        assert second.logprobs_NT is not None
        weights_NT = token_weights(loss_of(config.algo, second), second.logprobs_NT)
        part.correction = hessian_vector(policy, second, weights_NT, moved, part.difference)
    collector.sampler.load_weights(policy.model, learner.version)
