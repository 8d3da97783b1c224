"""All settings of a run: one frozen value from profile, TOML and flags, checked before any work begins."""

import copy
import difflib
import tomllib
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, Final

from pydantic import ValidationError

from manifests.errors import ConfigError
from pipeline.config.catalogue import CATALOGUE, COMMANDS, SECTIONS, TABLES, RunConfig, values_of
from pipeline.config.profiles import PROFILES
from pipeline.config.scout import scouted
from stages.label.settings import SplitSettings

_CROWDS: Final = ("crowded_share", "crowded_tail", "outlier_share", "discord_share", "look_tail")
_NEAR_LIMITS: Final = (*_CROWDS, "max_look_alikes", "max_near_copies", "max_pair_copies")
_REPLACED_TAIL: Final = 0.001  # where an index is given
_DEFAULT_RULE: Final = SplitSettings.model_fields["rule"].default
# names of earlier releases, and what to say of them; for one release
RENAMED: Final = {
    "preset": "profile (--profile NAME, or profile = NAME at the head of the TOML file)",
    "break_lock": "gone: the system frees the lock of a watcher that is no more",
}


def load_config(
    path: str | None,
    flags: dict[str, Any],
    base: RunConfig | None = None,
    *,
    command: str = "clean",
) -> RunConfig:
    """Build the settings of a command: defaults, then the profile, then the TOML file, then flags.

    Args:
        path: TOML file; None for none.
        flags: Values by name; None means that the flag was not given. `profile` names one, `more` has texts `name=value`.
        base: Settings to start from in place of the defaults: a run's own.
        command: What they are for; its settings must have an effect.

    Raises:
        ConfigError: A key is unknown, a value is out of range, or a setting has no effect; names key and value.
    """
    document = _read_toml(path) if path is not None else {}
    named = document.pop("profile", None)
    name = flags.get("profile") or named
    given = dict(_keys(document, path or ""))
    given |= dict(_said(text) for text in flags.get("more") or ())
    given |= dict(_named(flags))
    chosen: dict[str, Any] = base.model_dump() if base is not None else {section: {} for section in SECTIONS}
    profile = _profile(name)
    for section, values in copy.deepcopy(profile).items():
        chosen[section].update(values)
    for key, value in given.items():
        chosen[CATALOGUE[key].section][key] = value
    if name is not None:
        chosen["profile"] = name
    _imply_rule(chosen["split"])
    _imply_signals(chosen)
    try:
        config = RunConfig.model_validate(chosen)
    except ValidationError as error:
        raise ConfigError("\n".join(_explain(problem) for problem in error.errors())) from None
    if wrong := list(_contradictions(config)):
        raise ConfigError("\n".join(wrong))
    _check_effects(config, given, command)
    return config


def _named(flags: dict[str, Any]) -> Iterator[tuple[str, Any]]:
    """Yield the settings that were given by name."""
    for name, value in flags.items():
        if name in CATALOGUE:
            if value is not None:
                yield name, value
        elif name not in ("profile", "more"):
            raise ConfigError(f"no setting is called {name!r}{_nearest(name, CATALOGUE)}")


def _said(text: str) -> tuple[str, Any]:
    """Return name and value of `--set NAME=VALUE`; what is not TOML is a word.

    Raises:
        ConfigError: There is no such setting.
    """
    name, equals, value = text.partition("=")
    if not equals or name not in CATALOGUE:
        raise ConfigError(f"--set {text}: write NAME=VALUE{_nearest(name, CATALOGUE)}")
    try:
        return name, tomllib.loads(f"value = {value}")["value"]
    except tomllib.TOMLDecodeError:
        return name, value


def profiled(name: str | None) -> RunConfig:
    """Return the settings of a profile as they stand in a file: what it says, and defaults; not checked, not completed."""
    return RunConfig.model_validate({**_profile(name), "profile": name})


def _profile(name: Any) -> dict[str, dict[str, Any]]:
    if name is None:
        return {}
    if name not in PROFILES:
        raise ConfigError(f"no profile {name!r}{_nearest(str(name), PROFILES)}; there are: {', '.join(PROFILES)}")
    return PROFILES[name].settings


def _keys(document: dict[str, Any], path: str, table: str = "") -> Iterator[tuple[str, Any]]:
    """Yield the settings of a TOML document, all tables inside tables too.

    Raises:
        ConfigError: A table or key is unknown, or a key stands in another table than its own.
    """
    for key, value in document.items():
        inner = f"{table}.{key}" if table else key
        if isinstance(value, dict):
            if not any(known == inner or known.startswith(f"{inner}.") for known in TABLES):
                raise ConfigError(f"{path}: unknown table [{inner}]{_nearest(inner, TABLES)}; tables: {', '.join(TABLES)}")
            yield from _keys(value, path, inner)
            continue
        entry = CATALOGUE.get(key)
        if key in RENAMED:
            raise ConfigError(f"{path}: {key} is now {RENAMED[key]}")
        if entry is not None and entry.table != table:
            raise ConfigError(f"{path}: {key} stands in [{entry.table}], not in [{table}]")
        if entry is None:
            known = [name for name, entry in CATALOGUE.items() if entry.table == table]
            where = f"[{table}] has" if table else "the head of the file knows only profile, it has"
            raise ConfigError(
                f"{path}: {where} no setting {key!r} (= {value!r}){_nearest(key, known or CATALOGUE)}"
                + (f"; it has: {', '.join(known)}" if known else "")
            )
        yield key, value


def _check_effects(config: RunConfig, given: Iterable[str], command: str) -> None:
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


def inherit(base: RunConfig, flags: dict[str, Any]) -> RunConfig:
    """Return a run's own settings as the base of a later command, without what the new flags replace as a whole.

    A cut chosen now replaces the run's choice of rule, share or cosine; weights named now replace its weights, while its
    architecture stays.
    """
    split, model = base.split, base.model
    if any(flags.get(name) is not None for name in ("rule", "keep_share", "min_cosine")):
        split = split.model_copy(update={"rule": _DEFAULT_RULE, "keep_share": None, "min_cosine": None})
    if any(flags.get(name) is not None for name in ("checkpoint", "pretrained")):
        folder = model.checkpoint if model.checkpoint and Path(model.checkpoint).is_dir() else None
        model = model.model_copy(update={"checkpoint": None, "pretrained": None, "model": model.model or folder})
    return base.model_copy(update={"split": split, "model": model})


def limits_of(split: SplitSettings) -> list[str]:
    """Return the names of the settings that label by signals and are in use."""
    return [name for name in ("max_image_repeats", "max_caption_copies", *_NEAR_LIMITS) if getattr(split, name)]


def of_another_version(config: dict[str, Any]) -> dict[str, Any]:
    """Return the settings that an earlier release has written as this one has them."""
    train = {key: value for key, value in config["train"].items() if key != "preset"}
    return {**config, "train": train, "profile": config.get("profile") or config["train"].get("preset")}


def _imply_rule(split: dict[str, Any]) -> None:
    """Let --keep-share and --min-cosine choose their rule where none was named."""
    if split.get("rule", _DEFAULT_RULE) in (_DEFAULT_RULE, "monotone"):
        if split.get("min_cosine") is not None:
            split["rule"] = "min-cosine"
        elif split.get("keep_share") is not None:
            split["rule"] = "keep-share"


def _imply_signals(given: dict[str, Any]) -> None:
    """Let a budget call for the signals that it needs, and neighbours for the embeddings that they need."""
    split, signals = given["split"], given["signals"]
    near = any(split.get(name) for name in _NEAR_LIMITS)
    near = near or any(signals.get(name) is not None for name in ("near_copy_cosine", "reference_encoder"))
    if split.get("max_caption_copies"):
        signals["caption_shingles"] = True
    asked = signals.get("signals")
    if near and asked != "none":
        signals["signals"] = "all"
    if signals.get("index") and split.get("replaced_tail") is None:
        split["replaced_tail"] = _REPLACED_TAIL
    if signals.get("signals") == "all" or signals.get("index_embeddings"):
        given["embed"]["keep_embeddings"] = True


def _contradictions(config: RunConfig) -> Iterator[str]:
    """Yield a sentence for whatever two settings cannot both mean, or one needs and another leaves out."""
    split, signals, captions = config.split, config.signals, config.embed.keep_captions
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
    if split.null_strata in ("caption-length", "script") and not captions:
        yield f"null_strata = {split.null_strata!r} groups rows by captions; keep_captions = false leaves none"
    if signals.reference_encoder and not captions:
        yield "reference_encoder compares captions by their words; keep_captions = false leaves none"
    if config.train.local_loss and config.train.train_workers == 1:
        yield "local_loss = true has no effect with one worker; it shares the CLIP loss among train_workers"
    if signals.signals == "none" and limits_of(split):
        yield f"signals = 'none', but {', '.join(limits_of(split))} needs them; use signals = 'all'"
    for needed in PROFILES[config.profile].needs if config.profile is not None else ():
        if not values_of(config)[needed]:
            yield f"profile {config.profile!r} needs {CATALOGUE[needed].flag}: {CATALOGUE[needed].field.description}"


def _read_toml(path: str) -> dict[str, Any]:
    try:
        return tomllib.loads(Path(path).read_text())
    except OSError as error:
        raise ConfigError(f"cannot read the config {path}: {error.strerror}") from None
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path} is not TOML: {error}") from None


def _explain(problem: Any) -> str:
    key = str(problem["loc"][-1])
    table = CATALOGUE[key].table if key in CATALOGUE else str(problem["loc"][0])
    return f"[{table}] {key} = {problem['input']!r}: {problem['msg'][0].lower()}{problem['msg'][1:]}"


def _nearest(word: str, known: Iterable[str]) -> str:
    close = difflib.get_close_matches(word, list(known), n=1)
    return f"; did you mean {close[0]!r}?" if close else ""
