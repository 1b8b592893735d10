"""What rank 0 alone does: the run's folder, its record and what is shown of it."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Self, TypeVar

from opo.run.folder import RunFolder
from opo.system.world import World

T = TypeVar("T")


class SharedFolder:
    """The folder of a run on every rank of its world; rank 0 holds it, and where rank 0 is refused all are."""

    def __init__(self, path: Path, config: dict[str, Any], world: World) -> None:
        self.path, self.world = path, world
        self.own = world.by_first(lambda: RunFolder.open(path, config))

    @property
    def done(self) -> bool:
        """Whether all steps of the config are done."""
        return self.world.from_first(lambda: self.of_first.done)

    @contextmanager
    def held(self) -> Iterator[None]:
        """See `RunFolder.held`."""
        if self.own is None:
            yield
        else:
            with self.own.held():
                yield

    def latest_checkpoint(self) -> Path | None:
        """The newest complete checkpoint, the same for every rank."""
        return self.world.from_first(lambda: self.of_first.latest_checkpoint())

    def truncate_metrics(self, step: int) -> None:
        """See `RunFolder.truncate_metrics`."""
        self.world.by_first(lambda: self.of_first.truncate_metrics(step))

    def seal(self) -> None:
        """See `RunFolder.seal`."""
        self.world.by_first(lambda: self.of_first.seal())

    def finish(self, step: int) -> None:
        """Mark the run as done after so many steps, when every rank is."""
        self.world.by_first(lambda: self.of_first.finish(step))

    @property
    def of_first(self) -> RunFolder:
        """The folder itself, on rank 0 alone."""
        assert self.own is not None, "rank 0 holds the folder"
        return self.own


class Silent:
    """Stands on the other ranks for what rank 0 has: any call is heard and nothing is done."""

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        pass

    def __getattr__(self, name: str) -> Callable[..., None]:
        return lambda *_, **__: None


def first_only(world: World, make: Callable[[], T]) -> T:
    """What `make` makes on rank 0, and something silent in its place on the others."""
    silent: Any = Silent()
    return make() if world.is_first else silent
