"""What is wrong with settings that are each in range: two contradict, one needs another, one would change nothing."""

from collections.abc import Iterable, Iterator
from typing import Any, Final

from manifests.errors import ConfigError
from pipeline.config.catalogue import CATALOGUE, COMMANDS, RunConfig, values_of
from pipeline.config.profiles import PROFILES
from pipeline.config.scout import scouted
from stages.label.settings import SplitSettings

_CROWDS: Final = ("crowded_share", "crowded_tail", "outlier_share", "discord_share", "look_tail")
NEAR_LIMITS: Final = (*_CROWDS, "max_look_alikes", "max_near_copies", "max_pair_copies")


def limits_of(split: SplitSettings) -> list[str]:
    """Return the names of the settings that label by signals and are in use."""
    return [name for name in ("max_image_repeats", "max_caption_copies", *NEAR_LIMITS) if getattr(split, name)]


def contradictions(config: RunConfig) -> Iterator[str]:
    """Yield a sentence for whatever two settings cannot both mean, or one needs and another leaves out."""
    yield from _of_labels(config)
    yield from _of_signals(config)
    if config.train.local_loss and config.train.train_workers == 1:
        yield "local_loss = true has no effect with one worker; it shares the CLIP loss among train_workers"
    for needed in PROFILES[config.profile].needs if config.profile is not None else ():
        if not values_of(config)[needed]:
            yield f"profile {config.profile!r} needs {CATALOGUE[needed].flag}: {CATALOGUE[needed].field.description}"


def _of_labels(config: RunConfig) -> Iterator[str]:
    split = config.split
    if split.keep_share is not None and split.min_cosine is not None:
        yield f"keep_share = {split.keep_share} and min_cosine = {split.min_cosine} exclude each other"
    if split.crowded_share and split.crowded_tail:
        yield f"crowded_share = {split.crowded_share} and crowded_tail = {split.crowded_tail} exclude each other"
    if split.null_strata and split.rule != "calibrated":
        yield f"null_strata = {split.null_strata!r} gives rule 'calibrated' more nulls; rule {split.rule!r} has none"
    if split.rule == "keep-share" and not split.keep_share:
        yield "rule 'keep-share' needs keep_share above 0 (--keep-share 0.3)"
    if split.rule == "min-cosine" and split.min_cosine is None:
        yield "rule 'min-cosine' needs min_cosine (--min-cosine 0.2)"
    if split.if_unseparable == "quantile" and not split.fallback_share:
        yield "if_unseparable = 'quantile' needs fallback_share above 0 (--fallback-share 0.3)"
    if split.min_safe_share > split.max_safe_share:
        yield f"min_safe_share = {split.min_safe_share} is above max_safe_share = {split.max_safe_share}"
    if split.null_strata in ("caption-length", "script") and not config.embed.keep_captions:
        yield f"null_strata = {split.null_strata!r} groups rows by captions; keep_captions = false leaves none"


def _of_signals(config: RunConfig) -> Iterator[str]:
    split, signals, captions = config.split, config.signals, config.embed.keep_captions
    if signals.reference_checkpoint and not signals.reference_encoder:
        yield "reference_checkpoint needs reference_encoder, which says what the weights are of"
    for name in ("max_near_copies", "max_pair_copies"):
        if (most := getattr(split, name)) and not signals.near_copy_cosine:
            yield f"{name} = {most} needs near_copy_cosine, which says what a copy is"
    for name in ("discord_share", "look_tail", "max_look_alikes", "max_pair_copies"):
        if (asked := getattr(split, name)) and not signals.agreement_rows:
            yield f"{name} = {asked} needs the sample of captions; agreement_rows = 0 leaves it out"
    if signals.caption_shingles and signals.signals == "none":
        yield "caption_shingles is one of the signals, and signals = 'none' leaves them all out"
    if signals.caption_shingles and not captions:
        yield "caption_shingles compares the wording of captions; keep_captions = false leaves none"
    if signals.reference_encoder and not captions:
        yield "reference_encoder compares captions by their words; keep_captions = false leaves none"
    if signals.signals == "none" and limits_of(split):
        yield f"signals = 'none', but {', '.join(limits_of(split))} needs them; use signals = 'all'"


def check_effects(config: RunConfig, given: Iterable[str], command: str) -> None:
    """Refuse settings that were given for this command and would change nothing.

    Raises:
        ConfigError: Names each, and what it would act with.
    """
    tables, trains = COMMANDS[command], "train" in COMMANDS[command]
    effective = scouted(config) if trains and config.train.scorer == "scout" else config
    values, before, found = values_of(effective), values_of(config), []
    for name in given:
        entry = CATALOGUE[name]
        if entry.table not in tables:
            continue
        # a condition on what another command decides says nothing here
        modes = [mode for mode in entry.when if all(_table_of(key) in tables for key in mode)]
        if values[name] != before[name]:
            found.append(f"{name} = {before[name]!r} has no effect: scorer 'scout' takes {values[name]!r}")
        elif modes and not any(_holds(mode, values) for mode in modes):
            wanted = " or ".join(", ".join(_told(key, some) for key, some in mode.items()) for mode in modes)
            actual = ", ".join(f"{key} = {values[key]!r}" for key in modes[0])
            found.append(f"{name} = {values[name]!r} has no effect: it acts with {wanted}; here {actual}")
    if found:
        raise ConfigError("\n".join(found))


def _table_of(name: str) -> str:
    return CATALOGUE[name].table if name in CATALOGUE else "train"


def _holds(mode: dict[str, tuple[Any, ...]], values: dict[str, Any]) -> bool:
    return all(values[key] in some if some else bool(values[key]) for key, some in mode.items())


def _told(key: str, some: tuple[Any, ...]) -> str:
    return f"{key} {' / '.join(map(str, some))}" if some else f"{key} set"
