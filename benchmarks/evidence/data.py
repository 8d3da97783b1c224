"""The sets that the evidence is made on, each with a vendor that is in no training."""

import io
import tarfile
from pathlib import Path
from typing import Final

from benchmarks.attacks.world import load_rows, suffix_of
from benchmarks.common import CACHE, ROOT

HELD_OUT: Final = "twemoji"
EMOJI_VENDORS: Final = (
    *("noto", "noto-v1", "fluent-emoji-flat", "fluent-emoji", "emojione"),
    *("emojione-v1", "openmoji", "fxemoji", "streamline-emojis"),
)
BUNDLED: Final = ROOT / "examples" / "emoji"


def datasets(name: str) -> tuple[Path, Path]:
    """Return training and held-out shards of a set: `bundled` (5.2k pairs), `emoji` (13k) or `full` (27k).

    Raises:
        SystemExit: The larger emoji set is not built.
    """
    if name == "bundled":
        return BUNDLED / "train", BUNDLED / "eval"
    source = CACHE / "emoji-benchmark"
    if not any(source.glob("*.tar")):
        raise SystemExit(f"{source} is empty; build the set: python examples/emoji/build.py --benchmark (about 10 minutes)")
    train, held_out = CACHE / f"evidence-{name}" / "train", CACHE / f"evidence-{name}" / "held-out"
    if not (held_out / "done").exists():
        rows = load_rows([str(source)])
        vendor = {id(row): row.key.partition("_")[0] for row in rows}
        _write(train, [r for r in rows if vendor[id(r)] != HELD_OUT and (name == "full" or vendor[id(r)] in EMOJI_VENDORS)])
        _write(held_out, [r for r in rows if vendor[id(r)] == HELD_OUT])
        (held_out / "done").touch()
    return train, held_out


def _write(folder: Path, rows: list) -> None:  # type: ignore[type-arg]
    folder.mkdir(parents=True, exist_ok=True)
    for start in range(0, len(rows), 512):
        with tarfile.open(folder / f"{start // 512:05d}.tar", "w") as tar:
            for row in rows[start : start + 512]:
                label = f'{{"label": "{row.label}"}}'.encode()
                for suffix, data in ((suffix_of(row.image), row.image), ("txt", row.caption.encode()), ("json", label)):
                    info = tarfile.TarInfo(f"{row.key}.{suffix}")
                    info.size = len(data)
                    tar.addfile(info, io.BytesIO(data))
