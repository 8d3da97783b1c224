"""All settings of a run: one frozen value from profile, TOML and flags, checked (`checks`) before any work begins."""

import copy
import difflib
import tomllib
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, Final

from pydantic import ValidationError

from manifests.errors import ConfigError
from pipeline.config.catalogue import CATALOGUE, SECTIONS, TABLES, RunConfig
from pipeline.config.checks import NEAR_LIMITS, check_effects, contradictions
from pipeline.config.profiles import PROFILES
from stages.label.settings import SplitSettings

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
    if wrong := list(contradictions(config)):
        raise ConfigError("\n".join(wrong))
    check_effects(config, given, command)
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
    near = any(split.get(name) for name in NEAR_LIMITS)
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
