"""What a command prints when it is done: a round in a few lines, and the schema."""

from collections.abc import Mapping
from typing import Any, Final

from manifests.labels import Label, Reason
from manifests.reading import Manifest
from manifests.schema import MANIFEST, MEANINGS, SCHEMA_VERSION
from manifests.signals import SIGNAL_TABLE
from pipeline.queries.terminal import printable
from pipeline.steps import audit

_MEASURED: Final = ("gap", "turn", "mirrored")


def of_round(manifest: Manifest, *, verbose: bool = False) -> str:
    """Return counts per label and reason, the cut and the path of a sealed round; `verbose`: the mixture's numbers, too."""
    seal = manifest.seal
    counts = seal["counts"]
    rows = max(1, counts["rows"])
    lines = [f"round {manifest.number}: {counts['rows']:,} pairs in {len(manifest.shards)} shards"]
    lines += [f"  {label:<12}{counts['labels'][label]:>12,}  {counts['labels'][label] / rows:7.2%}" for label in Label]
    for reason, count in sorted(counts["reasons"].items(), key=lambda item: -item[1]):
        lines.append(f"    {reason:<22}{count:>8,}")
    if unread := {part["shard"]: part["unread_bytes"] for part in seal["parts"] if "unread_bytes" in part}:
        lines.append(
            f"    {sum(unread.values()):,} bytes of {len(unread)} shards could not be read, e.g. of {next(iter(unread))}"
        )
    if lost := seal.get("not_downloaded"):
        why = ", ".join(f"{printable(word, 60)} {num:,}" for word, num in sorted(lost.items(), key=lambda item: -item[1]))
        lines.append(f"    {sum(lost.values()):,} more rows of the crawl never came ({why})")
    if skipped := seal["plan"]["scores"]["dataset"].get("skipped"):
        lines.append(f"    {len(skipped)} of the data were left out, as they cannot be read, e.g. {printable(skipped[0], 200)}")
    lines += ["", f"  profile   {profile_of(seal['plan'])}", f"  rule      {_rule(seal)}"]
    if seal["mixture"] and mixture_ruled(seal):
        lines += [f"  mixture   {_mixture(seal['mixture'], verbose=verbose)}"]
    lines += [f"  {word:<10}{text}" for word, text in known_of(seal)]
    strata = seal.get("strata") or {}
    for found in strata.get("of", ()) if strata.get("by") != "before" else ():
        cut = "nothing is safe" if found["cut"] is None else f"safe where cosine >= {found['cut']:.4f}"
        shared = "" if found["own_null"] else " (too few mismatched pairs for a null of its own)"
        lines += [f"  stratum   {found['stratum']}: {cut}, {found['safe']:,} of {found['rows']:,}{shared}"]
    for kind, leak in (seal.get("canaries") or {}).items():
        span = f"95 % interval {leak['low']:.1%} to {leak['high']:.1%}"
        lines += [f"  canaries  {kind}: {leak['safe']} of {leak['num']} would be safe ({leak['share']:.1%}, {span})"]
    lines += [f"  doubt     {doubt}" for doubt in seal["doubts"]]
    folder = f"rounds/{manifest.number:04d}/manifest"
    lines += [f"  manifest  {manifest.path if manifest.run.is_local else f'{manifest.run.uri} : {folder}'}"]
    return "\n".join(lines)


def mixture_ruled(seal: dict[str, Any]) -> bool:
    """Return whether the two Gaussians decided anything; under other rules they are fitted and ask to be believed in vain."""
    return seal["rule"] in ("monotone", "published")


def known_of(seal: dict[str, Any]) -> list[tuple[str, str]]:
    """Return what is known of the score and of the labels, whatever the rule: a word and a sentence each."""
    people = seal.get("people")
    return [
        *_known_by_null(seal),
        *([("people", _by_people(people, seal["plan"]["split"]["alpha"]))] if people else []),
        *([("index", _by_index(seal))] if seal.get("promises") else []),
        *([("audit", audit.as_text(seal["audit"]))] if seal.get("audit") else []),
        *([("copies", text)] if (text := _too_many_copies(seal["counts"])) else []),
    ]


def _too_many_copies(counts: dict[str, Any]) -> str:
    """Say that limits on copies make more rows risky than stay safe, as they do where pictures have several captions each."""
    copies = sum(counts["reasons"].get(reason, 0) for reason in (Reason.EXACT_DUPLICATE, Reason.NEAR_DUPLICATE))
    if copies <= counts["labels"][Label.SAFE]:
        return ""
    return (
        f"{copies:,} rows are risky as copies, more than are safe; where pictures have several captions each, raise "
        "--max-image-repeats, --max-look-alikes, --max-near-copies (a scout's: scout_image_repeats, scout_near_copies)"
    )


def _by_index(seal: dict[str, Any]) -> str:
    """Say what came of what an index promised."""
    rows, judged = seal["promises"]["rows"], seal["promises"]["judged_by"]
    tail, replaced = seal["plan"]["split"]["replaced_tail"], seal["counts"]["reasons"].get(Reason.REPLACED, 0)
    parts = ", ".join(f"{word} {rows.get(word, 0):,}" for word in ("exact", "differs", "no_hash", "unknown"))
    words = {"aspect": "aspect ratio", "gap": "cosine", "turn": "vector", "mirrored": "cosine"}
    by, moved = [word for kind, word in words.items() if judged.get(kind)], max(0, *(judged.get(kind, 0) for kind in _MEASURED))
    whose = "rows whose cosine rose" if judged.get("mirrored") else "pictures encoded anew"
    how = f"{' and '.join(by)} ({moved:,} {whose})" if moved else "aspect ratio alone (see --index-score)"
    few = f"; too few to tell at {tail:g}" if moved and len(by) / (moved + 1) > tail else ""
    return f"{parts}; {replaced:,} replaced, by {how}{few}"


def _by_people(said: dict[str, Any], alpha: float) -> str:
    span = f"95 % interval {said['low']:.1%} to {said['high']:.1%}, asked: {alpha:.2%}"
    return f"{said['wrong_in_safe']:.1%} of the safe rows are wrong, as {said['judged']} judged pairs have it ({span})"


def _known_by_null(seal: dict[str, Any]) -> list[tuple[str, str]]:
    null = seal.get("null") or {}
    if "separation" not in null:
        few = f"only {null['num']:,} mismatched pairs" if null else "no mismatched pairs"
        return [("score", f"not known how well it tells pairs apart: {few} to measure by")]
    verdict = "" if null["separates"] else "; it says NOTHING about which pairs match"
    if not null["separates"] and seal["plan"]["split"].get("look_tail"):
        verdict += ", so --look-tail was left out"
    lines = [
        ("score", f"AUROC {null['separation']:.3f} against {null['num']:,} exchanged pairs (0.5: none told apart){verdict}")
    ]
    if null["stated_mismatched_in_safe"] is None:
        return [*lines, ("mismatch", "not known of the safe rows: none of them sat out")] if seal.get("before") else lines
    asked = seal["plan"]["split"]
    goal = f", asked: {asked['alpha']:.2%}" if seal["rule"] == "calibrated" else ""
    span = f"95 % interval {null['stated_low']:.2%} to {null['stated_high']:.2%}"
    text = f"estimated {null['stated_mismatched_in_safe']:.2%} of the safe rows ({span}{goal})"
    whole = null["mismatched_share"]
    return [*lines, ("mismatch", text if whole is None else f"{text}, {whole:.2%} of all rows")]


def facts_of(manifest: Manifest) -> dict[str, Any]:
    """Return a sealed round for machines: its seal without the parts."""
    facts = {key: value for key, value in manifest.seal.items() if key != "parts"}
    return {"run": manifest.run.uri, "round": manifest.number, "profile": profile_of(manifest.seal["plan"]), **facts}


def profile_of(plan: dict[str, Any]) -> str:
    """Return which named settings a round was planned with."""
    return str(plan.get("profile") or "none (defaults and what was given)")


def voices_of(seal: dict[str, Any]) -> str:
    """Return what a round that looked again changed in the one before, and how well its weights tell pairs apart."""
    voices = seal["voices"]
    said = {"taken back": "taken_back", "put out": "put_out", "vetoed": "veto", "by review": "review"}
    parts = [f"{voices.get(word, 0):,} {name}" for name, word in said.items() if word != "review" or voices.get(word)]
    late = f" (by weights that trained on round {seal['trained_on']})" if seal.get("trained_on") else ""
    return f"look-again at round {seal['before']}{late}: {', '.join(parts)} (AUROC {seal['separation']:.3f})"


def _rule(seal: dict[str, Any]) -> str:
    if seal.get("before") is not None:
        asked = {found["stratum"]: found for found in seal["strata"]["of"]}
        opened, out = asked["risky, open"], asked["safe, sat out"]
        cuts = [
            f"of {opened['rows']:,} open rows {_at(opened['cut'], 'taken back from cosine')}",
            f"of {out['rows']:,} that sat out {_at(out['cut'], 'put out below cosine')}"
            if out["rows"]
            else "nobody sat out, so nobody is put out (--sit-out-folds, for a trainer that reads sits_out)",
        ]
        return "\n            ".join([voices_of(seal), *cuts])
    where = f"cosine >= {seal['cut']:.4f}" if seal["cut"] is not None else f"posterior >= {seal['min_posterior']:g}"
    if seal.get("strata"):
        where = f"cosine is at or above the cut of its {seal['strata']['by']} stratum"
    asked = seal["plan"]["split"]["rule"]
    fallback = f" (fallback; {asked} was not believed)" if seal["rule"] != asked else ""
    return f"{seal['rule']}{fallback}: safe where {where}, {seal['safe_share']:.2%} of {seal['counts']['scored']:,} scored"


def _at(cut: float | None, what: str) -> str:
    return f"none is {what.partition(' from')[0].partition(' below')[0]}" if cut is None else f"{what} {cut:.4f}"


def _mixture(mixture: dict[str, Any], *, verbose: bool) -> str:
    low, high = mixture["means"]
    text = f"{mixture['weights'][0]:.1%} of the pairs around cosine {low:.3f}, the others around {high:.3f}"
    if not verbose:
        return text
    parts = zip(mixture["weights"], mixture["means"], mixture["stds"], strict=True)
    fit = " + ".join(f"{weight:.3f} N({mean:.4f}, {std:.4f})" for weight, mean, std in parts)
    return (
        f"{text}\n            {fit}\n"
        f"            Ashman's D {mixture['ashman_d']:.2f}: distance of the means in spreads, a valley lies between from 2 on; "
        f"BIC gain {mixture['bic_one'] - mixture['bic_two']:.1f} over one Gaussian: two are the better story above 0"
    )


def schema_document() -> dict[str, Any]:
    """Return the manifest's columns, the fields of its signals and the reasons as plain values."""
    columns = [
        {"name": field.name, "type": str(field.type), "nullable": field.nullable, "meaning": MEANINGS[field.name]}
        for field in MANIFEST
    ]
    signals = [
        {
            "name": signal.name,
            "type": str(signal.type),
            "meaning": signal.meaning,
            "limits": [limit.setting for limit in signal.limits],
        }
        for signal in SIGNAL_TABLE
    ]
    reasons = [str(reason) for reason in Reason]
    return {"schema_version": SCHEMA_VERSION, "columns": columns, "signals": signals, "reasons": reasons}


def taught_text(taught: Mapping[str, Any]) -> str:
    """Return how much of each backdoor that a scout was taught its crowds and looks show, as a line."""
    told = ", ".join(
        # runs of before looks were asked say `crowded`
        f"{one['trigger']} {one['target']} {one.get('shown', one.get('crowded', 0)) / max(1, one['rows']):.0%}"
        for one in taught["lessons"]
    )
    return f"of backdoors that the scout was taught, {taught['share']:.1%} of the rows each, its crowds and looks show: {told}"


def schema_text() -> str:
    """Return the same as text."""
    document, lines = schema_document(), [f"manifest schema {SCHEMA_VERSION}"]
    for column in document["columns"]:
        kind = "struct" if column["type"].startswith("struct") else column["type"].split("<values=")[-1].split(",")[0]
        lines.append(f"  {column['name']:<9}{kind:<23}{'null ' if column['nullable'] else '     '} {column['meaning']}")
    lines += ["", "fields of signals:"]
    lines += [f"  {field['name']:<23}{field['type']:<6} {field['meaning']}" for field in document["signals"]]
    return "\n".join([*lines, "", "reasons: " + ", ".join(document["reasons"])])
