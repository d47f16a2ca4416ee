"""Adapts a module right after user code has imported it, so that nothing is imported for those who do not."""

from __future__ import annotations

import sys

MYPY = False
if MYPY:
    from collections.abc import Callable
    from typing import Any


class ImportHooks:
    """A finder that lets the others find a module and calls back when it has been executed."""

    def __init__(self, hooks: dict[str, Callable[[Any], None]]) -> None:
        self._hooks = hooks
        for name in [name for name in hooks if name in sys.modules]:
            hooks.pop(name)(sys.modules[name])

    def find_spec(self, name: str, path: Any = None, target: Any = None) -> Any:
        if name not in self._hooks:
            return None
        for finder in sys.meta_path:
            if finder is self:
                continue
            spec: Any = finder.find_spec(name, path, target)
            if spec is not None:
                _call_after(spec.loader, self._hooks.pop(name))
                return spec
        return None


def _call_after(loader: Any, callback: Callable[[Any], None]) -> None:
    execute = loader.exec_module

    def exec_module(module: Any) -> None:
        execute(module)
        callback(module)

    try:
        loader.exec_module = exec_module
    except AttributeError:
        pass  # a loader that cannot be wrapped (built in or frozen): the module stays as it is
