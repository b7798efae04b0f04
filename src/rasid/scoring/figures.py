"""Pictures of an evaluation, as PNG."""

import io
from collections.abc import Mapping
from typing import Any

import numpy as np

from rasid.errors import ConfigError
from rasid.scoring.metrics import Confusion
from rasid.scoring.reliability import BINS, Reliability

_COLOURS = ("#2b74c9", "#d98200", "#7a48c4")


def render_confusion(matrix: Confusion) -> bytes:
    """Draw the confusion matrix as a PNG.

    A cell gives the entities with the same span and, after a plus, those that overlap with other boundaries. The colour
    is the share of the first in the whole row.

    Raises:
        ConfigError: if matplotlib is not installed.
    """
    totals = (matrix.exact + matrix.overlapping).sum(axis=1, keepdims=True)  # [T + 1, 1]
    shares = matrix.exact / np.maximum(totals, 1)
    size = len(matrix.types) + 1
    figure = _figure(3 + 1.1 * size, 2 + 0.75 * size)
    axes = figure.add_subplot()
    image = axes.imshow(shares, cmap="Blues", vmin=0, vmax=1, aspect="auto")
    for row, column in np.ndindex(size, size):
        exact, overlapping = int(matrix.exact[row, column]), int(matrix.overlapping[row, column])
        if exact or overlapping:
            text = f"{exact}\n+{overlapping}" if overlapping else f"{exact}"
            colour = "white" if shares[row, column] > 0.5 else "black"
            axes.text(column, row, text, ha="center", va="center", color=colour, fontsize=10)
    rows = [f"{name} ({total})" for name, total in zip((*matrix.types, "spurious"), totals[:, 0], strict=True)]
    axes.set_xticks(range(size), (*matrix.types, "missed"), rotation=35, ha="right", rotation_mode="anchor")
    axes.set_yticks(range(size), rows)
    axes.set_xticks(np.arange(size - 1) + 0.5, minor=True)
    axes.set_yticks(np.arange(size - 1) + 0.5, minor=True)
    axes.grid(which="minor", color="white", linewidth=2)
    axes.tick_params(which="both", length=0)
    axes.set_xlabel("predicted")
    axes.set_ylabel("gold (entities)")
    axes.set_title("Entity types: same span, + overlapping span", fontsize=11)
    figure.colorbar(image, ax=axes, label="same span, share of the row", fraction=0.04)
    return _png(figure)


def render_reliability(curves: Mapping[str, Reliability]) -> bytes:
    """Draw the share right of each bin over its mean score, and below how many items each bin holds, as a PNG.

    On the dashed diagonal a score is the probability of being right; below it the model is too sure of itself.

    Args:
        curves: Name of the items, in the plural, and their reliability; those without any item have no curve.

    Raises:
        ConfigError: if matplotlib is not installed.
    """
    figure = _figure(7, 7)
    above, below = figure.subplots(2, 1, sharex=True, height_ratios=(3, 1))
    above.plot((0, 1), (0, 1), color="grey", linestyle="--", linewidth=1, label="as often as it says")
    width = 0.9 / BINS / max(len(curves), 1)
    for i, ((name, curve), colour) in enumerate(zip(curves.items(), _COLOURS, strict=False)):
        filled = [b for b in curve.bins if b.count]
        label = f"{name} ({len(curve.scores):,})"
        above.plot([b.mean_score for b in filled], [b.share_right for b in filled], "o-", color=colour, label=label)
        middles = [(b.start + b.end) / 2 + (i - (len(curves) - 1) / 2) * width for b in filled]
        bars = below.bar(middles, [b.count for b in filled], width, color=colour)
        below.bar_label(bars, [f"{b.count:,}" for b in filled], rotation=90, padding=3, fontsize=8)
    above.set(xlim=(0, 1), ylim=(0, 1.02), ylabel="share right", title="Reliability: how often a score is right")
    above.legend(loc="best")
    above.grid(color="#dddddd")
    below.set(xlabel="score", ylabel="how many", xticks=np.linspace(0, 1, BINS + 1))
    below.margins(y=0.45)
    return _png(figure)


def _figure(width: float, height: float) -> Any:
    """An empty figure, in inches."""
    try:
        import matplotlib.backends.backend_agg
        import matplotlib.figure
    except ImportError as error:
        raise ConfigError("drawing a report needs matplotlib: pip install 'rasid[train]'") from error
    figure = matplotlib.figure.Figure(figsize=(width, height), dpi=120, layout="constrained")
    matplotlib.backends.backend_agg.FigureCanvasAgg(figure)  # no pyplot: it would keep global state and pick a screen
    return figure


def _png(figure: Any) -> bytes:
    out = io.BytesIO()
    figure.savefig(out, format="png", metadata={"Software": None})
    return out.getvalue()
