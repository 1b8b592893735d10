"""What an algorithm needs beyond rewards and the sampler's log-probabilities, computed once per rollout batch."""

from opo.algorithms import ALGORITHMS
from opo.batch import Rollouts
from opo.config.schema import AlgoConfig, RunConfig
from opo.kl import kl_estimate
from opo.model.policy import Policy
from opo.rollout.base import Sampling
from opo.rollout.collect import Collected, Collector
from opo.system.seeding import generator_for
from opo.train.critic import Critic


def needs_reference(algo: AlgoConfig) -> bool:
    """True where the algorithm's loss looks at the reference policy in every step."""
    return algo.kl_coef != 0 or "reference_logprobs_NT" in ALGORITHMS[algo.name].needs


def prepare(
    batch: Collected,
    step: int,
    config: RunConfig,
    policy: Policy,
    initial: Policy | None,
    critic: Critic | None,
    collector: Collector,
) -> Rollouts:
    """The batch's rollouts with reference log-probabilities, KL rewards, values and greedy rewards, each only where it is used.

    `step` counts the batches from 0, whatever weights sampled this one.
    """
    rollouts, algo, optim = batch.rollouts, config.algo, config.optim
    needs = ALGORITHMS[algo.name].needs
    prompts = list(range(rollouts.num_prompts))
    if initial is not None and (needs_reference(algo) or (config.kl_init_every and step % config.kl_init_every == 0)):
        reference = initial.measure(rollouts, prompts, optim.tokens_per_microbatch, shared_prefix=optim.shared_prefix)
        rollouts = rollouts.with_(reference_logprobs_NT=reference.logprobs_MT)
        if algo.kl_coef and algo.kl_placement == "reward":
            assert rollouts.logprobs_NT is not None
            estimate_NT = kl_estimate(rollouts.logprobs_NT, reference.logprobs_MT, algo.kl_estimator)
            rollouts = rollouts.with_(kl_rewards_NT=-algo.kl_coef * estimate_NT * rollouts.mask_NT)
    if critic is not None:
        rollouts = rollouts.with_(values_NT=critic.values(rollouts, optim.tokens_per_microbatch))
    if "greedy_rewards_P" in needs:
        greedy = Sampling(1, config.rollout.max_new_tokens, greedy=True, stop_token_ids=policy.stop_token_ids)
        first, unused = batch.prompts[0].index, generator_for(config.seed, "greedy", step)
        best = collector.collect(first, rollouts.num_prompts, greedy, unused)
        rollouts = rollouts.with_(greedy_rewards_P=best.rollouts.rewards_PG[:, 0])
    if "logit_energy_NT" in needs or "entropies_NT" in needs:
        seen = policy.measure(
            rollouts, prompts, optim.tokens_per_microbatch, shared_prefix=optim.shared_prefix, energy=True
        )
        rollouts = rollouts.with_(logit_energy_NT=seen.energies_MT, entropies_NT=seen.entropies_MT)
    return rollouts
