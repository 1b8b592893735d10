"""What an algorithm needs beyond rewards and the sampler's log-probabilities, computed once per rollout batch."""

from dataclasses import replace

from opo.algorithms import ALGORITHMS
from opo.batch import Rollouts
from opo.kl import kl_estimate
from opo.rollout.collect import Collected, Collector
from opo.system.seeding import generator_for
from opo.train.learner import Learner
from opo.train.update import needs_reference


def prepare(batch: Collected, learner: Learner, collector: Collector) -> Rollouts:
    """The batch's rollouts with reference log-probabilities, KL rewards, values and greedy rewards, each only where it is used."""
    rollouts, config, policy, step = batch.rollouts, learner.config, learner.policy, learner.step
    algo, needs = config.algo, ALGORITHMS[config.algo.name].needs
    prompts = list(range(rollouts.num_prompts))
    measured = config.kl_init_every and step % config.kl_init_every == 0
    if learner.initial is not None and (needs_reference(algo) or measured):
        reference_NT = learner.initial.measure(rollouts, prompts).logprobs_MT
        rollouts = rollouts.with_(reference_logprobs_NT=reference_NT)
        if algo.kl_coef and algo.kl_placement == "reward":
            # both from the trainer's own pass: exactly zero where the policy is the reference, so that nothing is whitened there
            own_NT = policy.measure(rollouts, prompts).logprobs_MT
            estimate_NT = kl_estimate(own_NT, reference_NT, algo.kl_estimator)
            rollouts = rollouts.with_(kl_rewards_NT=-algo.kl_coef * estimate_NT * rollouts.mask_NT)
    if learner.critic is not None:
        rollouts = rollouts.with_(values_NT=learner.critic.values(rollouts))
    if "greedy_rewards_P" in needs:
        greedy = replace(collector.sampling, group_size=1, temperature=1.0, top_p=1.0, top_k=0, greedy=True)
        unused = generator_for(config.seed, "greedy", step)
        best = collector.collect(batch.prompts[0].index, rollouts.num_prompts, unused, greedy)
        rollouts = rollouts.with_(greedy_rewards_P=best.rollouts.rewards_PG[:, 0])
    if "logit_energy_NT" in needs or "entropies_NT" in needs:
        seen = policy.measure(rollouts, prompts, energy=True)
        rollouts = rollouts.with_(logit_energy_NT=seen.energies_MT, entropies_NT=seen.entropies_MT)
    return rollouts
