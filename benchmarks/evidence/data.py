"""The sets that the evidence is made on, each with a vendor that is in no training."""

import io
import tarfile
from pathlib import Path
from typing import Final

from PIL import Image

from benchmarks.attacks.world import Row, load_rows, suffix_of
from benchmarks.common import CACHE, ROOT
from benchmarks.photos.data import DATA, photos

HELD_OUT: Final = "twemoji"
EMOJI_VENDORS: Final = (
    *("noto", "noto-v1", "fluent-emoji-flat", "fluent-emoji", "emojione"),
    *("emojione-v1", "openmoji", "fxemoji", "streamline-emojis"),
)
BUNDLED: Final = ROOT / "examples" / "emoji"
# what a photograph is of: the first of these words, the rarer before the more frequent, that two of its captions have
PHOTO_CLASSES: Final = (
    *("guitar", "motorcycle", "skateboarder", "skateboard", "snowboarder", "skier", "surfer", "basketball", "tennis"),
    *("baseball", "soccer", "football", "horse", "bicycle", "bike", "swing", "boat", "car", "pool", "mountain", "beach"),
    *("crowd", "bench", "rock", "snow", "street", "water", "ball", "dog", "baby", "child", "girl", "boy", "woman", "man"),
)
PHOTO_EDGE: Final = 64


def datasets(name: str) -> tuple[Path, Path]:
    """Return training and held-out shards of a set.

    `bundled` (5.2k pairs), `emoji` (13k), `full` (27k), `photos` (5k), `photos-5` (25k: these, each with its five captions).

    Raises:
        SystemExit: The larger emoji set is not built, or there are no photographs.
    """
    if name == "bundled":
        return BUNDLED / "train", BUNDLED / "eval"
    if name.startswith("photos"):
        return _photographs("train", 5 if name == "photos-5" else 1), _photographs("dev", 1)
    source = CACHE / "emoji-benchmark"
    if not any(source.glob("*.tar")):
        raise SystemExit(f"{source} is empty; build the set: python examples/emoji/build.py --benchmark (about 10 minutes)")
    train, held_out = CACHE / f"evidence-{name}" / "train", CACHE / f"evidence-{name}" / "held-out"
    if not (held_out / "done").exists():
        rows = load_rows([str(source)])
        vendor = {id(row): row.key.partition("_")[0] for row in rows}
        write_rows(train, [r for r in rows if vendor[id(r)] != HELD_OUT and (name == "full" or vendor[id(r)] in EMOJI_VENDORS)])
        write_rows(held_out, [r for r in rows if vendor[id(r)] == HELD_OUT])
        (held_out / "done").touch()
    return train, held_out


def _photographs(split: str, num_captions: int) -> Path:
    """Return shards of a split at 64 px: each photograph that has a class, once for each of its first captions; made once."""
    folder = CACHE / "evidence-photos" / (split if num_captions == 1 else f"{split}-{num_captions}")
    if not (folder / "done").exists():
        rows = []
        for photo in photos(DATA, split):
            words = [set(caption.lower().split()) for caption in photo.captions]
            label = next((word for word in PHOTO_CLASSES if sum(word in one for one in words) > 1), None)
            if label is not None:
                keys = [photo.key] if num_captions == 1 else [f"{photo.key}-{number}" for number in range(num_captions)]
                image = smaller(photo.image)
                rows += [Row(key, image, caption, label) for key, caption in zip(keys, photo.captions, strict=False)]
        write_rows(folder, rows)
        (folder / "done").touch()
    return folder


def smaller(image: bytes) -> bytes:
    """Return a photograph as a JPEG of 64 px, squeezed to a square."""
    written = io.BytesIO()
    small = Image.open(io.BytesIO(image)).convert("RGB").resize((PHOTO_EDGE, PHOTO_EDGE), Image.Resampling.LANCZOS)
    small.save(written, "JPEG", quality=95)
    return written.getvalue()


def write_rows(folder: Path, rows: list[Row]) -> None:
    """Write rows as tars of 512 each, in order."""
    folder.mkdir(parents=True, exist_ok=True)
    for start in range(0, len(rows), 512):
        with tarfile.open(folder / f"{start // 512:05d}.tar", "w") as tar:
            for row in rows[start : start + 512]:
                label = f'{{"label": "{row.label}"}}'.encode()
                for suffix, data in ((suffix_of(row.image), row.image), ("txt", row.caption.encode()), ("json", label)):
                    info = tarfile.TarInfo(f"{row.key}.{suffix}")
                    info.size = len(data)
                    tar.addfile(info, io.BytesIO(data))
