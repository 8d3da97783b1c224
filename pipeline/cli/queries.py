"""Commands that look at what is there, overrule it and hand it on; the group is in `pipeline.cli.main`."""

import json
import sys
from pathlib import Path
from typing import Any

import click

from manifests.reading import open_round
from manifests.reviews import reviewer_name
from manifests.store import open_store
from manifests.verify import problems
from pipeline.cli.flags import config_options

_ROUND = click.option("--round", "number", type=int, help="Round to look at; the newest sealed one by default.")
_JSON = click.option("--json", "as_json", is_flag=True, help="Machine-readable.")


@click.command()
@click.argument("run")
@_JSON
@click.option("--prometheus", metavar="FILE.prom", help="Also write metrics there, for Prometheus' textfile collector.")
def status(run: str, as_json: bool, prometheus: str | None) -> None:
    """Say for every round of RUN what is done, what failed and why."""
    from pipeline.queries import status as status_

    report = status_.of_run(open_store(run))
    if prometheus is not None:
        from pipeline.queries import prometheus as metrics

        metrics.write(report, prometheus)
    click.echo(json.dumps(report, indent=1) if as_json else status_.as_text(report))


@click.command()
@click.argument("run")
@click.option("--round", "number", type=int, help="Round to check; the newest sealed one by default.")
@_JSON
def verify(run: str, number: int | None, as_json: bool) -> None:
    """Check a sealed round of RUN: hashes, counts, schema, order, labels. Reads every part; exit code 1 if one is wrong."""
    manifest = open_round(run, number)
    found = list(problems(manifest))
    if as_json:
        click.echo(json.dumps({"run": run, "round": manifest.number, "rows": manifest.num_rows, "problems": found}, indent=1))
        sys.exit(1 if found else 0)
    for problem in found:
        click.echo(problem)
    if found:
        click.echo(f"round {manifest.number} of {run}: {len(found)} problems")
        sys.exit(1)
    click.echo(f"round {manifest.number} of {run}: {len(manifest.shards)} shards, {manifest.num_rows:,} rows, all as sealed")


@click.command()
@click.argument("run")
@_ROUND
@click.option("--label", multiple=True, help="safe, risky or quarantined; may be repeated.")
@click.option("--reason", multiple=True, help="E.g. below_cut, image_undecodable; may be repeated.")
@click.option("--cosine", nargs=2, type=float, metavar="LOW HIGH", help="Range of cosine, both ends included.")
@click.option("--p-safe", nargs=2, type=float, metavar="LOW HIGH", help="Range of p_safe, both ends included.")
@click.option("--caption", metavar="TEXT", help="Captions that contain TEXT, in any case.")
@click.option("--shard", metavar="GLOB", help="Shards whose name matches, e.g. 'part-0*'.")
@click.option("--key", metavar="GLOB", help="Keys that match.")
@click.option("--sort", default="cosine", show_default=True, help="Column; a leading - sorts downwards.")
@click.option("--limit", default=20, show_default=True, type=click.IntRange(min=0), help="Rows at most; 0 for all.")
@click.option("--columns", default="", help="Columns by comma; by default those that fit a terminal, or all.")
@click.option(
    "--format",
    "form",
    type=click.Choice(["table", "json", "csv", "parquet"]),
    default="table",
    show_default=True,
    help="json is one object a line.",
)
@click.option("--output", metavar="FILE", help="Write there in place of standard output; needed for parquet.")
def inspect(run: str, number: int | None, form: str, output: str | None, **filters: Any) -> None:
    """Show pairs of a sealed round of RUN: those that are not safe, worst first, unless filters say otherwise."""
    from pipeline.queries import inspection

    query = inspection.Query(**filters)
    inspection.show(open_round(run, number), query, form=form, output=output)


@click.command()
@click.argument("run")
@_ROUND
@click.option("--port", default=0, type=click.IntRange(0, 65535), help="Port on 127.0.0.1; a free one by default.")
@click.option("--who", metavar="NAME", help="Name that verdicts carry; by default the user's.")
def review(run: str, number: int | None, port: int, who: str | None) -> None:
    """Serve a page on this machine to look through a sealed round of RUN and overrule it; later rounds honour the verdicts."""
    from pipeline.pages import gallery, thumbnails
    from pipeline.pages import review as page

    manifest = open_round(run, number)
    images = thumbnails.Thumbnails.of_round(manifest)
    reviewer = page.Reviewer(gallery.Gallery(manifest), images, who or reviewer_name())
    click.echo(page.where_to_look(reviewer))
    page.serve(reviewer, port, told=lambda address: click.echo(f"open {address}   (Ctrl-C ends)"))


@click.command()
@_JSON
def schema(as_json: bool) -> None:
    """Print the columns of a manifest, their types and meanings, and all reasons."""
    from pipeline.queries import summary

    click.echo(json.dumps(summary.schema_document(), indent=1) if as_json else summary.schema_text())


@click.command()
@click.argument("run")
@_ROUND
@click.option(
    "--out", default="report.html", show_default=True, metavar="FILE.html", help="Page to write; FILE.json beside it."
)
@click.option("--pairs", default=24, show_default=True, type=click.IntRange(1, 500), help="Pairs shown in each section.")
@click.option("--no-images", is_flag=True, help="Leave thumbnails out; for data that are no longer there.")
@_JSON
def report(run: str, number: int | None, out: str, pairs: int, no_images: bool, as_json: bool) -> None:
    """Write a sealed round of RUN as one page that needs no network, and its figures as JSON."""
    from pipeline.pages import report as report_
    from pipeline.pages.thumbnails import Thumbnails

    manifest = open_round(run, number)
    images = None if no_images else Thumbnails.of_round(manifest)
    page, twin = report_.write(manifest, images, Path(out), num_pairs=pairs)
    told = {"report": str(page.absolute()), "json": str(twin.absolute())}
    click.echo(json.dumps(told) if as_json else f"report: {told['report']}\nfigures: {told['json']}")


@click.command()
@click.argument("run")
@click.option("--from", "first", type=int, required=True, help="The earlier round.")
@click.option("--to", "second", type=int, help="The later round; the newest sealed one by default.")
@click.option("--other", metavar="RUN", help="Take the later round from another run over the same data.")
@click.option("--flipped", metavar="FILE", help="Write the rows whose label differs there, as .csv or .parquet.")
@_JSON
def diff(run: str, first: int, second: int | None, other: str | None, flipped: str | None, as_json: bool) -> None:
    """Compare two sealed rounds of RUN, or of two runs over the same data: labels, cosines, shards, plans."""
    from pipeline.queries import differences

    rounds = open_round(run, first), open_round(other or run, second)
    found = differences.compare(*rounds, Path(flipped) if flipped else None)
    click.echo(differences.as_json(found) if as_json else differences.as_text(found))


@click.command()
@config_options("executor")
@click.argument("run")
@_ROUND
@click.option("--out", required=True, metavar="FOLDER", help="Folder or URI; empty, or of an interrupted export.")
@click.option(
    "--format",
    "form",
    required=True,
    type=click.Choice(["webdataset", "openclip-tsv", "datacomp-npy", "parquet", "hf", "keys"]),
    help="What the trainer reads.",
)
@click.option(
    "--label", multiple=True, default=("safe",), show_default=True, help="safe, risky, quarantined or all; repeatable."
)
@click.option("--reason", multiple=True, help="Only rows with this reason, e.g. review; repeatable.")
@click.option("--rows-per-file", default=10_000, show_default=True, type=click.IntRange(min=1), help="Of a webdataset tar.")
@click.option("--inject", is_flag=True, help="Add uid, cosine and p_safe to the JSON of every pair of a webdataset.")
@click.option("--weights", type=click.Choice(["p_safe"]), help="Carry this column along as `weight`.")
@click.option("--multiplicities", is_flag=True, help="datacomp-npy: keep a uid as often as it occurs.")
@_JSON
@click.pass_obj
def export(verbose: bool, /, run: str, number: int | None, out: str, config_path: str | None, **given: Any) -> None:
    """Write chosen pairs of a sealed round of RUN for a trainer: tars, TSV, uids, Parquet, keys. Resumable."""
    from manifests.schema import Label, Reason
    from pipeline import exporting
    from pipeline.config.load import load_config
    from pipeline.queries.inspection import known
    from stages.export.write_pairs import Choice

    names = ("form", "label", "reason", "rows_per_file", "inject", "weights", "multiplicities", "as_json")
    own = {name: given.pop(name) for name in names}
    labels = () if "all" in own["label"] else tuple(known(word, list(Label), "label") for word in own["label"])
    choice = Choice(labels, tuple(known(word, list(Reason), "reason") for word in own["reason"]))
    options = exporting.ExportOptions(
        own["form"], choice, own["rows_per_file"], own["inject"], own["weights"], own["multiplicities"]
    )
    config = load_config(config_path, given)
    done = exporting.export(open_round(run, number), out, options, config.executor, verbose=verbose)
    click.echo(exporting.as_json(done) if own["as_json"] else exporting.as_text(done, out))


@click.command()
@click.argument("run")
@click.option("--round", "number", type=int, help="Round whose scores are looked at; the newest complete ones by default.")
@click.option(
    "--leak", default=0.01, show_default=True, type=click.FloatRange(0, 1), help="Share of canaries that may be safe."
)
@_JSON
def tune(run: str, number: int | None, leak: float, as_json: bool) -> None:
    """Propose a cut for RUN by which at most a share of its canaries would be safe; looks at no truth, needs --canaries."""
    from pipeline import tuning

    found = tuning.tune(run, number, leak)
    click.echo(json.dumps(found, indent=1) if as_json else tuning.as_text(found, run))


@click.group()
def reviews() -> None:
    """List, export, import or withdraw the human verdicts on RUN."""


@reviews.command("list")
@click.argument("run")
@click.option("--all", "every", is_flag=True, help="Every act ever, not only the newest verdict of each pair.")
@_JSON
def list_reviews(run: str, every: bool, as_json: bool) -> None:
    """Print the verdicts on RUN."""
    from pipeline.queries import verdicts

    found = verdicts.listed(open_store(run), every=every)
    click.echo(json.dumps(found, indent=1) if as_json else verdicts.as_text(found))


@reviews.command("export")
@click.argument("run")
@click.argument("file")
def export_reviews(run: str, file: str) -> None:
    """Write the newest verdict of each pair of RUN to FILE, .csv or .parquet."""
    from pipeline.queries import verdicts

    click.echo(f"{verdicts.export(open_store(run), Path(file)):,} verdicts in {file}")


@reviews.command("import")
@click.argument("run")
@click.argument("file")
@click.option("--who", metavar="NAME", help="Name that the verdicts carry; by default that in FILE, else the user's.")
def import_reviews(run: str, file: str, who: str | None) -> None:
    """Append the verdicts of FILE (.csv or .parquet with uid and verdict, perhaps note and who) to RUN."""
    from pipeline.queries import verdicts

    click.echo(f"{verdicts.import_(open_round(run), Path(file), who):,} verdicts taken up; `pairsan split {run}` honours them")


@reviews.command("revoke")
@click.argument("run")
@click.option("--uid", multiple=True, help="Of a pair, 32 hex digits; may be repeated.")
@click.option("--who", metavar="NAME", help="All verdicts of this reviewer.")
@click.option("--verdict", type=click.Choice(["safe", "risky", "drop"]), help="All of this kind.")
def revoke_reviews(run: str, uid: tuple[str, ...], who: str | None, verdict: str | None) -> None:
    """Take verdicts on RUN back; what was said stays on record."""
    from pipeline.queries import verdicts

    num = verdicts.revoke(open_round(run), uids=uid, who=who, verdict=verdict)
    click.echo(f"{num:,} verdicts taken back; `pairsan split {run}` labels without them")


@click.command("open")
@click.argument("run")
@_ROUND
@_JSON
def open_(run: str, number: int | None, as_json: bool) -> None:
    """Print one-liners that open a sealed round of RUN in DuckDB, pandas, polars, Spotlight and Hugging Face datasets."""
    from pipeline.queries import oneliners

    found = oneliners.of_round(open_round(run, number))
    click.echo(json.dumps(found, indent=1) if as_json else "\n\n".join(f"# {name}\n{line}" for name, line in found.items()))


@click.command()
@click.argument("shell", type=click.Choice(["bash", "zsh", "fish"]))
def completion(shell: str) -> None:
    """Print the completion script of a shell; e.g. in ~/.bashrc: eval "$(pairsan completion bash)"."""
    from click.shell_completion import get_completion_class

    kind = get_completion_class(shell)
    if kind is not None:
        click.echo(kind(click.get_current_context().find_root().command, {}, "pairsan", "_PAIRSAN_COMPLETE").source())


def add_to(group: click.Group) -> None:
    """Add all commands of this module to the group."""
    for command in (status, verify, inspect, report, diff, review, reviews, export, tune, open_, completion, schema):
        group.add_command(command)
