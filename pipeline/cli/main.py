"""The `pairsan` command: its group, its exit codes, and where its commands are."""

import logging
import os
from typing import Any

import click

from manifests.errors import PairsanError
from pipeline.cli import label, queries, review, train


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

    def list_commands(self, ctx: click.Context) -> list[str]:
        """Return the commands in the order in which one meets them."""
        return list(self.commands)


@click.group(cls=_Group, context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100})
@click.version_option(package_name="pairsan")
@click.option("-v", "--verbose", is_flag=True, help="Show log messages, Ray's too.")
@click.pass_context
def main(ctx: click.Context, verbose: bool) -> None:
    """Label every image-caption pair of a dataset safe or risky.

    Exit codes: 0 done; 1 verify found something; 2 settings; 3 input data; 4 checkpoint; 5 run folder; 6 shards failed;
    7 the split is not believed, the round stays unsealed; 8 training failed; 9 a file, port, address or package outside;
    130 interrupted.
    """
    logging.basicConfig(level=logging.INFO if verbose else logging.WARNING, format="%(levelname)s %(name)s: %(message)s")
    logging.getLogger("pairsan").setLevel(logging.DEBUG if verbose else logging.INFO)
    if not verbose:
        os.environ.setdefault("HF_HUB_VERBOSITY", "error")  # its retries; what comes of them is told
    ctx.obj = verbose


for command in (*label.COMMANDS, *queries.LOOKS, *review.COMMANDS, *queries.COMMANDS, *train.COMMANDS):
    main.add_command(command)

if __name__ == "__main__":
    main()
