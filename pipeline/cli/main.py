"""The `pairsan` command: parse, build the settings, make one call, print the answer."""

import functools
import json
import logging
from collections.abc import Callable
from typing import Any

import click

from manifests.errors import PairsanError
from manifests.store import open_store
from pipeline.cli.flags import config_options
from pipeline.config.load import inherit, load_config


class _Group(click.Group):
    """Prints our own errors as one message and ends with their exit code."""

    def invoke(self, ctx: click.Context) -> Any:
        """Run a command."""
        try:
            return super().invoke(ctx)
        except PairsanError as error:
            click.echo(f"pairsan: {type(error).__name__}: {error}", err=True)
            ctx.exit(error.exit_code)
        except KeyboardInterrupt:
            click.echo("pairsan: interrupted; what was finished is kept, the same command goes on from there", err=True)
            ctx.exit(130)


@click.group(cls=_Group, context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 120})
@click.version_option(package_name="pairsan")
@click.option("-v", "--verbose", is_flag=True, help="Show log messages, Ray's too.")
@click.pass_context
def main(ctx: click.Context, verbose: bool) -> None:
    """Label every image-caption pair of a dataset safe or risky.

    Exit codes: 0 done; 1 verify found something; 2 settings; 3 input data; 4 checkpoint; 5 run folder; 6 shards failed;
    7 the split is not believed, the round stays unsealed; 8 training failed; 130 interrupted.
    """
    logging.basicConfig(level=logging.INFO if verbose else logging.WARNING, format="%(levelname)s %(name)s: %(message)s")
    ctx.obj = verbose


def _command(*sections: str) -> Callable[[Callable[..., None]], click.Command]:
    """Declare a command that takes settings; the function gets `config_path` and all flags of its sections by name."""
    return lambda function: main.command()(config_options(*sections)(function))


_JSON = click.option("--json", "as_json", is_flag=True, help="Machine-readable.")
_OUT = click.option("--out", required=True, metavar="RUN", help="Run folder: a path or any URI that pyarrow or fsspec opens.")


@_command("data", "model", "embed", "signals", "split", "executor")
@click.argument("data", nargs=-1, required=True)
@_OUT
@_JSON
@click.pass_obj
def clean(verbose: bool, /, data: tuple[str, ...], out: str, as_json: bool, config_path: str | None, **flags: Any) -> None:
    """Score, split and seal DATA: folders, files, globs or brace patterns of tars, Parquet, TSV or CSV."""
    from pipeline import rounds
    from pipeline.queries import summary

    manifest = rounds.clean(data, out, load_config(config_path, flags), verbose=verbose)
    click.echo(summary.told(manifest, as_json=as_json))


@_command("data", "model", "embed", "executor")
@click.argument("data", nargs=-1, required=True)
@_OUT
@_JSON
@click.pass_obj
def embed(verbose: bool, /, data: tuple[str, ...], out: str, as_json: bool, config_path: str | None, **flags: Any) -> None:
    """Score DATA and stop there; `pairsan split` makes sealed rounds of the scores."""
    from pipeline import rounds

    round_ = rounds.embed(data, out, load_config(config_path, flags), verbose=verbose)
    told = {"round": round_.number, "shards": len(round_.shards), "next": f"pairsan split {out}"}
    text = f"scored {len(round_.shards)} shards into round {round_.number} of {out}; next: {told['next']}"
    click.echo(json.dumps(told) if as_json else text)


@_command("data", "executor")
@click.argument("data", nargs=-1, required=True)
@click.option("--out", required=True, metavar="DIR", help="Folder or URI for the hashes and the list of repeats.")
@click.option("--more-than", default=2, show_default=True, type=click.IntRange(1), help="Rows that may show the same image.")
@click.option(
    "--captions-more-than", default=50, show_default=True, type=click.IntRange(1), help="Rows that may have one wording."
)
@_JSON
@click.pass_obj
def repeats(verbose: bool, /, data: tuple[str, ...], out: str, as_json: bool, **flags: Any) -> None:
    """List images that many pairs of DATA show, and captions of nearly one wording: by hashes, one pass, no model."""
    from pipeline import repeats as repeats_

    most = {name: flags.pop(name) for name in ("more_than", "captions_more_than")}
    found = repeats_.find_repeats(data, out, load_config(flags.pop("config_path"), flags), **most, verbose=verbose)
    click.echo(json.dumps(found, indent=1) if as_json else repeats_.as_text(found))


@_command("signals", "split", "executor")
@click.argument("run")
@click.option("--scores-round", type=int, help="Round whose scores are split; the newest complete ones by default.")
@_JSON
@click.pass_obj
def split(verbose: bool, /, run: str, scores_round: int | None, as_json: bool, config_path: str | None, **flags: Any) -> None:
    """Make a new sealed round of RUN from scores it already has, with other split settings."""
    from pipeline import rounds
    from pipeline.queries import summary
    from pipeline.steps import plan as plans

    config = load_config(config_path, flags, inherit(plans.read_run(open_store(run)).config, flags))
    manifest = rounds.split(run, config, scores_round=scores_round, verbose=verbose)
    click.echo(summary.told(manifest, as_json=as_json))


@_command("model", "embed", "signals", "split", "executor")
@click.argument("run")
@_JSON
@click.pass_obj
def rescore(verbose: bool, /, run: str, as_json: bool, config_path: str | None, **flags: Any) -> None:
    """Make a new sealed round of RUN with other weights, e.g. --checkpoint epoch_3.pt; the round they have already, if any."""
    from pipeline import rounds
    from pipeline.queries import summary
    from pipeline.steps import plan as plans

    config = load_config(config_path, flags, inherit(plans.read_run(open_store(run)).config, flags))
    click.echo(summary.told(rounds.rescore(run, config, verbose=verbose), as_json=as_json))


@_command("data", "model", "embed", "signals", "split", "executor", "train")
@click.argument("data", nargs=-1, required=True)
@_OUT
@click.option("--until-round", type=click.IntRange(min=0), help="Stop after this round; 0 is the warm-up alone.")
@_JSON
@click.pass_obj
def run(
    verbose: bool,
    /,
    data: tuple[str, ...],
    out: str,
    until_round: int | None,
    as_json: bool,
    config_path: str | None,
    **flags: Any,
) -> None:
    """Train CLIP on DATA from random weights by SAFECLIP: warm-up, then rounds of score, split, train. Resumable."""
    from pipeline.queries import status as status_
    from pipeline.training import loop as training

    training.run(data, out, load_config(config_path, flags), until_round=until_round, verbose=verbose)
    report = status_.of_run(open_store(out))
    click.echo(json.dumps(report, indent=1) if as_json else status_.as_text(report))


@_command("data", "model", "embed", "signals", "split", "executor", "train")
@click.argument("data", nargs=-1, required=True)
@_OUT
@_JSON
@click.pass_obj
def warmup(verbose: bool, /, data: tuple[str, ...], out: str, as_json: bool, config_path: str | None, **flags: Any) -> None:
    """Take the warm-up of `pairsan run` alone: unimodal passes, then the first matching. Resumable."""
    from pipeline.training import loop as training

    config = load_config(config_path, flags)
    training.run(data, out, config, until_round=0, verbose=verbose)
    following = training.next_command(open_store(out), out, config)
    click.echo(json.dumps({"next": following}) if as_json else f"warmed up; next: {following}")


@_command("executor", "train")
@click.argument("run")
@click.option("--round", "number", type=int, required=True, help="Sealed round to train on.")
@_JSON
@click.pass_obj
def train(verbose: bool, /, run: str, number: int, as_json: bool, config_path: str | None, **flags: Any) -> None:
    """Take the training of one round of RUN alone, on a round that is sealed: the trainer as a job of its own. Resumable."""
    from pipeline.steps import plan as plans
    from pipeline.training import loop as training

    config = load_config(config_path, flags, plans.read_run(open_store(run)).config)
    training.train(run, config, number, verbose=verbose)
    following = training.next_command(open_store(run), run, config)
    told = f"trained on round {number}; next: {following}"
    click.echo(json.dumps({"round": number, "next": following}) if as_json else told)


@_command("signals", "split", "executor")
@click.argument("run")
@click.option("--checkpoints", required=True, metavar="GLOB", help="Checkpoint files, e.g. 'logs/*/checkpoints/epoch_*.pt'.")
@click.option("--every", default=60.0, show_default=True, type=click.FloatRange(min=0.1), help="Seconds between two looks.")
@click.option("--settle", default=2.0, show_default=True, type=click.FloatRange(min=0), help="Leave files younger than this.")
@click.option("--once", is_flag=True, help="Look once and end.")
@click.option("--keep-last", type=click.IntRange(min=0), help="Delete embeddings of all but the newest so many rounds.")
@click.option("--on-sealed", metavar="CMD", help="Call CMD with the path of each newly sealed round; no shell.")
@click.option("--break-lock", is_flag=True, help="Take over from a watcher that is gone.")
@click.pass_obj
def watch(
    verbose: bool,
    /,
    run: str,
    checkpoints: str,
    every: float,
    settle: float,
    once: bool,
    keep_last: int | None,
    on_sealed: str | None,
    break_lock: bool,
    config_path: str | None,
    **flags: Any,
) -> None:
    """Re-score RUN with every new, completely written checkpoint, in order. One watcher per run; safe to kill and restart."""
    from pipeline import rounds, watching
    from pipeline.steps import plan as plans

    config = load_config(config_path, flags, inherit(plans.read_run(open_store(run)).config, {**flags, "checkpoint": "new"}))
    rescore_with = functools.partial(rounds.rescore, verbose=verbose)
    task = watching.Watch(run, checkpoints, config, rescore_with, every, settle, keep_last, on_sealed)
    with watching.lock(run, break_lock=break_lock):
        if once:
            click.echo(f"{task.once()} new checkpoints")
        else:
            task.forever()


from pipeline.cli import queries  # noqa: E402  # its commands belong to the group above

queries.add_to(main)

if __name__ == "__main__":
    main()
