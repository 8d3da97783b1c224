"""Commands that train in rounds."""

from typing import Any

import click

from manifests.errors import ConfigError
from manifests.store import open_store
from pipeline.cli.flags import JSON, OUT, Command, option, say, settings_of
from pipeline.config.load import load_config


@click.command(cls=Command, example="pairsan run crawl/ --model ViT-B-32 --rounds 32 --train-workers 8 --out RUN")
@click.argument("data", nargs=-1, required=True)
@OUT
@option("--until-round", type=click.IntRange(min=0), help="Stop after this round; 0 is the warm-up alone.")
@settings_of("run")
@JSON
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
    from pipeline.queries import status
    from pipeline.training import loop, which_round

    config = load_config(config_path, flags, command="run")
    loop.run(data, out, config, until_round=until_round, verbose=verbose)
    store, following = open_store(out), list[str]()
    report = status.of_run(store)
    if until_round is not None and until_round < config.train.rounds:
        following = [which_round.next_command(store, out, config)]
    say(report, status.as_text(report), as_json=as_json, following=following)


@click.command(cls=Command, example="pairsan train RUN --round 1")
@click.argument("run")
@option("--round", "number", type=int, required=True, help="Sealed round to train on.")
@settings_of("train")
@JSON
@click.pass_obj
def train(verbose: bool, /, run: str, number: int, as_json: bool, config_path: str | None, **flags: Any) -> None:
    """Take the training of one round of RUN alone, on a round that is sealed: the trainer as a job of its own. Resumable."""
    from pipeline.steps.plan import read_run
    from pipeline.training import loop, which_round

    store = open_store(run)
    config = load_config(config_path, flags, read_run(store).config, command="train")
    loop.train(run, config, number, verbose=verbose)
    following = which_round.next_command(store, run, config)
    say({"round": number}, f"trained on round {number}", as_json=as_json, following=[following])


@click.command(hidden=True, context_settings={"ignore_unknown_options": True, "allow_extra_args": True})
def warmup() -> None:
    """Say what became of this command; for one release."""
    raise ConfigError("`warmup` is now `pairsan run DATA --out RUN --until-round 0`")


COMMANDS = (run, train, warmup)
