"""The figure of a comparison: return by episode, both axes linear, own curves with their intervals, published points beside them."""

from collections.abc import Mapping, Sequence
from pathlib import Path

import matplotlib as mpl

mpl.use("Agg")

import numpy as np
from matplotlib import pyplot as plt
from numpy.typing import NDArray

from training.methods.ablations import ABLATIONS
from training.methods.catalogue import METHODS
from training.methods.published import Curve
from training.methods.report import WINDOW, MethodResults
from training.statistics import bootstrap_interval

COLOURS = ("#0072b2", "#d55e00", "#e69f00", "#009e73", "#cc79a7", "#56b4e9", "#7f7f7f", "#000000", "#8c510a")
"""One for each method, told apart by the colour-blind too (Okabe and Ito 2008)."""


def plot_comparison(
    results: Sequence[MethodResults], published: Mapping[str, Curve], file: Path, *, domain: str, full_return: float | None
) -> None:
    """Draw the methods' stochastic returns; five episodes averaged, never across the end of a method's conditioning."""
    colours = dict(zip((method.label for method in METHODS.values()), COLOURS, strict=True))
    shades = mpl.colormaps["turbo"](np.linspace(0.05, 0.95, len(ABLATIONS)))
    colours |= dict(zip((method.label for method in ABLATIONS.values()), shades, strict=True))
    figure, ax = plt.subplots(figsize=(9, 5.4), layout="constrained")
    longest = max(found.episodes for found in results)
    for found in results:
        _draw(ax, found, colours[found.method.label])
    for name, curve in published.items():
        points = [(at, value) for at, value in sorted(curve.items()) if at <= longest]
        if points:
            colour = colours.get(name.removesuffix(" (published)"), "0.5")
            ax.plot(*zip(*points, strict=True), "o:", color=colour, mfc="white", ms=5, lw=0.8, alpha=0.8, label=name)
    ax.set(
        xlabel="episode",
        ylabel="return of the episode, stochastic policy",
        title=f"{domain}: unseen tasks (mean and 95 % interval)",
        xlim=(0, longest + 1),
    )
    ax.set_ylim(0, None if full_return is None else 1.03 * full_return)
    ax.grid(alpha=0.3)
    figure.legend(frameon=False, loc="outside lower center", ncols=3, fontsize=8)
    file.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(file, dpi=130)
    plt.close(figure)


def _draw(ax: plt.Axes, found: MethodResults, colour: str) -> None:
    rng = np.random.default_rng(0)
    k = min(found.conditioning, found.episodes)
    label: str | None = f"{found.method.label} ({found.runs} runs)"
    for begin, part in ((0, found.returns[:, :k]), (k, found.returns[:, k:])):
        if not part.size:
            continue
        smooth = _smooth(part)
        band = np.array([bootstrap_interval(column, rng, 500) for column in smooth.T])
        at = begin + 1 + np.arange(part.shape[1])
        ax.fill_between(at, band[:, 0], band[:, 1], color=colour, alpha=0.13, lw=0)
        ax.plot(at, smooth.mean(0), color=colour, lw=1.8, label=label)
        label = None


def _smooth(returns: NDArray[np.float64]) -> NDArray[np.float64]:
    half = WINDOW // 2
    return np.array([[row[max(0, i - half) : i + half + 1].mean() for i in range(len(row))] for row in returns])
