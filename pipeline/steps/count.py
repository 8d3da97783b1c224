"""Count a scored round: cosines, nulls, strata, quarantined rows. What is kept grows with shards, not rows."""

from dataclasses import dataclass, field

from manifests.errors import RunError, TooManyQuarantined
from manifests.parts import Part
from pipeline.steps.plan import Round
from pipeline.workers.executors import Executor
from pipeline.workers.run_stage import run_stage
from stages.histogram import Histogram
from stages.label.fit.strata import COLUMN
from stages.label.tally import ScoresTarget, Tallied, Tally
from stages.pair import Shard
from stages.signals.signal_parts import SignalParts

_WORST = 5


@dataclass
class Totals:
    """What all scores parts of a round add up to; grows with the number of shards, never of rows.

    Attributes:
        histogram: Of all cosines.
        nulls: Of cosines of mismatched pairs.
        scores: Each shard's scores part.
        embeddings: Each shard's embeddings part, where kept.
        strata: Of all cosines, and of those of mismatched pairs, of every stratum by its code; empty where none were asked for.
        quarantined: Rows without a score, per shard.
        reasons: Rows without a score, per reason.
        unread: Bytes that could not be read, of each shard that has any.
        not_downloaded: Rows of the crawl that never came, by why.
    """

    histogram: Histogram = field(default_factory=Histogram)
    nulls: Histogram = field(default_factory=Histogram)
    scores: dict[str, Part] = field(default_factory=dict)
    embeddings: dict[str, Part] = field(default_factory=dict)
    strata: dict[int, tuple[Histogram, Histogram]] = field(default_factory=dict)
    quarantined: dict[str, int] = field(default_factory=dict)
    reasons: dict[str, int] = field(default_factory=dict)
    unread: dict[str, int] = field(default_factory=dict)
    not_downloaded: dict[str, int] = field(default_factory=dict)

    @property
    def num_rows(self) -> int:
        """Rows of all shards."""
        return sum(part.num_rows for part in self.scores.values())

    def add(self, shard: Shard, tallied: Tallied) -> tuple[int, int]:
        """Add one shard and return its (rows, quarantined rows)."""
        self.histogram.add(tallied.cosines)
        self.nulls.add(tallied.nulls)
        for code, counted in tallied.strata.items():
            for histogram, part in zip(self.strata.setdefault(code, (Histogram(), Histogram())), counted, strict=True):
                histogram.add(part)
        self.scores[shard.name] = tallied.part
        if tallied.embeddings is not None:
            self.embeddings[shard.name] = tallied.embeddings
        if tallied.unread_bytes:
            self.unread[shard.name] = tallied.unread_bytes
        num = sum(tallied.reasons.values())
        self.quarantined[shard.name] = num
        for totals, found in ((self.reasons, tallied.reasons), (self.not_downloaded, tallied.not_downloaded)):
            for reason, rows in found.items():
                totals[reason] = totals.get(reason, 0) + rows
        return tallied.part.num_rows, num


def count(executor: Executor, round_: Round) -> Totals:
    """Count all scores parts of a round, and every stratum by itself where its split asks for strata.

    Raises:
        TooManyQuarantined: Too much of it could not be scored.
        RunError: The scores lack what groups rows.
    """
    strata, keep = round_.strata, round_.plan["scores"]["keep"]
    if strata and COLUMN.get(strata) == "caption" and not keep["captions"]:
        raise RunError(f"--null-strata {strata} groups rows by their captions, and these scores kept none; use --keep-captions")
    totals = Totals()
    stage = Tally(scores_target(round_, with_embeddings=bool(keep["embeddings"])))
    run_stage(executor, stage, round_.shards, what="count", folder=round_.place, collect=totals.add)
    check_quarantined(totals, round_.split.max_quarantined_share)
    check_unread(totals, sum(shard.size_bytes for shard in round_.shards), round_.split.max_unread_share)
    return totals


def scores_target(round_: Round, *, with_embeddings: bool = False, signals: SignalParts | None = None) -> ScoresTarget:
    """Return the scores of a round, as they are counted."""
    where = (round_.run, round_.scores_round, round_.scores_fingerprint)
    return ScoresTarget(*where, with_embeddings, round_.strata, round_.before, round_.trained_on, signals)


def check_quarantined(totals: Totals, max_share: float) -> None:
    """Refuse a round of which too much could not be scored.

    Raises:
        TooManyQuarantined: With the counts per reason and the worst shards.
    """
    num, rows = sum(totals.quarantined.values()), totals.num_rows
    if rows and num < rows and num <= max_share * rows:
        return
    if not rows:
        raise TooManyQuarantined(f"the dataset has no rows: all {len(totals.scores)} shards are empty")
    reasons = ", ".join(f"{reason} {count:,}" for reason, count in sorted(totals.reasons.items(), key=lambda kv: -kv[1]))
    worst = sorted(totals.scores, key=lambda name: -totals.quarantined[name] / max(1, totals.scores[name].num_rows))
    lines = "".join(f"\n  {n}: {totals.quarantined[n]:,} of {totals.scores[n].num_rows:,}" for n in worst[:_WORST])
    allowed = "some must be scored" if num == rows else f"allowed are {max_share:.1%} (--max-quarantined-share)"
    raise TooManyQuarantined(
        f"{num:,} of {rows:,} rows could not be scored, {allowed}; nothing was sealed.\n"
        f"Reasons: {reasons}\n"
        f"Worst shards:{lines}\nThe scores are kept; after raising the limit, `pairsan split RUN` goes on from them."
    )


def check_unread(totals: Totals, size_bytes: int, max_share: float) -> None:
    """Refuse a round of which rows may have been lost in stretches that could not be read.

    Raises:
        TooManyQuarantined: With the bytes, and the worst shards.
    """
    num = sum(totals.unread.values())
    if num <= max_share * size_bytes:
        return
    worst = sorted(totals.unread, key=lambda name: -totals.unread[name])
    lines = "".join(f"\n  {name}: {totals.unread[name]:,} bytes" for name in worst[:_WORST])
    raise TooManyQuarantined(
        f"{num:,} of {size_bytes:,} bytes in {len(worst)} shards could not be read, and nobody knows how many rows they hold; "
        f"allowed are {max_share:.2%} (--max-unread-share); nothing was sealed.{lines}\nThe rows that stand for them say why "
        "(`pairsan inspect` after sealing). The scores are kept: `pairsan split RUN --max-unread-share 1` goes on from them."
    )
