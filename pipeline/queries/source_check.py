"""`pairsan verify --data`: whether the data are still those that a round was made of, row by row, without decoding an image."""

from collections.abc import Iterator
from itertools import zip_longest

from manifests.reading import Manifest, same_image
from pipeline.queries.terminal import printable
from pipeline.steps.plan import read_run
from stages.pair import Pair, Shard
from stages.read.shards import Dataset, read_shard
from stages.settings import ReadSettings


def data_problems(manifest: Manifest) -> Iterator[str]:
    """Yield a sentence for the first difference of each kind between the data and a sealed round.

    Reads every shard once. Kinds: shards that are missing or new, sizes, numbers of rows, keys, uids, captions, the
    bytes of images (by their sha256, where the scores are of schema 7 or later), and what could be read at all.

    Raises:
        DataError: There are no data where the run says they are.
    """
    facts, seen = read_run(manifest.run), set[str]()
    dataset = facts.open_data()
    there, sealed = {shard.name: shard for shard in dataset.shards}, {shard.name: shard for shard in facts.shards}
    for what, names in (("missing", set(manifest.shards) - set(there)), ("new", set(there) - set(manifest.shards))):
        if names:
            yield f"{len(names)} shards are {what}, e.g. {min(names)}"
    for name in (name for name in manifest.shards if name in there):
        if there[name].size_bytes != sealed[name].size_bytes and "size" not in seen:
            yield f"{name}: {there[name].size_bytes:,} bytes, sealed {sealed[name].size_bytes:,}"
            seen.add("size")
        for kind, problem in _row_problems(manifest, dataset, there[name], facts.config.data):
            if kind not in seen:
                yield problem
            seen.add(kind)


def _row_problems(manifest: Manifest, dataset: Dataset, shard: Shard, settings: ReadSettings) -> Iterator[tuple[str, str]]:
    """Yield (kind, sentence) for every row that differs, up to where one of the two ends."""
    scores = next(part["scores"]["name"] for part in manifest.seal["parts"] if part["shard"] == shard.name)
    table = manifest.table(shard.name, ["key", "uid", "caption", "label"])
    keep = manifest.seal["plan"]["scores"]["keep"]["captions"]
    rows = zip_longest(table.to_pylist(), read_shard(dataset.store, shard, settings))
    digests = manifest.image_digests(shard.name)
    for index, (row, pair) in enumerate(rows):
        if row is None or pair is None:
            num = index + 1 + sum(1 for _ in rows)
            yield "rows", f"{shard.name}: {num if row is None else index:,} rows, sealed {table.num_rows:,} ({scores})"
            return
        for kind, now in _facts(pair, keep_captions=keep).items():
            if now != row[kind]:
                shown = [printable(v.hex() if isinstance(v, bytes) else str(v), 60) for v in (now, row[kind])]
                yield kind, f"{shard.name} [{index}]: {kind} is {shown[0]!r}, sealed {shown[1]!r}"
        if digests is not None and pair.image is not None and not same_image(pair.image, digests[index]):
            yield "image", f"{shard.name} [{index}]: its image is not the one that was scored (sha256 differs)"
        if pair.reason is not None and row["label"] != "quarantined":
            yield "reading", f"{shard.name} [{index}]: {pair.reason} ({pair.detail}), sealed as {row['label']}"


def _facts(pair: Pair, *, keep_captions: bool) -> dict[str, object]:
    found: dict[str, object] = {"key": pair.key.encode("utf-8", "replace").decode(), "uid": pair.uid}
    return {**found, "caption": pair.caption} if keep_captions else found
