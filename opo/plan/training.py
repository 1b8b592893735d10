"""Memory of one rank of a training, part by part, while it samples and while it updates. The larger sum is its peak.

Responses are taken at their full length, no two alike: the most that a run can need.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import torch
from torch import Tensor, nn

from opo.catalogue import catalogue
from opo.config.schema import RunConfig
from opo.model.forward import positions
from opo.model.logprobs import CHUNK, KEPT
from opo.model.precision import ONEDNN
from opo.plan.kept import kept_bytes
from opo.plan.machine import CONTEXT, GIB, Machine
from opo.rollout.decoding import SMALLEST
from opo.system.world import BUCKET

PARTS_COPIES = (
    3  # of the trainable weights that a gradient estimator remembers: the last ones, its average, where it stands
)
PLAIN_LOGITS = 24  # bytes that a logit costs where all are in memory: itself, log pi, two exponentials, one in float64
SAMPLED_LOGITS = 16  # and while sampling: itself, scaled, exponential, padded
# What the allocator holds beyond what is in use, of what comes and goes: 0.4 to 0.9 was measured with glibc, which keeps what is freed
# (`opo.system.threads`); on a GPU it was not measured.
HEAP = {"cpu": 0.5, "cuda": 0.1}
ENGINE = "vLLM"
TILES = 4  # of the vocabulary that are at work at once


@dataclass(frozen=True)
class Phase:
    """What one rank holds in one phase of a step, in bytes."""

    name: str
    parts: dict[str, float]

    @property
    def total(self) -> float:
        return sum(self.parts.values())


@dataclass(frozen=True)
class Lengths:
    """Tokens of a prompt and of a response."""

    prompt: int
    response: int


@dataclass(frozen=True)
class Microbatch:
    """The largest part that an update cuts a batch into."""

    prompts: int
    rows: int
    parts: int  # of one update, on one rank

    @classmethod
    def of(cls, run: RunConfig, ranks: int, lengths: Lengths) -> "Microbatch":
        """As `opo.model.forward.microbatches` cuts prompts and responses of these lengths."""
        group, budget = run.rollout.group_size, run.optim.tokens_per_microbatch
        prompts = -(-run.rollout.num_prompts // (run.algo.minibatches * ranks))
        whole = lengths.prompt + group * lengths.response
        if whole <= budget:
            at_once = min(prompts, budget // whole)
            return cls(at_once, at_once * group, -(-prompts // at_once))
        rows = group
        while rows > 1 and lengths.prompt + rows * lengths.response > budget:
            rows //= 2
        return cls(1, rows, prompts * -(-group // rows))


def training_memory(
    run: RunConfig, model: Any, ranks: int, lengths: Lengths, machine: Machine, process: float
) -> list[Phase]:
    """The phases of a step. `model` is the policy, with weights or on paper; `process` what a process holds without a model."""
    part = Microbatch.of(run, ranks, lengths)
    always = {"process": process if machine.kind == "cpu" else CONTEXT} | held(run, model, ranks)
    phases = {
        "sampling": dict(_sampling(run, model, ranks, lengths, machine)),
        "update": dict(_update(run, model, ranks, lengths, part, machine)),
    }
    return [phase_of(name, always, parts, machine) for name, parts in phases.items()]


def phase_of(name: str, always: dict[str, float], parts: dict[str, float], machine: Machine) -> Phase:
    """What is always there, what comes and goes in this phase, and what the allocator holds for it besides."""
    engine = sum(size for part, size in parts.items() if part.startswith(ENGINE))
    return Phase(name, always | parts | {"allocator": HEAP[machine.kind] * (sum(parts.values()) - engine)})


def held(run: RunConfig, model: Any, ranks: int) -> dict[str, float]:
    """What is there from the first update to the last: weights, their copies, optimizer state, critic."""
    cut = ranks if ranks > 1 and run.parallel.mode == "sharded" else 1
    whole, trained = size_of(model.parameters()), size_of(p for p in model.parameters() if p.requires_grad)
    states = 2 if run.optim.method == "adamw" else 0
    parts = {"weights": whole / cut, "optimizer": states * trained / cut}
    algorithm = catalogue()[run.algo.name]
    if run.kl_init_every or run.algo.kl_coef or "reference_logprobs_NT" in algorithm.needs:
        parts["initial policy"] = whole
    if cut > 1:
        parts["whole weights for sampling"] = whole
    if "values_NT" in algorithm.needs:
        critic = size_of(decoder_of(model).parameters())
        parts["critic and its optimizer"] = (1 + states) * critic
    if run.algo.gradient is not None:
        parts["gradient estimator"] = PARTS_COPIES * trained
    return parts


def _sampling(
    run: RunConfig, model: Any, ranks: int, lengths: Lengths, machine: Machine
) -> Iterator[tuple[str, float]]:
    rollout, on_cpu = run.rollout, machine.kind == "cpu"
    weights = size_of(model.parameters())
    if rollout.engine == "vllm":
        if on_cpu:
            yield "vLLM: weights, keys and values", weights + rollout.kv_cache_gib * GIB
        elif rollout.devices is None:
            yield "vLLM: its share of the GPU", rollout.gpu_memory_utilization * machine.bytes
        return
    prompts = -(-rollout.num_prompts // ranks)
    rows = min(prompts, max(1, rollout.max_sequences // rollout.group_size)) * rollout.group_size
    if on_cpu and ONEDNN and run.model.dtype == "float32" and run.model.compute != "bfloat16":
        yield "packed weights", packed_bytes(model)
    yield "keys and values", cache_bytes(model, rows, lengths.prompt + lengths.response)
    yield "logits", SAMPLED_LOGITS * rows * vocabulary_of(model)


def _update(
    run: RunConfig, model: Any, ranks: int, lengths: Lengths, part: Microbatch, machine: Machine
) -> Iterator[tuple[str, float]]:
    trained = [p for p in model.parameters() if p.requires_grad]
    cut = ranks if ranks > 1 and run.parallel.mode == "sharded" else 1
    gradients, activations = (
        size_of(trained) / cut,
        update_kept(model, part.prompts, part.rows, lengths, run.optim.shared_prefix),
    )
    if (
        run.model.compute == "bfloat16"
    ):  # inputs of linear layers and attention are half as wide, and weights are there in half precision too
        activations = activations / 2 + sum(p.numel() for p in model.parameters() if p.dim() > 1) * 2
    head = head_bytes(model, part.rows * lengths.response)
    if cut > 1:
        yield "gathered layer", gathered_bytes(model)
    if "values_NT" in catalogue()[run.algo.name].needs:
        yield "critic's gradients", size_of(decoder_of(model).parameters())
    if rollout_stays(run, machine):
        yield "vLLM: weights, keys and values", size_of(model.parameters()) + run.rollout.kv_cache_gib * GIB
    if part.parts == 1:  # gradients come as activations go
        yield "gradients", gradients
        yield "activations", max(0.0, activations + head - gradients)
    else:
        yield "gradients", gradients
        yield "activations", activations
        yield "log-probabilities", head
    if ranks > 1 and cut == 1:
        largest = max(p.numel() * p.element_size() for p in trained)
        message = min(gradients, max(BUCKET * trained[0].element_size(), largest))
        if message > activations + head:
            yield "messages between ranks", message - activations - head


def rollout_stays(run: RunConfig, machine: Machine) -> bool:
    """vLLM on the CPU keeps its memory while the trainer works; on a GPU it sleeps."""
    return run.rollout.engine == "vllm" and machine.kind == "cpu"


def size_of(tensors: Any) -> int:
    """Bytes of these tensors."""
    return sum(x.numel() * x.element_size() for x in tensors)


def decoder_of(model: Any) -> Any:
    base = model.get_base_model() if hasattr(model, "get_base_model") else model
    return base.get_decoder()


def vocabulary_of(model: Any) -> int:
    return int(model.get_output_embeddings().weight.shape[0])


def packed_bytes(model: Any) -> int:
    """The second copy of linear layers that sampling on a CPU makes (`opo.rollout.decoding.packed_weights`)."""
    linear = [m for m in model.modules() if type(m) is nn.Linear and m.weight.numel() >= SMALLEST]
    return size_of({id(m): m.weight for m in linear}.values())


def cache_bytes(model: Any, rows: int, length: int) -> float:
    """Keys and values of so many rows, and once more those of one layer while it grows."""
    ids_11 = torch.ones(1, 1, dtype=torch.int64, device=next(model.parameters()).device)
    with torch.no_grad():
        cache = decoder_of(model)(input_ids=ids_11, attention_mask=ids_11, use_cache=True).past_key_values
    layers = [size_of(x for x in vars(layer).values() if isinstance(x, Tensor)) for layer in cache.layers]
    return (sum(layers) + max(layers)) * rows * length


@lru_cache(maxsize=8)
def update_kept(model: Any, prompts: int, rows: int, lengths: Lengths, shared_prefix: bool) -> float:
    """Bytes that the forward pass of a micro-batch keeps, with every prompt encoded once or with each response."""
    decoder, device = decoder_of(model), next(model.parameters()).device

    def ones(*shape: int) -> Tensor:
        return torch.ones(*shape, dtype=torch.int64, device=device)

    def plain(count: int, length: int, **options: Any) -> Any:
        mask_NL = ones(count, length)
        return decoder(input_ids=mask_NL, attention_mask=mask_NL, position_ids=positions(mask_NL), **options)

    def forward() -> None:
        fed = lengths.response - 1  # the last token predicts nothing
        if not shared_prefix:
            plain(rows, lengths.prompt + fed, use_cache=False)
            return
        cache = plain(prompts, lengths.prompt, use_cache=True).past_key_values
        if fed:
            cache.batch_select_indices(ones(rows) * 0)
            mask_NL = ones(rows, lengths.prompt + fed)
            decoder(
                input_ids=ones(rows, fed),
                attention_mask=mask_NL,
                position_ids=positions(mask_NL)[:, lengths.prompt :],
                past_key_values=cache,
                use_cache=True,
            )

    return kept_bytes(model, forward)


def head_bytes(model: Any, tokens: int) -> float:
    """Log-probabilities of so many tokens (`opo.model.logprobs`), with the gradient of the head before it is added to the others."""
    weight = model.get_output_embeddings().weight
    logits, tile = tokens * len(weight), CHUNK[0] * CHUNK[1]
    if logits <= tile:
        return PLAIN_LOGITS * logits
    gradient = weight.numel() * weight.element_size() if weight.requires_grad else 0
    return 4 * (logits if logits <= KEPT else 0) + 4 * TILES * tile + gradient


def gathered_bytes(model: Any) -> float:
    """FSDP2: one layer, and what is in no layer, whole on every rank while used: weights and gradients, each also as one message."""
    lists = [m for m in decoder_of(model).modules() if isinstance(m, nn.ModuleList)]
    layers = [size_of(layer.parameters()) for layer in max(lists, key=len)] if lists else [0]
    return 4.0 * (max(layers) + size_of(model.parameters()) - sum(layers))
