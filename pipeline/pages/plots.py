"""The plots of a report, by matplotlib, as SVG inside the page: a few kB each, sharp at any size, no script, no network."""

import io
from collections.abc import Callable
from typing import Any, Final

import numpy as np
from matplotlib import rc_context
from matplotlib.backends.backend_svg import FigureCanvasSVG
from matplotlib.figure import Figure

COLOURS: Final = {"safe": "#1a7f37", "risky": "#c77700", "quarantined": "#7a828c"}
_STEEP: Final = 20
Axes = Any


def cosines(figures: dict[str, Any]) -> str:
    """Draw the histogram of cosines by label, both components of the mixture, and the cut."""

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
        mixture, total = figures["mixture"], below.sum()
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


def over_rounds(figures: dict[str, Any]) -> str:
    """Draw safe share, separability and changed labels over the rounds; empty where there is one round only."""
    lines = figures["rounds"]
    if len(lines) < 2:
        return ""
    numbers = [line["round"] for line in lines]

    def draw(panels: Axes) -> None:
        wanted = (("safe_share", "safe share"), ("ashman_d", "Ashman's D"), ("changed", "labels changed"))
        for axes, (key, title) in zip(panels, wanted, strict=True):
            values = [np.nan if line[key] is None else line[key] for line in lines]
            axes.plot(numbers, values, "o-", color="#0b62d6", markersize=3, linewidth=1.2)
            axes.set_title(title, fontsize=9)
            axes.set_xlabel("round", fontsize=8)
            axes.set_ylim(bottom=0)

    return _svg(draw, (8.0, 2.2), 3)


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
