"""`opo doctor`: checks of a model on this machine, before its numbers are used.

Each check compares two ways to compute the same thing that differ only in rounding, padding or program; the bounds are those of
rounding (`analysis.score_gram.rounding`).
"""

import copy
import math
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from rich import box
from rich.table import Table as RichTable
from torch import Tensor

from analysis.config.doctor import DoctorConfig, load_config
from analysis.score_gram.core import score_gram
from analysis.score_gram.rounding import Rounding
from analysis.study.pools import sequences
from opo.batch import Rollouts
from opo.errors import StoppedRun
from opo.model.fits import first_line
from opo.model.gradient import accumulate
from opo.model.load import load_policy
from opo.model.policy import Policy
from opo.model.precision import in_float64
from opo.rollout.collect import Collector, open_collector
from opo.system.console import wide_console
from opo.system.seeding import generator_for
from opo.system.threads import use_machine
from opo.system.world import World
from opo.tasks import make_task
from opo.train.mismatch import measure_mismatch

DEVIATIONS = 4.5  # of a sum that is zero in the mean: chance 7e-6


@dataclass(frozen=True)
class Check:
    """What was compared, what came out, what is allowed; `words` are why the check was not made (no bound) or gave no value (it failed)."""

    name: str
    value: float
    bound: float | None
    unit: str
    words: str = ""

    @property
    def passed(self) -> bool:
        return self.bound is None or self.value <= self.bound


def main(values: dict[str, Any], folder: Path) -> None:
    """`opo doctor`: print the table; StoppedRun (exit status 1) where a check failed."""
    config = load_config(values)
    with World.join() as world:
        world.same(values)
        checks = examine(config, world)
    table = RichTable(
        title=f"{config.model.path or config.model.name} in {config.model.dtype}, products of linear layers in {config.model.compute}",
        title_justify="left",
        box=box.SIMPLE_HEAD,
    )
    for name in ("check", "measured", "allowed", ""):
        table.add_column(name, justify="left" if name in ("check", "") else "right")
    for check in checks:
        verdict = "not made" if check.bound is None else "ok" if check.passed else "FAILED"
        measured = check.words if check.bound is None else f"{check.value:.2e} {check.unit}"
        table.add_row(check.name, measured, "" if check.bound is None else f"{check.bound:.1e}", verdict)
    if world.is_first:
        wide_console().print(table)
    if failed := [f"{check.name} {check.words}".strip() for check in checks if not check.passed]:
        raise StoppedRun(f"opo doctor: {len(failed)} of {len(checks)} checks failed: {'; '.join(failed)}")


def examine(config: DoctorConfig, world: World | None = None) -> list[Check]:
    """All checks of this model on this machine, the prompts dealt to the ranks."""
    use_machine(config.threads)
    task = make_task(config.task, config.reward.functions)
    policy = load_policy(config.model, config.rollout.temperature, config.device)
    policy = replace(policy, shared_prefix=config.optim.shared_prefix, world=world or World())
    rollout = replace(config.rollout, group_size=config.responses)
    with open_collector(policy, task, config.model, rollout, config.reward) as collector:
        return list(_checks(config, policy, collector))


def _checks(config: DoctorConfig, policy: Policy, collector: Collector) -> Iterator[Check]:
    model, temperature = config.model, config.rollout.temperature
    dtype = "bfloat16" if model.compute == "bfloat16" else model.dtype
    backward = "bfloat16" if model.compute != "float32" else model.dtype  # of the products that make gradients
    rollouts = collector.collect(0, config.prompts, generator_for(config.seed, "doctor")).rollouts
    rounding = Rounding.of(policy.causal_lm)
    yield from _gap("sampler against trainer", policy, rollouts, dtype)
    other = 0.7 if temperature == 1 else 1.0
    cool = replace(policy, temperature=other)
    cold = replace(collector.sampling, temperature=other)
    cooled = collector.collect(0, config.prompts, generator_for(config.seed, "cool"), cold).rollouts
    yield from _gap(f"the same at temperature {other:g}", cool, cooled, dtype)

    together = _logprobs(policy, rollouts, 10**9, shared=False)
    alone = _logprobs(policy, rollouts, 1, shared=False)
    shared = _logprobs(policy, rollouts, 10**9, shared=True)
    nats = rounding.nats(dtype, together)
    yield Check("log-probabilities, padded batch against one response", _largest(together - alone), nats, "nats")
    yield Check("log-probabilities, prompt encoded once against repeated", _largest(shared - together), nats, "nats")

    gradient = _gradient(policy, rollouts, 10**9)
    yield Check(
        "gradient, one micro-batch against one response each",
        _relative(gradient, _gradient(policy, rollouts, 1)),
        rounding.gradient(backward),
        "relative",
    )
    yield Check(
        "gradient, the same computation twice",
        _relative(gradient, _gradient(policy, rollouts, 10**9)),
        rounding.gradient(backward),
        "relative",
    )
    yield _against_float64(config, policy, rollouts, gradient, rounding.gradient(backward))

    yield from _score_gram(policy, rollouts.select([0]), rounding.gradient(dtype))

    yield _standing_still(policy, rollouts, collector)
    again = collector.collect(0, config.prompts, generator_for(config.seed, "doctor")).rollouts
    yield from _gap("sampler against trainer after that update", policy, again, dtype)


def _score_gram(policy: Policy, rollouts: Rollouts, bound: float) -> Iterator[Check]:
    """The Gram of one prompt's scores, against the slow reference where it can be had in one pass, and what it says of their mean."""
    name = "score Gram, one pass against one backward per response"
    inputs, temperature = sequences(rollouts), policy.temperature
    gram_NN = score_gram(policy.model, *inputs, temperature=temperature, method="loop")
    try:
        hooks_NN = score_gram(policy.model, *inputs, temperature=temperature)
    except ValueError as error:  # a layer that is not captured exactly
        yield Check(name, math.nan, bound, "", f"({error})")
    else:
        yield Check(name, _relative(hooks_NN, gram_NN), bound, "relative")
    yield Check("mean score is zero, in standard deviations", mean_score_deviations(gram_NN), DEVIATIONS, "sd")


def _standing_still(policy: Policy, rollouts: Rollouts, collector: Collector) -> Check:
    """Log-probabilities do not move by an update at learning rate zero; the sampler has the weights after it."""
    before = _logprobs(policy, rollouts, 10**9, shared=True)
    _gradient(policy, rollouts, 10**9, keep=True)
    torch.optim.AdamW(policy.parameters(), lr=0.0, weight_decay=0.0).step()
    policy.model.zero_grad(set_to_none=True)
    collector.sampler.load_weights(policy.model, 1)
    return Check(
        "log-probabilities after an update at learning rate 0",
        _largest(_logprobs(policy, rollouts, 10**9, shared=True) - before),
        0.0,
        "nats",
    )


def _gap(name: str, policy: Policy, rollouts: Rollouts, dtype: str) -> Iterator[Check]:
    assert rollouts.logprobs_NT is not None
    gap = measure_mismatch(rollouts.logprobs_NT, _logprobs(policy, rollouts, 10**9, shared=True), rollouts.mask_NT)
    bound = Rounding.of(policy.causal_lm).nats(dtype, rollouts.logprobs_NT)
    yield Check(f"{name}, mean", gap.mean_abs, bound / 3, "nats")
    yield Check(f"{name}, largest", gap.max_abs, bound, "nats")


def _logprobs(policy: Policy, rollouts: Rollouts, token_budget: int, shared: bool) -> Tensor:
    asked = replace(policy, token_budget=token_budget, shared_prefix=shared)
    return asked.measure(rollouts, list(range(rollouts.num_prompts))).logprobs_NT


def _gradient(policy: Policy, rollouts: Rollouts, token_budget: int, keep: bool = False) -> Tensor:
    """The gradient of the mean log-probability with alternating signs, as one float64 vector; a plain sum would nearly cancel."""
    signs_N1 = 1.0 - 2.0 * (torch.arange(rollouts.mask_NT.shape[0]) % 2)[:, None]
    weights_NT = signs_N1 * rollouts.mask_NT / rollouts.mask_NT.shape[0]
    asked = replace(policy, token_budget=token_budget)
    accumulate(asked, rollouts, list(range(rollouts.num_prompts)), weights_NT.double())
    vector = torch.cat([p.grad.detach().double().flatten().cpu() for p in policy.parameters() if p.grad is not None])
    if not keep:
        policy.model.zero_grad(set_to_none=True)
    return vector


def _against_float64(config: DoctorConfig, policy: Policy, rollouts: Rollouts, gradient: Tensor, bound: float) -> Check:
    """The precision floor: what rounding alone does to a gradient."""
    name = "gradient, this precision against float64"
    size = sum(p.numel() for p in policy.model.parameters())
    if size > config.float64_limit:
        return Check(name, math.nan, None, "relative", f"{size:.1e} parameters are above float64_limit")
    exact = replace(policy, model=in_float64(copy.deepcopy(policy.model)), compute="float32", head_kernel="tiled")
    try:  # one response at a time: Bloom's float32 softmax overflows at the float64 mask of padding
        reference = _gradient(exact, rollouts, 1)
    except RuntimeError as error:  # an architecture that is written for float32, such as XGLM
        return Check(name, math.nan, None, "", f"not in float64: {first_line(error)}")
    return Check(name, _relative(gradient, reference), bound, "relative")


def mean_score_deviations(gram_NN: Tensor) -> float:
    """|U| / sd(U) for U = mean of <z_i, z_j> over i != j, whose mean is |E z|^2 = 0 where what is sampled is what is differentiated.

    Where E z = 0, Var U = 2 E[<z_i, z_j>^2] / (N (N - 1)).
    """
    n = len(gram_NN)
    off_NN = gram_NN - torch.diag(gram_NN.diagonal())
    pairs = n * (n - 1)
    mean, square = float(off_NN.sum()) / pairs, float(off_NN.square().sum()) / pairs
    return abs(mean) / math.sqrt(2 * square / pairs) if square > 0 else 0.0


def _largest(difference_NT: Tensor) -> float:
    return float(difference_NT.abs().max())


def _relative(a: Tensor, b: Tensor) -> float:
    return float((a - b).norm() / b.norm()) if float(b.norm()) != 0 else float(a.norm())
