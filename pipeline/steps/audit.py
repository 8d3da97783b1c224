"""How many flags are right, and how many wrong pairs pass: a random sample of a round that people judge unseen.

`pipeline.queries.sampling` draws it. Of a label, quarters by cosine have equal sizes and equal shares of the sample, so the
plain share of the judged pairs estimates that of all.
"""

from collections import Counter
from datetime import datetime
from itertools import combinations
from typing import Any, Final

import numpy as np
from scipy.stats import binomtest
from sklearn.metrics import cohen_kappa_score

from manifests.labels import Label
from manifests.layout import SCORES, part_name, read_seal
from manifests.reading import open_part
from manifests.reviews import FOLDER, read_all
from manifests.store import Store
from pipeline.steps.plan import Round
from stages.label.fit.judged import Judged

Place = tuple[str, int]
_NEVER: Final = "0001-01-01T00:00:00+00:00"
Said = dict[Place, dict[str, tuple[int, bool]]]  # of each pair, by reviewer: when in the order of acts, and whether it is wrong


def read(run: Store, number: int) -> dict[str, Any] | None:
    """Return the sample that was drawn of a round, or None."""
    found: dict[str, Any] | None = run.read_json(sample_name(number)) if run.exists(sample_name(number)) else None
    return found


def sample_at(run: Store, before: int, until: str) -> dict[str, Any] | None:
    """Return the newest sample, of a round before one, of which a pair was judged, as it was at some time; None without.

    Args:
        run: The run folder.
        before: Number of the round that asks.
        until: Leave out verdicts that are newer, and pairs that were drawn later (ISO 8601).
    """
    for number in range(before - 1, 0, -1):
        sample = read(run, number)
        if sample is not None:
            drawn = [num for when, num in sample["drawn"] if datetime.fromisoformat(when) <= datetime.fromisoformat(until)]
            sample = {**sample, "pairs": sample["pairs"][: max(drawn, default=0)]}
            if _verdicts(run, sample, until):
                return sample
    return None


def judged_pairs(round_: Round) -> Judged | None:
    """Return what people said of a random sample of an earlier round, with the cosines of this one; None without.

    A pair stands for as many rows as its label has, divided by how many of that label were judged.
    """
    reviews = round_.plan.get("reviews") or {"until": _NEVER}
    sample = sample_at(round_.run, round_.number, reviews["until"])
    if sample is None:
        return None
    said, labels = _newest(_verdicts(round_.run, sample, reviews["until"])), Counter[str]()
    label_of = {(shard, index): label for shard, index, label in sample["pairs"]}
    cosines = _cosines(round_, list(said))
    known = [place for place in said if cosines[place] is not None]
    labels.update(label_of[place] for place in known)
    sizes = read_seal(round_.run, sample["round"])["counts"]["labels"]
    weights = [sizes[label_of[place]] / labels[label_of[place]] for place in known]
    values = np.asarray([cosines[place] for place in known], np.float64)
    return Judged(sample["round"], values, np.asarray([said[place] for place in known], bool), np.asarray(weights, np.float64))


def _cosines(round_: Round, places: list[Place]) -> dict[Place, float | None]:
    by_shard: dict[str, list[int]] = {}
    for shard, index in places:
        by_shard.setdefault(shard, []).append(index)
    found: dict[Place, float | None] = {}
    for shard, rows in by_shard.items():
        name = part_name(round_.scores_round, SCORES, shard)
        column = open_part(round_.run, name, ["cosine"], round_.scores_fingerprint)[0]["cosine"].take(rows).to_pylist()
        found |= {(shard, row): value for row, value in zip(rows, column, strict=True)}
    return found


def _newest(said: Said) -> dict[Place, bool]:
    """Return whether each pair is wrong, by whoever judged it last."""
    return {place: by_whom[max(by_whom, key=lambda who: by_whom[who][0])][1] for place, by_whom in said.items()}


def estimate(run: Store, sample: dict[str, Any], until: str | None = None) -> dict[str, Any]:
    """Return what the verdicts on a sample show of its round.

    Args:
        run: The run folder.
        sample: As `draw` returns it.
        until: Leave out newer verdicts (ISO 8601).

    Returns:
        `judged` of `drawn` pairs; `flags` and `safe`: how many of each label were judged, how many of those people call wrong
        (`risky` or `drop`), that share with its 95 % interval (Wilson); `right_flagged`: which share of all pairs that people
        call right the round has flagged (`right_flagged`); how many pairs each of the `reviewers` judged; of the two who judged
        most in common (`together`) the share they `agree` on, and Cohen's `kappa`, None where both say the same of all.
    """
    said = _verdicts(run, sample, until)
    newest_of = _newest(said)
    wrong: dict[str, list[bool]] = {Label.RISKY: [], Label.SAFE: []}
    for shard, index, label in sample["pairs"]:
        if (shard, index) in newest_of:
            wrong[label].append(newest_of[shard, index])
    flags, safe = (_share(wrong[label]) for label in (Label.RISKY, Label.SAFE))
    return {
        "round": sample["round"],
        "drawn": len(sample["pairs"]),
        "judged": len(newest_of),
        "flags": flags,
        "safe": safe,
        "right_flagged": right_flagged(flags, safe, read_seal(run, sample["round"])["counts"]["labels"]),
        **_agreement(said),
    }


def right_flagged(flags: dict[str, Any], safe: dict[str, Any], sizes: dict[str, int]) -> dict[str, float] | None:
    """Return which share of a round's right pairs it has flagged, with a 95 % interval; None unless both labels were judged.

    The interval asks nothing of the scores: it is of two binomial shares (Clopper and Pearson, 97.5 % each), and too wide.

    Args:
        flags: `judged` and `wrong` pairs of those that were flagged.
        safe: The same of those that are safe.
        sizes: Rows of each label.
    """
    if not flags["judged"] or not safe["judged"]:
        return None
    flagged, kept = sizes[Label.RISKY], sizes[Label.SAFE]

    def share(wrong_flags: float, wrong_safe: float) -> float:
        lost, right = flagged * (1 - wrong_flags), kept * (1 - wrong_safe)
        return lost / (lost + right) if lost + right else 0.0

    ends = [binomtest(part["wrong"], part["judged"]).proportion_ci(0.975, "exact") for part in (flags, safe)]
    shares = [part["wrong"] / part["judged"] for part in (flags, safe)]
    return {"share": share(*shares), "low": share(ends[0].high, ends[1].low), "high": share(ends[0].low, ends[1].high)}


def judged_by(run: Store, sample: dict[str, Any], who: str) -> set[Place]:
    """Return which pairs of a sample a reviewer has judged, whatever others have said since."""
    return {place for place, by_whom in _verdicts(run, sample, None).items() if who in by_whom}


def as_text(found: dict[str, Any]) -> str:
    """Return the same as a sentence."""
    flags, safe = found["flags"], found["safe"]
    text = f"{found['judged']} of {found['drawn']} sampled pairs of round {found['round']} judged"
    if flags["judged"]:
        text += f": {flags['share']:.1%} of the flags are right (95 % interval {flags['low']:.1%} to {flags['high']:.1%})"
    if safe["judged"]:
        text += f"{',' if flags['judged'] else ':'} {safe['share']:.1%} of the safe rows are wrong"
        text += f" ({safe['low']:.1%} to {safe['high']:.1%})"
    if found.get("right_flagged"):  # seals of before lack it
        of_right = found["right_flagged"]
        text += f", so {of_right['share']:.1%} of all right pairs are flagged ({of_right['low']:.1%} to {of_right['high']:.1%})"
    if found["together"]:
        kappa = "" if found["kappa"] is None else f" (kappa {found['kappa']:.2f})"
        text += f"; two reviewers agree on {found['agree']:.0%} of {found['together']} pairs{kappa}"
    return text


def sample_name(number: int) -> str:
    """Return where the sample of a round lies below the run."""
    return f"{FOLDER}/sample-{number:04d}.json"


def _verdicts(run: Store, sample: dict[str, Any], until: str | None) -> Said:
    """Return of each judged pair, by reviewer: when in the order of acts, and whether it was called wrong."""
    drawn = {(shard, index) for shard, index, _ in sample["pairs"]}
    said: Said = {}
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


def _agreement(said: Said) -> dict[str, Any]:
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
