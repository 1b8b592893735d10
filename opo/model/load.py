"""Load a policy: the built-in one, one that PyPI packages carry, a folder or a hub id; whole or with LoRA."""

import inspect
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoTokenizer,
    GenerationConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING
from transformers.utils.logging import disable_progress_bar, get_verbosity, set_verbosity, set_verbosity_error

from opo.config.model_source import complaints, refuse_changed
from opo.config.schema import ModelConfig
from opo.errors import UserError
from opo.model.fits import complaints_of_loaded, first_line, naming, no_objects
from opo.model.lengths import max_length
from opo.model.liger import check_liger
from opo.model.packaged import PACKAGED, packaged_folder
from opo.model.policy import Policy
from opo.model.precision import in_float64
from opo.model.tiny import tiny_folder
from opo.model.trial import refuse_untrainable
from opo.system.seeding import seed_for

disable_progress_bar()  # its bars would break the progress line
# what torch says once where the first product on a GPU is one of a backward pass; it then makes the context that it misses
warnings.filterwarnings("ignore", message="Attempting to run cuBLAS, but there was no current CUDA context")


DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float64": torch.float64}
# what a config may make a model give beside its hidden states and logits: nothing of it is used here, and some of it fails with a cache
OUTPUTS = {
    "output_router_logits": False,
    "output_attentions": False,
    "output_hidden_states": False,
    "return_dict": True,
}


def model_source(config: ModelConfig) -> str:
    """The folder or hub id that transformers loads; makes the built-in policy or converts a packaged one on first use."""
    if config.path is not None:
        return config.path
    if config.name == "tiny":
        return str(tiny_folder(config))
    if config.name in PACKAGED:
        return str(packaged_folder(config.name))
    raise UserError(f"model.path: model.name={config.name} needs a folder or a hub id")


def load_policy(
    config: ModelConfig, temperature: float = 1.0, device: str = "auto", adapters: Path | None = None
) -> Policy:
    """The policy in evaluation mode (no dropout, in training too: it must be the one that samples), tokenizer padding-free.

    `adapters` is a folder whose LoRA adapters take the place of fresh ones. Raises UserError where the model or its tokenizer cannot be found, is damaged, or is no causal language model; what the files
    alone say is refused before any weight is read (`opo.config.model_source`). Code that comes with a model is never run.
    """
    source = model_source(config)
    refuse_broken(Path(source), f"model.path={source}")
    tokenizer, model = _pretrained(source, DTYPES[config.dtype])
    model = with_adapters(model, config)
    if device == "auto":
        device = "cuda" if torch.cuda.is_available() else "cpu"
    policy = Policy(
        model.to(device).eval(), tokenizer, temperature, compute=config.compute, head_kernel=config.head_kernel
    )
    refuse_untrainable(policy, f"model.path={source}")
    if config.head_kernel == "liger":
        check_liger(policy.head)
    if adapters is not None:
        restore_model(policy, adapters)
    return policy


def with_adapters(model: Any, config: ModelConfig) -> Any:
    """The model with fresh LoRA adapters where the config has a rank. Raises UserError for targets that are no modules of it."""
    if not config.lora_rank:
        return model
    from peft import LoraConfig, get_peft_model

    targets = config.lora_targets if isinstance(config.lora_targets, str) else list(config.lora_targets)
    names = [name for name, _ in model.named_modules()]
    for target in targets if isinstance(targets, list) else ():
        if not any(name == target or name.endswith(f".{target}") for name in names):
            raise UserError(f"model.lora_targets={config.lora_targets}: no module of this model is called {target}")
    lora = LoraConfig(r=config.lora_rank, lora_alpha=config.lora_alpha, target_modules=targets, task_type="CAUSAL_LM")
    try:
        with (
            torch.random.fork_rng(),
            warnings.catch_warnings(action="ignore"),
        ):  # fresh adapters are random: the same ones on every rank and in every run
            torch.manual_seed(seed_for(0, "adapters"))
            return get_peft_model(model, lora)
    except ValueError as error:  # no module has such a name
        raise UserError(f"model.lora_targets={config.lora_targets}: {first_line(error)}") from error


def refuse_broken(folder: Path, where: str) -> None:
    """Raises UserError where the files of a model's folder say that it cannot be loaded, or are not as its checkpoint wrote them."""
    if folder.is_dir():
        for complaint in (*complaints(folder, where), *no_objects(folder, where)):
            raise UserError(complaint)
        refuse_changed(folder)


@contextmanager
def errors_alone() -> Iterator[None]:
    """transformers says nothing below an error: what it would report of missing weights is refused here, in one line."""
    before = get_verbosity()
    set_verbosity_error()
    try:
        yield
    finally:
        set_verbosity(before)


def _pretrained(source: str, dtype: torch.dtype) -> tuple[PreTrainedTokenizerBase, Any]:
    """Tokenizer and model, whole and finite. Raises UserError with the first line of whatever transformers says against it."""
    where = f"model.path={source}"
    with naming("config.json", where, source):
        config = AutoConfig.from_pretrained(source, trust_remote_code=False)
        if type(config) not in MODEL_FOR_CAUSAL_LM_MAPPING:
            raise UserError(f"{where}: a {config.model_type} model; allowed are causal language models")
        if dtype == torch.float64 and config.model_type == "bloom":
            raise UserError(
                "model.dtype=float64: a bloom model takes its softmax in float32, where the float64 mask of padding overflows; allowed are "
                "float32 and bfloat16"
            )
        if not _keeps_keys(MODEL_FOR_CAUSAL_LM_MAPPING[type(config)]):
            raise UserError(
                f"{where}: a {config.model_type} model keeps a state in place of keys and values, which responses to one prompt cannot "
                "share; allowed are causal language models with attention in every layer"
            )
        for part in (config, config.get_text_config()):
            for key in OUTPUTS.keys() & set(dir(part)):
                setattr(part, key, OUTPUTS[key])
    with naming("its tokenizer (tokenizer.json and the files beside it)", where, source):
        tokenizer = AutoTokenizer.from_pretrained(source, trust_remote_code=False)
        tokenizer.encode("0")  # some values are looked at only then
    with naming("config.json or generation_config.json", where, source), errors_alone():
        loaded: Any = AutoModelForCausalLM.from_pretrained(
            source,
            config=config,
            dtype=dtype,
            trust_remote_code=False,
            use_safetensors=True,
            output_loading_info=True,
            ignore_mismatched_sizes=True,  # refused below, where they are named
        )
    model, report = loaded
    for complaint in complaints_of_loaded(model, report):
        raise UserError(f"{where}: {complaint}")
    if max_length(model) < 1:
        raise UserError(f"{where}: config.json: positions for {max_length(model)} tokens; allowed is a positive number")
    _refuse_unknown_tokens(tokenizer, model, where)
    model.generation_config = _writable(model.generation_config)
    return tokenizer, in_float64(model) if dtype == torch.float64 else model


def _writable(generation: GenerationConfig) -> GenerationConfig:
    """What transformers will write beside the weights: one that it reads but would not write keeps its tokens alone.

    How a text is sampled there is not used here.
    """
    try:
        generation.validate(strict=True)
    except (ValueError, TypeError):
        tokens = ("bos_token_id", "eos_token_id", "pad_token_id")
        return GenerationConfig(**{key: getattr(generation, key) for key in tokens})
    return generation


def _keeps_keys(architecture: Any) -> bool:
    """Whether every layer's memory of the past is keys and values, one for each token."""
    return "past_key_values" in inspect.signature(architecture.forward).parameters and not architecture._is_stateful


def _refuse_unknown_tokens(tokenizer: Any, model: Any, where: str) -> None:
    """Raises UserError where text can become a token that has no row in the embedding.

    More rows than tokens are usual (padded to a round number). So are added tokens past the last row that no prompt of this model
    has (padding, images): they are refused where a prompt has one (`opo.rollout.collect`).
    """
    rows, added = embedding_rows(model), tokenizer.get_added_vocab()
    beyond = {i: token for token, i in tokenizer.get_vocab().items() if i >= rows and token not in added}
    if beyond:
        raise UserError(
            f"{where}: its tokenizer has {len(beyond)} tokens beyond the {rows} rows of its embedding, the first {beyond[min(beyond)]!r} "
            f"({min(beyond)}); allowed is the tokenizer that the model was trained with"
        )


def embedding_rows(model: PreTrainedModel | Any) -> int:
    """The number of tokens that the model has an embedding for."""
    embedding: Any = model.get_input_embeddings()
    return int(embedding.weight.shape[0])


def save_model(policy: Policy, folder: Path) -> None:
    """Write weights (safetensors), config and tokenizer so that `from_pretrained` loads them."""
    policy.model.save_pretrained(folder)
    policy.tokenizer.save_pretrained(folder)


def restore_model(policy: Policy, folder: Path) -> None:
    """Put the weights that `save_model` wrote back into the policy, bit by bit.

    Raises UserError where they are not as they were written, or belong to a model of another shape.
    """
    refuse_broken(folder, f"checkpoint={folder}")
    if hasattr(policy.model, "get_base_model"):
        from peft import load_peft_weights, set_peft_model_state_dict

        set_peft_model_state_dict(policy.model, load_peft_weights(str(folder), device=str(policy.model.device)))
    else:
        _, saved = _pretrained(str(folder), policy.model.dtype)
        try:
            policy.model.load_state_dict(saved.state_dict())
        except RuntimeError as error:
            raise UserError(f"checkpoint={folder}: not of this model: {first_line(error)}") from error
