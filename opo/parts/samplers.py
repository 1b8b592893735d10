"""Samplers: which prompts a batch asks, and which weights answer."""

import copy
from collections.abc import Callable
from dataclasses import replace

import torch
from torch import Tensor, nn

from opo.algorithms import token_weights
from opo.batch import Rollouts
from opo.config import parts as options
from opo.losses import MAX_LOG_RATIO
from opo.model.forward import pad_left, positions
from opo.model.gradient import accumulate
from opo.model.policy import Policy
from opo.rollout.collect import Collected, Collector, joined
from opo.system.seeding import generator_for

HALVINGS = 6  # of the step that passes the limit


class PromptCurriculum(options.PromptCurriculum):
    """PCL: of `candidates` times as many prompts, those whose predicted mean reward is nearest to `target`.

        keep the P prompts with the least |V(x) - target|;  after the batch, one step of V on (V(x) - mean reward)^2

    V is linear in the policy's last hidden state of the prompt. At target = 1/2 the kept prompts have the largest r (1 - r), so more
    groups carry a signal; what is trained is another distribution of prompts, which is to be remembered when rewards are compared.
    Source: arXiv 2510.01135 (there V is a model of its own).
    """

    head: nn.Linear | None = None
    optimizer: torch.optim.Adam | None = None
    features_PD: Tensor | None = None  # of the prompts that were kept

    def collect(self, collector: Collector, policy: Policy, count: int, step: int, seed: int) -> Collected:
        """The batch of this step: `count` of the `candidates * count` next prompts of the stream."""
        drawn = self.candidates * count
        prompts, ids = collector.prompts(step * drawn, drawn)
        features_CD = prompt_features(policy, ids)
        head, _ = self._value(features_CD.shape[1])
        with torch.no_grad():
            distance_C = (head(features_CD).squeeze(1) - self.target).abs()
        kept = sorted(torch.argsort(distance_C, stable=True)[:count].tolist())
        self.features_PD = features_CD[kept]
        generator = generator_for(seed, "rollout", step)
        return collector.respond([prompts[i] for i in kept], [ids[i] for i in kept], generator)

    def learn(self, rollouts: Rollouts) -> None:
        """One step of the value head towards the mean rewards of the prompts that were kept."""
        assert self.features_PD is not None
        mean_P = rollouts.rewards_PG.nanmean(1)
        known_P = ~mean_P.isnan()
        head, optimizer = self._value(self.features_PD.shape[1])
        if known_P.any():
            loss = (head(self.features_PD[known_P]).squeeze(1) - mean_P[known_P].float()).square().mean()
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()

    def _value(self, width: int) -> tuple[nn.Linear, torch.optim.Adam]:
        if self.head is None or self.optimizer is None:
            self.head = nn.Linear(width, 1)
            nn.init.zeros_(self.head.weight)
            nn.init.constant_(self.head.bias, self.target)
            self.optimizer = torch.optim.Adam(self.head.parameters(), lr=self.value_learning_rate)
        return self.head, self.optimizer

    def state(self) -> dict[str, Tensor]:
        if self.head is None or self.optimizer is None:
            return {}
        state = {name: value.detach() for name, value in self.head.state_dict().items()}
        for i, entry in self.optimizer.state_dict()["state"].items():
            state |= {f"optimizer.{i}.{name}": torch.as_tensor(value) for name, value in entry.items()}
        return state

    def load(self, state: dict[str, Tensor]) -> None:
        if not state:
            return
        head, optimizer = self._value(state["weight"].shape[1])
        head.load_state_dict({name: state[name] for name in ("weight", "bias")})
        entries: dict[int, dict[str, Tensor]] = {}
        for key, value in state.items():
            if key.startswith("optimizer."):
                _, index, name = key.split(".")
                entries.setdefault(int(index), {})[name] = value
        optimizer.load_state_dict({"state": entries, "param_groups": optimizer.state_dict()["param_groups"]})


@torch.no_grad()
def prompt_features(policy: Policy, prompt_ids: list[list[int]]) -> Tensor:
    """The policy's last hidden state at the end of each prompt, scaled to unit mean square, (P, D) float32 on the CPU."""
    features = []
    for at in range(0, len(prompt_ids), 64):
        ids_PL, mask_PL = pad_left(prompt_ids[at : at + 64], policy.causal_lm.device)
        out = policy.decoder(input_ids=ids_PL, attention_mask=mask_PL, position_ids=positions(mask_PL), use_cache=False)
        features.append(out.last_hidden_state[:, -1].float().cpu())
    features_PD = torch.cat(features)
    return features_PD / features_PD.square().mean(1, keepdim=True).sqrt().clamp(min=1e-6)


class SamplingErrorCorrection(options.SamplingErrorCorrection):
    """PROPS: half of a group from the policy, the other half from a behaviour policy that fills in what the first half lacks.

        phi starts at theta and minimises mean_t max(rho_t, clip(rho_t, 1 - clip, 1 + clip)),  rho = pi_phi / pi_theta,
        over the first half's tokens, for `epochs` steps or until KL(theta || phi) reaches `kl_limit` (the step that passes it is halved)

    It pushes down what was drawn too often. The whole group is then taken as if the policy had sampled it, which makes its frequencies
    nearer to their expectation, and no longer independent: a biased estimate at any finite number of epochs. No step of such a run is
    certified on-policy. ROS is epochs = 1 without the clip.
    Source: Corrado and Hanna, arXiv 2311.08290 and its code; on language models this is an open experiment.
    """

    behaviour = True  # other weights than the policy's answer

    def collect(self, collector: Collector, policy: Policy, count: int, step: int, seed: int) -> Collected:
        """The batch of this step, with log-probabilities under the policy for all of it."""
        prompts, ids = collector.prompts(step * count, count)
        size = collector.sampling.group_size
        first = collector.respond(
            prompts, ids, generator_for(seed, "rollout", step), replace(collector.sampling, group_size=(size + 1) // 2)
        )
        version = max(first.rollouts.versions)
        behaviour = self.fitted(policy, first.rollouts)
        collector.sampler.load_weights(behaviour.model, version)
        second = collector.respond(
            prompts, ids, generator_for(seed, "props", step), replace(collector.sampling, group_size=size // 2)
        )
        collector.sampler.load_weights(policy.model, version)
        both = joined(first, second)
        own_NT = policy.measure(both.rollouts, list(range(count))).logprobs_NT
        return replace(both, rollouts=both.rollouts.with_(logprobs_NT=own_NT * both.rollouts.mask_NT))

    def fitted(self, policy: Policy, rollouts: Rollouts) -> Policy:
        """The behaviour policy phi for what has been sampled so far."""
        behaviour = replace(policy, model=copy.deepcopy(policy.model))
        optimizer = torch.optim.AdamW(behaviour.parameters(), lr=self.learning_rate, weight_decay=0.0)
        prompts, mask_NT = list(range(rollouts.num_prompts)), rollouts.mask_NT
        target_NT = policy.measure(rollouts, prompts).logprobs_NT

        def loss(logprobs_NT: Tensor) -> Tensor:
            ratio_NT = torch.where(mask_NT, logprobs_NT - target_NT, 0.0).clamp(max=MAX_LOG_RATIO).exp()
            held_NT = torch.maximum(ratio_NT, ratio_NT.clamp(1 - self.clip, 1 + self.clip))
            return torch.where(mask_NT, held_NT, 0.0).sum() / mask_NT.sum()

        def divergence(logprobs_NT: Tensor) -> float:
            change_NT = torch.where(mask_NT, logprobs_NT - target_NT, 0.0)
            return float((change_NT.exp() - 1 - change_NT)[mask_NT].mean())

        now_NT = target_NT
        for _ in range(self.epochs):
            before = [p.detach().clone() for p in behaviour.parameters()]
            accumulate(behaviour, rollouts, prompts, token_weights(loss, now_NT))
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)
            now_NT = behaviour.measure(rollouts, prompts).logprobs_NT
            if divergence(now_NT) > self.kl_limit:
                self._shorten(behaviour, before, lambda: divergence(behaviour.measure(rollouts, prompts).logprobs_NT))
                break
        return behaviour

    @torch.no_grad()
    def _shorten(self, behaviour: Policy, before: list[Tensor], divergence: Callable[[], float]) -> None:
        """Halve the last step until it keeps the limit; after `HALVINGS` take it back: too far a step would fill in what there is enough of."""
        for _ in range(HALVINGS):
            for p, start in zip(behaviour.parameters(), before, strict=True):
                p.lerp_(start, 0.5)
            if divergence() <= self.kl_limit:
                return
        for p, start in zip(behaviour.parameters(), before, strict=True):
            p.copy_(start)
