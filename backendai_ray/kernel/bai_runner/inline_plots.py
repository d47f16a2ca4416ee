"""Shows matplotlib's figures as images in the output: on ``show()`` and at the end of a run."""

from __future__ import annotations

import sys

MYPY = False
if MYPY:
    from collections.abc import Callable
    from typing import Any

    ShowMedia = Callable[[str, str], None]

BACKEND = "bai_inline_plots"


def use(matplotlib: Any, show_media: ShowMedia) -> None:
    """Make this matplotlib draw into memory and hand its figures over."""
    sys.meta_path.insert(0, _BackendFinder(show_media))
    matplotlib.rcParams["backend"] = "module://" + BACKEND


def show_figures(show_media: ShowMedia) -> None:
    """Send every open figure as a PNG and close it."""
    pyplot: Any = sys.modules.get("matplotlib.pyplot")
    if pyplot is None or not pyplot.get_backend().endswith(BACKEND):
        return
    from binascii import b2a_base64
    from io import BytesIO

    for number in pyplot.get_fignums():
        figure = pyplot.figure(number)
        image = BytesIO()
        if figure.get_axes() or getattr(figure, "lines", None) or getattr(figure, "texts", None):
            figure.savefig(image, format="png", bbox_inches="tight")
            show_media("image/png", b2a_base64(image.getvalue(), newline=False).decode("ascii"))
        pyplot.close(figure)


class _BackendFinder:
    """Makes the backend's module when matplotlib asks for it, so that it needs no place on anyone's path."""

    def __init__(self, show_media: ShowMedia) -> None:
        self._show_media = show_media

    def find_spec(self, name: str, path: Any = None, target: Any = None) -> Any:
        if name != BACKEND:
            return None
        from importlib.machinery import ModuleSpec

        return ModuleSpec(name, self)  # type: ignore[arg-type]

    def create_module(self, spec: Any) -> Any:
        return None

    def exec_module(self, module: Any) -> None:
        from matplotlib.backends.backend_agg import FigureCanvasAgg, FigureManagerBase

        def show(*_: Any, **__: Any) -> None:
            show_figures(self._show_media)

        class Manager(FigureManagerBase):  # type: ignore[misc]
            @classmethod
            def pyplot_show(cls, *_: Any, **__: Any) -> None:
                show()

        class Canvas(FigureCanvasAgg):  # type: ignore[misc]
            manager_class = Manager

        module.FigureCanvas = Canvas
        module.FigureManager = Manager
        module.show = show
