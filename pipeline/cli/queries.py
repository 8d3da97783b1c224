"""Commands that ask what is there and hand it on."""

import json
import shlex
import sys
from pathlib import Path
from typing import Any

import click

from manifests.reading import open_round
from manifests.store import open_store
from manifests.verify import problems
from pipeline.cli.flags import JSON, ROUND, Command, option, say, settings_of
from pipeline.queries import following


@click.command(cls=Command)
@click.argument("run")
@JSON
@option("--prometheus", metavar="FILE.prom", help="Also write metrics there, for Prometheus' textfile collector.")
def status(run: str, as_json: bool, prometheus: str | None) -> None:
    """Say for every round of RUN what is done, what failed and why."""
    from pipeline.queries import status as status_

    report = status_.of_run(open_store(run))
    if prometheus is not None:
        from pipeline.queries import prometheus as metrics

        metrics.write(report, prometheus)
    say(report, status_.as_text(report), as_json=as_json)


@click.command(cls=Command)
@click.argument("run")
@option("--round", "number", type=int, help="Round to check; the newest sealed one by default.")
@option("--data", is_flag=True, help="Read the data again, too: rows, keys, uids, captions and images against the seal.")
@option("--key", type=click.Path(exists=True, dir_okay=False), help="Public key by whose holder it must be signed.")
@JSON
def verify(run: str, number: int | None, data: bool, key: str | None, as_json: bool) -> None:
    """Check a sealed round of RUN: hashes, counts, schema, order, labels. Reads every part; exit code 1 if one is wrong."""
    manifest = open_round(run, number, public_key=key)
    found = list(problems(manifest))
    if data:
        from pipeline.queries.source_check import data_problems

        found += data_problems(manifest)
    if as_json:
        click.echo(json.dumps({"run": run, "round": manifest.number, "rows": manifest.num_rows, "problems": found}, indent=1))
        sys.exit(1 if found else 0)
    for problem in found:
        click.echo(problem)
    if found:
        click.echo(f"round {manifest.number} of {run}: {len(found)} problems")
        sys.exit(1)
    signed = f", signed by the holder of {key}" if key else ""
    click.echo(
        f"round {manifest.number} of {run}: {len(manifest.shards)} shards, {manifest.num_rows:,} rows, all as sealed{signed}"
    )


@click.command(cls=Command)
@click.argument("run")
@ROUND
@option("--key", required=True, type=click.Path(exists=True, dir_okay=False), help="Private Ed25519 key, PEM or OpenSSH.")
def sign(run: str, number: int | None, key: str) -> None:
    """Sign the seal of a round of RUN, and so all its parts; `verify --key` and open_round(public_key=) then insist on it."""
    from manifests.signing import sign as sign_

    manifest = open_round(run, number)
    name = sign_(manifest.run, manifest.number, Path(key))
    click.echo(f"round {manifest.number} of {run} is signed: {name}")


@click.command(cls=Command)
@click.argument("run")
@ROUND
@option("--label", multiple=True, help="safe, risky or quarantined; may be repeated.")
@option("--reason", multiple=True, help="E.g. below_cut, image_undecodable; may be repeated.")
@option("--cosine", nargs=2, type=float, metavar="LOW HIGH", help="Range of cosine, both ends included.")
@option("--p-safe", nargs=2, type=float, metavar="LOW HIGH", help="Range of p_safe, both ends included.")
@option("--caption", metavar="TEXT", help="Captions that contain TEXT, in any case.")
@option("--shard", metavar="GLOB", help="Shards whose name matches, e.g. 'part-0*'.")
@option("--key", metavar="GLOB", help="Keys that match.")
@option("--sort", default="cosine", show_default=True, help="Column; a leading - sorts downwards.")
@option("--limit", default=20, show_default=True, type=click.IntRange(min=0), help="Rows at most; 0 for all.")
@option("--columns", default="", help="Columns by comma; by default those that fit a terminal, or all.")
@option(
    "--format",
    "form",
    type=click.Choice(["table", "json", "csv", "parquet"]),
    default="table",
    show_default=True,
    help="json is one object a line.",
)
@option("--output", metavar="FILE", help="Write there in place of standard output; needed for parquet.")
def inspect(run: str, number: int | None, form: str, output: str | None, **filters: Any) -> None:
    """Show pairs of a sealed round of RUN: those that are not safe, worst first, unless filters say otherwise."""
    from pipeline.queries import inspection

    query = inspection.Query(**filters)
    inspection.show(open_round(run, number), query, form=form, output=output)


@click.command(cls=Command)
@JSON
def schema(as_json: bool) -> None:
    """Print the columns of a manifest, their types and meanings, and all reasons."""
    from pipeline.queries import summary

    say(summary.schema_document(), summary.schema_text(), as_json=as_json)


@click.command(cls=Command)
@click.argument("run")
@ROUND
@option("--out", default="report.html", show_default=True, metavar="FILE.html", help="Page to write; FILE.json beside it.")
@option("--pairs", default=24, show_default=True, type=click.IntRange(1, 500), help="Pairs shown in each section.")
@option("--no-images", is_flag=True, help="Leave thumbnails out; for data that are no longer there.")
@JSON
def report(run: str, number: int | None, out: str, pairs: int, no_images: bool, as_json: bool) -> None:
    """Write a sealed round of RUN as one page that needs no network, and its figures as JSON."""
    from pipeline.pages import report as report_
    from pipeline.pages.thumbnails import Thumbnails

    manifest = open_round(run, number)
    images = None if no_images else Thumbnails.of_round(manifest)
    page, twin = report_.write(manifest, images, Path(out), num_pairs=pairs)
    told = {"report": str(page.absolute()), "json": str(twin.absolute())}
    text = f"report: {told['report']}\nfigures: {told['json']}"
    say(told, text, as_json=as_json, following=[f"pairsan review {shlex.quote(run)}"])


@click.command(cls=Command)
@click.argument("run")
@option("--from", "first", type=int, required=True, help="The earlier round.")
@option("--to", "second", type=int, help="The later round; the newest sealed one by default.")
@option("--other", metavar="RUN", help="Take the later round from another run: of the same data, or of a second crawl.")
@option("--flipped", metavar="FILE", help="Write the rows whose label differs there, as .csv or .parquet.")
@option("--changed", metavar="FILE", help="With --other: write the addresses with another image, or in one run alone.")
@JSON
def diff(
    run: str, first: int, second: int | None, other: str | None, flipped: str | None, changed: str | None, as_json: bool
) -> None:
    """Compare two sealed rounds of RUN, or of two runs: labels, cosines, shards, plans, images."""
    from pipeline.queries import differences

    rounds = open_round(run, first), open_round(other or run, second)
    found = differences.compare(*rounds, *(Path(name) if name else None for name in (flipped, changed)))
    say(found, differences.as_text(found), as_json=as_json)


@click.command(cls=Command)
@settings_of("export")
@click.argument("run")
@ROUND
@option("--out", required=True, metavar="FOLDER", help="Folder or URI; empty, or of an interrupted export.")
@option(
    "--format",
    "form",
    required=True,
    type=click.Choice(["webdataset", "openclip-tsv", "datacomp-npy", "parquet", "hf", "keys", "urls"]),
    help="What the trainer reads.",
)
@option("--label", multiple=True, default=("safe",), show_default=True, help="safe, risky, quarantined or all; repeatable.")
@option("--reason", multiple=True, help="Only rows with this reason, e.g. review; repeatable.")
@option("--rows-per-file", default=10_000, show_default=True, type=click.IntRange(min=1), help="Of a webdataset tar.")
@option("--inject", is_flag=True, help="Add uid, cosine and p_safe to the JSON of every pair of a webdataset.")
@option("--weights", type=click.Choice(["p_safe"]), help="Carry this column along as `weight`.")
@option("--multiplicities", is_flag=True, help="datacomp-npy: keep a uid as often as it occurs.")
@JSON
@click.pass_obj
def export(verbose: bool, /, run: str, number: int | None, out: str, config_path: str | None, **given: Any) -> None:
    """Write chosen pairs of a sealed round of RUN for a trainer: tars, TSV, uids, Parquet, keys. Resumable."""
    from manifests.labels import Label, Reason
    from pipeline import exporting
    from pipeline.config.load import load_config
    from pipeline.queries.inspection import known
    from stages.export.target import Choice

    names = ("form", "label", "reason", "rows_per_file", "inject", "weights", "multiplicities", "as_json")
    own = {name: given.pop(name) for name in names}
    labels = () if "all" in own["label"] else tuple(known(word, list(Label), "label") for word in own["label"])
    choice = Choice(labels, tuple(known(word, list(Reason), "reason") for word in own["reason"]))
    options = exporting.ExportOptions(
        own["form"], choice, own["rows_per_file"], own["inject"], own["weights"], own["multiplicities"]
    )
    config = load_config(config_path, given, command="export")
    done = exporting.export(open_round(run, number), out, options, config.executor, verbose=verbose)
    say(done, exporting.as_text(done, out), as_json=own["as_json"], following=following.after_export(done, out))


@click.command(cls=Command)
@click.argument("run")
@option("--round", "number", type=int, help="Round whose scores are looked at; the newest complete ones by default.")
@option("--leak", default=0.01, show_default=True, type=click.FloatRange(0, 1), help="Share of canaries that may be safe.")
@JSON
def tune(run: str, number: int | None, leak: float, as_json: bool) -> None:
    """Propose a cut for RUN by which at most a share of its canaries would be safe; looks at no truth, needs --canaries."""
    from pipeline import tuning

    found = tuning.tune(run, number, leak)
    say(found, tuning.as_text(found, run), as_json=as_json)


@click.command("open", cls=Command)
@click.argument("run")
@ROUND
@JSON
def open_(run: str, number: int | None, as_json: bool) -> None:
    """Print one-liners that open a sealed round of RUN in DuckDB, pandas, polars, Spotlight and Hugging Face datasets."""
    from pipeline.queries import oneliners

    found = oneliners.of_round(open_round(run, number))
    say(found, "\n\n".join(f"# {name}\n{line}" for name, line in found.items()), as_json=as_json)


@click.command(cls=Command)
@click.argument("shell", type=click.Choice(["bash", "zsh", "fish"]))
def completion(shell: str) -> None:
    """Print the completion script of a shell; e.g. in ~/.bashrc: eval "$(pairsan completion bash)"."""
    from click.shell_completion import get_completion_class

    kind = get_completion_class(shell)
    if kind is not None:
        click.echo(kind(click.get_current_context().find_root().command, {}, "pairsan", "_PAIRSAN_COMPLETE").source())


LOOKS = (inspect, report)
COMMANDS = (export, diff, status, verify, sign, tune, open_, schema, completion)
