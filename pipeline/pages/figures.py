"""The figures of a report: everything that is counted over a round, by DuckDB and from the seals, in constant memory."""

import math
from collections.abc import Iterable
from typing import Any, Final

import numpy as np
from scipy.stats import binomtest, norm

from manifests.labels import Label, Reason
from manifests.layout import read_seal, sealed_rounds
from manifests.reading import Manifest, open_round
from manifests.signals import LIMITS
from pipeline.pages.gallery import Gallery, Row, Wanted
from pipeline.queries.following import after_report
from pipeline.queries.inspection import Query, sealed_off
from pipeline.queries.summary import known_of, mixture_ruled, profile_of, voices_of

BINS: Final = 120
_UNUSUAL: Final = 12
_LEVEL: Final = 0.01  # at which a shard stands out, over all of them
_GROUPS: Final = 6
_GROUP_ROWS: Final = 6
_DRAWN_ROUNDS: Final = 24  # a report of one round stays a few passes over it, however long the run
_SPREAD_BINS: Final = 200  # to a cosine of 1
_QUANTILES: Final = (0.1, 0.5, 0.9)
_BY_SIGNALS: Final = {*(limit.reason for limit, _ in LIMITS), Reason.PUT_OUT, Reason.REVIEW}
_DOMAIN_ROWS: Final = 20  # scored rows of a domain that is tested
_SOURCE_SINCE: Final = 8
_EXACT_SINCE: Final = 6  # manifests of before it do not tell copies from look-alikes
# as `stages.score.hashes.normalised` has it, nearly
_WORDS: Final = "coalesce(nullif(trim(regexp_replace(lower(caption), '[^\\p{L}]+', ' ', 'g')), ''), caption)"
_OF_SEAL: Final = (
    *("rule", "cut", "safe_share", "limits", "doubts", "mixture", "overruled"),
    *("canaries", "null", "strata", "promises"),
)
Figures = dict[str, Any]


def collect(gallery: Gallery, num_pairs: int) -> tuple[Figures, dict[str, list[Row]]]:
    """Return all figures of a round, and rows to be shown, by section.

    Args:
        gallery: The round.
        num_pairs: Rows in each section.
    """
    manifest = gallery.manifest
    figures = {
        "run": manifest.run.uri,
        "round": manifest.number,
        "profile": profile_of(manifest.seal["plan"]),
        "fingerprint": manifest.seal["fingerprint"],
        "counts": manifest.seal["counts"],
        **{key: manifest.seal.get(key) for key in _OF_SEAL},
        "checkpoint": {key: manifest.seal["plan"]["scores"]["model"][key] for key in ("architecture", "state_sha256")},
        "weights": manifest.seal["plan"].get("weights"),
        "next": after_report(manifest.run.uri),
        "known": known_of(manifest.seal),
        "mixture_ruled": mixture_ruled(manifest.seal),
        "histogram": histogram(gallery),
        "rounds": list(rounds(manifest)),
        "spreads": spreads(manifest),
        "shards": unusual_shards(manifest),
        "domains": domains(gallery),
        "image_groups": groups(gallery),
        "caption_groups": caption_groups(gallery),
    }
    return figures, sections(gallery, num_pairs)


def histogram(gallery: Gallery) -> list[dict[str, Any]]:
    """Return equal bins over the occupied range of cosines: left edge, width, and rows of each label."""
    low, high = gallery.query("SELECT min(cosine), max(cosine) FROM pairs")[0]
    if low is None:
        return []
    width = max((high - low) / BINS, 1e-6)
    text = (
        f"SELECT least(floor((cosine - ?) / ?)::INT, {BINS - 1}) AS bin, "  # noqa: S608
        "count(*) FILTER (label = 'safe'), count(*) FILTER (label = 'risky'), count(*) FILTER (label = 'quarantined') "
        "FROM pairs WHERE cosine IS NOT NULL GROUP BY bin ORDER BY bin"
    )
    words = [str(label) for label in Label]
    return [
        {"from": low + number * width, "width": width, **dict(zip(words, counts, strict=True))}
        for number, *counts in gallery.query(text, [low, width])
    ]


def rounds(manifest: Manifest) -> Iterable[dict[str, Any]]:
    """Yield what the seals of all rounds up to this one say."""
    run = manifest.run
    for number in sealed_rounds(run, manifest.number + 1):
        seal = read_seal(run, number)
        changes = seal.get("changes")
        yield {
            "round": number,
            "rule": seal["rule"],
            "safe_share": seal["safe_share"],
            "ashman_d": None if seal["mixture"] is None else seal["mixture"]["ashman_d"],
            "changed": None if changes is None else sum(changes["labels"].values()),
            "labels": seal["counts"]["labels"],
            "reasons": seal["counts"]["reasons"],
            "weights": seal["plan"].get("weights") or seal["plan"]["scores"]["model"]["state_sha256"][:12],
            "canaries": seal.get("canaries"),
            "looked": None if seal.get("before") is None else voices_of(seal),
            "voices": None if seal.get("before") is None else seal["voices"],
            "moved": {} if changes is None else changes["labels"],
        }


def spreads(manifest: Manifest) -> list[dict[str, Any]]:
    """Return quantiles of the cosines of safe rows, risky rows, and rows just taken back, for each of the last rounds."""
    run, found = manifest.run, []
    for number in sealed_rounds(run, manifest.number + 1)[-_DRAWN_ROUNDS:]:
        looked = read_seal(run, number).get("before") is not None
        who = f"CASE WHEN voice = 'taken_back' AND since = {number} THEN 'taken back' ELSE label END" if looked else "label"
        text = (
            f"SELECT {who} AS who, floor(cosine * {_SPREAD_BINS})::INT AS bin, count(*) FROM pairs "  # noqa: S608
            "WHERE cosine IS NOT NULL GROUP BY who, bin ORDER BY who, bin"
        )
        bins: dict[str, list[tuple[int, int]]] = {}
        with sealed_off(open_round(run, number)) as connection:
            for word, place, rows in connection.execute(text).fetchall():
                bins.setdefault(word, []).append((place, rows))
        found += [{"round": number, "who": word, "quantiles": _quantiles(counts)} for word, counts in bins.items()]
    return found


def _quantiles(counts: list[tuple[int, int]]) -> list[float]:
    """Return the quantiles of binned cosines, to half a bin."""
    places, rows = np.asarray(counts).T
    below = rows.cumsum()
    return [float((places[np.searchsorted(below, share * below[-1])] + 0.5) / _SPREAD_BINS) for share in _QUANTILES]


def unusual_shards(manifest: Manifest) -> list[dict[str, Any]]:
    """Return the shards whose share of rows that are not safe stands out from the round's, farthest first.

    A two-sided z test of each at a level of 1 % over all shards together (Bonferroni): of a round whose shards are alike, 99 of
    100 list none.
    """
    labels = manifest.seal["counts"]["labels"]
    share = 1.0 - labels[Label.SAFE] / max(1, sum(labels.values()))
    beyond, found = float(norm.isf(_LEVEL / 2.0 / max(1, len(manifest.seal["parts"])))), []
    for part in manifest.seal["parts"]:
        rows, not_safe = part["rows"], part["rows"] - part["labels"][Label.SAFE]
        if rows:
            error = math.sqrt(max(share * (1.0 - share), 1e-12) / rows)
            line = {
                "shard": part["shard"],
                "rows": rows,
                "not_safe_share": not_safe / rows,
                "z": (not_safe / rows - share) / error,
            }
            found.append({**line, "labels": part["labels"]})
    return sorted((line for line in found if abs(line["z"]) > beyond), key=lambda line: -abs(line["z"]))[:_UNUSUAL]


def domains(gallery: Gallery) -> list[dict[str, Any]]:
    """Return the registered domains of which more rows are risky than of others, farthest first, then the largest.

    Of scored rows: a one-sided z test of each domain of 20 or more, at 1 % over all of them. Intervals are Wilson's, 95 %.
    """
    if gallery.manifest.seal["schema_version"] < _SOURCE_SINCE:
        return []
    counted = (
        "SELECT source.domain AS domain, count(*) AS n, count(*) FILTER (label = 'risky') AS risky, "
        "count(*) FILTER (signals.promise = 'exact') AS exact, count(*) FILTER (signals.promise = 'differs') AS differs, "
        "count(*) FILTER (reason = 'replaced') AS replaced "
        "FROM pairs WHERE source.domain IS NOT NULL AND cosine IS NOT NULL GROUP BY ALL"
    )
    [(num, rows, risky)] = gallery.query(f"SELECT count(*), sum(n), sum(risky) FROM ({counted}) WHERE n >= {_DOMAIN_ROWS}")  # noqa: S608
    share = (risky or 0) / max(1, rows or 0)
    z = f"(risky / n - {share}) / sqrt({max(share * (1.0 - share), 1e-12)} / n)"
    beyond = norm.isf(_LEVEL / max(1, num))
    tested = f"SELECT *, CASE WHEN n >= {_DOMAIN_ROWS} THEN {z} END AS z FROM ({counted})"  # noqa: S608
    far = f"coalesce(z, 0) > {beyond}"
    order = f"{far} DESC, if({far}, z, n) DESC, domain"
    text = f"SELECT domain, n, risky, z, {far}, exact, differs, replaced FROM ({tested}) ORDER BY {order} LIMIT {_UNUSUAL}"  # noqa: S608
    found = []
    for domain, n, bad, z_value, stands_out, *kept in gallery.query(text):
        ends = binomtest(bad, n).proportion_ci(0.95, "wilson")
        line = {"domain": domain, "rows": n, "risky_share": bad / n, "low": float(ends.low), "high": float(ends.high)}
        promised = dict(zip(("exact", "differs", "replaced"), kept, strict=True))
        found.append({**line, "z": z_value, "stands_out": stands_out, **promised})
    return found


def groups(gallery: Gallery) -> list[dict[str, Any]]:
    """Return the largest groups of exact copies, then of look-alikes: near copies where they were sought; and rows of each."""
    near = "near_copy_cosine" in (gallery.manifest.seal["plan"].get("signals") or {})
    alike = ("near_copy_cluster", "near_copies") if near else ("image_cluster", "image_cluster_size")
    if gallery.manifest.seal["schema_version"] < _EXACT_SINCE:
        return [{**group, "exact": False} for group in _grouped(gallery, *alike, "TRUE")]
    exact = _grouped(gallery, "exact_copy_cluster", "exact_copies", "TRUE")
    # what is one picture in all of its rows was named already
    different = _grouped(gallery, *alike, "count(DISTINCT signals.exact_copy_cluster) <> 1")
    return [{**group, "exact": True} for group in exact] + [{**group, "exact": False} for group in different]


def _grouped(gallery: Gallery, cluster: str, size: str, having: str) -> list[dict[str, Any]]:
    text = (
        f"SELECT signals.{cluster} AS cluster, count(*) AS num_rows, count(DISTINCT lower(caption)) AS num_captions, "  # noqa: S608
        "count(*) FILTER (label = 'safe') AS num_safe "
        f"FROM pairs WHERE signals.{size} > 1 GROUP BY cluster HAVING {having} ORDER BY num_rows DESC, cluster LIMIT {_GROUPS}"
    )
    names = ("cluster", "num_rows", "num_captions", "num_safe")
    found = [dict(zip(names, line, strict=True)) for line in gallery.query(text)]
    few = f"SELECT shard, index FROM pairs WHERE signals.{cluster} = ? ORDER BY shard, index LIMIT {_GROUP_ROWS}"  # noqa: S608
    return [{**line, "places": [list(place) for place in gallery.query(few, [line["cluster"]])]} for line in found]


def caption_groups(gallery: Gallery) -> list[dict[str, Any]]:
    """Return the captions that occur most often, but for case, digits and punctuation: one of each kind."""
    text = (
        "SELECT min(caption), count(*) AS num_rows, count(DISTINCT caption), count(*) FILTER (label = 'safe') "  # noqa: S608
        f"FROM pairs WHERE signals.caption_cluster_size > 1 GROUP BY {_WORDS} ORDER BY num_rows DESC, 1 LIMIT ?"
    )
    names = ("caption", "num_rows", "num_captions", "num_safe")
    return [dict(zip(names, line, strict=True)) for line in gallery.query(text, [2 * _GROUPS])]


def sections(gallery: Gallery, num: int) -> dict[str, list[Row]]:
    """Return the worst, the borderline, the quarantined and some random safe pairs."""
    cut = gallery.manifest.seal["cut"]
    found = {"Lowest cosine": gallery.first(Wanted(Query(label=("risky",), sort="cosine")), num)}
    if cut is not None:
        below = Wanted(Query(label=("risky",), reason=("below_cut",), sort="-cosine"))
        above = Wanted(Query(label=("safe",), cosine=(cut, 2.0), sort="cosine"))
        found |= {"Just below the cut": gallery.first(below, num), "Just above the cut": gallery.first(above, num)}
    for reason in gallery.manifest.seal["counts"]["reasons"]:
        if reason in _BY_SIGNALS:
            found[f"Reason {reason}"] = gallery.first(Wanted(Query(reason=(reason,), sort="uid")), num)
    found["Safe, at random"] = gallery.first(Wanted(Query(label=("safe",), sort="uid")), num)
    found["Quarantined"] = gallery.first(Wanted(Query(label=("quarantined",), sort="uid")), num)
    return {name: rows for name, rows in found.items() if rows}
