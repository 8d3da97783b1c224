"""What the tools are given: clean JPEG shards, and shards of a crawl with seven kinds of broken rows."""

import io
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final

import webdataset
from PIL import Image

from benchmarks.common import ROOT
from stages.read.shards import open_dataset, read_shard
from stages.settings import ReadSettings

JPEG_MAGIC: Final = b"\xff\xd8"
ROWS_PER_SHARD: Final = 256
EDGE: Final = 224
NOISY_ROWS: Final = 128
BROKEN_EVERY: Final = 4


def pairs(data: Path | None) -> Iterator[tuple[bytes, str]]:
    """Yield (JPEG, caption) of a folder of shards, or of the bundled drawings at 224 px."""
    dataset = open_dataset([str(data or ROOT / "examples/emoji/train")])
    for shard in dataset.shards:
        for pair in read_shard(dataset.store, shard, ReadSettings()):
            if pair.image is not None and pair.caption is not None:
                yield (pair.image if pair.image[:2] == JPEG_MAGIC else _jpeg(pair.image)), pair.caption


def _jpeg(data: bytes) -> bytes:
    written = io.BytesIO()
    drawing = Image.open(io.BytesIO(data)).convert("RGBA").resize((EDGE, EDGE))
    paper = Image.new("RGBA", drawing.size, "white")
    Image.alpha_composite(paper, drawing).convert("RGB").save(written, "JPEG", quality=90)
    return written.getvalue()


def write_clean(data: Path | None, folder: Path, num: int) -> None:
    """Write `num` pairs as tars, and the same as image files with a table of Data-Juicer's kind."""
    found = list(zip(pairs(data), range(num), strict=False))
    if len(found) < num:
        raise SystemExit(f"{data}: {len(found)} pairs; {num} are needed")
    rows = [{"__key__": f"{number:06d}", "jpg": image, "txt": caption.encode()} for (image, caption), number in found]
    write_rows(rows, folder, ROWS_PER_SHARD)


def write_noisy(data: Path | None, folder: Path) -> int:
    """Write a shard in which every fourth row is broken, in seven ways by turns; return how many rows are whole."""
    rows: list[dict[str, Any]] = []
    whole = 0
    for number, (image, caption) in zip(range(NOISY_ROWS), pairs(data), strict=False):
        row: dict[str, Any] = {"__key__": f"{number:06d}", "jpg": image, "txt": caption.encode()}
        turn, rest = divmod(number, BROKEN_EVERY)
        if rest:
            whole += 1
        else:
            row |= (
                {"jpg": image[: len(image) // 3]},
                {"jpg": b"<html>404 Not Found</html>"},
                {"jpg": b""},
                {"txt": b""},
                {"txt": b"\xff\xfe\xfa" * 12},
                {"txt": None},
                {"jpg": None},
            )[turn % 7]
        rows.append({key: value for key, value in row.items() if value is not None})
    write_rows(rows, folder, NOISY_ROWS // 2)
    return whole


def write_rows(rows: list[dict[str, Any]], folder: Path, per_shard: int) -> None:
    """Write rows as tars under `folder/tars` and as files with `folder/pairs.jsonl`."""
    (folder / "tars").mkdir(parents=True)
    (folder / "images").mkdir()
    for start in range(0, len(rows), per_shard):
        with webdataset.TarWriter(str(folder / "tars" / f"{start // per_shard:05d}.tar")) as tar:
            for row in rows[start : start + per_shard]:
                tar.write(row)
    with (folder / "pairs.jsonl").open("w") as table:
        for row in rows:
            image = folder / "images" / f"{row['__key__']}.jpg"
            if "jpg" in row:
                image.write_bytes(row["jpg"])
            words = row.get("txt", b"").decode(errors="replace")
            images = [str(image)] if "jpg" in row else []
            table.write(json.dumps({"images": images, "text": f"<__dj__image> {words} <|__dj__eoc|>"}) + "\n")
