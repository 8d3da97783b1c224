"""Make a crawl of years later: most pictures as an index promised them, some honestly encoded anew, some replaced by others.

    python examples/emoji/crawl_again.py OUT

Writes OUT/then/*.tar, the held-out pairs as an index was made of them, and OUT/now/*.tar, what its addresses serve today, both
as img2dataset leaves them, and OUT/truth.json: exact, encoded, replaced, in the order of the rows. `write_index` makes the
index of a run over OUT/then. pairsan never reads truth.json.
"""

import argparse
import hashlib
import io
import json
import random
import tarfile
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from PIL import Image, ImageOps

from manifests import open_round

HERE = Path(__file__).parent
SHARES = {"encoded": 0.05, "replaced": 0.03}
SHARD_ROWS = 500
Pairs = list[tuple[bytes, str]]


def held_out() -> Pairs:
    """Return the images and captions of the held-out pairs."""
    members: list[tuple[str, bytes]] = []
    for path in sorted((HERE / "eval").glob("*.tar.gz")):
        with tarfile.open(path) as tar:
            members += [(member.name, tar.extractfile(member).read()) for member in tar]
    images = [body for name, body in members if name.endswith(".webp")]
    return list(zip(images, [body.decode() for name, body in members if name.endswith(".txt")], strict=True))


def encoded_anew(image: bytes, rng: random.Random) -> bytes:
    """Return a picture as an honest server may serve it years later: other JPEG or WebP, smaller, or cut at its borders."""
    picture = opened(image)
    width, height = picture.size
    share, cuts = rng.uniform(0.5, 0.95), [rng.uniform(0.0, 0.04) for _ in range(4)]
    box = (cuts[0] * width, cuts[1] * height, (1 - cuts[2]) * width, (1 - cuts[3]) * height)
    ways: list[Callable[[], bytes]] = [
        lambda: packed(picture, "JPEG", rng.randint(40, 90)),
        lambda: packed(picture, "WEBP", rng.randint(50, 90)),
        lambda: packed(picture.resize((round(width * share), round(height * share))), "JPEG", 85),
        lambda: packed(picture.crop([round(edge) for edge in box]), "JPEG", 85),
    ]
    return rng.choice(ways)()


def put_in_place(image: bytes, other: bytes) -> bytes:
    """Return another picture, fitted to the size of the one that was promised, as who wants to stay unseen would."""
    return packed(ImageOps.fit(opened(other), opened(image).size), "JPEG", 85)


def opened(image: bytes) -> Image.Image:
    """Return a picture as RGB; what is transparent becomes white, as when it is scored."""
    rgba = Image.open(io.BytesIO(image)).convert("RGBA")
    return Image.alpha_composite(Image.new("RGBA", rgba.size, "white"), rgba).convert("RGB")


def packed(picture: Image.Image, kind: str, quality: int) -> bytes:
    """Return an encoded picture."""
    out = io.BytesIO()
    picture.save(out, kind, quality=quality)
    return out.getvalue()


def write(folder: Path, pairs: Pairs) -> None:
    """Write tars as img2dataset does, with what it says of each download."""
    folder.mkdir(parents=True)
    for first in range(0, len(pairs), SHARD_ROWS):
        with tarfile.open(folder / f"{first // SHARD_ROWS:05d}.tar", "w") as tar:
            for row, (image, caption) in enumerate(pairs[first : first + SHARD_ROWS], start=first):
                facts = {"url": url(row), **promised(image)}
                for ending, body in (("jpg", image), ("txt", caption.encode()), ("json", json.dumps(facts).encode())):
                    info = tarfile.TarInfo(f"{row:06d}.{ending}")
                    info.size = len(body)
                    tar.addfile(info, io.BytesIO(body))


def promised(image: bytes) -> dict[str, object]:
    """Return what an index says of a picture."""
    width, height = Image.open(io.BytesIO(image)).size
    return {"sha256": hashlib.sha256(image).hexdigest(), "original_width": width, "original_height": height}


def write_index(path: Path, pairs: Pairs, run: Path) -> np.ndarray:
    """Write an index of pairs with the cosines and image vectors of a run over them; return the vectors, float32 (n, d)."""
    manifest = open_round(run)
    cosines = [cosine for shard in manifest.shards for cosine in manifest.table(shard)["cosine"].to_pylist()]
    parts = [pq.read_table(part)["image"].to_pylist() for part in sorted((run / "rounds" / "0001" / "embeddings").iterdir())]
    vectors = np.stack([np.frombuffer(row, np.float16).astype(np.float32) for part in parts for row in part])
    rows = [{"url": url(row), **promised(image), "score": cosines[row]} for row, (image, _) in enumerate(pairs)]
    column = pa.FixedSizeListArray.from_arrays(pa.array(vectors.ravel()), vectors.shape[1])
    pq.write_table(pa.Table.from_pylist(rows).append_column("image", column), path)
    return vectors


def url(row: int) -> str:
    """Return the address of a pair."""
    return f"http://domain-{row % 37}.example/{row}.jpg"


def told_apart(run: Path, truth: Sequence[str]) -> str:
    """Return a table: what each row is, by what came of its promise."""
    rows = open_round(run).to_pandas(["reason", "signals"])
    found = [
        "replaced" if reason == "replaced" else s["promise"] for reason, s in zip(rows["reason"], rows["signals"], strict=True)
    ]
    words = ("exact", "differs", "replaced")
    lines = [f"{'':<16}" + "".join(f"{word:>10}" for word in words)]
    for kind in ("exact", *SHARES):
        counts = [sum(a == kind and b == word for a, b in zip(truth, found, strict=True)) for word in words]
        lines.append(f"{kind:<16}" + "".join(f"{count:>10,}" for count in counts))
    return "\n".join(lines)


def main() -> None:
    """Write both crawls and the truth."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("out", type=Path)
    out, pairs, rng = parser.parse_args().out, held_out(), random.Random(0)
    places = rng.sample(range(len(pairs)), round(sum(SHARES.values()) * len(pairs)))
    truth, num = ["exact"] * len(pairs), round(SHARES["encoded"] * len(pairs))
    came = list(pairs)
    for place in places[:num]:
        truth[place], came[place] = "encoded", (encoded_anew(pairs[place][0], rng), pairs[place][1])
    for place in places[num:]:
        other = pairs[(place + rng.randrange(1, len(pairs))) % len(pairs)][0]
        truth[place], came[place] = "replaced", (put_in_place(pairs[place][0], other), pairs[place][1])
    write(out / "then", pairs)
    write(out / "now", came)
    (out / "truth.json").write_text(json.dumps(truth))
    print(f"{out}: {len(pairs):,} pairs, {num} encoded anew, {len(places) - num} replaced")


if __name__ == "__main__":
    main()
