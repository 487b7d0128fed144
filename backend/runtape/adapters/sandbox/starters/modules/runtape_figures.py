"""Shows figures of matplotlib where there is no screen: `show()` saves each open one as ``out/figure-N.png``.

Named by MPLBACKEND, so it is imported with pyplot and never else; a program that chooses another backend gets that.
Drawing is Agg's.
"""

import os

from matplotlib._pylab_helpers import Gcf  # pyright: ignore[reportMissingImports]
from matplotlib.backend_bases import FigureManagerBase as FigureManager  # pyright: ignore[reportMissingImports]
from matplotlib.backends.backend_agg import FigureCanvasAgg as FigureCanvas  # pyright: ignore[reportMissingImports]

__all__ = ["FigureCanvas", "FigureManager", "show"]

_FOLDER = "/box/out"


def show(*_, block=None, **__):
    """Save every open figure under the next free number, and close it unless the program goes on drawing."""
    os.makedirs(_FOLDER, exist_ok=True)
    for manager in Gcf.get_all_fig_managers():
        manager.canvas.figure.savefig(_next_path(), format="png")
    if block is not False:
        Gcf.destroy_all()


def _next_path():
    number = 1
    while os.path.lexists(f"{_FOLDER}/figure-{number}.png"):
        number += 1
    return f"{_FOLDER}/figure-{number}.png"
