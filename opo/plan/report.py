"""The plan of a command: memory by phase, time, and one sentence for each conclusion."""

from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

from opo.config.plan import PlanTrain
from opo.config.schema import RunConfig
from opo.plan.lengths import prompt_length
from opo.plan.machine import GIB, Machine, process_bytes
from opo.plan.shape import on_paper
from opo.plan.speed import Speed, at_rate, measured, product_rate
from opo.plan.training import Lengths, Phase, training_memory

SCHEMA = "opo.plan/1"
MOST_RANKS = 1024  # that are looked at when a model does not fit


@dataclass(frozen=True)
class Plan:
    """What is printed, as a table and sentences or as one object."""

    title: str
    phases: Sequence[Phase]
    conclusions: Sequence[str]
    facts: dict[str, Any] = field(default_factory=dict)  # for machines

    @property
    def peak(self) -> Phase:
        return max(self.phases, key=lambda phase: phase.total)

    def to_dict(self) -> dict[str, Any]:
        """One object: bytes by phase and part, and what the sentences say."""
        memory = {phase.name: {"parts": phase.parts, "bytes": phase.total} for phase in self.phases}
        return {
            "schema": SCHEMA,
            **self.facts,
            "memory": memory,
            "peak_bytes": self.peak.total,
            "conclusions": list(self.conclusions),
        }


def plan_training(config: PlanTrain) -> Plan:
    """Memory of one rank and hours of a training. Raises UserError where the model's shape cannot be known."""
    import opo.train.loop  # noqa: F401  # what a training's process has loaded besides

    run, ranks = config.run, config.ranks
    machine = machine_of(config)
    model = on_paper(run.model)
    prompt, known = prompt_length(config.prompt_tokens, run.model, run.task, run.reward.functions)
    lengths, process = Lengths(prompt, run.rollout.max_new_tokens), process_bytes()
    phases = training_memory(run, model, ranks, lengths, machine, process)
    speed = _speed(config, model, lengths)
    tokens = float(config.response_tokens or (speed and speed.mean_tokens) or lengths.response)
    parameters = sum(p.numel() for p in model.parameters())
    cut = f" ({run.parallel.mode})" if ranks > 1 else ""
    title = f"{run.algo.name} on {run.model.path or run.model.name}, {count_text(parameters)} parameters, {ranks} rank{'s' * (ranks > 1)}{cut}"

    def needed(other: int) -> float:
        sharded = PlanTrain(**{**vars(config), "ranks": other, "parallel": type(run.parallel)("sharded")})
        return max(phase.total for phase in training_memory(sharded.run, model, other, lengths, machine, process))

    plan = Plan(title, phases, [])
    sentences = [
        *memory_sentences(plan, ranks, machine),
        *_enough_ranks(needed, ranks, machine, plan, run.rollout.num_prompts // run.algo.minibatches),
        _time_sentence(run, speed, ranks, tokens),
        f"Prompts have {prompt} tokens ({known}), and memory is that of responses of {lengths.response} tokens, no two alike.",
    ]
    facts = {
        "command": "train",
        "model": run.model.path or run.model.name,
        "parameters": parameters,
        "trained": sum(p.numel() for p in model.parameters() if p.requires_grad),
        "ranks": ranks,
        "parallel": run.parallel.mode,
        "machine": asdict(machine),
        "fits": machine.fits(plan.peak.total, ranks),
        "lengths": asdict(lengths),
        "speed": asdict(speed) if speed else None,
        "seconds": speed.run_seconds(run, ranks, tokens) if speed else None,
    }
    return Plan(title, phases, sentences, facts)


def machine_of(config: Any) -> Machine:
    """The machine here, with devices of another size where they are given."""
    machine = Machine.found(config.device)
    if config.device_gib is None:
        return machine
    return Machine("cuda", "GPU", config.ranks, config.device_gib * GIB)


def memory_sentences(plan: Plan, ranks: int, machine: Machine) -> Iterator[str]:
    """The peak, its largest part, and whether it fits."""
    peak = plan.peak
    part = max(peak.parts, key=lambda name: peak.parts[name])
    yield (
        f"A rank needs {peak.total / GIB:.1f} GiB at its peak, {peak.name}; the largest part of it, {peak.parts[part] / GIB:.1f} GiB, "
        f"is {part}."
    )
    fits = machine.fits(peak.total, ranks)
    who = "That" if ranks == 1 else f"{ranks} ranks"
    yield f"{who} {'fits' if ranks == 1 and fits else 'fit' if fits else 'does not fit' if ranks == 1 else 'do not fit'} into {machine.memory_text}."


def _enough_ranks(needed: Any, ranks: int, machine: Machine, plan: Plan, most: int) -> Iterator[str]:
    """Where it does not fit: on how many devices it would, cut over them."""
    if machine.fits(plan.peak.total, ranks):
        return
    if machine.kind == "cpu":
        yield f"Give device_gib=80 for the memory of another machine's GPUs: here {plan.peak.total * ranks / GIB:.0f} GiB are needed."
        return
    other = 2
    while other <= min(MOST_RANKS, most):
        if needed(other) <= machine.bytes:
            yield f"With parallel=sharded it fits on {other} such devices, {needed(other) / GIB:.0f} GiB on each."
            return
        other *= 2
    yield "Cut over any number of such devices it does not fit: try LoRA (model.lora_rank=16) or a smaller optim.tokens_per_microbatch."


def _speed(config: PlanTrain, model: Any, lengths: Lengths) -> Speed | None:
    if config.sampling_tokens_per_s is not None and config.update_tokens_per_s is not None:
        return Speed(config.sampling_tokens_per_s, config.update_tokens_per_s, "as given")
    if config.measure:
        return measured(config.run, config.ranks)
    if (known := rate_of(config, config.run.model.compute)) is None:
        return None
    return at_rate(config.run, model, config.ranks, lengths, *known)


def rate_of(config: Any, compute: str) -> tuple[float, str] | None:
    """Operations a second of one rank and where they come from; None for a device that is not here and of which nothing is said."""
    if config.teraflops is not None:
        return config.teraflops * 1e12, f"the model's arithmetic at {config.teraflops:g} teraflops"
    if config.device_gib is not None:
        return None
    rate = product_rate(Machine.found(config.device), config.threads, compute)
    return rate, f"at best: at the {rate / 1e9:,.0f} gigaflops of a matrix product here; measure=true times it"


def _time_sentence(run: RunConfig, speed: Speed | None, ranks: int, tokens: float) -> str:
    batch = (
        f"{run.steps} steps of {run.rollout.num_prompts} x {run.rollout.group_size} responses of {tokens:.0f} tokens"
    )
    if speed is None:
        return f"{batch}: give teraflops, or sampling_tokens_per_s and update_tokens_per_s, of those devices for the time they take."
    return (
        f"{batch} take {time_text(speed.run_seconds(run, ranks, tokens))}: a rank samples {speed.sampling:,.0f} and updates "
        f"{speed.update:,.0f} tokens a second ({speed.source})."
    )


def count_text(number: int) -> str:
    """7.6B, 135M or 1,056k."""
    for size, letter in ((1e9, "B"), (1e6, "M"), (1e3, "k")):
        if number >= size:
            return f"{number / size:.1f}{letter}"
    return str(number)


def time_text(seconds: float) -> str:
    """Seconds, minutes, hours or days."""
    for size, unit in ((86400 * 3, "days"), (3600, "hours"), (60, "minutes")):
        if seconds >= 1.5 * size or (unit == "days" and seconds >= size):
            return f"{seconds / (86400 if unit == 'days' else size):.1f} {unit}"
    return f"{seconds:.0f} seconds"
