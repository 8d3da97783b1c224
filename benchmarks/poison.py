"""Poison a dataset: clean shards in, poisoned shards and a truth file out.

    python -m benchmarks.poison DATA --held-out DATA --attack tdpa:targets=100,rows=8 --attack patch:rows=300 --out DIR

Writes DIR/shards/*.tar, in which planted rows stand among the clean ones, and DIR/truth.parquet: one line per planted row
with uid, attack, target, source and trigger. No stage of pairsan ever reads the truth. DIR/poison.json holds what was asked
for, from which the referee rebuilds the triggers. Attacks replace or add rows; rates are counts; all attacks share the data
with targets of their own. The same data, attacks and seed give the same bytes.
"""

import argparse
import dataclasses
import hashlib
import io
import json
import random
import sys
import tarfile
from dataclasses import dataclass
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from benchmarks.attacks.core import Attack
from benchmarks.attacks.registry import parse_attack, spell
from benchmarks.attacks.world import Planted, Row, World, load_rows, suffix_of
from manifests.errors import ConfigError, PairsanError, RunError
from stages.pair import make_uid

ROWS_PER_SHARD = 512
TRUTH = pa.schema(
    [
        *(("shard", "string"), ("key", "string"), ("uid", pa.binary(16)), ("attack", "string"), ("target", "string")),
        *(("source", "string"), ("trigger", "string"), ("replaced_shard", "string"), ("replaced_key", "string")),
    ]
)


@dataclass(frozen=True)
class Placed:
    """A row of the poisoned dataset."""

    key: str
    image: bytes
    caption: str
    label: str
    planted: Planted | None = None


def plant(world: World, attacks: list[Attack], seed: int) -> list[Planted]:
    """Return the rows of all attacks; each draws from a stream of its own, named by its options.

    Raises:
        ConfigError: An attack wants more than the data have; nothing was written.
    """
    found: list[Planted] = []
    for attack in attacks:
        found += attack.plant(world, random.Random(f"{seed}/{spell(attack)}"))
    if len(found) > len(world.rows):
        raise ConfigError(f"{len(found)} rows to plant among {len(world.rows)}: more poison than data; ask for fewer rows")
    return found


def mixed(world: World, planted: list[Planted], seed: int) -> list[Placed]:
    """Return clean and planted rows in random order; replaced rows are gone."""
    gone = {(p.replaces.shard, p.replaces.key) for p in planted if p.replaces is not None}
    kept = [row for row in world.rows if (row.shard, row.key) not in gone]
    keys = _unique_keys(kept)
    placed = [Placed(key, row.image, row.caption, row.label) for key, row in zip(keys, kept, strict=True)]
    for p in planted:
        # a name that follows from the contents tells nothing, as a crawl's keys tell nothing
        name = hashlib.blake2b(p.image + p.caption.encode() + str(len(placed)).encode(), digest_size=8).hexdigest()
        placed.append(Placed(f"row_{name}", p.image, p.caption, p.source, p))
    random.Random(seed).shuffle(placed)
    return placed


def _unique_keys(rows: list[Row]) -> list[str]:
    """Return the keys, with the shard's name before those that two shards share; dots would end a key in a tar."""
    seen: dict[str, int] = {}
    for row in rows:
        seen[row.key] = seen.get(row.key, 0) + 1
    names = [row.key if seen[row.key] == 1 else f"{row.shard}_{row.key}" for row in rows]
    return [name.replace(".", "-").replace("/", "_") for name in names]


def write(out: Path, placed: list[Placed]) -> None:
    """Write shards and the truth; the truth last, so that it is there only where the shards are whole."""
    folder, lines = out / "shards", []
    folder.mkdir(parents=True, exist_ok=True)
    for start in range(0, len(placed), ROWS_PER_SHARD):
        name = f"{start // ROWS_PER_SHARD:05d}.tar"
        with tarfile.open(folder / name, "w", format=tarfile.GNU_FORMAT) as tar:
            for row in placed[start : start + ROWS_PER_SHARD]:
                members = ((suffix_of(row.image), row.image), ("txt", row.caption.encode()))
                for suffix, data in (*members, ("json", json.dumps({"label": row.label}).encode())):
                    info = tarfile.TarInfo(f"{row.key}.{suffix}")
                    info.size, info.mode = len(data), 0o644
                    tar.addfile(info, io.BytesIO(data))
                if (p := row.planted) is not None:
                    base = p.replaces or Row("", b"", "", "")
                    uid = make_uid(name, row.key)
                    lines.append((name, row.key, uid, p.attack, p.target, p.source, p.trigger, base.shard, base.key))
    columns = list(zip(*lines, strict=True)) or [()] * len(TRUTH)
    pq.write_table(pa.table([pa.array(c, f.type) for c, f in zip(columns, TRUTH, strict=True)], TRUTH), out / "truth.parquet")


def read_truth(out: Path, manifest_rows: pa.Table | None = None) -> pa.Table:
    """Return the truth of a poisoned dataset.

    Args:
        out: What `poison` wrote.
        manifest_rows: Columns `shard` and `key` of a manifest, to be checked against the truth.

    Raises:
        RunError: There is none, or it names rows that the manifest does not have.
    """
    path = out / "truth.parquet"
    if not path.exists():
        raise RunError(f"{path} is missing: {out} was not made by `python -m benchmarks.poison`, or that was interrupted")
    truth = pq.read_table(path)
    if manifest_rows is not None:
        known = set(zip(manifest_rows["shard"].to_pylist(), manifest_rows["key"].to_pylist(), strict=True))
        named = set(zip(truth["shard"].to_pylist(), truth["key"].to_pylist(), strict=True))
        if missing := sorted(named - known):
            raise RunError(f"{len(missing)} of {len(named)} rows of {path} are not in these shards, e.g. {missing[0]}")
    return truth


def reworded(planted: list[Planted], world: World, seed: int) -> list[Planted]:
    """Give every planted caption two words of other captions, so that hardly two are alike."""
    rng = random.Random(seed)
    words = sorted({word for row in world.rows for word in row.caption.split() if word.isalpha()})
    found = []
    for p in planted:
        before, after = rng.choice(words), rng.choice(words)
        found.append(dataclasses.replace(p, caption=f"{before} {p.caption} {after}"))
    return found


def poison(
    data: list[str],
    held_out: list[str],
    attacks: list[Attack],
    out: Path,
    *,
    seed: int,
    surrogate: str = "",
    reword: bool = False,
) -> None:
    """Write a poisoned copy of a dataset, unless just that is there already; `reword` makes planted captions unlike each other.

    Raises:
        ConfigError: An attack cannot be made of these data.
        RunError: The folder holds something else.
    """
    asked = {"data": data, "held_out": held_out, "attacks": [spell(a) for a in attacks], "seed": seed, "surrogate": surrogate}
    asked |= {"reword": True} if reword else {}
    note = out / "poison.json"
    if note.exists() and json.loads(note.read_text()) != asked:
        raise RunError(f"{out} was made with other settings; give another --out")
    if (out / "truth.parquet").exists():
        return
    model = None
    if surrogate:
        from benchmarks.attacks.surrogate import ClipSurrogate

        model = ClipSurrogate(surrogate)
    world = World(load_rows(data), load_rows(held_out) if held_out else [], model)
    planted = plant(world, attacks, seed)
    placed = mixed(world, reworded(planted, world, seed) if reword else planted, seed)
    out.mkdir(parents=True, exist_ok=True)
    note.write_text(json.dumps(asked, indent=1))
    write(out, placed)


def main() -> None:
    """Poison and say what was planted."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", nargs="+")
    parser.add_argument("--held-out", nargs="*", default=[], help="pictures that are not in DATA, for targeted poisoning")
    parser.add_argument("--attack", action="append", default=[], required=True, metavar="NAME:OPTION=VALUE,...")
    parser.add_argument("--surrogate", default="", help="folder of the attacker's own open_clip checkpoint")
    parser.add_argument("--reword", action="store_true", help="add two words to every planted caption, so that none repeat")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, required=True)
    args = parser.parse_args()
    try:
        attacks = [parse_attack(text) for text in args.attack]
        poison(args.data, args.held_out, attacks, args.out, seed=args.seed, surrogate=args.surrogate, reword=args.reword)
        truth = read_truth(args.out)
    except PairsanError as error:
        sys.exit(f"poison: {error}")
    counts = truth.group_by("attack").aggregate([("key", "count")]).to_pylist()
    planted = ", ".join(f"{count['key_count']} {count['attack']}" for count in counts)
    print(f"{args.out}/shards: {planted} rows planted; truth.parquet names them")


if __name__ == "__main__":
    main()
