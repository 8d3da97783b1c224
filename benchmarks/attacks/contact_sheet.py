"""Pictures of attacks that a person can check by eye: clean, poisoned, difference x 8, and both captions.

    python -m benchmarks.attacks.contact_sheet POISONED --out sheet.png [--rows 4]

POISONED is what `python -m benchmarks.poison` wrote. Added rows that replace nothing have no clean picture beside them.
"""

import argparse
import io
import json
import textwrap
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from benchmarks.attacks.world import Row, load_rows
from benchmarks.poison import read_truth

CELL, TEXT, GAP = 96, 190, 6


def sheet(poisoned: Path, num_rows: int) -> Image.Image:
    """Return a picture with so many rows of every attack."""
    asked = json.loads((poisoned / "poison.json").read_text())
    clean = {(row.shard, row.key): row for row in load_rows(asked["data"])}
    rows = {(row.shard, row.key): row for row in load_rows([str(poisoned / "shards")])}
    by_attack: dict[str, list[dict[str, str]]] = {}
    for line in read_truth(poisoned).to_pylist():
        by_attack.setdefault(line["attack"], []).append(line)
    chosen = {name: lines[:: max(1, len(lines) // num_rows)][:num_rows] for name, lines in by_attack.items()}
    width, height = 3 * (CELL + GAP) + TEXT, CELL + GAP
    out = Image.new("RGB", (width * num_rows, (height + 14) * len(chosen)), "white")
    draw, font = ImageDraw.Draw(out), ImageFont.load_default(10)
    for place, (name, lines) in enumerate(chosen.items()):
        draw.text((2, place * (height + 14)), f"{name}  ({len(by_attack[name])} rows)", fill="black", font=font)
        for column, line in enumerate(lines):
            base = clean.get((line["replaced_shard"], line["replaced_key"]))
            cell = _cell(base, rows[line["shard"], line["key"]], font)
            out.paste(cell, (column * width, place * (height + 14) + 13))
    return out


def _cell(base: Row | None, row: Row, font: ImageFont.FreeTypeFont | ImageFont.ImageFont) -> Image.Image:
    out = Image.new("RGB", (3 * (CELL + GAP) + TEXT, CELL), "white")
    pixels = row.pixels()
    shown = [None, pixels, None]
    if base is not None:
        difference = np.abs(pixels.astype(int) - base.pixels()) * 8
        shown = [base.pixels(), pixels, difference.clip(0, 255).astype(np.uint8)]
    for place, picture in enumerate(shown):
        if picture is not None:
            out.paste(Image.fromarray(picture).resize((CELL, CELL), Image.Resampling.NEAREST), (place * (CELL + GAP), 0))
    text = f"{row.caption}\nwas: {base.caption}" if base is not None else row.caption
    lines = [part for line in text.split("\n") for part in textwrap.wrap(line, 34)]
    ImageDraw.Draw(out).text((3 * (CELL + GAP), 2), "\n".join(lines), fill="black", font=font)
    return out


def main() -> None:
    """Write the sheet as PNG."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("poisoned", type=Path)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--rows", type=int, default=4)
    args = parser.parse_args()
    picture, buffer = sheet(args.poisoned, args.rows), io.BytesIO()
    picture.save(buffer, "PNG")
    args.out.write_bytes(buffer.getvalue())
    print(args.out.absolute())


if __name__ == "__main__":
    main()
