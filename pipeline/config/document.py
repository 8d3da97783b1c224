"""Settings as documents: a TOML file that `--config` takes, and the settings page of the docs."""

import json
import textwrap
from collections.abc import Iterable
from typing import Any

from pipeline.config.catalogue import CATALOGUE, TABLES, Entry, RunConfig, values_of
from pipeline.config.profiles import PROFILES

_WIDTH = 120


def as_toml(config: RunConfig, tables: Iterable[str] = TABLES, *, defaults: bool = True) -> str:
    """Return settings as a TOML file.

    Args:
        config: The settings.
        tables: Those that are wanted.
        defaults: Whether settings that are as by default stand there too, commented out, and every one is explained.
    """
    values, lines = values_of(config), []
    if config.profile is not None:
        lines += [f"# {PROFILES[config.profile].text}", f"profile = {_toml(config.profile)}", ""]
    for table in tables:
        mine = []
        for entry in (entry for entry in CATALOGUE.values() if entry.table == table):
            value, usual = values[entry.name], entry.field.default
            if value == usual and not defaults:
                continue
            if defaults:
                mine += textwrap.wrap(_text(entry), _WIDTH, initial_indent="# ", subsequent_indent="#   ")
            mine.append(f"{entry.name} = {_toml(value)}" if value != usual else f"# {entry.name} = {_toml(usual)}")
        lines += [f"[{table}]", *mine, ""] if mine else []
    return "\n".join(lines)


def as_markdown() -> str:
    """Return the settings page of the docs."""
    lines = [
        "# Settings",
        "",
        "Written by `pairsan config --markdown`. Every setting is a key of a TOML file (`--config FILE.toml`), and a flag with",
        "dashes in place of underscores, but for those marked *TOML only*. Flags win over the file, the file over the profile.",
        "A setting that would have no effect in the chosen mode is refused.",
        "",
        "## Profiles",
        "",
        "`--profile NAME`, or `profile = NAME` at the head of the file; `pairsan config --profile NAME` prints one whole.",
        "",
    ]
    for name, profile in PROFILES.items():
        lines += textwrap.wrap(f"**{name}**: {profile.text}.", _WIDTH, initial_indent="- ", subsequent_indent="  ")
        for section, settings in profile.settings.items():
            said = ", ".join(f"`{key} = {_toml(value)}`" for key, value in settings.items())
            lines += textwrap.wrap(f"[{section}] {said}", _WIDTH, initial_indent="    - ", subsequent_indent="      ")
    for table in TABLES:
        lines += ["", f"## [{table}]", ""]
        for entry in (entry for entry in CATALOGUE.values() if entry.table == table):
            default = "none" if entry.field.default is None else _toml(entry.field.default)
            what = f"**`{entry.name}`** ({'TOML only, ' if entry.toml else ''}default {default}): {_text(entry)}"
            lines += textwrap.wrap(what, _WIDTH, initial_indent="- ", subsequent_indent="  ", break_on_hyphens=False)
    return "\n".join([*lines, ""])


def _text(entry: Entry) -> str:
    """Return what a setting is, and when it acts."""
    text = str(entry.field.description)
    modes = [", ".join(f"{key} {' / '.join(map(str, some)) or 'set'}" for key, some in mode.items()) for mode in entry.when]
    acts = f" Acts with {' or '.join(modes)}." if modes else ""
    return f"{text[0].upper()}{text[1:]}.{acts}"


def _toml(value: Any) -> str:
    """Return a value as TOML writes it; a JSON scalar but for what is not set."""
    return json.dumps("" if value is None else value)
