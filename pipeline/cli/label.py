"""Commands that score and label pairs."""

import functools
import shlex
from typing import TYPE_CHECKING, Any

import click

from manifests.store import open_store
from pipeline.cli.flags import DROP_MISSING, JSON, OTHER, OUT, RESTART, Command, option, say, settings_of
from pipeline.config.catalogue import COMMANDS as TAKES
from pipeline.config.catalogue import RunConfig
from pipeline.config.load import inherit, load_config
from pipeline.config.profiles import PROFILES
from pipeline.queries.following import after_plan, after_seal
from stages.settings import DATA, WEIGHTS

if TYPE_CHECKING:
    from manifests.reading import Manifest


def _config_of(run: str, config_path: str | None, flags: dict[str, Any], command: str, **new: Any) -> RunConfig:
    """Return the settings of a later command: the run's own, with what is said now."""
    from pipeline.steps.plan import read_run

    base = inherit(read_run(open_store(run)).config, {**flags, **new})
    return load_config(config_path, flags, base, command=command)


def _say_round(manifest: "Manifest", *, as_json: bool, verbose: bool) -> None:
    from pipeline.queries import summary

    following = after_seal(manifest.run.uri, manifest.number)
    say(summary.facts_of(manifest), summary.of_round(manifest, verbose=verbose), as_json=as_json, following=following)


@click.command(cls=Command, example="pairsan clean crawl/ --model ViT-B-32 --checkpoint epoch_32.pt --out RUN")
@click.argument("data", nargs=-1, required=True)
@OUT
@RESTART
@DROP_MISSING
@settings_of("clean")
@JSON
@click.pass_obj
def clean(
    verbose: bool,
    /,
    data: tuple[str, ...],
    out: str,
    restart: bool,
    drop_missing: bool,
    as_json: bool,
    config_path: str | None,
    **flags: Any,
) -> None:
    """Score, split and seal DATA: folders, files or globs of tars and tables."""
    from pipeline import rounds

    manifest = rounds.clean(
        data, out, load_config(config_path, flags), restart=restart, drop_missing=drop_missing, verbose=verbose
    )
    _say_round(manifest, as_json=as_json, verbose=verbose)


@click.command(cls=Command, example="pairsan plan crawl/ --model ViT-B-32 --checkpoint epoch_32.pt --workers 64")
@click.argument("data", nargs=-1, required=True)
@settings_of("plan")
@JSON
def plan(data: tuple[str, ...], as_json: bool, config_path: str | None, **flags: Any) -> None:
    """Say what `clean` would do with DATA: rows, formats, broken share, hours, disk. Writes nothing."""
    from pipeline import estimate

    found = estimate.of_data(data, load_config(config_path, flags, command="plan"))
    following = after_plan(click.get_current_context().meta["given"], has_weights=found["model"] is not None)
    say(found, estimate.as_text(found), as_json=as_json, following=following)


@click.command(cls=Command)
@click.argument("data", nargs=-1, required=True)
@OUT
@RESTART
@DROP_MISSING
@settings_of("embed")
@JSON
@click.pass_obj
def embed(
    verbose: bool,
    /,
    data: tuple[str, ...],
    out: str,
    restart: bool,
    drop_missing: bool,
    as_json: bool,
    config_path: str | None,
    **flags: Any,
) -> None:
    """Score DATA and stop there; `pairsan split` makes sealed rounds of the scores."""
    from pipeline import rounds

    config = load_config(config_path, flags, command="embed")
    round_ = rounds.embed(data, out, config, restart=restart, drop_missing=drop_missing, verbose=verbose)
    told = {"round": round_.number, "shards": len(round_.shards)}
    text = f"scored {len(round_.shards)} shards into round {round_.number} of {out}"
    say(told, text, as_json=as_json, following=[f"pairsan split {shlex.quote(out)}"])


@click.command(cls=Command, example="pairsan add RUN /data/crawl-2025 --name crawl-2025")
@click.argument("run")
@click.argument("data", nargs=-1, required=True)
@option(
    "--name", group=DATA, metavar="NAME", help="Of the source: its shards are called NAME/...; by default that of its folder."
)
@settings_of("add")
@JSON
@click.pass_obj
def add(
    verbose: bool, /, run: str, data: tuple[str, ...], name: str | None, as_json: bool, config_path: str | None, **flags: Any
) -> None:
    """Score a further source of pairs, DATA, and seal a round of RUN over all that it has."""
    from pipeline import rounds

    config = _config_of(run, config_path, flags, "add")
    manifest = rounds.add(run, data, name, config, verbose=verbose)
    _say_round(manifest, as_json=as_json, verbose=verbose)


@click.command(cls=Command, example="pairsan split RUN --keep-share 0.7")
@click.argument("run")
@option("--scores-round", type=int, help="Round whose scores are split; the newest complete ones by default.")
@settings_of("split")
@JSON
@click.pass_obj
def split(verbose: bool, /, run: str, scores_round: int | None, as_json: bool, config_path: str | None, **flags: Any) -> None:
    """Make a new sealed round of RUN from scores it already has, with other settings of the split."""
    from pipeline import rounds

    config = _config_of(run, config_path, flags, "split")
    manifest = rounds.split(run, config, scores_round=scores_round, verbose=verbose)
    _say_round(manifest, as_json=as_json, verbose=verbose)


@click.command(cls=Command, example="pairsan rescore RUN --checkpoint logs/epoch_3.pt --growth 0.01")
@click.argument("run")
@option(
    "--trained-on",
    type=click.IntRange(min=1),
    metavar="ROUND",
    help="Round that the weights trained on, by rule look-again; the newest sealed one by default.",
)
@settings_of("rescore")
@JSON
@click.pass_obj
def rescore(verbose: bool, /, run: str, trained_on: int | None, as_json: bool, config_path: str | None, **flags: Any) -> None:
    """Make a new sealed round of RUN with other weights, e.g. --checkpoint epoch_3.pt; the round they have already, if any."""
    from pipeline import rounds

    config = _config_of(run, config_path, flags, "rescore")
    manifest = rounds.rescore(run, config, trained_on=trained_on, verbose=verbose)
    _say_round(manifest, as_json=as_json, verbose=verbose)


@click.command(cls=Command, example="pairsan watch RUN --checkpoints 'logs/*/epoch_*.pt' --growth 0.01")
@click.argument("run")
@option("--checkpoints", required=True, metavar="GLOB", group=WEIGHTS, help="Checkpoint files, e.g. 'logs/*/epoch_*.pt'.")
@option("--every", default=60.0, show_default=True, type=click.FloatRange(min=0.1), help="Seconds between two looks.")
@option("--settle", default=2.0, show_default=True, type=click.FloatRange(min=0), help="Leave files younger than this.")
@option("--once", is_flag=True, help="Look once and end.")
@option("--keep-last", type=click.IntRange(min=0), help="Delete embeddings of all but the newest so many rounds.")
@option("--on-sealed", metavar="CMD", help="Call CMD with the path of each newly sealed round; no shell.")
@settings_of("watch")
@click.pass_obj
def watch(
    verbose: bool, /, run: str, checkpoints: str, every: float, settle: float, once: bool, config_path: str | None, **flags: Any
) -> None:
    """Re-score RUN with every new, completely written checkpoint, in order. One watcher per run; safe to kill and restart."""
    from pipeline import rounds, watching

    keep_last, on_sealed = flags.pop("keep_last"), flags.pop("on_sealed")
    config = _config_of(run, config_path, flags, "watch", checkpoint="new")
    rescore_with = functools.partial(rounds.rescore, verbose=verbose)
    task = watching.Watch(run, checkpoints, config, rescore_with, every, settle, keep_last, on_sealed)
    with watching.lock(run):
        if once:
            click.echo(f"{task.once()} new checkpoints\n{task.waits_for()}")
        else:
            task.forever()


@click.command(cls=Command)
@click.argument("data", nargs=-1, required=True)
@option("--out", required=True, metavar="DIR", group=DATA, help="Folder or URI for the hashes and the list of repeats.")
@option("--more-than", default=2, show_default=True, type=click.IntRange(1), help="Rows that may show the same image.")
@option("--captions-more-than", default=50, show_default=True, type=click.IntRange(1), help="Rows that may have one wording.")
@settings_of("repeats")
@JSON
@click.pass_obj
def repeats(verbose: bool, /, data: tuple[str, ...], out: str, as_json: bool, config_path: str | None, **flags: Any) -> None:
    """List images that many pairs of DATA show, and captions of nearly one wording: by hashes, one pass, no model."""
    from pipeline import repeats as verb

    most = {name: flags.pop(name) for name in ("more_than", "captions_more_than")}
    found = verb.find_repeats(data, out, load_config(config_path, flags, command="repeats"), **most, verbose=verbose)
    say(found, verb.as_text(found), as_json=as_json)


@click.command(cls=Command, example="pairsan config --profile thorough > pairsan.toml")
@option("--profile", type=click.Choice(list(PROFILES)), group=OTHER, help="Named settings to start from.")
@option(
    "--for",
    "command",
    type=click.Choice(list(TAKES)),
    default="run",
    show_default=True,
    help="Command whose tables are wanted.",
)
@option("--markdown", is_flag=True, help="The settings page of the docs instead.")
def config(profile: str | None, command: str, markdown: bool) -> None:
    """Print a settings file: what a profile sets, and every other setting with its default, commented out."""
    from pipeline.config.document import as_markdown, as_toml
    from pipeline.config.load import profiled

    click.echo(as_markdown() if markdown else as_toml(profiled(profile), TAKES[command]), nl=markdown is False)


COMMANDS = (clean, add, plan, repeats, embed, split, rescore, watch, config)
