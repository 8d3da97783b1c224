"""What must hold of any shard, however it is made or broken."""

import resource
import tempfile
from pathlib import Path

from hypothesis import currently_in_test_context, note

from manifests.labels import Reason
from stages.pair import Pair
from stages.read.shards import open_dataset, read_shard
from stages.settings import ReadSettings

MOST_GROWN_KB = 600_000


def read_twice(name: str, data: bytes, beside: dict[str, bytes] | None = None, **options: object) -> list[Pair]:
    """Read a shard from a file of its own twice, and check what holds of any."""
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    with tempfile.TemporaryDirectory() as folder:
        for file, body in {**(beside or {}), f"shards/{name}": data}.items():
            (Path(folder) / file).parent.mkdir(parents=True, exist_ok=True)
            (Path(folder) / file).write_bytes(body)
        settings = ReadSettings(image_root=folder, **options)  # type: ignore[arg-type]
        dataset = open_dataset([f"{folder}/shards/{name}"])
        first, second = (list(read_shard(dataset.store, dataset.shards[0], settings)) for _ in range(2))
    if currently_in_test_context():
        note(repr([(pair.index, pair.key, pair.reason, pair.detail) for pair in first])[:2000])
    assert first == second
    assert [pair.index for pair in first] == list(range(len(first)))
    assert len({pair.uid for pair in first}) == len(first) or any(pair.uid.hex() == SHARED_UID for pair in first)
    for pair in first:
        assert len(pair.uid) == 16
        assert (pair.reason is None) == (pair.image is not None)
        assert pair.reason is not Reason.READER_ERROR, pair.detail
        for text in (pair.key, pair.caption or "", pair.detail or ""):
            text.encode()  # any writer takes it
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < MOST_GROWN_KB
    return first


SHARED_UID = "0f" * 16


def facts(pair: Pair) -> tuple[object, ...]:
    """What of a row must not depend on its neighbours."""
    return pair.key, pair.uid, pair.caption, pair.image, pair.reason
