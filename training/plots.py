"""The maze as a background of training's plots."""

from collections.abc import Sequence

import numpy as np
from matplotlib.axes import Axes


def draw_maze(ax: Axes, layout: Sequence[str]) -> None:
    """Draw a maze's walls (``#``) from above: row x downwards, column y to the right. Plot paths over it as ``ax.plot(y, x)``."""
    walls = np.array([[cell == "#" for cell in row] for row in layout])
    ax.imshow(walls, cmap="Greys", vmin=0, vmax=1.4, interpolation="nearest", zorder=0)
    ax.set(xticks=[], yticks=[], aspect="equal")
