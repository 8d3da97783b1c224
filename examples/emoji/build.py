"""Build the bundled image-caption set, or the larger benchmark set, from packages that registries ship.

Drawings come from the npm package `@iconify/json` (rendered with resvg), words from `emojibase-data`. Versions are
pinned, skin-tone variants are left out, order and captions come from hashes: the same packages give the same bytes.

    python examples/emoji/build.py                      # examples/emoji/{train,eval}: what the repository holds
    python examples/emoji/build.py --benchmark          # ~/.cache/pairsan/emoji-benchmark: ~30k pairs, never committed
"""

import argparse
import gzip
import hashlib
import io
import json
import os
import re
import subprocess
import tarfile
import tempfile
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import resvg_py
from captions import caption, slug
from PIL import Image

HERE = Path(__file__).parent
CACHE = Path(os.environ.get("PAIRSAN_CACHE", Path.home() / ".cache" / "pairsan"))
ICONIFY, EMOJIBASE = "@iconify/json@2.2.535", "emojibase-data@17.0.0"
SIZE_PX = 64
PAIRS_PER_SHARD = 512

TRAIN_SETS = ("noto", "twemoji", "fluent-emoji-flat")
EVAL_SETS = ("emojione",)
BENCHMARK_EMOJI = (
    *("noto", "noto-v1", "twemoji", "fluent-emoji-flat", "fluent-emoji"),
    *("emojione", "emojione-v1", "openmoji", "fxemoji", "streamline-emojis"),
)
BENCHMARK_ICONS = (
    *("streamline-color", "streamline-ultimate-color", "streamline-plump-color", "streamline-freehand-color"),
    *("streamline-kameleon-color", "streamline-stickies-color", "streamline-flex-color", "streamline-sharp-color"),
    *("streamline-cyber-color", "fluent-color", "icon-park", "vscode-icons", "flat-color-icons"),
)
SKIN_TONE = re.compile(r"(skin-tone|-(light|medium-light|medium|medium-dark|dark)$)")


@dataclass(frozen=True)
class Drawing:
    """One icon before rendering: SVG text and its caption."""

    key: str
    svg: str
    caption: str
    facts: dict[str, str]


def fetch(package: str) -> Path:
    """Download a pinned npm package once into the cache and return the path of its tarball."""
    CACHE.mkdir(parents=True, exist_ok=True)
    name = package.lstrip("@").replace("/", "-").replace("@", "-") + ".tgz"
    if not (CACHE / name).exists():
        with tempfile.TemporaryDirectory(dir=CACHE) as folder:
            subprocess.run(["npm", "pack", "--silent", package], cwd=folder, check=True, stdout=subprocess.DEVNULL)
            (Path(folder) / name).replace(CACHE / name)
    return CACHE / name


def read_json(tarball: Path, names: list[str]) -> dict[str, Any]:
    """Read JSON members of a package tarball, without extracting anything."""
    wanted = {f"package/{name}": name for name in names}
    with tarfile.open(tarball, "r:gz") as tar:
        found = {wanted[m.name]: json.load(tar.extractfile(m)) for m in tar if m.name in wanted}  # type: ignore[arg-type]
    if missing := set(names) - set(found):
        raise SystemExit(f"{tarball.name} lacks {sorted(missing)}: has the pinned version changed?")
    return found


def words_by_name(emojibase: list[dict[str, Any]]) -> tuple[dict[str, Any], dict[str, Any]]:
    """Index emojibase entries by hexcode (variation selectors dropped) and by slug of their label."""
    by_hex = {re.sub(r"-fe0f", "", e["hexcode"].lower()): e for e in emojibase}
    return by_hex, {slug(e["label"]): e for e in emojibase}


def drawings(icons: dict[str, Any], emojibase: list[dict[str, Any]], *, emoji: bool) -> Iterator[Drawing]:
    """Yield every drawing of one icon set that is no skin-tone variant."""
    vendor, (by_hex, by_label) = icons["prefix"], words_by_name(emojibase)
    hex_of = {name: re.sub(r"-fe0f", "", code) for code, name in icons.get("chars", {}).items()}
    for name, icon in sorted(icons["icons"].items()):
        if icon.get("hidden") or (emoji and SKIN_TONE.search(name)):
            continue
        entry = (by_hex.get(hex_of.get(name, "")) or by_label.get(name) or {}) if emoji else {}
        label = entry.get("label", name.replace("-", " "))
        tags = [str(tag) for tag in entry.get("tags", [])] if emoji else vendor.replace("-", " ").split()
        width, height = icon.get("width", icons.get("width", 16)), icon.get("height", icons.get("height", 16))
        box = f"{icon.get('left', 0)} {icon.get('top', 0)} {width} {height}"
        svg = (
            '<svg xmlns="http://www.w3.org/2000/svg" xmlns:xlink="http://www.w3.org/1999/xlink" '
            f'viewBox="{box}" width="{width}" height="{height}">{icon["body"]}</svg>'
        )
        facts = {"set": vendor, "name": name, "label": label, "licence": icons["info"]["license"]["spdx"]}
        yield Drawing(f"{vendor}_{name}", svg, caption(vendor, name, label, tags, emoji=emoji), facts)


def render(drawing: Drawing) -> tuple[Drawing, bytes] | None:
    """Render to 64 x 64 px RGB on white, as lossless WebP (PNG for twemoji, so that both are met); None if blank."""
    png = resvg_py.svg_to_bytes(
        svg_string=drawing.svg, width=SIZE_PX, height=SIZE_PX, background="white", skip_system_fonts=True
    )
    image = Image.open(io.BytesIO(bytes(png))).convert("RGB")
    if max(high - low for low, high in image.getextrema()) < 8:  # nothing drawn
        return None
    square = Image.new("RGB", (SIZE_PX, SIZE_PX), "white")
    square.paste(image, ((SIZE_PX - image.width) // 2, (SIZE_PX - image.height) // 2))
    out = io.BytesIO()
    if drawing.facts["set"] == "twemoji":
        square.quantize(64, dither=Image.Dither.NONE).save(out, "PNG", optimize=True)
    else:
        square.save(out, "WEBP", lossless=True, quality=100, method=6)
    return drawing, out.getvalue()


def members(drawing: Drawing, image: bytes) -> Iterator[tuple[str, bytes]]:
    """Yield the (name, bytes) of one pair's tar members in WebDataset order."""
    suffix = "png" if image.startswith(b"\x89PNG") else "webp"
    yield f"{drawing.key}.{suffix}", image
    yield f"{drawing.key}.txt", drawing.caption.encode()
    yield f"{drawing.key}.json", json.dumps(drawing.facts, sort_keys=True).encode()


def write_shard(path: Path, pairs: list[tuple[Drawing, bytes]]) -> None:
    """Write one tar (gzip by name) whose bytes depend on the pairs alone."""
    raw = io.BytesIO()
    with tarfile.open(fileobj=raw, mode="w", format=tarfile.GNU_FORMAT) as tar:
        for drawing, image in pairs:
            for name, data in members(drawing, image):
                info = tarfile.TarInfo(name)
                info.size, info.mode = len(data), 0o644
                tar.addfile(info, io.BytesIO(data))
    path.write_bytes(gzip.compress(raw.getvalue(), 9, mtime=0) if path.suffix == ".gz" else raw.getvalue())


def build(sets: list[dict[str, Any]], emojibase: list[dict[str, Any]], emoji: set[str], out: Path, suffix: str) -> int:
    """Render all `sets`, shuffle them by a hash of their keys and write shards of 512 pairs into `out`."""
    todo = [d for icons in sets for d in drawings(icons, emojibase, emoji=icons["prefix"] in emoji)]
    todo.sort(key=lambda d: hashlib.blake2b(d.key.encode()).digest())
    with ProcessPoolExecutor() as pool:
        done = [pair for pair in pool.map(render, todo, chunksize=64) if pair is not None]
    out.mkdir(parents=True, exist_ok=True)
    for start in range(0, len(done), PAIRS_PER_SHARD):
        write_shard(out / f"{start // PAIRS_PER_SHARD:05d}{suffix}", done[start : start + PAIRS_PER_SHARD])
    print(f"{out}: {len(done)} pairs of {len(todo)} drawings ({len(todo) - len(done)} blank)")
    return len(done)


def write_checksums(root: Path) -> None:
    """Write SHA256SUMS over the committed shards, which a test compares."""
    shards = sorted(p for part in ("train", "eval") for p in (root / part).iterdir())
    lines = [f"{hashlib.sha256(p.read_bytes()).hexdigest()}  {p.relative_to(root).as_posix()}\n" for p in shards]
    (root / "SHA256SUMS").write_text("".join(lines))


def main() -> None:
    """Parse the command line and build what it asks for."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--benchmark", action="store_true", help="build the larger set, into the cache or --out")
    parser.add_argument("--out", type=Path, help="folder to write to")
    args = parser.parse_args()
    emoji = {*TRAIN_SETS, *EVAL_SETS, *BENCHMARK_EMOJI}
    wanted = (*BENCHMARK_EMOJI, *BENCHMARK_ICONS) if args.benchmark else (*TRAIN_SETS, *EVAL_SETS)
    sets = read_json(fetch(ICONIFY), [f"json/{name}.json" for name in wanted])
    emojibase = read_json(fetch(EMOJIBASE), ["en/data.json"])["en/data.json"]
    if args.benchmark:
        build(list(sets.values()), emojibase, emoji, args.out or CACHE / "emoji-benchmark", ".tar")
        return
    root = args.out or HERE
    for part, names in (("train", TRAIN_SETS), ("eval", EVAL_SETS)):
        build([sets[f"json/{name}.json"] for name in names], emojibase, emoji, root / part, ".tar.gz")
    write_checksums(root)


if __name__ == "__main__":
    main()
