"""All attacks by name, and how the command line spells them: `name:option=value,option=value`."""

import dataclasses
from typing import Any, Final, get_type_hints

from benchmarks.attacks import adaptive, core
from benchmarks.attacks.core import Attack
from manifests.errors import ConfigError

ATTACKS: Final[dict[str, type[Attack]]] = {
    kind.name: kind
    for kind in (
        *(core.Tdpa, core.Patch, core.Blended, core.Sig, core.WaNet, core.Colour, core.CleanLabel),
        *(core.MmPoison, core.TextOnly, core.Word, core.Natural),
        *(adaptive.Matched, adaptive.Composed, adaptive.Flooding, adaptive.Cover, adaptive.Shaping),
        *(adaptive.Optimised, adaptive.Dilution, adaptive.GrowthGaming),
    )
}


def parse_attack(text: str) -> Attack:
    """Return the attack that e.g. `patch:rows=300,place=random` describes.

    Raises:
        ConfigError: The attack or an option is unknown, or a value has another type.
    """
    name, _, rest = text.partition(":")
    if name not in ATTACKS:
        raise ConfigError(f"unknown attack {name!r}; known: {', '.join(ATTACKS)}")
    kind = ATTACKS[name]
    hints, given = get_type_hints(kind), dict[str, Any]()
    fields = {field.name for field in dataclasses.fields(kind)}
    for part in filter(None, rest.split(",")):
        key, _, value = part.partition("=")
        if key not in fields:
            raise ConfigError(f"attack {name} has no option {key!r}; it has {', '.join(sorted(fields))}")
        given[key] = _value(name, key, value, hints[key])
    attack = kind(**given)
    if attack.rows < 1:
        raise ConfigError(f"attack {name}: rows = {attack.rows} plants nothing; give 1 or more")
    return attack


def _value(name: str, key: str, text: str, kind: Any) -> Any:
    try:
        if kind in (int, float, str):
            return kind(text)
    except ValueError:
        raise ConfigError(f"attack {name}: {key} = {text!r} is no {kind.__name__}") from None
    if text not in kind.__args__:
        raise ConfigError(f"attack {name}: {key} = {text!r}; choose from {', '.join(kind.__args__)}")
    return text


def spell(attack: Attack) -> str:
    """Return what `parse_attack` reads."""
    options = ",".join(f"{field.name}={getattr(attack, field.name)}" for field in dataclasses.fields(attack))
    return f"{attack.name}:{options}"
