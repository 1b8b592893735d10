"""Rollouts from elsewhere as a study takes them: token ids of the policy that is measured, and what is said of them."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from scipy.stats import t as student

from analysis.study.config import VarianceConfig
from analysis.study.external import EncodedPrompt, Encoder, Notes, Reader, encode_groups, read_groups
from analysis.study.pools import PromptPool
from opo.errors import UserError
from opo.model.load import model_source
from opo.run.policies import evaluated_policies


@dataclass(frozen=True)
class Imported:
    """Rollouts from elsewhere, as token ids of the policy that is measured."""

    prompts: list[EncodedPrompt]
    notes: Notes

    @classmethod
    def of(cls, config: VarianceConfig) -> "Imported":
        """Read and encode them; no weights are loaded. Raises UserError naming the row or key at fault."""
        planned = evaluated_policies(config.checkpoint, config.model)
        if len(planned) > 1:
            names = ", ".join(stage.name for stage in planned)
            raise UserError(
                f"checkpoint: rollouts from a file belong to one policy, and this names {names}; give one of them"
            )
        reader = Reader.of(model_source(planned[0].weights[0].model))
        groups, notes = read_groups(config.rollout_files, config.reward.choice, config.steps)
        if notes.temperature == 0:
            raise UserError(
                f"rollouts={config.rollouts}: sampled at temperature 0, always the likeliest token; a study needs responses that were drawn"
            )
        encoder = Encoder(reader, notes, config.append_eos, config.rollout.max_new_tokens)
        prompts = encode_groups(groups, config.reward.choice, encoder, config.responses)
        return cls(prompts, notes)

    def bounded(self, config: VarianceConfig) -> VarianceConfig:
        """The study at the group sizes that two prompts or more can bear, at the temperature that the file says."""
        scored = sorted((prompt.scored for prompt in self.prompts), reverse=True)
        sizes = [size for size in config.group_sizes if len(scored) > 1 and scored[1] >= 2 * size]
        if not sizes:
            raise UserError(self._too_few(config, scored))
        if left := [size for size in config.group_sizes if size not in sizes]:
            self.notes.warnings.append(
                f"left out of group_sizes: {', '.join(map(str, left))}, since no two prompts have twice as many scored responses"
            )
        rollout = config.rollout
        if rollout.temperature is None and self.notes.temperature is not None:
            rollout = replace(rollout, temperature=self.notes.temperature)
        return replace(config, group_sizes=sizes, rollout=rollout)

    def numbers(self, config: VarianceConfig) -> list[int]:
        """Which prompts are studied: those that bear the least group size, from `first_prompt` on, `prompts` of them."""
        least = 2 * min(config.group_sizes)
        fit = [n for n, prompt in enumerate(self.prompts) if prompt.scored >= least]
        chosen = fit[config.first_prompt :][: config.prompts]
        if len(chosen) < 2:
            raise UserError(
                f"first_prompt={config.first_prompt}: leaves {len(chosen)} of {len(fit)} prompts; two are needed"
            )
        if short := len(self.prompts) - len(fit):
            self.notes.prompts_left_out[f"with fewer than {least} scored responses"] = short
        self.notes.prompts = len(chosen)
        self.notes.responses = sum(self.prompts[n].scored for n in chosen)
        return chosen

    def _too_few(self, config: VarianceConfig, scored: list[int]) -> str:
        need = f"group_sizes from {min(config.group_sizes)} need two prompts with {2 * min(config.group_sizes)} scored responses or more"
        most = scored[1] // 2 if len(scored) > 1 else 0
        help_ = f"group_sizes=[{most}] is the largest possible" if most > 1 else "this file has none"
        counts = f"the prompts have {scored[0]} at most" if scored else "no response counts"
        return f"rollouts={config.rollouts}: {counts}; {need}; {help_}"

    def told(self, pools: Sequence[PromptPool], temperature: float) -> dict[str, Any]:
        """What `result.json` says of the import, with how well the responses fit the model that was measured."""
        self.notes.measured_at = temperature
        self.notes.gap_nats, self.notes.fit = sampled_from(pools)
        return self.notes.to_dict() | {"text": self.notes.paragraph()}


def sampled_from(pools: Sequence[PromptPool]) -> tuple[float | None, dict[str, float] | None]:
    """The log-probability difference (mean over prompts that bring log-probabilities, or None), and whether the model sampled these responses.

    Under the policy that sampled, log pi(y_t) + H(pi_t) has mean zero at every token, whatever came before. So its sums over the tokens of a
    response, and of all responses to a prompt, are independent with mean zero: z = mean / (sd / sqrt(n)), against Student's t. `z` is
    over prompts; `p_value` the lesser of that over prompts and that over responses, twice.
    """
    gaps = [pool.gap_nats for pool in pools if not np.isnan(pool.gap_nats)]
    gap = float(np.mean(gaps)) if gaps else None
    of_responses = [pool.logprobs_R + pool.entropies_R for pool in pools]
    sums_P, sums_N = np.array([float(sums_R.sum()) for sums_R in of_responses]), np.concatenate(of_responses)
    if len(sums_P) < 2 or not (sums_P.std() > 0 and sums_N.std() > 0):
        return gap, None
    z_P, z_N = _studentised(sums_P), _studentised(sums_N)
    p_values = [2 * student.sf(abs(z), len(x) - 1) for z, x in ((z_P, sums_P), (z_N, sums_N))]
    tokens = sum(int(pool.lengths_R.sum()) for pool in pools)
    statistics = {"nats_per_token": float(sums_P.sum() / tokens), "z": z_P, "z_responses": z_N}
    return gap, statistics | {"p_value": min(1.0, 2 * float(min(p_values)))}


def _studentised(values: np.ndarray) -> float:
    return float(values.mean() / (values.std(ddof=1) / np.sqrt(len(values))))
