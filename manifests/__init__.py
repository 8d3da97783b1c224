"""The contract: what a sealed round says about every pair. Needs numpy and pyarrow only.

from manifests import open_round

manifest = open_round("RUN")
for shard, safe in manifest.masks("safe"):
    ...  # safe[i] belongs to row i of the input shard
"""

from manifests.errors import NotSealed, PairsanError
from manifests.labels import Label, Reason
from manifests.reading import Manifest, open_round
from manifests.schema import MANIFEST, SCHEMA_VERSION
from manifests.store import open_store

__all__ = [
    "MANIFEST",
    "SCHEMA_VERSION",
    "Label",
    "Manifest",
    "NotSealed",
    "PairsanError",
    "Reason",
    "open_round",
    "open_store",
]
