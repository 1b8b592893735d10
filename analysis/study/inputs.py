"""What a study was made from, by content: weights, tokenizer, rollouts and task data, so that pools of other inputs are never taken for these."""

from pathlib import Path

from huggingface_hub import try_to_load_from_cache

from analysis.study.config import VarianceConfig
from opo.model.load import model_source
from opo.run.inputs import digest, inputs_of
from opo.run.policies import EvaluatedPolicy

READ = (".safetensors", ".bin", ".json", ".jinja", ".model", ".txt")  # of a model folder


def contents(config: VarianceConfig, stage: EvaluatedPolicy) -> dict[str, str]:
    """File -> digest of everything that the pools of a stage depend on; of a hub id its commit and its files as they lie in the cache."""
    files = list(config.rollout_files)
    digests: dict[str, str] = {}
    for weights in stage.weights:
        for source in dict.fromkeys((model_source(weights.model), str(weights.folder or ""))):
            if source and Path(source).is_dir():
                files += sorted(file for file in Path(source).iterdir() if file.suffix in READ)
            elif source:
                digests[source] = commit = _commit(source)
                cached = try_to_load_from_cache(source, "config.json", revision=commit or None)
                if isinstance(cached, str):
                    for file in sorted(file for file in Path(cached).parent.iterdir() if file.suffix in READ):
                        digests[f"{source}/{file.name}"] = digest(file)
    task = config.task if config.task is not None else (stage.weights[0].run or {}).get("task")
    if not config.rollouts:
        files += inputs_of(task, list(stage.weights[0].reward_functions(config.reward) or {}))
    return digests | {str(file): digest(file) for file in files}


def _commit(name: str) -> str:
    """The commit of a hub model as it lies in the cache, empty where that is not known."""
    from transformers import AutoConfig

    return str(getattr(AutoConfig.from_pretrained(name, trust_remote_code=False), "_commit_hash", None) or "")
