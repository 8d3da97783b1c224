"""The plots of a report, by matplotlib, as SVG inside the page: a few kB each, sharp at any size, no script, no network."""

import io
from collections.abc import Callable
from functools import partial
from typing import Any, Final

import numpy as np
from matplotlib import rc_context
from matplotlib.backends.backend_svg import FigureCanvasSVG
from matplotlib.figure import Figure

COLOURS: Final = {"safe": "#1a7f37", "risky": "#c77700", "quarantined": "#7a828c", "taken back": "#0b62d6"}
VOICES: Final = {
    "taken_back": ("taken back", COLOURS["taken back"], 1),
    "put_out": ("put out", COLOURS["risky"], -1),
    "veto": ("vetoed", "#8a1c13", -1),
}
_DOTTED: Final[dict[str, Any]] = {"marker": "o", "markersize": 3, "linewidth": 1.2}
_STEEP: Final = 20
Axes = Any


def cosines(figures: dict[str, Any]) -> str:
    """Draw the histogram of cosines by label, the cut, and what decided: the null, or the mixture where that one ruled."""

    def draw(axes: Axes) -> None:
        bins = figures["histogram"]
        left, width = np.asarray([b["from"] for b in bins]), bins[0]["width"]
        below = np.zeros(len(bins))
        for label in ("safe", "risky"):
            heights = np.asarray([b[label] for b in bins], float)
            axes.bar(
                left, heights, width, bottom=below, align="edge", color=COLOURS[label], alpha=0.75, label=label, linewidth=0
            )
            below += heights
        mixture, total = figures["mixture"] if figures["mixture_ruled"] else None, below.sum()
        if mixture is None and (figures["null"] or {}).get("mismatched_share"):
            _null(axes, figures["null"], total, width)
        if mixture is not None:
            x = np.linspace(left[0], left[-1] + width, 400)
            for weight, mean, std, name in zip(
                mixture["weights"], mixture["means"], mixture["stds"], ("mismatched", "matching"), strict=True
            ):
                density = weight * np.exp(-0.5 * ((x - mean) / std) ** 2) / (std * np.sqrt(2 * np.pi))
                style = "--" if name == "mismatched" else "-"
                axes.plot(x, density * total * width, style, color="#222", linewidth=1.2, label=f"component: {name}")
        if figures["cut"] is not None:
            axes.axvline(figures["cut"], color="#b3261e", linewidth=1.5, label=f"cut {figures['cut']:.4f}")
        if below.max() > _STEEP * np.median(below[below > 0]):  # a few rows apart from the bulk are the point of it all
            axes.set_yscale("symlog", linthresh=10)
        axes.set_xlabel("cosine similarity of image and caption")
        axes.set_ylabel("pairs")
        axes.legend(frameon=False, fontsize=8)

    return _svg(draw, (8.0, 3.2)) if figures["histogram"] else ""


def _null(axes: Axes, null: dict[str, Any], total: float, width: float) -> None:
    """Draw how exchanged pairs score, as many of them as are estimated to be among the pairs."""
    places, counts = np.asarray(null["cosines"]), np.asarray(null["counts"], float)
    edges = np.arange(places.min(), places.max() + 4 * width, 2 * width)  # twice as coarse: the null is a fraction of the rows
    heights = np.histogram(places, edges, weights=counts)[0] / counts.sum() * null["mismatched_share"] * total / 2
    label = f"mismatched, estimated ({null['mismatched_share']:.1%} of all)"
    axes.stairs(heights, edges, color="#222", linewidth=1.2, linestyle="--", label=label)


def over_rounds(figures: dict[str, Any]) -> str:
    """Draw how a run went: safe share, cosines, rows moved by each voice, canaries; empty where there is one round only."""
    lines = figures["rounds"]
    if len(lines) < 2:
        return ""
    panels: list[Callable[[Axes], None]] = [partial(_shares, lines), partial(_spreads, figures["spreads"])]
    panels.append(partial(_moved, lines))
    if any(line["canaries"] for line in lines):
        panels.append(partial(_leaks, lines))

    def draw(axes: Axes) -> None:
        for each, panel in zip(axes, panels, strict=True):
            panel(each)
            each.set_xlabel("round", fontsize=8)
            each.xaxis.get_major_locator().set_params(integer=True)

    return _svg(draw, (8.0, 2.6), len(panels))


def _shares(lines: list[dict[str, Any]], axes: Axes) -> None:
    axes.plot([line["round"] for line in lines], [line["safe_share"] for line in lines], **_DOTTED, color=COLOURS["safe"])
    axes.set_title("safe share of scored rows", fontsize=9)
    axes.set_ylim(0, 1.02)


def _spreads(spreads: list[dict[str, Any]], axes: Axes) -> None:
    """Draw medians, with bands from the 10th to the 90th percentile."""
    for who, colour in ((name, COLOURS[name]) for name in ("safe", "risky", "taken back")):
        mine = [entry for entry in spreads if entry["who"] == who]
        if mine:
            numbers = [entry["round"] for entry in mine]
            low, middle, high = np.asarray([entry["quantiles"] for entry in mine]).T
            axes.fill_between(numbers, low, high, color=colour, alpha=0.15, linewidth=0)
            axes.plot(numbers, middle, **_DOTTED, color=colour, label=who)
    axes.set_title("cosines (10, 50, 90 %)", fontsize=9)
    axes.legend(frameon=False, fontsize=7)


def _moved(lines: list[dict[str, Any]], axes: Axes) -> None:
    """Draw rows moved by each voice, those that leave downwards; of rounds that did not look again all that changed."""
    numbers = np.asarray([line["round"] for line in lines])
    below, above = np.zeros(len(lines)), np.zeros(len(lines))
    for voice, (name, colour, sign) in VOICES.items():
        heights = np.asarray([(line["voices"] or {}).get(voice, 0) for line in lines], float)
        if heights.any():
            base = above if sign > 0 else below
            axes.bar(numbers, sign * heights, bottom=base, color=colour, label=name, width=0.6)
            base += sign * heights
    plain = np.asarray([0 if line["looked"] else line["changed"] or 0 for line in lines], float)
    if plain.any():
        axes.bar(numbers, plain, color=COLOURS["quarantined"], label="changed", width=0.6)
    axes.axhline(0, color="#222", linewidth=0.6)
    axes.set_title("rows that moved", fontsize=9)
    if axes.get_legend_handles_labels()[0]:
        axes.legend(frameon=False, fontsize=7)


def _leaks(lines: list[dict[str, Any]], axes: Axes) -> None:
    """Draw the share of canaries of each kind that would be safe, with 95 % intervals."""
    kinds = dict.fromkeys(kind for line in lines for kind in line["canaries"] or {})
    for place, kind in enumerate(kinds):
        mine = [(line["round"], line["canaries"][kind]) for line in lines if kind in (line["canaries"] or {})]
        shares = np.asarray([found["share"] for _, found in mine])
        spread = np.abs(np.asarray([[found["low"], found["high"]] for _, found in mine]).T - shares)
        where = [number + 0.08 * place for number, _ in mine]  # side by side, as intervals overlap
        axes.errorbar(where, shares, spread, fmt="o-", markersize=3, linewidth=0.9, label=kind)
    axes.set_title("canaries called safe", fontsize=9)
    axes.set_ylim(bottom=0)
    axes.legend(frameon=False, fontsize=6)


def _svg(draw: Callable[[Axes], None], size: tuple[float, float], columns: int = 1) -> str:
    figure = Figure(figsize=size, layout="constrained")
    FigureCanvasSVG(figure)
    axes = figure.subplots(1, columns)
    draw(axes)
    for each in np.atleast_1d(axes):
        each.spines[["top", "right"]].set_visible(False)
        each.tick_params(labelsize=8)
    out = io.StringIO()
    with rc_context({"svg.hashsalt": "pairsan", "svg.fonttype": "none"}):  # equal pages for equal rounds; text stays text
        figure.savefig(out, format="svg", metadata={"Date": None, "Creator": None})
    text = out.getvalue()
    return text[text.index("<svg") :]
