"""What changed between two rounds: labels, cosines, shards, plans. Joined by position, shard by shard, in constant memory."""

import csv
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from manifests.errors import ConfigError, RunError
from manifests.layout import differences
from manifests.reading import Manifest
from manifests.schema import Label

FLIPPED: Final = pa.schema(
    [
        ("shard", pa.string()),
        ("index", pa.int32()),
        ("key", pa.string()),
        ("uid", pa.string()),
        ("label_from", pa.string()),
        ("label_to", pa.string()),
        ("reason_from", pa.string()),
        ("reason_to", pa.string()),
        ("cosine_from", pa.float32()),
        ("cosine_to", pa.float32()),
        ("caption", pa.string()),
    ]
)
_COLUMNS: Final = ["uid", "key", "index", "label", "reason", "cosine", "caption"]
_MOST_SHARDS: Final = 10
_BINS: Final = 4096
_LABELS: Final = [str(label) for label in Label]


@dataclass
class Drift:
    """Change of cosine over all rows that both rounds scored; a histogram, so that quantiles need no rows."""

    counts: npt.NDArray[np.int64] = field(default_factory=lambda: np.zeros(_BINS, np.int64))
    total: float = 0.0
    squares: float = 0.0

    def add(self, change: npt.NDArray[np.float64]) -> None:
        """Add the changes of one shard, each in [-2, 2]."""
        place = ((change + 2.0) / 4.0 * _BINS).astype(np.int64).clip(0, _BINS - 1)
        self.counts += np.bincount(place, minlength=_BINS)
        self.total += float(change.sum())
        self.squares += float((change**2).sum())

    def facts(self) -> dict[str, float] | None:
        """Return mean, standard deviation and quantiles; None without rows."""
        num = int(self.counts.sum())
        if not num:
            return None
        mean, reached = self.total / num, self.counts.cumsum() / num
        quantiles = {
            f"q{q:02d}": float(np.searchsorted(reached, q / 100) + 0.5) / _BINS * 4.0 - 2.0 for q in (1, 10, 50, 90, 99)
        }
        return {"rows": num, "mean": mean, "std": max(0.0, self.squares / num - mean**2) ** 0.5, **quantiles}


def compare(old: Manifest, new: Manifest, flipped: Path | None = None) -> dict[str, Any]:
    """Compare two rounds over the same data.

    Args:
        old: The earlier round.
        new: The later one, of the same run or another.
        flipped: Where to write the rows whose label differs, as `.csv` or `.parquet`; None for nowhere.

    Returns:
        `matrix` (rows by old label and new label), `drift` of the cosine, `shards` that moved most, `plan` lines that differ.

    Raises:
        RunError: The rounds are not of the same data.
        ConfigError: The file has another ending.
    """
    if old.shards != new.shards:
        only = sorted(set(old.shards) ^ set(new.shards))[:3]
        raise RunError(f"the rounds are of other data: {len(old.shards)} and {len(new.shards)} shards, e.g. {only} in one only")
    matrix = {a: dict.fromkeys(_LABELS, 0) for a in _LABELS}
    drift, shards = Drift(), []
    with _Rows(flipped) as rows:
        for shard in old.shards:
            a, b = old.table(shard, _COLUMNS), new.table(shard, _COLUMNS)
            if a.num_rows != b.num_rows or not a["uid"].equals(b["uid"]):
                raise RunError(f"{shard}: the rows of the two rounds are not the same; they are of other data")
            moved = _count(a, b, matrix)
            rows.write(shard, a, b)
            both = pc.and_(pc.is_valid(a["cosine"]), pc.is_valid(b["cosine"]))
            change = pc.subtract(b["cosine"].filter(both), a["cosine"].filter(both)).to_numpy().astype(np.float64)
            drift.add(change)
            mean = float(change.mean()) if len(change) else 0.0
            shards.append({"shard": shard, "rows": a.num_rows, "flipped": moved, "mean_change": mean})
            shards = sorted(shards, key=lambda s: (-s["flipped"] / max(1, s["rows"]), s["shard"]))[:_MOST_SHARDS]
    return {
        "from": {"run": old.run.uri, "round": old.number},
        "to": {"run": new.run.uri, "round": new.number},
        "matrix": matrix,
        "flipped": sum(num for a, line in matrix.items() for b, num in line.items() if a != b),
        "drift": drift.facts(),
        "shards": [line for line in shards if line["flipped"]],
        "plan": differences(old.seal["plan"], new.seal["plan"]),
    }


def as_text(found: dict[str, Any]) -> str:
    """Return a comparison for a terminal."""
    lines = [
        f"round {found['from']['round']} of {found['from']['run']} -> round {found['to']['round']} of {found['to']['run']}"
    ]
    lines += ["", f"{'from / to':<16}" + "".join(f"{label:>14}" for label in _LABELS)]
    lines += [f"  {a:<14}" + "".join(f"{found['matrix'][a][b]:>14,}" for b in _LABELS) for a in _LABELS]
    lines += ["", f"{found['flipped']:,} labels differ"]
    if found["drift"]:
        d = found["drift"]
        quantiles = ", ".join(f"{int(name[1:])} % {d[name]:+.3f}" for name in d if name.startswith("q"))
        lines += [f"cosine: mean change {d['mean']:+.4f}, standard deviation {d['std']:.4f}; {quantiles}"]
    if found["shards"]:
        lines += ["", "shards that moved most:"]
        lines += [f"  {s['shard']}: {s['flipped']:,} of {s['rows']:,}, cosine {s['mean_change']:+.4f}" for s in found["shards"]]
    return "\n".join([*lines, "", "plans differ in:" if found["plan"] else "the plans are the same", *_indented(found["plan"])])


def _indented(lines: list[str]) -> Iterator[str]:
    return (f"  {line}" for line in lines)


def _count(a: pa.Table, b: pa.Table, matrix: dict[str, dict[str, int]]) -> int:
    pairs = pc.binary_join_element_wise(a["label"].cast(pa.string()), b["label"].cast(pa.string()), ">")
    moved = 0
    for entry in pc.value_counts(pairs).to_pylist():
        old, _, new = entry["values"].partition(">")
        matrix[old][new] += entry["counts"]
        moved += entry["counts"] * (old != new)
    return moved


class _Rows:
    """Writes rows whose label differs, as they come."""

    def __init__(self, path: Path | None) -> None:
        if path is not None and path.suffix not in (".csv", ".parquet"):
            raise ConfigError(f"{path}: rows that flipped are written as .csv or .parquet")
        self._path = path
        self._draft = path.with_name(f".{path.name}.draft") if path is not None else None

    def __enter__(self) -> "_Rows":
        self._parquet = self._csv = None
        if self._draft is not None and self._path is not None:
            self._draft.parent.mkdir(parents=True, exist_ok=True)
            if self._path.suffix == ".parquet":
                self._parquet = pq.ParquetWriter(self._draft, FLIPPED)
            else:
                self._file = self._draft.open("w", newline="")
                self._csv = csv.writer(self._file)
                self._csv.writerow(FLIPPED.names)
        return self

    def write(self, shard: str, a: pa.Table, b: pa.Table) -> None:
        if self._path is None:
            return
        moved = pc.not_equal(a["label"].cast(pa.string()), b["label"].cast(pa.string()))
        a, b = a.filter(moved), b.filter(moved)
        columns = {"shard": pa.array([shard] * a.num_rows, pa.string()), "index": a["index"], "key": a["key"]}
        columns |= {"uid": pa.array([uid.hex() for uid in a["uid"].to_pylist()], pa.string()), "caption": b["caption"]}
        for name in ("label", "reason", "cosine"):
            kind = pa.float32() if name == "cosine" else pa.string()
            columns |= {f"{name}_from": a[name].cast(kind), f"{name}_to": b[name].cast(kind)}
        table = pa.table(columns).select(FLIPPED.names).cast(FLIPPED)
        if self._parquet is not None:
            self._parquet.write_table(table)
        elif self._csv is not None:
            self._csv.writerows(row.values() for row in table.to_pylist())

    def __exit__(self, kind: object, *_: object) -> None:
        if self._parquet is not None:
            self._parquet.close()
        if self._csv is not None:
            self._file.close()
        if self._draft is not None and self._path is not None:
            if kind is None:
                self._draft.replace(self._path)
            else:
                self._draft.unlink(missing_ok=True)
