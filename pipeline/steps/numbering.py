"""Which round comes next, which one is meant, and how much of it may be safe."""

from typing import Any

from manifests.errors import ConfigError, RunError
from manifests.layout import RUN, SCORES, Plan, is_sealed, read_plan, read_seal, round_folder, round_numbers, sealed_rounds
from manifests.store import Store
from pipeline.config.catalogue import RunConfig
from stages.label.settings import SplitSettings


def scores_asked(run: Store, num_shards: int, asked: int | None) -> int:
    """Return the round whose scores are asked for, or the newest with a part for every shard of the data as they are now.

    Raises:
        RunError: There is none, or that asked for is of the data from before they grew.
    """
    if asked is not None:
        if not of_these_data(run, asked):
            raise RunError(f"round {asked} of {run.uri} has the data from before they grew; its labels stay as they are")
        return asked
    for number in reversed(round_numbers(run)):
        if len(shards_of(run, number)) >= num_shards and of_these_data(run, number):
            return number
    raise RunError(f"no round of {run.uri} has complete scores; `pairsan status {run.uri}` says what is missing")


def shards_of(run: Store, number: int) -> set[str]:
    """Return the names of the shards that a round has scored itself."""
    return {
        name.removesuffix(".parquet") for name in run.names(f"{round_folder(number)}/{SCORES}") if name.endswith(".parquet")
    }


def of_these_data(run: Store, number: int) -> bool:
    """Return whether a round has the data that the run has now, and not those from before they grew."""
    now: bool = read_plan(run, number)["scores"]["dataset"]["fingerprint"] == run.read_json(RUN)["dataset"]["fingerprint"]
    return now


def split_number(run: Store, plan: Plan) -> int:
    """Return the newest round where it is an unsealed split under the same plan, else the next free number."""
    newest = max(round_numbers(run))
    old = read_plan(run, newest)
    same = old["kind"] == "split" and all(old.get(key) == value for key, value in plan.items())
    return newest if same and not is_sealed(run, newest) else newest + 1


def rescore_number(run: Store, scores: Plan) -> int:
    """Return the round of a set of scores: the newest sealed one, else the one begun, else the next free number."""
    numbers = round_numbers(run)
    mine = [number for number in numbers if read_plan(run, number)["scores"] == scores]
    sealed = [number for number in sealed_rounds(run) if number in mine]
    begun = [number for number in mine if read_plan(run, number)["kind"] == "rescore"]
    return max(sealed, default=0) or max(begun, default=0) or max(numbers, default=0) + 1


def grown(run: Store, options: SplitSettings, *, before: int) -> SplitSettings:
    """Return the split settings of a later round: with `growth`, a share that is a step larger than the last one.

    Source: SAFECLIP, section 4: after the first split by the mixture, the safe share grows by a fixed step a round.

    Args:
        run: The run folder.
        options: The settings; returned as they are without `growth`, where no round is sealed yet, and where the rule looks
            again, which takes that much back.
        before: Only rounds of lower numbers count.

    Raises:
        ConfigError: The cap lies below what is safe already.
    """
    sealed = sealed_rounds(run, before)
    if options.growth is None or not sealed or options.rule == "look-again":
        return options
    number = max(sealed)
    seal = read_seal(run, number)
    last: float = (
        seal["share_above_cut"] if "share_above_cut" in seal else seal["safe_share"]
    )  # before limits of signals, which do not grow
    if options.cap < last and not _ties_at(seal, options.cap):
        raise ConfigError(
            f"growth = {options.growth:g} has no effect: round {number} keeps {last:.2%} of the scored rows, above cap = "
            f"{options.cap:g}, and growth never shrinks; give a higher --cap, or leave --growth out"
        )
    share = round(min(options.cap, last + options.growth), 9)
    rule = "published" if options.rule == "published" else "keep-share"
    return options.model_copy(update={"rule": rule, "keep_share": share, "min_cosine": None})


def _ties_at(seal: dict[str, Any], cap: float) -> bool:
    """Return whether a round keeps more than a cap only because rows that tie at its cut are kept together."""
    asked = seal["plan"]["split"].get("keep_share")
    return asked is not None and asked <= cap


def looked_at(run: Store, config: RunConfig, number: int, trained_on: int | None = None) -> dict[str, int]:
    """Return `before`, the sealed round that a round looks again at, for its plan; nothing under any other rule.

    Args:
        run: The run folder.
        config: Names the rule.
        number: Of the round.
        trained_on: Sealed round that the weights trained on; part of the plan where it is older than `before`.

    Raises:
        ConfigError: There is none yet, or `trained_on` is none of them.
    """
    if config.split.rule != "look-again":
        return {}
    sealed = sealed_rounds(run, number)
    if not sealed:
        raise ConfigError(
            "rule 'look-again' goes on from a sealed round, and there is none before; seal the first by another rule"
        )
    if trained_on is not None and trained_on not in sealed:
        raise ConfigError(f"--trained-on {trained_on} is none of the sealed rounds before round {number}: {sealed}")
    before = max(sealed)
    if not of_these_data(run, before):
        raise ConfigError(f"rule 'look-again' goes on from the same data, and round {before} has those from before they grew")
    return {"before": before} if trained_on in (None, before) else {"before": before, "trained_on": trained_on}
