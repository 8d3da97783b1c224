"""Tables and plots of a grid, as one HTML file without network and as Markdown."""

import base64
import html
import io
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import matplotlib as mpl
import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
from sklearn.metrics import roc_curve

from benchmarks.common import ROOT, machine

mpl.use("Agg")
COUNTS_FROM = 0.8  # undefended success below which a cell says nothing
_STYLE = "body{font:15px/1.5 system-ui,sans-serif;max-width:70em;margin:2em auto;padding:0 1em}table{border-collapse:collapse}"
_STYLE += (
    "td,th{padding:.25em .7em;border-bottom:1px solid #ddd;text-align:right}td:first-child,th:first-child{text-align:left}"
)
_STYLE += "img{max-width:100%}"


def write_report(out: Path, lines: pd.DataFrame, setting: dict[str, Any], seconds: float) -> None:
    """Write report.md and report.html."""
    parts: list[tuple[str, pd.DataFrame | str | list[str]]] = [("Evidence", _heading(setting, seconds))]
    model = lines[lines["kind"] == "model"]
    parts += [("What the trained models do", success_table(model)), ("", accuracy_table(model))]
    rounds = lines[lines["kind"] == "round"]
    if len(rounds):
        parts += [("What gets into the safe rows", leak_table(rounds)), ("", [leak_plot(rounds)])]
    for name in ("first", "last"):
        if found := sorted(out.glob(f"seed-*/*/{name}.parquet")):
            parts.append((f"Cosines in the {name} round", [cosine_plot(found)]))
    detectors = lines[lines["kind"] == "detector"]
    if len(detectors):
        for metric, budget in (("AUROC", None), ("recall at", 0.1)):
            name = metric if budget is None else f"Recall at a {budget:.0%} flag budget"
            parts.append((f"Detectors: {name}", detector_table(detectors, lines[lines["kind"] == "ranking"], metric, budget)))
    parts.append(("Cost", cost_table(lines[lines["kind"] == "cost"])))
    (out / "report.md").write_text("\n\n".join(_markdown(title, part) for title, part in parts if len(part)) + "\n")
    body = "\n".join(_html(title, part) for title, part in parts if len(part))
    page = (
        f"<!doctype html><html lang=en><meta charset=utf-8><title>pairsan evidence</title><style>{_STYLE}</style>{body}</html>"
    )
    (out / "report.html").write_text(page)


def _heading(setting: dict[str, Any], seconds: float) -> str:
    commit = subprocess.run(["git", "rev-parse", "--short", "HEAD"], cwd=ROOT, capture_output=True, text=True, check=False)
    told = ", ".join(f"{key} {value}" for key, value in setting.items() if key not in ("train", "attacks"))
    return (
        f"`python -m benchmarks.evidence {' '.join(sys.argv[1:])}`; {os.cpu_count()} cores, {machine()}; commit "
        f"{commit.stdout.strip()}; this call took {seconds:.0f} s. Setting: {told}; training {setting['train']}; attacks "
        f"{'; '.join(setting['attacks'])}."
    )


def _spread(values: pd.Series) -> str:  # type: ignore[type-arg]
    low, high = values.min(), values.max()
    return f"{values.mean():.1%}" if len(values) == 1 else f"{values.mean():.1%} ({low:.1%} - {high:.1%})"


def success_table(model: pd.DataFrame) -> pd.DataFrame:
    """Return attack success by arm: mean and range over seeds; in brackets where the undefended model stays below 80 %."""
    asr = model[model["metric"] == "asr"]
    table = asr.pivot_table(index="arm", columns="attack", values="share", aggfunc=_spread, sort=False)
    base = asr[asr["arm"] == "none"].groupby("attack")["share"].mean()
    weak = [attack for attack in table.columns if base.get(attack, 0.0) < COUNTS_FROM]
    pooled = asr.groupby(["arm", "attack"], sort=False)[["hits", "num"]].sum().reset_index()
    for attack in weak:
        table[attack] = [f"[{value}]" for value in table[attack]]
    high = asr.groupby("arm", sort=False)["high"].max()
    table["widest upper 95 % bound"] = [f"{high[arm]:.1%}" for arm in table.index]
    table.index.name = f"attack success; [ ]: undefended below {COUNTS_FROM:.0%}, says nothing"
    return table.reset_index() if len(pooled) else table


def accuracy_table(model: pd.DataFrame) -> pd.DataFrame:
    """Return accuracies by arm, and top-5 relative to no filter of the same seed."""
    plain = model[model["attack"].fillna("") == ""]
    table = plain.pivot_table(index="arm", columns="metric", values="share", aggfunc=_spread, sort=False)
    top = plain[plain["metric"] == "top-5"].set_index(["seed", "arm"])["share"]
    base = top.xs("none", level="arm") if "none" in top.index.get_level_values("arm") else top[:0]
    for arm in table.index:
        mine = top.xs(arm, level="arm")
        shared = mine.index.intersection(base.index)
        table.loc[arm, "top-5 / none"] = f"{(mine[shared] / base[shared]).mean():.2f}" if len(shared) else ""
    table.index.name = "accuracy on the held-out vendor"
    return table.reset_index()


def leak_table(rounds: pd.DataFrame) -> pd.DataFrame:
    """Return, by arm, what was safe in the first and in the last round, and ever."""
    found = []
    for (arm, seed), cell in rounds.groupby(["arm", "seed"], sort=False):
        numbers = cell["round"].dropna()
        for when, number in (("first", numbers.min()), ("last", numbers.max())):
            mine = cell[cell["round"] == number]
            line = {"arm": f"{arm}, seed {seed}, {when} round"}
            for metric in ("safe share", "clean kept", "hard kept", "rare kept"):
                values = mine[mine["metric"] == metric]["share"]
                line[metric] = f"{values.iloc[0]:.1%}" if len(values) else ""
            for metric, prefix in (("inside safe", ""), ("ever inside safe", "ever ")):
                for _, leak in mine[mine["metric"] == metric].iterrows():
                    line[f"{prefix}{leak['attack']}"] = f"{leak['hits']:.0f} / {leak['num']:.0f}"
            found.append(line)
    return pd.DataFrame(found).fillna("").drop_duplicates()


def detector_table(detectors: pd.DataFrame, ranking: pd.DataFrame, metric: str, budget: float | None) -> pd.DataFrame:
    """Return one line per detector and encoder, and per pipeline's cosine in its first round."""
    mine = detectors[detectors["metric"] == metric]
    mine = mine.assign(name=mine["detector"] + ", " + mine["encoder"])
    if len(ranking):
        first = ranking[(ranking["metric"] == metric) & (ranking["round"] == 1)]
        mine = pd.concat([mine, first.assign(name="-cosine of " + first["arm"])])
    if budget is not None:
        mine = mine[mine["budget"] == budget]
    table = mine.pivot_table(index="name", columns="attack", values="share", aggfunc="mean", sort=False)
    return table.map(lambda x: f"{x:.2f}").rename_axis(metric).reset_index()


def cost_table(cost: pd.DataFrame) -> pd.DataFrame:
    """Return seconds per arm, one thread, poisoning and judging apart."""
    seconds = cost.groupby("arm", sort=False)["share"].mean().round().astype(int)
    return seconds.rename("seconds").rename_axis("arm").reset_index()


def leak_plot(rounds: pd.DataFrame) -> str:
    """Draw the share of each attack inside safe over the rounds, a panel per pipeline."""
    mine = rounds[rounds["round"] > 0]
    arms = list(dict.fromkeys(mine["arm"]))
    if not arms:
        return ""
    figure, axes = plt.subplots(1, len(arms), figsize=(5 * len(arms), 3.6), sharey=True, squeeze=False)
    for axis, arm in zip(axes[0], arms, strict=True):
        cell = mine[mine["arm"] == arm]
        for attack, leak in cell[cell["metric"] == "inside safe"].groupby("attack"):
            axis.plot(leak.groupby("round")["share"].mean(), label=attack)
        axis.plot(cell[cell["metric"] == "safe share"].groupby("round")["share"].mean(), "k--", label="safe share (chance)")
        axis.set(title=arm, xlabel="round", ylim=(0, 1))
    axes[0][0].set_ylabel("share inside safe")
    axes[0][0].legend()
    return _picture(figure)


def cosine_plot(paths: list[Path]) -> str:
    """Draw cosines by attack with the cut, and ROC curves, of the first seed's pipelines."""
    paths = [path for path in paths if path.parent.parent.name == paths[0].parent.parent.name]
    figure, axes = plt.subplots(2, len(paths), figsize=(5 * len(paths), 7), squeeze=False)
    for above, below, path in zip(axes[0], axes[1], paths, strict=True):
        rows = pd.read_parquet(path)
        bins = np.linspace(*np.nanquantile(rows["cosine"], (0.0, 1.0)), 60)
        for attack, mine in rows.groupby("attack"):
            above.hist(mine["cosine"], bins, density=True, histtype="step", label=attack or "clean", lw=2 if attack else 1)
            if attack:
                both = rows[rows["attack"].isin([attack, ""])]
                below.plot(*roc_curve(both["attack"] == attack, -both["cosine"])[:2], label=attack)
        above.axvline(rows.loc[rows["label"] == "safe", "cosine"].min(), color="k", ls="--", label="cut")
        above.set(title=f"{path.parent.name}, {path.parent.parent.name}", xlabel="cosine")
        below.plot([0, 1], [0, 1], "k:")
        below.set(xlabel="clean rows flagged", ylabel="poison flagged")
    axes[0][0].legend()
    axes[1][0].legend()
    return _picture(figure)


def _picture(figure: Any) -> str:
    out = io.BytesIO()
    figure.tight_layout()
    figure.savefig(out, format="png", dpi=90)
    plt.close(figure)
    return base64.b64encode(out.getvalue()).decode()


def _markdown(title: str, part: pd.DataFrame | str | list[str]) -> str:
    head = f"## {title}\n\n" if title else ""
    if isinstance(part, list):
        return f"{head}(plot: see report.html)"
    if isinstance(part, str):
        return head + part
    rows = [part.columns.tolist(), ["---"] * len(part.columns), *part.fillna("").astype(str).to_numpy().tolist()]
    return head + "\n".join(f"| {' | '.join(map(str, row))} |" for row in rows)


def _html(title: str, part: pd.DataFrame | str | list[str]) -> str:
    head = f"<h2>{html.escape(title)}</h2>" if title else ""
    if isinstance(part, list):
        return head + "".join(f'<img alt="{html.escape(title)}" src="data:image/png;base64,{data}">' for data in part if data)
    if isinstance(part, str):
        return f"{head}<p>{html.escape(part)}</p>"
    return head + part.fillna("").to_html(index=False, escape=True, border=0)
