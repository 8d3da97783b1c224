"""Commands that overrule: the review page and the verdicts."""

from pathlib import Path

import click

from manifests.reading import open_round
from manifests.reviews import reviewer_name
from manifests.store import open_store
from pipeline.cli.flags import JSON, ROUND, Command, option, say
from pipeline.queries import following


@click.command(cls=Command)
@click.argument("run")
@ROUND
@option("--port", default=0, type=click.IntRange(0, 65535), help="Port on 127.0.0.1; a free one by default.")
@option("--who", metavar="NAME", help="Name that verdicts carry; by default the user's.")
@option("--open", "in_browser", is_flag=True, help="Open the page in a browser here.")
@option("--read-only", is_flag=True, help="Take no verdicts; to show a round to others.")
@option("--sample", type=click.IntRange(1), metavar="N", help="Only N pairs, drawn at random and shown without their labels.")
@option("--checkpoint", metavar="FILE", help="Weights that scored the round, to search by words; by default the run's.")
def review(
    run: str,
    number: int | None,
    port: int,
    who: str | None,
    in_browser: bool,
    read_only: bool,
    sample: int | None,
    checkpoint: str | None,
) -> None:
    """Serve a page on this machine to look through a sealed round of RUN and overrule it; later rounds honour the verdicts."""
    from pipeline.pages import gallery, thumbnails
    from pipeline.pages import review as page
    from pipeline.queries import sampling
    from pipeline.steps import audit

    manifest = open_round(run, number)
    images = thumbnails.Thumbnails.of_round(manifest)
    drawn = None if sample is None else sampling.draw(manifest, sample)
    shown = gallery.Gallery(manifest, checkpoint=checkpoint)
    reviewer = page.Reviewer(shown, images, who or reviewer_name(), read_only=read_only, sample=drawn)
    click.echo(page.where_to_look(reviewer))

    def told(address: str) -> None:
        click.echo(f"open, and Ctrl-C to end:\n{address}")
        if in_browser:
            click.launch(address)

    page.serve(reviewer, port, told=told)
    if drawn is not None:
        click.echo(audit.as_text(audit.estimate(manifest.run, drawn)))
    click.echo(following.as_text(following.after_review(run)).strip())


@click.group()
def reviews() -> None:
    """List, export, import or withdraw the human verdicts on RUN."""


@reviews.command("list", cls=Command)
@click.argument("run")
@option("--all", "every", is_flag=True, help="Every act ever, not only the newest verdict of each pair.")
@JSON
def list_reviews(run: str, every: bool, as_json: bool) -> None:
    """Print the verdicts on RUN."""
    from pipeline.queries import verdicts

    found = verdicts.listed(open_store(run), every=every)
    say(found, verdicts.as_text(found), as_json=as_json)


@reviews.command("export", cls=Command)
@click.argument("run")
@click.argument("file")
def export_reviews(run: str, file: str) -> None:
    """Write the newest verdict of each pair of RUN to FILE, .csv or .parquet."""
    from pipeline.queries import verdicts

    click.echo(f"{verdicts.export(open_store(run), Path(file)):,} verdicts in {file}")


@reviews.command("import", cls=Command)
@click.argument("run")
@click.argument("file")
@option("--who", metavar="NAME", help="Name that the verdicts carry; by default that in FILE, else the user's.")
def import_reviews(run: str, file: str, who: str | None) -> None:
    """Append the verdicts of FILE (.csv or .parquet with uid and verdict, perhaps note and who) to RUN."""
    from pipeline.queries import verdicts

    num = verdicts.import_(open_round(run), Path(file), who)
    click.echo(f"{num:,} verdicts taken up{following.as_text(following.after_review(run))}")


@reviews.command("revoke", cls=Command)
@click.argument("run")
@option("--uid", multiple=True, help="Of a pair, 32 hex digits; may be repeated.")
@option("--who", metavar="NAME", help="All verdicts of this reviewer.")
@option("--verdict", type=click.Choice(["safe", "risky", "drop"]), help="All of this kind.")
def revoke_reviews(run: str, uid: tuple[str, ...], who: str | None, verdict: str | None) -> None:
    """Take verdicts on RUN back; what was said stays on record."""
    from pipeline.queries import verdicts

    num = verdicts.revoke(open_round(run), uids=uid, who=who, verdict=verdict)
    click.echo(f"{num:,} verdicts taken back{following.as_text(following.after_review(run))}")


COMMANDS = (review, reviews)
