"""Every setting by its name: where it stands in a TOML file, who takes it, and when it has an effect."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Final, Literal

from pydantic.fields import FieldInfo

from pipeline.config.profiles import PROFILES
from stages.label.settings import SplitSettings
from stages.settings import SAFE, WHERE, EmbedSettings, ModelSettings, ReadSettings, Settings, When, setting
from stages.signals.settings import SignalSettings
from stages.train.settings import TrainSettings


class ExecutorSettings(Settings):
    """Where the work runs (`[executor]`); nothing here can change a label."""

    executor: Literal["ray", "local"] = setting(
        "ray",
        "ray, or local: the same stages in this process",
        group=WHERE,
        short="local: without Ray, in this process",
        how=True,
    )
    ray_address: str | None = setting(
        None, "address of a Ray cluster, or auto for the one that runs here; one of its own is started if unset", how=True
    )
    workers: int | None = setting(
        None,
        "workers; by default one per GPU, else one per CPU thread group",
        group=WHERE,
        short="by default one per GPU, else per CPU",
        how=True,
        ge=1,
    )
    threads_per_worker: int | None = setting(
        None, "CPU threads of each worker; by default 1 on CPUs, and an equal share of all CPUs beside each GPU", how=True, ge=1
    )
    decode: Literal["worker", "cluster"] = setting(
        "worker", "decode images in the worker's threads, or in CPU-only tasks anywhere on the cluster", how=True
    )
    max_retries: int = setting(3, "retries of a shard after a lost worker or a failed read", toml=True, how=True, ge=0)


SECTIONS: Final[dict[str, type[Settings]]] = {
    "data": ReadSettings,
    "model": ModelSettings,
    "embed": EmbedSettings,
    "signals": SignalSettings,
    "split": SplitSettings,
    "executor": ExecutorSettings,
    "train": TrainSettings,
}


class RunConfig(Settings):
    """The settings of one command; its sections are the tables of the TOML file."""

    profile: str | None = setting(None, f"named settings to start from: {', '.join(PROFILES)}", group=SAFE)
    data: ReadSettings = ReadSettings()
    model: ModelSettings = ModelSettings()
    embed: EmbedSettings = EmbedSettings()
    signals: SignalSettings = SignalSettings()
    split: SplitSettings = SplitSettings()
    executor: ExecutorSettings = ExecutorSettings()
    train: TrainSettings = TrainSettings()


@dataclass(frozen=True)
class Entry:
    """One setting.

    Attributes:
        name: Of the field, the TOML key and, with dashes, the flag; no two settings share one.
        section: Its group of settings.
        table: Of the TOML file.
        field: As it was declared.
        group: Of the short help; None where only `--help-all` shows it.
        short: What the short help says.
        toml: Whether it is no flag.
        how: Whether it says how work is done, not what comes of it.
        when: Modes in which it has an effect; none: in all.
    """

    name: str
    section: str
    table: str
    field: FieldInfo
    group: str | None
    short: str
    toml: bool
    how: bool
    when: list[When]

    @property
    def flag(self) -> str:
        """Its flag, e.g. `--keep-share`."""
        return "--" + self.name.replace("_", "-")


def _entries() -> Iterator[Entry]:
    for section, settings in SECTIONS.items():
        for name, field in settings.model_fields.items():
            extra: Any = field.json_schema_extra
            table = extra["table"] or section
            yield Entry(name, section, table, field, extra["group"], extra["short"], extra["toml"], extra["how"], extra["when"])


CATALOGUE: Final[dict[str, Entry]] = {entry.name: entry for entry in _entries()}
TABLES: Final = tuple(dict.fromkeys(entry.table for entry in CATALOGUE.values()))

_SIGNALS, _SPLIT = ("signals", "signals.near", "signals.reference"), tuple(t for t in TABLES if t.partition(".")[0] == "split")
_SCORED = ("model", "embed", *_SIGNALS, *_SPLIT, "executor")
# The tables whose settings each command takes as flags; others may stand in its TOML file, for other commands.
COMMANDS: Final[dict[str, tuple[str, ...]]] = {
    "clean": ("data", *_SCORED),
    "plan": ("data", *_SCORED),
    "embed": ("data", "model", "embed", "executor"),
    "add": (*_SIGNALS, *_SPLIT, "executor"),
    "split": (*_SIGNALS, *_SPLIT, "executor"),
    "rescore": (*_SCORED, "growth"),
    "watch": (*_SIGNALS, *_SPLIT, "growth", "executor"),
    "run": ("data", *_SCORED, "growth", "train", "scout"),
    "train": ("executor", "train", "scout"),
    "repeats": ("data", "executor"),
    "export": ("executor",),
}


def values_of(config: RunConfig) -> dict[str, Any]:
    """Return every setting by name, and the number of passes of the warm-up, which follows from several."""
    found = {name: getattr(getattr(config, entry.section), name) for name, entry in CATALOGUE.items()}
    return {**found, "num_warmup_passes": config.train.num_warmup_passes}
