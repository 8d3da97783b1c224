"""All settings of a run: one frozen value, from TOML and flags, checked before any work begins."""

import copy
import difflib
import tomllib
from pathlib import Path
from typing import Any, Literal

from pydantic import Field, ValidationError

from manifests.errors import ConfigError
from pipeline.config.presets import PRESETS
from stages.settings import EmbedOptions, ModelOptions, Options, ReadOptions, SignalOptions, SplitOptions, TrainOptions

_NEAR_LIMITS = ("crowded_share", "crowded_tail", "outlier_share", "discord_share", "max_near_copies", "max_pair_copies")
_DEFAULT_RULE = SplitOptions.model_fields["rule"].default


class ExecutorOptions(Options):
    """Where the work runs (`[executor]`); nothing here can change a label."""

    executor: Literal["ray", "local"] = Field("ray", description="ray, or local: the same stages in this process")
    ray_address: str | None = Field(None, description="address of a Ray cluster; a local one is started if unset")
    workers: int | None = Field(None, ge=1, description="workers; by default one per GPU, else one per CPU thread group")
    threads_per_worker: int | None = Field(
        None,
        ge=1,
        description="CPU threads of each worker; by default 1 on CPUs, and an equal share of all CPUs beside each GPU",
    )
    decode: Literal["worker", "cluster"] = Field(
        "worker", description="decode images in the worker's threads, or in CPU-only tasks anywhere on the cluster"
    )
    max_retries: int = Field(3, ge=0, description="retries of a shard after a lost worker or a failed read")


class RunConfig(Options):
    """The settings of one command; its sections are the tables of the TOML file."""

    data: ReadOptions = ReadOptions()
    model: ModelOptions = ModelOptions()
    embed: EmbedOptions = EmbedOptions()
    signals: SignalOptions = SignalOptions()
    split: SplitOptions = SplitOptions()
    executor: ExecutorOptions = ExecutorOptions()
    train: TrainOptions = TrainOptions()


SECTIONS: dict[str, type[Options]] = {
    "data": ReadOptions,
    "model": ModelOptions,
    "embed": EmbedOptions,
    "signals": SignalOptions,
    "split": SplitOptions,
    "executor": ExecutorOptions,
    "train": TrainOptions,
}


def load_config(path: str | None, flags: dict[str, Any], base: RunConfig | None = None) -> RunConfig:
    """Build the settings of a command: defaults, then the TOML file, then flags.

    Args:
        path: TOML file with tables named like the sections; None for none.
        flags: Values by field name; None means that the flag was not given. Field names are unique over sections.
        base: Settings to start from in place of the defaults.

    Raises:
        ConfigError: A key is unknown, or a value is out of range; names key, value and what is allowed.
    """
    document = _read_toml(path) if path is not None else {}
    given = base.model_dump() if base is not None else _preset(document, flags)
    for section, values in document.items():
        if section not in SECTIONS:
            raise ConfigError(f"{path}: unknown table [{section}]{_nearest(section, SECTIONS)}; tables: {', '.join(SECTIONS)}")
        if not isinstance(values, dict):
            raise ConfigError(f"{path}: {section} must be a table, got {values!r}")
        given.setdefault(section, {}).update(values)
    for section, options in SECTIONS.items():
        chosen = {name: flags[name] for name in options.model_fields if flags.get(name) is not None}
        given.setdefault(section, {}).update(chosen)
    _imply_rule(given["split"])
    _imply_signals(given)
    try:
        config = RunConfig.model_validate(given)
    except ValidationError as error:
        raise ConfigError("\n".join(_explain(problem) for problem in error.errors())) from None
    _check_split(config.split)
    _check_signals(config)
    if config.signals.signals == "none" and limits_of(config.split):
        raise ConfigError(f"signals = 'none', but {', '.join(limits_of(config.split))} needs them; use signals = 'all'")
    return config


def _preset(document: dict[str, Any], flags: dict[str, Any]) -> dict[str, Any]:
    """Return the settings of the preset that the flags or the file name, below everything else they say."""
    train = document.get("train")
    name = flags.get("preset") or (train.get("preset") if isinstance(train, dict) else None)
    return copy.deepcopy(PRESETS.get(name, {})) if isinstance(name, str) else {}


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


def limits_of(split: SplitOptions) -> list[str]:
    """Return the names of the settings that label by signals and are in use."""
    return [name for name in ("max_image_repeats", "max_caption_copies", *_NEAR_LIMITS) if getattr(split, name)]


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
    if signals.get("signals") == "all":
        given["embed"]["keep_embeddings"] = True


def _check_signals(config: RunConfig) -> None:
    signals = config.signals
    if signals.reference_checkpoint and not signals.reference_encoder:
        raise ConfigError("reference_checkpoint needs reference_encoder, which says what the weights are of")
    for name in ("max_near_copies", "max_pair_copies"):
        if (most := getattr(config.split, name)) and not signals.near_copy_cosine:
            raise ConfigError(f"{name} = {most} needs near_copy_cosine, which says what a copy is")
    for name in ("discord_share", "max_pair_copies"):
        if (asked := getattr(config.split, name)) and not signals.agreement_rows:
            raise ConfigError(f"{name} = {asked} needs the sample of captions; agreement_rows = 0 leaves it out")
    if signals.caption_shingles and signals.signals == "none":
        raise ConfigError("caption_shingles is one of the signals, and signals = 'none' leaves them all out")
    if signals.caption_shingles and not config.embed.keep_captions:
        raise ConfigError("caption_shingles compares the wording of captions; keep_captions = false leaves none")
    if config.split.null_strata in ("caption-length", "script") and not config.embed.keep_captions:
        raise ConfigError(
            f"null_strata = {config.split.null_strata!r} groups rows by captions; keep_captions = false leaves none"
        )
    if signals.reference_encoder and not config.embed.keep_captions:
        raise ConfigError("reference_encoder compares captions by their words; keep_captions = false leaves none")


def _check_split(split: SplitOptions) -> None:
    if split.keep_share is not None and split.min_cosine is not None:
        raise ConfigError(f"keep_share = {split.keep_share} and min_cosine = {split.min_cosine} exclude each other")
    if split.crowded_share and split.crowded_tail:
        raise ConfigError(f"crowded_share = {split.crowded_share} and crowded_tail = {split.crowded_tail} exclude each other")
    if split.null_strata and split.rule != "calibrated":
        raise ConfigError(
            f"null_strata = {split.null_strata!r} gives rule 'calibrated' more nulls; rule {split.rule!r} has none"
        )
    if split.rule == "keep-share" and not split.keep_share:
        raise ConfigError("rule 'keep-share' needs keep_share above 0 (--keep-share 0.3)")
    if split.rule == "min-cosine" and split.min_cosine is None:
        raise ConfigError("rule 'min-cosine' needs min_cosine (--min-cosine 0.2)")
    if split.if_unseparable == "quantile" and not split.fallback_share:
        raise ConfigError("if_unseparable = 'quantile' needs fallback_share above 0 (--fallback-share 0.3)")
    if split.min_safe_share > split.max_safe_share:
        raise ConfigError(f"min_safe_share = {split.min_safe_share} is above max_safe_share = {split.max_safe_share}")


def _read_toml(path: str) -> dict[str, Any]:
    try:
        return tomllib.loads(Path(path).read_text())
    except OSError as error:
        raise ConfigError(f"cannot read the config {path}: {error.strerror}") from None
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path} is not TOML: {error}") from None


def _explain(problem: Any) -> str:
    section, *rest = [str(part) for part in problem["loc"]]
    key = ".".join(rest) or section
    known = SECTIONS[section].model_fields if section in SECTIONS else {}
    if problem["type"] == "extra_forbidden":
        return f"[{section}] has no setting {key!r} (= {problem['input']!r}){_nearest(key, known)}; it has: {', '.join(known)}"
    return f"[{section}] {key} = {problem['input']!r}: {problem['msg'][0].lower()}{problem['msg'][1:]}"


def _nearest(word: str, known: Any) -> str:
    close = difflib.get_close_matches(word, list(known), n=1)
    return f"; did you mean {close[0]!r}?" if close else ""
