"""What a stage is."""

from typing import Generic, TypeVar

from stages.pair import Shard

Target = TypeVar("Target")
Out = TypeVar("Out")


class Stage(Generic[Target, Out]):
    """Work on one shard; picklable before `open`, so that it travels to its workers.

    Every stage is made of one frozen dataclass, its target, which says where it reads, where it writes and how.

    Attributes:
        target: The same.
        so_far: Rows, and quarantined rows, of the shard that is being worked on; a stage that takes long counts them.
    """

    def __init__(self, target: Target) -> None:
        """Take the target; nothing is loaded before `open`."""
        self.target = target
        self.so_far = (0, 0)

    def open(self) -> None:
        """Prepare, once per worker: load weights, open files. Most stages have nothing to load."""

    def run(self, shard: Shard, /) -> Out:
        """Do the work on one shard; the same shard gives the same output on any worker."""
        raise NotImplementedError
