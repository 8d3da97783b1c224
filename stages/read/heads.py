"""The first rows of a few shards: what is in them, before anything large is loaded."""

from collections import Counter
from contextlib import suppress
from itertools import islice
from typing import Final

import pyarrow.parquet as pq

from manifests.errors import DataError
from manifests.labels import Reason
from stages.pair import Pair, Shard
from stages.read.formats.delimited import opened, read_text
from stages.read.formats.parquet import DAMAGED
from stages.read.formats.webdataset import Run, read_rows, read_tar
from stages.read.shards import Dataset, read_shard
from stages.read.streams import BROKEN
from stages.settings import ReadSettings

_SHARDS: Final = 3
_FEWEST: Final = 8
_MANY_ENDINGS: Final = 16  # of the members of a tar, more than one row has: keys are cut at another place than was meant
_KEYS: Final = "in tars a row's members lie side by side, and its key is their name up to the first dot of the last component"
# what a wrong setting does to every row alike, and the settings that mend it
_HINTS: Final = {
    Reason.IMAGE_MISSING: "--image-column (a column, or the ending of a tar member), --image-root",
    Reason.OUTSIDE_ROOT: "--image-root, --allow-outside",
    Reason.CAPTION_MISSING: f"--caption-column (a column, the ending of a tar member, or json:FIELD); {_KEYS}",
    Reason.CAPTION_EMPTY: "--caption-column",
    Reason.CAPTION_UNDECODABLE: "--encoding (of text tables)",
    Reason.ROW_MALFORMED: "--separator",
    Reason.DUPLICATE_KEY: f"--key-column; {_KEYS}",
    Reason.AMBIGUOUS: f"--allow-ambiguous; {_KEYS}",
}


def some_shards(dataset: Dataset) -> tuple[Shard, ...]:
    """Return a few shards, spread over the dataset."""
    step = max(1, len(dataset.shards) // _SHARDS)
    return dataset.shards[::step][:_SHARDS]


def read_head(dataset: Dataset, shard: Shard, settings: ReadSettings, num: int) -> tuple[list[Pair], float, list[str]]:
    """Return the first pairs of a shard, how many rows it has, and its columns, or what the members of a tar end in.

    Args:
        dataset: Where it lies.
        shard: The shard.
        settings: How it is read.
        num: Pairs at most. The number of rows is exact for Parquet and where there are fewer; else it goes by bytes.
    """
    fs = dataset.store.fs
    if shard.format == "parquet":
        with fs.open_input_file(shard.path) as file, pq.ParquetFile(file) as parquet:
            rows, names = parquet.metadata.num_rows, parquet.schema_arrow.names
        return list(islice(read_shard(dataset.store, shard, settings), num)), rows, names
    tar = shard.format == "tar"
    with fs.open_input_file(shard.path) as file:
        if tar:
            runs = islice(read_rows(file, settings), num)
            names = sorted({ending for run in runs if isinstance(run, Run) for ending in run.members})
        else:
            names = []
            with suppress(*BROKEN):  # damage right at its head; the rows below say so
                names = opened(file, shard, settings).names
    with fs.open_input_file(shard.path) as file:
        reader = read_tar(file, shard, settings) if tar else read_text(dataset.store, file, shard, settings)
        pairs = list(islice(reader, num))
        share = min(1.0, file.tell() / max(1, shard.size_bytes)) if len(pairs) == num else 1.0
    return pairs, len(pairs) / max(share, 1e-9), names


def refuse_hopeless(dataset: Dataset, settings: ReadSettings, num: int = 64) -> float | None:
    """Look at the first rows of a few shards, and refuse data of which no row can be read as asked.

    Returns:
        How many bytes of a shard a row has, about; None where nothing tells.

    Raises:
        DataError: Says what is wrong with all of them, what columns or endings there are, and which setting may help.
    """
    reasons: Counter[Reason] = Counter()
    first, seen, num_rows, wrong = dict[Reason, str](), dict[str, list[str]](), 0, list[DataError]()
    guessed, size = 0.0, 0
    for shard in some_shards(dataset):
        try:
            pairs, rows, names = read_head(dataset, shard, settings, num)
        except DataError as error:  # columns that are not there: this shard's own fault, unless all lack them
            wrong.append(error)
            continue
        except (*DAMAGED, ValueError):  # what it costs is said where it is counted
            return None
        guessed, size = guessed + rows, size + shard.size_bytes
        num_rows, seen[shard.name] = num_rows + len(pairs), names
        for pair in pairs:
            if pair.reason in _HINTS:
                reasons[pair.reason] += 1
                first.setdefault(pair.reason, f"{shard.name} [{pair.index}] {pair.key!r}: {pair.detail or 'nothing there'}")
    if wrong and not seen:
        raise wrong[0]
    worst, count = reasons.most_common(1)[0] if reasons else (None, 0)
    good = num_rows - sum(reasons.values())
    odd_keys = any(len(names) > _MANY_ENDINGS and ".tar" in name.lower() for name, names in seen.items())
    if worst is None or good or (num_rows < _FEWEST and not odd_keys):
        return size / guessed if size and guessed else None
    listed = "; ".join(f"{name} has {', '.join(names)[:200]}" for name, names in seen.items())
    raise DataError(
        f"none of the first {num_rows} rows can be scored, {count} of them for {worst}, e.g. {first[worst]}. {listed}. "
        f"Settings that may help: {_KEYS if odd_keys else _HINTS[worst]}"
    )
