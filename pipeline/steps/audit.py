"""How many flags are right, and how many wrong pairs pass: a random sample of a round that people judge unseen.

`pipeline.queries.sampling` draws it. Of a label, quarters by cosine have equal sizes and equal shares of the sample, so the
plain share of the judged pairs estimates that of all.
"""

from collections import Counter
from datetime import datetime
from itertools import combinations
from typing import Any

from scipy.stats import binomtest
from sklearn.metrics import cohen_kappa_score

from manifests.reviews import FOLDER, read_all
from manifests.schema import Label
from manifests.store import Store

Place = tuple[str, int]


def read(run: Store, number: int) -> dict[str, Any] | None:
    """Return the sample that was drawn of a round, or None."""
    found: dict[str, Any] | None = run.read_json(sample_name(number)) if run.exists(sample_name(number)) else None
    return found


def newest(run: Store, before: int, until: str) -> dict[str, Any] | None:
    """Return what the newest judged sample of the rounds before one shows; None where there is none.

    Args:
        run: The run folder.
        before: Number of the round that is to carry it.
        until: Leave out verdicts and samples that are newer (ISO 8601).
    """
    for number in range(before - 1, 0, -1):
        sample = read(run, number)
        if sample is not None and datetime.fromisoformat(sample["drawn"]) <= datetime.fromisoformat(until):
            found = estimate(run, sample, until)
            if found["judged"]:
                return found
    return None


def estimate(run: Store, sample: dict[str, Any], until: str | None = None) -> dict[str, Any]:
    """Return what the verdicts on a sample show of its round.

    Args:
        run: The run folder.
        sample: As `draw` returns it.
        until: Leave out newer verdicts (ISO 8601).

    Returns:
        `judged` of `drawn` pairs; `flags` and `safe`: how many of each label were judged, how many of those people call wrong
        (`risky` or `drop`), that share with its 95 % interval (Wilson); how many pairs each of the `reviewers` judged; of the
        two who judged most in common (`together`) the share they `agree` on, and Cohen's `kappa`, None where both say the
        same of all.
    """
    said = _verdicts(run, sample, until)
    newest_of = {place: by_whom[max(by_whom, key=lambda who: by_whom[who][0])][1] for place, by_whom in said.items()}
    wrong: dict[str, list[bool]] = {Label.RISKY: [], Label.SAFE: []}
    for shard, index, label in sample["pairs"]:
        if (shard, index) in newest_of:
            wrong[label].append(newest_of[shard, index])
    return {
        "round": sample["round"],
        "drawn": len(sample["pairs"]),
        "judged": len(newest_of),
        "flags": _share(wrong[Label.RISKY]),
        "safe": _share(wrong[Label.SAFE]),
        **_agreement(said),
    }


def as_text(found: dict[str, Any]) -> str:
    """Return the same as a sentence."""
    flags, safe = found["flags"], found["safe"]
    text = f"{found['judged']} of {found['drawn']} sampled pairs of round {found['round']} judged"
    if flags["judged"]:
        text += f": {flags['share']:.1%} of the flags are right (95 % interval {flags['low']:.1%} to {flags['high']:.1%})"
    if safe["judged"]:
        text += f"{',' if flags['judged'] else ':'} {safe['share']:.1%} of the safe rows are wrong"
        text += f" ({safe['low']:.1%} to {safe['high']:.1%})"
    if found["together"]:
        kappa = "" if found["kappa"] is None else f" (kappa {found['kappa']:.2f})"
        text += f"; two reviewers agree on {found['agree']:.0%} of {found['together']} pairs{kappa}"
    return text


def sample_name(number: int) -> str:
    """Return where the sample of a round lies below the run."""
    return f"{FOLDER}/sample-{number:04d}.json"


def _verdicts(run: Store, sample: dict[str, Any], until: str | None) -> dict[Place, dict[str, tuple[int, bool]]]:
    """Return of each judged pair, by reviewer: when in the order of acts, and whether it was called wrong."""
    drawn = {(shard, index) for shard, index, _ in sample["pairs"]}
    said: dict[Place, dict[str, tuple[int, bool]]] = {}
    for turn, act in enumerate(read_all(run, until).select(["shard", "index", "verdict", "who"]).to_pylist()):
        place = (act["shard"], act["index"])
        if place not in drawn:
            continue
        if act["verdict"] is None:
            said.pop(place, None)  # as everywhere: the newest act of a pair counts, and this one says nothing
        else:
            said.setdefault(place, {})[act["who"]] = (turn, act["verdict"] != "safe")
    return said


def _share(wrong: list[bool]) -> dict[str, Any]:
    if not wrong:
        return {"judged": 0, "wrong": 0, "share": None, "low": None, "high": None}
    ends = binomtest(sum(wrong), len(wrong)).proportion_ci(0.95, "wilson")
    low, high = float(ends.low), float(ends.high)
    return {"judged": len(wrong), "wrong": sum(wrong), "share": sum(wrong) / len(wrong), "low": low, "high": high}


def _agreement(said: dict[Place, dict[str, tuple[int, bool]]]) -> dict[str, Any]:
    both = Counter(pair for by_whom in said.values() for pair in combinations(sorted(by_whom), 2))
    reviewers = dict(sorted(Counter(who for by_whom in said.values() for who in by_whom).items()))
    if not both:
        return {"reviewers": reviewers, "together": 0, "agree": None, "kappa": None}
    (one, other), together = both.most_common(1)[0]
    pairs = [(by_whom[one][1], by_whom[other][1]) for by_whom in said.values() if one in by_whom and other in by_whom]
    first, second = zip(*pairs, strict=True)
    agree = sum(a == b for a, b in pairs) / together
    kappa = float(cohen_kappa_score(first, second)) if len({*first, *second}) > 1 else None
    return {"reviewers": reviewers, "together": together, "agree": agree, "kappa": kappa}
