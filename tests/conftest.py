"""What every test finds: random numbers that begin at the same place, whatever ran before."""

import random

import numpy as np
import pytest
import torch
from hypothesis import settings

settings.register_profile("repeatable", derandomize=True, deadline=None)
settings.load_profile("repeatable")


@pytest.fixture
def generator() -> torch.Generator:
    """A torch generator with seed 0."""
    return torch.Generator().manual_seed(0)


@pytest.fixture
def rng() -> np.random.Generator:
    """A numpy generator with seed 0."""
    return np.random.default_rng(0)


@pytest.hookimpl(tryfirst=True)
def pytest_fixture_setup() -> None:
    _seed_what_is_global()


@pytest.hookimpl(tryfirst=True)
def pytest_runtest_call() -> None:
    _seed_what_is_global()


def _seed_what_is_global() -> None:
    """For libraries that draw from global state alone, such as the first weights of a transformers model."""
    random.seed(0)
    np.random.seed(0)
    torch.manual_seed(0)
