"""Where the signals of a round lie."""

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class SignalParts:
    """Where the signals of a round lie.

    Attributes:
        folder: Below the run.
        fingerprint: In their footers.
        near: Whether neighbours were sought.
    """

    folder: str
    fingerprint: str
    near: bool

    def part(self, shard: str) -> str:
        """Return the name of one shard's part."""
        return f"{self.folder}/{shard}.parquet"
