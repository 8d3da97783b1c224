"""Commands whose flags come from the settings: the few that most people need in `--help`, all of them in `--help-all`.

click's own means, since what is shown is decided in the declaration of each setting, which no add-on reads; the help stays
plain text, which tests compare and any terminal shows; and there is nothing more to install.
"""

import json
import types
from collections.abc import Callable, Iterator, Sequence
from typing import Any, Final, Literal, get_args, get_origin

import click

from manifests.errors import PairsanError
from pipeline.cli.mistakes import explained
from pipeline.config.catalogue import CATALOGUE, COMMANDS, Entry
from pipeline.config.load import RENAMED
from pipeline.config.profiles import PROFILES
from pipeline.queries.following import as_text
from stages.settings import CLOSER, DATA, SAFE, WEIGHTS, WHERE

OTHER: Final = "Other"
_GROUPS: Final = (DATA, WEIGHTS, SAFE, CLOSER, WHERE, OTHER)


class Option(click.Option):
    """An option with a place in the help.

    Attributes:
        group: Of the short help; None where only the long one shows it.
        table: Of the settings file; None for what is no setting.
        short: What the short help says in place of its help.
    """

    def __init__(self, *args: Any, group: str | None = OTHER, table: str | None = None, short: str = "", **kwargs: Any) -> None:
        """Declare the option."""
        super().__init__(*args, **kwargs)
        self.group, self.table, self.short = group, table, short


class Command(click.Command):
    """A command that shows its options by group, required ones first, and knows what became of old ones."""

    def __init__(self, *args: Any, example: str = "", **kwargs: Any) -> None:
        """Declare the command; `example` is shown below its help."""
        super().__init__(*args, **kwargs)
        self.example, self.long = example, False
        if any(isinstance(param, Option) and param.group is None for param in self.params):
            show = click.Option(
                ["--help-all"],
                is_flag=True,
                is_eager=True,
                expose_value=False,
                callback=self._show_all,
                help="Show every option, by table of the settings file.",
            )
            self.params.append(show)

    def _show_all(self, ctx: click.Context, _: click.Parameter, asked: bool) -> None:
        if asked:
            self.long = True
            click.echo(ctx.get_help())
            ctx.exit()

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        """Parse the line; an option that this command does not take is explained."""
        ctx.meta["given"] = list(args)
        try:
            return super().parse_args(ctx, args)
        except click.NoSuchOption as error:
            name = error.option_name.removeprefix("--").removeprefix("no-").replace("-", "_")
            raise click.UsageError(_why_not(name, self.name or "") or error.format_message(), ctx) from None

    def invoke(self, ctx: click.Context) -> Any:
        """Run the command; errors of the machine become one line.

        Raises:
            PlaceError: What was asked of the machine cannot be done.
        """
        try:
            return super().invoke(ctx)
        except (PairsanError, click.ClickException, click.exceptions.Exit, click.Abort):
            raise
        except Exception as error:  # libraries of the network raise many unrelated types
            if (mistake := explained(error, ctx.params)) is None:
                raise
            raise mistake from error

    def format_options(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """Write the options by group or, in the long help, by table of the settings file."""
        options = [param for param in self.params if isinstance(param, click.Option)]
        for title, mine in self._sections(options):
            rows = [_row(option, ctx, short=not self.long) for option in sorted(mine, key=lambda option: not option.required)]
            with formatter.section(title):
                formatter.write_dl([row for row in rows if row is not None])
        rows = [
            _row(option, ctx, short=False)
            for option in [*options, *self.get_help_options(ctx)]
            if not isinstance(option, Option)
        ]
        with formatter.section("Help"):
            formatter.write_dl([row for row in rows if row is not None])
        if self.example:
            with formatter.section("Example"):
                formatter.write_text(self.example)

    def get_help_options(self, ctx: click.Context) -> list[click.Option]:
        """Return click's own `--help`."""
        option = self.get_help_option(ctx)
        return [] if option is None else [option]

    def _sections(self, options: list[click.Option]) -> Iterator[tuple[str, list[click.Option]]]:
        ours = [option for option in options if isinstance(option, Option)]
        names = [f"[{table}]" for table in COMMANDS.get(self.name or "", ())] if self.long else []
        own = [option for option in ours if option.table is None] if self.long else ours
        for group in _GROUPS:
            if mine := [option for option in own if option.group == group]:
                yield group, list(mine)
        for name in names:
            if mine := [option for option in ours if f"[{option.table}]" == name]:
                rare = [entry.name for entry in CATALOGUE.values() if f"[{entry.table}]" == name and entry.toml]
                yield name + (f"  (by --set or --config: {', '.join(rare)})" if rare else ""), list(mine)


def _row(option: click.Option, ctx: click.Context, *, short: bool) -> tuple[str, str] | None:
    row = option.get_help_record(ctx)
    return (row[0], option.short) if row is not None and short and isinstance(option, Option) and option.short else row


def _why_not(name: str, command: str) -> str | None:
    """Return what became of an option, or where it is taken; None where nobody ever knew it."""
    entry = CATALOGUE.get(name)
    if name in RENAMED:
        return f"--{name.replace('_', '-')} is now {RENAMED[name]}"
    if entry is None:
        return None
    if entry.toml and entry.table in COMMANDS.get(command, ()):
        return f"{entry.flag} is no flag: --set {name}=VALUE, or [{entry.table}] {name} = ... in a settings file (--config)"
    takes = [other for other, tables in COMMANDS.items() if entry.table in tables]
    return f"{entry.flag} has no effect here; it belongs to {', '.join(takes)}"


def option(*names: str, **kwargs: Any) -> Callable[[Any], Any]:
    """Declare an option that is no setting."""
    return click.option(*names, cls=Option, **kwargs)


JSON: Final = option("--json", "as_json", is_flag=True, help="machine-readable")
OUT: Final = option(
    "--out",
    required=True,
    metavar="RUN",
    group=DATA,
    help="run folder: a path, or any URI that pyarrow or fsspec opens",
    short="run folder: a path or URI",
)
RESTART: Final = option("--restart", is_flag=True, help="begin anew where no round is sealed")
DROP_MISSING: Final = option("--drop-missing", is_flag=True, help="go on where shards of a sealed round are gone")
ROUND: Final = option("--round", "number", type=int, help="round; the newest sealed one by default")


def settings_of(command: str) -> Callable[[Any], Any]:
    """Return a decorator that adds `--config`, `--profile` and a flag for every setting that a command takes."""
    entries = [entry for entry in CATALOGUE.values() if entry.table in COMMANDS[command] and not entry.toml]
    flags = [_flag(entry) for entry in entries]
    if any(entry.section == "split" for entry in entries):
        text = f"named settings to start from: {', '.join(PROFILES)}; flags and file win over it"
        short = "quick, standard or thorough"
        flags.append(option("--profile", type=click.Choice(list(PROFILES)), metavar="NAME", group=SAFE, help=text, short=short))
    text = "any setting of a settings file by its name, e.g. --set signals_seed=3; repeatable"
    flags.append(
        option("--set", "more", metavar="NAME=VALUE", multiple=True, help=text, short="any other setting, by its name")
    )
    flags.append(
        option(
            "--config",
            "config_path",
            metavar="FILE.toml",
            group=DATA,
            help="settings file; flags win over it (`pairsan config` prints one)",
            short="settings file; flags win over it",
        )
    )

    def decorate(function: Any) -> Any:
        for flag in reversed(flags):
            function = flag(function)
        return function

    return decorate


def _flag(entry: Entry) -> Callable[[Any], Any]:
    default = entry.field.default
    shown = "" if default is None else f" [default: {_shown(default)}]"
    names, kind = [entry.flag, entry.name], _click_type(entry.field.annotation)
    if kind is bool:
        names[0], kind = f"{entry.flag}/--no-{entry.flag[2:]}", None
    text = f"{entry.field.description}{shown}"
    return option(*names, type=kind, default=None, group=entry.group, table=entry.table, short=entry.short, help=text)


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


def say(value: Any, text: str, *, as_json: bool, following: Sequence[str] = ()) -> None:
    """Print an answer, for people, with the commands that come next, or for machines."""
    told = {**value, "next": list(following)} if following else value
    click.echo(json.dumps(told, indent=1) if as_json else text + as_text(following))
