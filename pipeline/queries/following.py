"""What to do next, as commands to copy: the last lines of a command."""

import shlex
from collections.abc import Sequence
from typing import Any


def after_plan(given: Sequence[str], *, has_weights: bool) -> list[str]:
    """Return the cleaning that was planned, in the words of the plan."""
    words = [word for word in given if word != "--json"]
    weights = [] if has_weights else ["--model", "NAME", "--checkpoint", "FILE"]
    return [f"pairsan clean {shlex.join([*words, *weights])} --out RUN"]


def after_seal(run: str, number: int) -> list[str]:
    """Return what a sealed round is for: to be looked at, overruled, and handed to a trainer; earlier ones to be compared."""
    name = shlex.quote(run)
    found = [f"pairsan report {name} --out report.html", f"pairsan review {name}"]
    found += [f"pairsan diff {name} --from {number - 1} --to {number}"] if number > 1 else []
    return [*found, f"pairsan export {name} --format webdataset --out safe-pairs"]


def after_report(run: str) -> list[str]:
    """Return what a reader of the report does: looks at pairs, overrules them, takes the safe ones."""
    return [f"pairsan review {shlex.quote(run)}", *after_review(run), after_seal(run, 1)[-1]]


def after_review(run: str) -> list[str]:
    """Return how verdicts come into force."""
    return [f"pairsan split {shlex.quote(run)}"]


def after_export(report: dict[str, Any], out: str) -> list[str]:
    """Return how open_clip's trainer reads what was written; nothing for the formats of other trainers."""
    names, train, root = (
        [file["name"] for file in report["files"]],
        "python -m open_clip_train.main --model NAME",
        out.rstrip("/"),
    )
    if report["format"] == "openclip-tsv":
        return [f"{train} --dataset-type csv --train-data {shlex.quote(f'{root}/{names[0]}')}"]
    if report["format"] != "webdataset" or "://" in out:
        return []
    first, last = (name.removesuffix(".tar") for name in (names[0], names[-1]))
    tars = f"{root}/{first}.tar" if first == last else f"{root}/{{{first}..{last}}}.tar"
    return [f"{train} --dataset-type webdataset --train-num-samples {report['rows']} --train-data {shlex.quote(tars)}"]


def as_text(commands: Sequence[str]) -> str:
    """Return commands for the end of what is printed."""
    return "".join(f"\n{command}" for command in ("next:", *commands)) if commands else ""
