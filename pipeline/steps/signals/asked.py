"""Which signals are asked for, and where they lie."""

from typing import Any, Final

from manifests.errors import RunError
from manifests.layout import SIGNAL_PARTS, fingerprint, read_plan, round_folder
from manifests.schema import LOOKS_SINCE
from manifests.store import Store
from pipeline.config.catalogue import RunConfig
from pipeline.config.checks import limits_of
from pipeline.steps.plan import Round
from pipeline.steps.signals.index_files import index_of, index_plan
from pipeline.steps.signals.witness_vectors import canary_folder, reference_folder, tower_of
from stages.signals.signal_parts import SignalParts

_FIRST_SCHEMA: Final = 2  # scores of before it have no hashes


def signal_parts(round_: Round, num_scored: int = 0, num_threads: int = 1, memory_bytes: int = 2 << 30) -> SignalParts | None:
    """Return where the signals of a round lie; None where its plan asks for none.

    The folder's name follows from what was asked for, so that other settings, later, leave sealed rounds as they are.
    """
    if round_.asked is None:
        return None
    stamp = fingerprint({"scores": round_.scores_fingerprint, "signals": round_.plan["signals"]})
    near = round_.asked.near
    return SignalParts(
        run=round_.run,
        scores_round=round_.scores_round,
        shards=tuple(shard.name for shard in round_.shards),
        folder=f"{round_folder(round_.scores_round)}/{SIGNAL_PARTS}-{stamp[:8]}",
        fingerprint=stamp,
        asked=round_.asked,
        others=reference_folder(round_) if near else None,
        canaries=canary_folder(round_) if near else None,
        num_scored=num_scored,
        num_threads=num_threads,
        memory_bytes=memory_bytes,
    )


def are_there(parts: SignalParts) -> bool:
    """Return whether every shard has its signals part."""
    return {f"{shard}.parquet" for shard in parts.shards} <= parts.run.names(parts.folder)


def asked_signals(config: RunConfig) -> dict[str, Any] | None:
    """Return what a plan says of signals: what of the settings can change one; None where there are none.

    Raises:
        PairsanError: The reference encoder, or the index, cannot be found.
    """
    asked, tower, index = config.signals.plan, tower_of(config), index_of(config)
    if asked is None:
        return None
    more = {"reference_encoder": tower.plan} if tower else {}
    return {**asked, **more, **({"index": index_plan(index)} if index else {})}


def signals_plan(run: Store, scores_round: int, config: RunConfig) -> dict[str, Any] | None:
    """Return what the plan of a round says of signals that is made of scores which are there already.

    Raises:
        RunError: These scores have no hashes, embeddings or captions, to make the signals of that the split asks for.
    """
    asked = asked_signals(config)
    if asked is None:
        return asked
    plan, where = read_plan(run, scores_round), f"round {scores_round} of {run.uri}"
    if plan["schema_version"] < _FIRST_SCHEMA:
        if limits_of(config.split):
            raise RunError(f"{where} was scored by pairsan 0.1.0, without hashes; score again to label by signals")
        return None
    if plan["schema_version"] < LOOKS_SINCE:
        asked.pop("looks", None)
        if config.split.look_tail:
            raise RunError(f"{where} was scored before what images are like was kept; score again to label by --look-tail")
    if asked["signals"] == "all" and not plan["scores"]["keep"]["embeddings"]:
        raise RunError(
            f"{where} kept no embeddings, so there are no neighbours to compare; score again with --keep-embeddings, "
            "or ask for --signals repeats"
        )
    needs = [name for name in ("reference_encoder", "caption_shingles") if name in asked]
    if needs and not plan["scores"]["keep"]["captions"]:
        raise RunError(f"{where} kept no captions, which {needs[0]} reads; score again with --keep-captions")
    return asked
