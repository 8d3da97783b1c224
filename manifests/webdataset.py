"""A stage for pipelines of the `webdataset` library: the labels of a sealed round beside each sample. Needs no import of it."""

from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from itertools import chain, groupby
from typing import Any

from manifests.errors import RunError
from manifests.labels import Label
from manifests.reading import Manifest

Sample = dict[str, Any]
Stage = Callable[[Iterable[Sample]], Iterator[Sample]]


def labelled(
    manifest: Manifest,
    keep: Collection[Label | str] = (Label.SAFE,),
    columns: Sequence[str] = (),
    *,
    image: str | None = None,
    sit_out: bool = False,
) -> Stage:
    """Return a stage that keeps the samples of some labels, in their order.

    It belongs right behind the stage that reads tars, before anything that shuffles, drops or decodes: a sample's row is its
    place in its tar, and its key is compared with the one that was labelled.

    Args:
        manifest: The sealed round.
        keep: Labels; samples of others are left out.
        columns: Columns of the manifest that go along, `p_safe` as `__p_safe__`; so the library's decoders leave them alone.
            `__label__` always does.
        image: Extensions of the image, as `webp;jpg;png`, to compare its bytes with the one that was scored; None: only keys.
        sit_out: Whether safe rows whose turn it is to sit out come as risky; see `Manifest.join`.

    Raises:
        RunError: While samples pass: a tar is no shard of the round, or its rows are not those that were labelled.
    """
    wanted, shard_of = frozenset(str(Label(word)) for word in keep), _finder(manifest)
    endings = image.split(";") if image else []
    image_of = (lambda row: _first(row[1], endings)) if image else None
    rows = {part["shard"]: int(part["rows"]) for part in manifest.seal["parts"]}

    def stage(samples: Iterable[Sample]) -> Iterator[Sample]:
        turn, place, last = 0, 0, ""

        def pass_of(sample: Sample) -> int:
            nonlocal turn, place, last
            if sample["__url__"] != last or place >= rows[shard_of(last)]:  # a loader that resamples may read one tar twice
                turn, place, last = turn + 1, 0, sample["__url__"]
            place += 1
            return turn

        for _, group in groupby(samples, key=pass_of):
            first = next(group)
            shard = shard_of(first["__url__"])
            more = manifest.table(shard, list(columns)) if columns else None
            numbered = enumerate(chain([first], group))  # noqa: B031  # the rest of it
            named = ((row["__key__"], (at, row)) for at, row in numbered)
            joined = manifest.join(shard, named, sit_out=sit_out, image_of=image_of)
            for label, (at, sample) in joined:
                if label in wanted:
                    facts = {f"__{name}__": more[name][at].as_py() for name in columns} if more is not None else {}
                    yield {**sample, **facts, "__label__": label}

    return stage


def _first(sample: Sample, endings: Sequence[str]) -> bytes | None:
    return next((sample[ending] for ending in endings if ending in sample), None)


def _finder(manifest: Manifest) -> Callable[[str], str]:
    """Return what finds the shard of a tar's address: the longest of those that the address ends in."""
    names = set(manifest.shards)

    def shard_of(url: str) -> str:
        parts = url.removeprefix("pipe:").split()[-1].partition("?")[0].split("/")
        for first in range(len(parts)):
            if (name := "/".join(parts[first:])) in names:
                return name
        raise RunError(f"{url} is no shard of round {manifest.number} of {manifest.run.uri}; it has {manifest.shards[:3]}...")

    return shard_of
