"""Count the rows of a shard that have an image and a caption, without decoding any."""

from manifests.store import Store
from stages.pair import Shard
from stages.read.shards import read_shard
from stages.settings import ReadOptions


class CountRows:
    """Stage: a shard in, the number of its readable rows out."""

    def __init__(self, store: Store, options: ReadOptions) -> None:
        """Set where the dataset lies and how pairs are read."""
        self._store, self._options = store, options

    def open(self) -> None:
        """Do nothing: there is nothing to load."""

    def run(self, shard: Shard, /) -> int:
        """Return how many rows have an image and a caption."""
        return sum(pair.reason is None for pair in read_shard(self._store, shard, self._options))
