"""Run third-party code without changing the global state of this process."""

import os
import random
import sys
import warnings
from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
import torch


@contextmanager
def same_generators() -> Iterator[None]:
    """Restore the state of every global random generator on leaving."""
    python_state, numpy_state = random.getstate(), np.random.get_state()
    devices = [torch.cuda.current_device()] if torch.cuda.is_available() else []
    with torch.random.fork_rng(devices):
        try:
            yield
        finally:
            random.setstate(python_state)
            np.random.set_state(numpy_state)


@contextmanager
def contained(environment: dict[str, str]) -> Iterator[None]:
    """Set these environment variables, silence the terminal, and restore generators, threads and hooks on leaving.

    Made for vLLM, which reads its settings from the environment, seeds every global generator, replaces
    `torch.set_num_threads` by a function that does nothing, and writes to the terminal from C++ too, so the file
    descriptor is replaced.
    """
    before = {key: os.environ.get(key) for key in environment}
    threads, set_num_threads, excepthook = torch.get_num_threads(), torch.set_num_threads, sys.excepthook
    stderr, nowhere = os.dup(2), os.open(os.devnull, os.O_WRONLY)
    os.environ.update(environment)
    os.dup2(nowhere, 2)
    try:
        with same_generators(), warnings.catch_warnings(action="ignore"):
            yield
    finally:
        os.dup2(stderr, 2)
        os.close(stderr)
        os.close(nowhere)
        for key, value in before.items():
            if value is None:
                os.environ.pop(key, None)
            else:
                os.environ[key] = value
        torch.set_num_threads = set_num_threads
        torch.set_num_threads(threads)
        sys.excepthook = excepthook


@contextmanager
def kept_process_group() -> Iterator[None]:
    """The process group of the ranks outlives what is shut down: vLLM destroys its own groups, and then all that there are."""
    destroy = torch.distributed.destroy_process_group
    torch.distributed.destroy_process_group = lambda group=None: None if group is None else destroy(group)
    try:
        yield
    finally:
        torch.distributed.destroy_process_group = destroy
