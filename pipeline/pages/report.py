"""Write a round as one page that needs no network, and as JSON for machines."""

import base64
import json
from concurrent.futures import ThreadPoolExecutor
from importlib.resources import files
from pathlib import Path
from typing import Any, Final

import jinja2
from markupsafe import Markup

from manifests.errors import ConfigError
from manifests.reading import Manifest
from pipeline.pages import plots
from pipeline.pages.figures import Figures, collect
from pipeline.pages.gallery import Gallery, Row
from pipeline.pages.thumbnails import Thumbnails

PAIRS: Final = 24
_SIZE_PX: Final = 112
_THREADS: Final = 8
_MOST_BYTES: Final = 5_000_000
Place = tuple[str, int]


def write(manifest: Manifest, thumbnails: Thumbnails | None, out: Path, *, num_pairs: int = PAIRS) -> tuple[Path, Path]:
    """Write the report of a round, and its JSON twin beside it.

    Args:
        manifest: The sealed round.
        thumbnails: Its images; None leaves them out (where the data are gone).
        out: Path of the page; its name must end in .html.
        num_pairs: Pairs of each section.

    Returns:
        Paths of the page and of the JSON file.

    Raises:
        ConfigError: The path does not end in .html.
    """
    if out.suffix != ".html":
        raise ConfigError(f"--out {out}: a report is a page, give it a name that ends in .html")
    gallery = Gallery(manifest)
    figures, sections = collect(gallery, num_pairs)
    grouped = {tuple(place) for group in figures["image_groups"] for place in group["places"]}
    members = {(row["shard"], row["index"]): row for row in gallery.rows(sorted(grouped))}
    places = {(row["shard"], row["index"]) for rows in sections.values() for row in rows} | set(members)
    images = _images(thumbnails, places) if thumbnails is not None else {}
    page = render(figures, sections, members, images)
    out.parent.mkdir(parents=True, exist_ok=True)
    twin = out.with_suffix(".json")
    for path, text in ((twin, json.dumps({**figures, "pairs": _listed(sections)}, indent=1) + "\n"), (out, page)):
        draft = path.with_name(f".{path.name}.draft")
        draft.write_text(text, "utf-8")
        draft.replace(path)
    return out, twin


def render(figures: Figures, sections: dict[str, list[Row]], members: dict[Place, Row], images: dict[Place, str]) -> str:
    """Return the page. Jinja2 escapes every word; only our own plots go in as they are."""
    environment = jinja2.Environment(autoescape=True, undefined=jinja2.StrictUndefined, trim_blocks=True, lstrip_blocks=True)
    environment.filters |= {"share": lambda value: f"{value:.2%}", "num": lambda value: f"{value:,}"}
    template = environment.from_string(files("pipeline.pages").joinpath("web", "report.html").read_text("utf-8"))
    groups = [{**g, "rows": [members[tuple(place)] for place in g["places"]]} for g in figures["image_groups"]]
    drawn = {"cosines": Markup(plots.cosines(figures)), "rounds": Markup(plots.over_rounds(figures))}  # noqa: S704  # our own
    return str(template.render(f=figures, sections=sections, groups=groups, images=images, plots=drawn))


def _images(thumbnails: Thumbnails, places: set[Place]) -> dict[Place, str]:
    """Return thumbnails as data URIs, until the page would grow too large."""
    by_shard: dict[str, list[int]] = {}
    for shard, row in sorted(places):
        by_shard.setdefault(shard, []).append(row)
    found: dict[Place, str] = {}
    left = _MOST_BYTES * 3 // 5
    with ThreadPoolExecutor(_THREADS) as pool:
        answers = pool.map(lambda item: thumbnails.of(item[0], item[1], _SIZE_PX), by_shard.items())
        for shard, images in zip(by_shard, answers, strict=True):
            for row, data in images.items():
                left -= len(data) * 4 // 3
                if left > 0:
                    found[shard, row] = "data:image/webp;base64," + base64.b64encode(data).decode()
    return found


def _listed(sections: dict[str, list[Row]]) -> dict[str, list[dict[str, Any]]]:
    keys = ("shard", "index", "key", "caption", "cosine", "p_safe", "label", "reason", "detail", "signals")
    return {name: [{key: row[key] for key in keys} for row in rows] for name, rows in sections.items()}
