"""The ranks of a run, and what they tell each other. One process is a world of one: nothing is opened, and every call is free.

Every rank knows the whole batch, computes the same numbers from it and moves its copy (or its shard) of the weights alike; only
sampling, scoring and the passes of the model are dealt, prompt by prompt. Rank 0 owns the folder and whatever is printed.
"""

import os
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from datetime import timedelta
from typing import Any, Self, TypeVar

import torch
from torch import Tensor

from opo.errors import StoppedRun, UserError
from opo.system.ranks import rank_and_size
from opo.system.terminal import printable

T = TypeVar("T")
E = TypeVar("E", bound=Exception)
LAST_WORDS_S = 5.0  # how long a rank waits to hear who else is still there, after one is gone
BUCKET = 2**24  # numbers that are summed over the ranks in one message
LIMIT = timedelta(hours=4)  # of one message: the others may be sampling
MEETING = timedelta(minutes=10)  # for all ranks to start


class LostRank(StoppedRun):
    """Another rank is gone; `speaks` on the lowest rank that is left."""

    speaks = False


class World:
    """This process among its ranks; a context manager, `World()` for one process alone."""

    def __init__(self, rank: int = 0, size: int = 1) -> None:
        self.rank, self.size = rank, size
        self.waited_s = 0.0  # in messages so far
        self.store: Any = None
        self.opened = False

    @classmethod
    def join(cls) -> Self:
        """The world that torchrun describes in the environment; enter it to open the process group."""
        return cls(*rank_and_size())

    @property
    def is_first(self) -> bool:
        return self.rank == 0

    def __enter__(self) -> Self:
        if self.size > 1:
            import torch.distributed as dist

            self.opened = not dist.is_initialized()  # a cluster's own launcher may have opened the group, and closes it
            backend = "cpu:gloo,cuda:nccl" if torch.cuda.is_available() else "gloo"
            if torch.cuda.is_available():
                torch.cuda.set_device(int(os.environ.get("LOCAL_RANK", self.rank)) % torch.cuda.device_count())
            if self.opened:
                self._open(backend)
            self.store = dist.distributed_c10d._get_default_store()
        return self

    def __exit__(self, *_: object) -> None:
        if self.size == 1:
            return
        import torch.distributed as dist

        if self.opened and dist.is_initialized():  # a group that is left open can end in a core dump
            dist.destroy_process_group()

    def _open(self, backend: str) -> None:
        """Meet the other ranks. Raises StoppedRun where one of them does not come: only torchrun ends those that wait for it."""
        import torch.distributed as dist
        from torch.distributed.rendezvous import rendezvous

        try:
            store, rank, size = next(rendezvous("env://", timeout=MEETING))
        except RuntimeError as error:
            reason = (str(error).splitlines() or [""])[0]
            raise StoppedRun(
                f"the {self.size} ranks did not meet within {MEETING.seconds // 60} minutes ({reason})"
            ) from error
        store.set_timeout(LIMIT)
        dist.init_process_group(backend, store=store, rank=rank, world_size=size, timeout=LIMIT)

    def mine(self, items: Sequence[T]) -> list[T]:
        """Every size-th of the items, from the rank's own on."""
        return list(items[self.rank :: self.size])

    def share(self, items: Sequence[T]) -> list[T]:
        """The rank's own stretch of the items, as long as every other's."""
        each = len(items) // self.size
        return list(items[self.rank * each : (self.rank + 1) * each])

    def add(self, *tensors: Tensor) -> None:
        """Sum each tensor over the ranks, in place."""
        if self.size == 1:
            return
        import torch.distributed as dist

        self._message(lambda: [dist.all_reduce(t) for t in tensors])

    def add_gradients(self, parameters: Sequence[torch.nn.Parameter]) -> None:
        """Sum the gradients over the ranks, in buckets; a parameter without one counts as zero."""
        if self.size == 1:
            return
        for p in parameters:
            p.grad = torch.zeros_like(p) if p.grad is None else p.grad
        for bucket in _buckets([p.grad for p in parameters if p.grad is not None]):
            flat = torch.cat([g.flatten() for g in bucket])
            self.add(flat)
            for gradient, summed in zip(bucket, flat.split([g.numel() for g in bucket]), strict=True):
                gradient.copy_(summed.view_as(gradient))

    def mean(self, number: float) -> float:
        """The mean of one number a rank; exact where all are the same."""
        return number if self.size == 1 else sum(self.gather(number)) / self.size

    def most(self, number: int) -> int:
        """The largest of one number a rank."""
        return number if self.size == 1 else max(self.gather(number))

    def any(self, flag: bool) -> bool:
        """Whether the flag is set on any rank."""
        return flag if self.size == 1 else any(self.gather(flag))

    def gather(self, thing: T) -> list[T]:
        """What every rank has, in the order of ranks, on all of them."""
        if self.size == 1:
            return [thing]
        import torch.distributed as dist

        found: list[Any] = [None] * self.size
        self._message(lambda: dist.all_gather_object(found, thing))
        return found

    def by_first(self, work: Callable[[], T]) -> T | None:
        """Rank 0 does the work and has its result, the others wait and have None; its UserError or StoppedRun is everyone's."""
        if self.size == 1:
            return work()
        result: T | None = None
        error: Exception | None = None
        if self.is_first:
            try:
                result = work()
            except (UserError, StoppedRun) as refused:
                error = refused
        if (raised := self.gather(error)[0]) is not None:
            raise self.everyones(raised)
        return result

    def from_first(self, work: Callable[[], T]) -> T:
        """The result of rank 0's work, on every rank; it has to be picklable."""
        result: Any = self.by_first(work)
        return self.gather(result)[0]

    def same(self, config: dict[str, Any]) -> None:
        """Raise UserError on every rank where one was started with another config, naming the first key that differs."""
        configs = self.gather(config)
        for rank, other in enumerate(configs):
            if key := _difference(configs[0], other):
                raise self.everyones(
                    UserError(
                        f"{key}: rank 0 and rank {rank} were started with different values; give all ranks one command"
                    )
                )

    def everyones(self, error: E) -> E:
        """The error marked as one that every rank raises: the first one says it."""
        error.speaks = self.is_first  # pyright: ignore[reportAttributeAccessIssue]
        return error

    def say(self, line: str) -> None:
        """Print a line once."""
        if self.is_first:
            print(printable(line), flush=True)

    def wait(self) -> None:
        """Go on when every rank is here."""
        self.gather(None)

    def _message(self, send: Callable[[], Any]) -> None:
        start = time.perf_counter()
        try:
            send()
        except RuntimeError as error:
            raise self._lost(error) from error
        self.waited_s += time.perf_counter() - start

    def _lost(self, error: Exception) -> Exception:
        """A message failed: which ranks do not answer any more. The error itself where all do."""
        left = []
        with suppress(RuntimeError):
            self.store.set(f"opo/left/{self.rank}", "1")
        deadline = time.monotonic() + LAST_WORDS_S
        waiting = [r for r in range(self.size) if r != self.rank]
        while waiting and time.monotonic() < deadline:
            with suppress(RuntimeError):
                left += [r for r in waiting if self.store.check([f"opo/left/{r}"])]
            waiting = [r for r in waiting if r not in left]
            time.sleep(0.05)
        if not waiting:
            return error
        names = f"rank {waiting[0]}" if len(waiting) == 1 else f"ranks {', '.join(map(str, waiting))}"
        lost = LostRank(
            f"{names} of {self.size} ended before the run did; the same command goes on from the last checkpoint"
        )
        lost.speaks = self.rank < min(left, default=self.size)
        return lost


def _buckets(tensors: Sequence[Tensor]) -> list[list[Tensor]]:
    """Tensors of one kind and place, together no more than BUCKET numbers (or one alone)."""
    found: list[list[Tensor]] = []
    for tensor in tensors:
        last = found[-1] if found else []
        fits = last and sum(t.numel() for t in last) + tensor.numel() <= BUCKET
        if fits and (last[0].dtype, last[0].device) == (tensor.dtype, tensor.device):
            last.append(tensor)
        else:
            found.append([tensor])
    return found


def _difference(one: Any, other: Any, key: str = "") -> str | None:
    """The first dotted key in which two configs differ."""
    if isinstance(one, dict) and isinstance(other, dict):
        for name in [*one, *(name for name in other if name not in one)]:
            if found := _difference(one.get(name), other.get(name), f"{key}.{name}".lstrip(".")):
                return found
        return None
    return None if one == other else key
