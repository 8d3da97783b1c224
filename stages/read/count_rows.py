"""Count the rows of a shard that have an image and a caption, without decoding any."""

from dataclasses import dataclass

from manifests.store import Store
from stages.pair import Shard
from stages.read.shards import read_shard
from stages.settings import ReadSettings
from stages.stage import Stage


@dataclass(frozen=True)
class CountTarget:
    """Where the dataset lies, and how pairs are read."""

    store: Store
    settings: ReadSettings


class CountRows(Stage[CountTarget, int]):
    """Stage: a shard in, the number of its readable rows out."""

    def run(self, shard: Shard, /) -> int:
        """Return how many rows have an image and a caption."""
        return sum(pair.reason is None for pair in read_shard(self.target.store, shard, self.target.settings))
