"""The review page: a small web server on the loopback interface, over one sealed round.

Starlette and uvicorn with one page of plain HTML, CSS and JavaScript: the work is done by DuckDB, so a framework of widgets
would only stand between a reviewer's keyboard and it. The page speaks JSON to the routes below; the browser puts every word
from the crawl in as text. The address carries a random token; the Host header must name this server, so that no page of the
web can reach it by another name (DNS rebinding), and what changes something must be JSON from the page itself.
"""

import functools
import secrets
from collections.abc import Awaitable, Callable
from contextlib import suppress
from dataclasses import dataclass, field
from importlib.resources import files
from typing import Any, Final

import pyarrow as pa
from starlette.applications import Starlette
from starlette.concurrency import run_in_threadpool
from starlette.middleware import Middleware
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from manifests.errors import ConfigError, PairsanError
from manifests.labels import Label, Reason
from manifests.layout import round_folder
from manifests.reading import Manifest
from manifests.reviews import append, undo
from manifests.schema import MANIFEST, MEANINGS
from manifests.signals import SIGNAL_TABLE
from pipeline.pages.gallery import PAGE_ROWS, Gallery, Place
from pipeline.pages.guard import Guard
from pipeline.pages.likeness import SIMILARITY
from pipeline.pages.thumbnails import Thumbnails
from pipeline.pages.wire import NUMBERS, plain, shown, wanted
from pipeline.steps import audit

Answer = Callable[[Request], Awaitable[Response]]
_NUMBERS: Final = ("cosine", "p_safe", "rank", "since")
_TYPES: Final = {"css": "text/css", "js": "text/javascript", "html": "text/html"}
_STATIC: Final = ("review.css", "review.js")


@dataclass(frozen=True)
class Reviewer:
    """What the routes share.

    Attributes:
        gallery: The round.
        thumbnails: Its images.
        who: Name that verdicts carry.
        read_only: Whether no verdicts are taken.
        sample: A random sample of the round that is to be judged unseen, as `sampling.draw` returns it; None shows all pairs.
        acts: What was done since the server started and not undone, newest last; a page that is loaded again still undoes it.
    """

    gallery: Gallery
    thumbnails: Thumbnails
    who: str
    read_only: bool = False
    sample: dict[str, Any] | None = None
    acts: list[str] = field(default_factory=list)


def make_app(reviewer: Reviewer, token: str, port: int) -> Starlette:
    """Return the application; all its routes lie below `/TOKEN/`."""
    routes: list[tuple[str, Callable[[Reviewer, dict[str, Any]], Any], str]] = [
        ("about", _about, "GET"),
        ("pairs", _pairs, "POST"),
        ("count", _count, "POST"),
        ("pair", _pair, "POST"),
        ("histogram", _histogram, "POST"),
        ("like", _like, "POST"),
    ]
    if not reviewer.read_only:
        routes += [("verdict", _verdict, "POST"), ("verdict-all", _verdict_all, "POST"), ("undo", _undo, "POST")]
    made = [Route(f"/{token}/{name}", _json(answer, reviewer), methods=[method]) for name, answer, method in routes]
    if reviewer.sample is None:  # its labels are not to be seen
        made.append(Route(f"/{token}/map", functools.partial(_map, reviewer), methods=["POST"]))
    made.append(Route(f"/{token}/", _file("review.html")))
    made += [Route(f"/{token}/{name}", _file(name)) for name in _STATIC]
    made.append(Route(f"/{token}/image", functools.partial(_image, reviewer)))
    hosts = (f"127.0.0.1:{port}", f"localhost:{port}")
    return Starlette(routes=made, middleware=[Middleware(Guard, hosts=hosts)])


def serve(reviewer: Reviewer, port: int, *, told: Callable[[str], None]) -> None:
    """Serve until interrupted.

    Args:
        reviewer: The round and its images.
        port: On 127.0.0.1; 0 takes a free one.
        told: Called with the address once the port is taken.
    """
    import socket

    import uvicorn

    with socket.socket(socket.AF_INET, socket.SOCK_STREAM) as listener:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind(("127.0.0.1", port))
        listener.listen()  # before anybody is told: who is quicker than the server then waits, and is not refused
        taken, token = listener.getsockname()[1], secrets.token_urlsafe(24)
        told(f"http://127.0.0.1:{taken}/{token}/")
        config = uvicorn.Config(make_app(reviewer, token, taken), log_level="warning", access_log=False)
        with suppress(KeyboardInterrupt):  # how a reviewer ends it; uvicorn raises it again after it has closed
            uvicorn.Server(config).run(sockets=[listener])


def _json(answer: Callable[[Reviewer, dict[str, Any]], Any], reviewer: Reviewer) -> Answer:
    async def respond(request: Request) -> Response:
        try:
            body = await request.json() if request.method == "POST" else {}
            return JSONResponse(await run_in_threadpool(answer, reviewer, body))
        except (PairsanError, ValueError, KeyError, TypeError) as error:
            return JSONResponse({"error": f"{error}"}, status_code=400)

    return respond


def _file(name: str) -> Answer:
    async def respond(_: Request) -> Response:
        text = files("pipeline.pages").joinpath("web", name).read_text("utf-8")
        return Response(text, media_type=_TYPES[name.rpartition(".")[2]])

    return respond


async def _image(reviewer: Reviewer, request: Request) -> Response:
    try:
        shard, row = request.query_params["shard"], int(request.query_params["index"])
        size = min(512, max(32, int(request.query_params.get("size", "160"))))
        found = await run_in_threadpool(reviewer.thumbnails.of, shard, [row], size)
    except (KeyError, ValueError, OSError) as error:
        return Response(f"no image: {error}", status_code=404)
    if row not in found:
        return Response("no image", status_code=404)
    return Response(found[row], media_type="image/webp")


async def _map(reviewer: Reviewer, request: Request) -> Response:
    try:
        drawn = await run_in_threadpool(reviewer.gallery.drawn, wanted(await request.json()))
    except (PairsanError, ValueError, KeyError, TypeError) as error:
        return JSONResponse({"error": f"{error}"}, status_code=400)
    return Response(drawn, media_type="application/octet-stream")


def _about(reviewer: Reviewer, _: dict[str, Any]) -> dict[str, Any]:
    manifest = reviewer.gallery.manifest
    keys = ("counts", "rule", "cut", "safe_share", "limits")
    facts = {key: manifest.seal.get(key) for key in keys}
    words = {"labels": [str(word) for word in Label], "reasons": {str(word): word.meaning for word in Reason}}
    signals = {f"signals.{signal.name}": signal.meaning for signal in SIGNAL_TABLE} if _has_signals(manifest) else {}
    columns = {name: MEANINGS[name] for name in MANIFEST.names if name != "signals"} | signals
    numbers = [name for name in columns if name in _NUMBERS or (name in signals and name.removeprefix("signals.") in NUMBERS)]
    return {
        "run": manifest.run.uri, "round": manifest.number, "page_rows": PAGE_ROWS, "columns": columns, "numbers": numbers,
        **words, **facts,
        "has_vectors": reviewer.gallery.likeness.is_possible, "undoable": len(reviewer.acts),
        "read_only": reviewer.read_only, "sample": reviewer.sample is not None,
    }  # fmt: skip


def _has_signals(manifest: Manifest) -> bool:
    """Return whether the round has looked at more than the cosine."""
    return any("signals" in part for part in manifest.seal["parts"])


def _histogram(reviewer: Reviewer, body: dict[str, Any]) -> dict[str, Any]:
    like = str(body.get("filter", {}).get("like") or "")
    return {"histogram": reviewer.gallery.histogram(str(body["of"]), like)}


def _like(reviewer: Reviewer, body: dict[str, Any]) -> dict[str, Any]:
    """Take an image that others are to be compared with."""
    return {"like": reviewer.gallery.likeness.take(str(body["image"]))}


def _pairs(reviewer: Reviewer, body: dict[str, Any]) -> dict[str, Any]:
    gallery, page = reviewer.gallery, max(0, int(body.get("page", 0)))
    gallery.refresh()
    if reviewer.sample is None:
        rows, asked = gallery.page(wanted(body), page), wanted(body)
        if asked.like:
            places = [(row["shard"], row["index"]) for row in rows]
            found = gallery.likeness.of(asked.like, places)
            rows = [row | {SIMILARITY: value} for row, value in zip(rows, found, strict=True)]
        return {"pairs": [plain(row) for row in rows]}
    pairs = reviewer.sample["pairs"][page * PAGE_ROWS : (page + 1) * PAGE_ROWS]
    rows = gallery.rows([(shard, index) for shard, index, _ in pairs])
    mine = audit.judged_by(gallery.manifest.run, reviewer.sample, reviewer.who)
    return {"pairs": [_shown(row, mine) for row in rows], "audit": _progress(reviewer, reviewer.sample, len(mine))}


def _shown(row: dict[str, Any], mine: set[Place]) -> dict[str, Any]:
    """Return a sampled pair for the page: unseen until this reviewer has judged it, whatever others say."""
    return shown(row, unseen=(row["shard"], row["index"]) not in mine)


def _progress(reviewer: Reviewer, sample: dict[str, Any], mine: int) -> str:
    """Return how far this reviewer is, and what the sample shows once that is all of it: not before, lest it lead them."""
    if mine < len(sample["pairs"]):
        return f"{mine} of {len(sample['pairs'])} sampled pairs judged by you"
    return audit.as_text(audit.estimate(reviewer.gallery.manifest.run, sample))


def _count(reviewer: Reviewer, body: dict[str, Any]) -> dict[str, Any]:
    return {"count": reviewer.gallery.count(wanted(body)) if reviewer.sample is None else len(reviewer.sample["pairs"])}


def _pair(reviewer: Reviewer, body: dict[str, Any]) -> dict[str, Any]:
    gallery, place = reviewer.gallery, (str(body["shard"]), int(body["index"]))
    row = gallery.rows([place])[0]
    sample, run = reviewer.sample, gallery.manifest.run
    found = plain(row) if sample is None else _shown(row, audit.judged_by(run, sample, reviewer.who))
    if "unseen" in found:
        return {"pair": found, "history": [], "alike": [], "alike_where": "", "neighbours": []}
    where, alike = gallery.alike(row)
    return {
        "pair": found,
        "history": gallery.history(place),
        "alike": [plain(other) for other in gallery.rows(alike)],
        "alike_where": where,
        "neighbours": [plain(other) for other in gallery.rows(gallery.neighbours(place))],
        "on_map": gallery.map.place(place),
    }


def _verdict(reviewer: Reviewer, body: dict[str, Any]) -> dict[str, Any]:
    gallery = reviewer.gallery
    rows = gallery.rows([(str(shard), int(index)) for shard, index in body["places"]])
    table = pa.Table.from_pylist([{name: row[name] for name in ("uid", "shard", "index", "key")} for row in rows])
    return {"act": _append(reviewer, table, body), "num": table.num_rows}


def _verdict_all(reviewer: Reviewer, body: dict[str, Any]) -> dict[str, Any]:
    """Give a verdict on a whole filter; refused where it finds another number of pairs than was confirmed."""
    if reviewer.sample is not None:
        raise ConfigError("a sample is judged pair by pair")
    table = reviewer.gallery.table(wanted(body))
    if table.num_rows != int(body["count"]):
        raise ValueError(f"the filter finds {table.num_rows:,} pairs, confirmed were {int(body['count']):,}; nothing was done")
    return {"act": _append(reviewer, table, body), "num": table.num_rows}


def _append(reviewer: Reviewer, table: Any, body: dict[str, Any]) -> str:
    manifest, note = reviewer.gallery.manifest, str(body.get("note") or "")[:2000] or None
    said = {"verdict": body["verdict"] or None, "note": note, "who": reviewer.who}
    name = append(manifest.run, table, **said, round_number=manifest.number)
    reviewer.acts.append(name)
    reviewer.gallery.refresh()
    return name


def _undo(reviewer: Reviewer, _: dict[str, Any]) -> dict[str, Any]:
    """Undo the newest act that is not undone yet."""
    manifest = reviewer.gallery.manifest
    if not reviewer.acts:
        raise ConfigError("nothing was done here that is left to undo")
    num = undo(manifest.run, reviewer.acts.pop(), who=reviewer.who, round_number=manifest.number)
    reviewer.gallery.refresh()
    return {"num": num, "left": len(reviewer.acts)}


def where_to_look(reviewer: Reviewer) -> str:
    """Return which round is shown, for the terminal."""
    manifest = reviewer.gallery.manifest
    return f"round {manifest.number} of {manifest.run.uri} ({round_folder(manifest.number)}), {manifest.num_rows:,} pairs"
