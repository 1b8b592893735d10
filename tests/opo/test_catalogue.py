"""What is read from the source of the algorithms is what the registry says once torch is loaded."""

from dataclasses import fields
from typing import get_type_hints

import pytest

from opo.algorithms import ALGORITHMS
from opo.baselines import BASELINES
from opo.catalogue import baseline_names, catalogue

PROPERTIES = ("needs", "on_policy_only", "couples_prompts", "token_level", "kl_reward")


def test_it_lists_the_registered_algorithms() -> None:
    assert list(catalogue()) == list(ALGORITHMS)
    assert baseline_names() == tuple(BASELINES)


@pytest.mark.parametrize("name", ALGORITHMS)
def test_an_entry_equals_the_imported_algorithm(name: str) -> None:
    entry, algorithm = catalogue()[name], ALGORITHMS[name]
    assert {p: getattr(entry, p) for p in PROPERTIES} == {p: getattr(algorithm, p) for p in PROPERTIES}
    hints = get_type_hints(algorithm.loss, include_extras=True)
    read = [(field.name, field.type, field.default) for field in fields(entry.hyperparameters)]
    assert read == [(key, hints[key], parameter.default) for key, parameter in algorithm.parameters.items()]
