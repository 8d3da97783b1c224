"""What a stage is."""

from typing import Protocol, TypeVar

In_contra = TypeVar("In_contra", contravariant=True)
Out_co = TypeVar("Out_co", covariant=True)


class Stage(Protocol[In_contra, Out_co]):
    """Work on one shard; picklable before `open`, so that it travels to its workers."""

    def open(self) -> None:
        """Prepare, once per worker: load weights, open files."""
        ...

    def run(self, item: In_contra, /) -> Out_co:
        """Do the work on one item; the same item gives the same output on any worker."""
        ...
