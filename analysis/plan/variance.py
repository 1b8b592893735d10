"""What a variance study costs before it is started: memory of one rank, hours, and the prompts that a wanted interval needs."""

import sys
import tempfile
from contextlib import redirect_stdout
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from analysis.config.plan import PlanVariance
from analysis.score_gram.buffers import USUAL
from analysis.score_gram.layers import SUM_ROWS
from analysis.score_gram.pairs import PRODUCTS, TABLE
from analysis.study.passes import Passes, planned_passes, row_bytes
from analysis.study.result import default_group_size, load
from analysis.study.run import load_pools, measure
from analysis.variance.power import plan as power_plan
from opo.config.schema import ModelConfig
from opo.errors import UserError
from opo.plan.kept import KeptPerRow
from opo.plan.lengths import prompt_length
from opo.plan.machine import CONTEXT, GIB, Machine, process_bytes
from opo.plan.report import Plan, count_text, machine_of, memory_sentences, rate_of, time_text
from opo.plan.shape import on_paper
from opo.plan.speed import forward_flops
from opo.plan.training import (
    PLAIN_LOGITS,
    SAMPLED_LOGITS,
    Lengths,
    Phase,
    cache_bytes,
    packed_bytes,
    phase_of,
    size_of,
    vocabulary_of,
)
from opo.system.seeding import rng_for
from opo.tasks.arithmetic import ArithmeticConfig

PASSES = 5  # over all responses, of a forward pass's arithmetic: sampling, forward, backward, and the products of a Gram, about two


def plan_study(config: PlanVariance) -> Plan:
    """Memory of one rank, hours and prompts of a study. Raises UserError where the model's shape cannot be known."""
    source = replace(config.model or ModelConfig(), compute="float32")
    task, reward = config.task or ArithmeticConfig(), config.reward.functions
    machine, model = machine_of(config), on_paper(source)
    prompt, known = prompt_length(config.prompt_tokens, source, task, reward, config.split or "eval")
    lengths = Lengths(prompt, config.rollout.max_new_tokens or 48)
    passes = planned_passes(model, config.num_responses, prompt + lengths.response, config.memory_gib * GIB)
    phases = study_memory(config, model, passes, lengths, machine, process_bytes())
    speed = _seconds(config, model, lengths)
    parameters = sum(p.numel() for p in model.parameters())
    title = (
        f"variance of {source.path or source.name}, {count_text(parameters)} parameters, {config.num_prompts} x "
        f"{config.num_responses} responses, {config.ranks} rank{'s' * (config.ranks > 1)}"
    )
    plan, needed = Plan(title, phases, []), _prompts_needed(config)
    sentences = [
        *memory_sentences(plan, config.ranks, machine),
        _passes_sentence(passes, config.num_responses),
        _time_sentence(config, speed),
        *(_needed_sentence(config, count, speed) for count in needed),
        f"Prompts have {prompt} tokens ({known}), and memory is that of responses of {lengths.response} tokens, no two alike.",
    ]
    facts = {
        "command": "variance",
        "model": source.path or source.name,
        "parameters": parameters,
        "ranks": config.ranks,
        "machine": asdict(machine),
        "fits": machine.fits(plan.peak.total, config.ranks),
        "lengths": asdict(lengths),
        "passes": passes._asdict(),
        "seconds_per_prompt": speed[0] if speed else None,
        "seconds": _study_seconds(config, config.num_prompts, speed[0]) if speed else None,
        "prompts_needed": next(iter(needed), None),
    }
    return Plan(title, phases, sentences, facts)


def study_memory(
    config: PlanVariance, model: Any, passes: Passes, lengths: Lengths, machine: Machine, process: float
) -> list[Phase]:
    """The phases of one prompt: sampling, the Gram pass, and the check of one score against autograd's, once a model."""
    always = {
        "process": process if machine.kind == "cpu" else CONTEXT,
        "weights": float(size_of(model.parameters())),
    }
    rows, length = min(config.num_responses, config.rollout.max_sequences), lengths.prompt + lengths.response
    sampling = {
        "packed weights": packed_bytes(model) if machine.kind == "cpu" else 0.0,
        "keys and values": cache_bytes(model, rows, length),
        "logits": float(SAMPLED_LOGITS * rows * vocabulary_of(model)),
    }
    check = {
        "gradient of one score": float(size_of(p for p in model.parameters() if p.requires_grad)),
        "activations": KeptPerRow.of(model).bytes(length),
        "gradients of logits": float(PLAIN_LOGITS * lengths.response * vocabulary_of(model)),
    }
    gram = _gram_parts(model, passes, config.num_responses, lengths, machine)
    phases = {"sampling": sampling, "Gram pass": gram, "check": check}
    return [phase_of(name, always, parts, machine) for name, parts in phases.items()]


def _gram_parts(model: Any, passes: Passes, responses: int, lengths: Lengths, machine: Machine) -> dict[str, float]:
    count, length = min(responses, passes.responses), lengths.prompt + lengths.response
    logits = count * lengths.response * vocabulary_of(model)
    # kept as they are and once more in the order of tokens, or made again by slices of the vocabulary
    kept = 2 * 4 * logits if logits <= USUAL.kept_logits else 2 * 4 * SUM_ROWS
    table = 2 * 4 * min(TABLE, count * count * length * model.config.get_text_config().hidden_size)
    return {
        "activations": count * row_bytes(model, length, passes.recompute),
        "gradients of logits": float(kept),
        "Gram buffers": 4.0 * (2 * PRODUCTS + USUAL.gradients_on(machine.kind) + 3 * USUAL.logits) + table,
        "sum of scores": 2.0 * max(p.numel() * p.element_size() for p in model.parameters()),
    }


def _passes_sentence(passes: Passes, responses: int) -> str:
    if not passes.recompute:
        return "All responses to a prompt go through the model at once."
    if passes.responses >= responses:
        return "Layers are computed twice to save memory: a forward pass more; memory_gib is what may be used."
    return (
        f"Layers are computed twice and {passes.responses} responses go through the model at once, all pairs of blocks in turn: "
        "a larger memory_gib is faster."
    )


def _seconds(config: PlanVariance, model: Any, lengths: Lengths) -> tuple[float, str] | None:
    """Of one prompt on one rank, and how they are known; None where they are not."""
    if config.seconds_per_prompt is not None:
        return config.seconds_per_prompt, "as given"
    if config.measure:
        return _measured(config), "measured now"
    if (known := rate_of(config, "float32")) is None:
        return None
    rate, source = known
    tokens = config.num_responses * (lengths.response + 1) + lengths.prompt
    return PASSES * tokens * forward_flops(model) / rate, source


def _measured(config: PlanVariance) -> float:
    """Seconds of the second and third of three prompts, in a folder that is removed again; the first loads and checks the model."""
    with tempfile.TemporaryDirectory() as folder, redirect_stdout(sys.stderr):
        measure(replace(config, prompts=3, shard=None, prompts_per_batch=None), Path(folder))
        done = sorted(file.stat().st_mtime for file in Path(folder).glob("pools/*/prompt-*.npz"))
    return (done[-1] - done[0]) / (len(done) - 1)


def _study_seconds(config: PlanVariance, prompts: int, seconds: float) -> float:
    return -(-prompts // config.ranks) * config.policies * seconds


def _time_sentence(config: PlanVariance, speed: tuple[float, str] | None) -> str:
    study = f"{config.num_prompts} prompts on {config.policies} polic{'y' if config.policies == 1 else 'ies'}"
    if speed is None:
        return f"{study}: give teraflops or seconds_per_prompt of those devices for the time they take."
    seconds, source = speed
    took = time_text(_study_seconds(config, config.num_prompts, seconds))
    return f"{study} take {took}: {seconds:.3g} s for each prompt and policy on one rank ({source})."


def _prompts_needed(config: PlanVariance) -> list[int]:
    """From a pilot's last policy with pools, how many prompts tell the wanted ratio from one; empty without a pilot."""
    if config.pilot is None:
        return []
    folder, names = config.pilot_folder, [policy["name"] for policy in load(config.pilot_folder).policies]
    kept = [name for name in names if any((folder / "pools" / name).glob("prompt-*.npz"))]
    try:
        found = power_plan(
            load_pools(folder, (kept or names)[-1]),
            default_group_size(config.group_sizes),
            config.estimator,
            config.reference,
            config.ratio,
            rng_for(config.seed, "plan"),
            power=config.power,
            responses=[config.num_responses],
            prompts_per_batch=config.prompts_per_batch,
        )
    except ValueError as error:
        raise UserError(f"pilot={config.pilot}: {error}") from error
    return [found.cheapest.prompts]


def _needed_sentence(config: PlanVariance, prompts: int, speed: tuple[float, str] | None) -> str:
    size = default_group_size(config.group_sizes)
    took = f": {time_text(_study_seconds(config, prompts, speed[0]))}" if speed else ""
    return (
        f"After {config.pilot}, {prompts:,} prompts with {config.num_responses} responses tell a relative variance of {config.estimator} that is "
        f"{config.ratio:g} times that of {config.reference} from an equal one with a chance of {config.power:.0%}, in groups of {size}{took}."
    )
