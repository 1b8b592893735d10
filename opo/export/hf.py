"""`opo export hf`: a checkpoint as a folder that transformers, vLLM and the hub's tools load, with a model card."""

import shutil
import sys
from pathlib import Path

from opo.errors import UserError
from opo.export.card import model_card
from opo.export.config import HfExport
from opo.model.load import load_policy, refuse_broken
from opo.run.policies import Weights, evaluated_policies
from opo.system.atomic import replacing

TRAINING_ONLY = ("training_args.bin", "optimizer.pt", "scheduler.pt", "README.md")


def export_checkpoint(asked: HfExport) -> Path:
    """Write the folder, whole or not at all, and print its path.

    Weights are copied byte by byte, or with `merge` W + scaling B A stands in place of W and its adapters. Raises UserError for a
    damaged checkpoint, a run without one, and for `merge` where there are no adapters.
    """
    policy = evaluated_policies(asked.path, None)[-1]
    weights = policy.weights[0]
    if weights.folder is None:
        raise UserError(f"path={asked.path}: has no checkpoint yet")
    refuse_broken(weights.folder, f"path={asked.path}")
    adapted = (weights.folder / "adapter_config.json").is_file()
    if asked.merge and not adapted:
        raise UserError(f"merge=true: {weights.folder} holds no adapters, its weights are whole; allowed is false")
    target = Path(asked.into)
    with replacing(target) as partial:
        if asked.merge:
            _merge(weights, partial)
        else:
            shutil.copytree(weights.folder, partial, ignore=shutil.ignore_patterns(*TRAINING_ONLY))
        card = model_card(weights, policy.step, adapted and not asked.merge)
        (partial / "README.md").write_text(card, encoding="utf-8")
    if adapted and not asked.merge:
        print(
            f"{target} holds adapters, which need {weights.source.path or weights.source.name}; merge=true makes a whole model",
            file=sys.stderr,
        )
    print(target)
    return target


def _merge(weights: Weights, folder: Path) -> None:
    """The base model with the adapters added, by peft, and the tokenizer."""
    if weights.run is None:
        raise UserError(
            "merge=true: adapters without the config of their run; give the run folder or a checkpoint in it"
        )
    policy = load_policy(weights.source, device="cpu", adapters=weights.adapters)
    policy.model.merge_and_unload().save_pretrained(folder)
    policy.tokenizer.save_pretrained(folder)
