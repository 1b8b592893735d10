import pytest
import torch
from small import random_rollouts

from opo.batch import Rollouts


def test_padding_starts_after_each_response():
    rollouts = Rollouts.from_lists(
        [[7]], [[[1, 2, 3], [4]]], [[1.0, 0.0]], [[[-1.0, -2.0, -3.0], [-4.0]]], versions=[[[5, 5, 6], [6]]]
    )
    assert rollouts.tokens_NT.tolist() == [[1, 2, 3], [4, 0, 0]]
    assert rollouts.mask_NT.tolist() == [[True, True, True], [True, False, False]]
    assert rollouts.lengths_PG.tolist() == [[3.0, 1.0]]
    assert rollouts.logprobs_NT is not None
    assert rollouts.logprobs_NT.tolist() == [[-1.0, -2.0, -3.0], [-4.0, 0.0, 0.0]]
    assert rollouts.versions_NT is not None
    assert rollouts.versions_NT.tolist() == [[5, 5, 6], [6, 0, 0]]
    assert rollouts.versions_NT.dtype == torch.int64


def test_versions_are_those_of_tokens_not_of_padding():
    rollouts = Rollouts.from_lists([[7]] * 2, [[[1, 2, 3], [4]], [[5], [6]]], torch.zeros(2, 2))
    with pytest.raises(ValueError, match="do not say which version"):
        _ = rollouts.versions
    versions = [[[5, 4, 5], [6]], [[5], [5]]]
    rollouts = Rollouts.from_lists([[7]] * 2, [[[1, 2, 3], [4]], [[5], [6]]], torch.zeros(2, 2), versions=versions)
    assert rollouts.versions == {4, 5, 6}
    assert rollouts.select([1]).versions == {5}


def test_returns_add_kl_rewards_and_keep_unscored_apart():
    rollouts = Rollouts.from_lists([[7]], [[[1, 2], [4]]], [[1.0, float("nan")]])
    rollouts = rollouts.with_(kl_rewards_NT=torch.tensor([[-0.1, -0.2], [-0.4, 99.0]], dtype=torch.float64))
    assert rollouts.returns_PG[0, 0].item() == pytest.approx(0.7)
    assert rollouts.returns_PG[0, 1].isnan()
    assert rollouts.token_rewards_NT.tolist() == [[-0.1, 0.8], [-0.4, 0.0]]
    assert rollouts.scored_N.tolist() == [True, False]


def test_select_keeps_rows_together():
    rollouts = random_rollouts(prompts=5, group=3)
    picked = rollouts.select([3, 0])
    assert picked.prompt_ids == [rollouts.prompt_ids[3], rollouts.prompt_ids[0]]
    for new, old in zip(range(6), [9, 10, 11, 0, 1, 2], strict=True):
        length = int(rollouts.lengths_N[old])
        assert picked.tokens_NT[new, :length].tolist() == rollouts.tokens_NT[old, :length].tolist()
        assert int(picked.lengths_N[new]) == length
    assert picked.rewards_PG.tolist() == rollouts.rewards_PG[[3, 0]].tolist()
    assert picked.tokens_NT.shape[1] == int(picked.lengths_N.max())


@pytest.mark.parametrize(
    ("responses", "rewards", "logprobs", "words"),
    [
        ([[[1], []]], [[0.0, 0.0]], None, "prompt 0: response 1 has no token"),
        ([[[1], [2]], [[3]]], [[0.0, 0.0], [0.0, 0.0]], None, "prompt 1: 1 responses"),
        ([[[1], [2]]], [[0.0]], None, "rewards have shape"),
        ([[[1], [2]]], [[0.0, float("inf")]], None, "prompt 0: a reward is infinite"),
        ([[[1], [2]]], [[0.0, 1.0]], [[[-1.0], [float("nan")]]], "prompt 0: response 1 needs 1 finite"),
        ([], [], None, "0 groups"),
    ],
)
def test_bad_input_names_the_prompt(responses, rewards, logprobs, words):
    prompts = [[5]] * max(1, len(responses))
    with pytest.raises(ValueError, match=words):
        Rollouts.from_lists(prompts, responses, rewards, logprobs)


@pytest.mark.parametrize("versions", [[[[3], [3, 3]], [[3], [3]]], [[[3], [3]], [[3], []]]])
def test_each_token_needs_a_version(versions):
    prompt = next(p for p, group in enumerate(versions) if [len(row) for row in group] != [1, 1])
    with pytest.raises(ValueError, match=f"prompt {prompt}: response 1 needs 1 versions"):
        Rollouts.from_lists([[5]] * 2, [[[1], [2]], [[3], [4]]], torch.zeros(2, 2), versions=versions)
