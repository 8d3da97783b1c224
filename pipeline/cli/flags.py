"""Turn the settings' fields into command line options, so that flags, TOML keys and docs cannot drift apart."""

import types
from collections.abc import Callable
from typing import Any, Literal, TypeVar, get_args, get_origin

import click
from pydantic.fields import FieldInfo

from pipeline.config.load import SECTIONS

Command = TypeVar("Command", bound=Callable[..., Any])


def config_options(*sections: str) -> Callable[[Command], Command]:
    """Return a decorator that adds `--config` and an option for every field of some sections."""

    def decorate(command: Command) -> Command:
        for section in reversed(sections):
            for name, field in reversed(SECTIONS[section].model_fields.items()):
                command = _option(section, name, field)(command)
        return click.option("--config", "config_path", metavar="FILE.toml", help="Settings file; flags win over it.")(command)

    return decorate


def _option(section: str, name: str, field: FieldInfo) -> Callable[[Any], Any]:
    flag = "--" + name.replace("_", "-")
    shown = "" if field.default is None else f" [default: {_shown(field.default)}]"
    text = f"{field.description}.{shown} ([{section}] {name})"
    kind = _click_type(field.annotation)
    if kind is bool:
        return click.option(f"{flag}/--no-{flag[2:]}", name, default=None, help=text)
    return click.option(flag, name, type=kind, default=None, help=text)


def _shown(value: Any) -> str:
    return {True: "on", False: "off"}[value] if isinstance(value, bool) else str(value)


def _click_type(annotation: Any) -> Any:
    """Return the click type of a field; ranges are checked by the settings themselves, with better messages."""
    if get_origin(annotation) in (types.UnionType,) or type(None) in get_args(annotation):
        annotation = next(a for a in get_args(annotation) if a is not type(None))
    if get_origin(annotation) is Literal:
        return click.Choice(get_args(annotation))
    while get_args(annotation):  # Annotated[float, ...]
        annotation = get_args(annotation)[0]
    return annotation
