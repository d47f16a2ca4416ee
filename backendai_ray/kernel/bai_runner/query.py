"""Query mode: Python code in one namespace that lives as long as the runner."""

from __future__ import annotations
import __future__

import _ast
import builtins
import os
import sys

from .import_hooks import ImportHooks

MAX_KEPT_CELLS = 1000
CO_COROUTINE = 0x80
KEYBOARD_INTERRUPT_EXIT_CODE = 130
PLAIN_TYPES = (str, int, float, bool, bytes, list, tuple, dict, set, complex, frozenset, range)

MYPY = False
if MYPY:
    from types import CodeType, TracebackType
    from typing import Any

    from .runner import Runner
    from .runs import Run


class PythonRuntime:
    """Compiles and runs cells in a module that is ``__main__`` to everyone."""

    def __init__(self, runner: Runner) -> None:
        self._runner = runner
        self._package_dir = os.path.dirname(__file__) + os.sep
        self._own_main = sys.modules["__main__"]  # kept: its functions are still running
        module = type(sys)("__main__")
        self.namespace = module.__dict__
        self.namespace["__builtins__"] = builtins
        sys.modules["__main__"] = module
        sys.argv = [""]
        builtins.display = self.display  # type: ignore[attr-defined]
        sys.displayhook = self.echo
        self._top_level_await: int = getattr(_ast, "PyCF_ALLOW_TOP_LEVEL_AWAIT", 0)
        self._future_mask = 0
        for name in __future__.all_feature_names:
            self._future_mask |= getattr(__future__, name).compiler_flag
        self._future_flags = 0
        self._cell_number = 0
        self._cells: dict[str, str] = {}
        self._loop: Any = None
        self._figures: Any = None
        sys.meta_path.insert(
            0,
            ImportHooks(
                {
                    "getpass": self._adapt_getpass,
                    "matplotlib": self._adapt_matplotlib,
                    "linecache": self._adapt_linecache,
                }
            ),
        )

    def execute(self, run: Run) -> int:
        """Run one cell; returns its exit code."""
        call = self._runner.call_user
        self._cell_number += 1
        filename = "<cell %d>" % self._cell_number
        try:
            call(self._run_cell, run.code, filename)
            call(self._end_of_run)
            return 0
        except SystemExit as error:
            return self._exit_code(error)
        except BaseException as error:
            self._runner.sink.guard = 1
            self._show_traceback(error)
            return KEYBOARD_INTERRUPT_EXIT_CODE if isinstance(error, KeyboardInterrupt) else 1

    def _run_cell(self, source: str, filename: str) -> None:
        flags = _ast.PyCF_ONLY_AST | self._top_level_await | self._future_flags
        self._remember_source(filename, source)
        tree: Any = compile(source, filename, "exec", flags, True)
        last = tree.body.pop() if tree.body and isinstance(tree.body[-1], _ast.Expr) else None
        codes = [self._compile(tree, filename, "exec")] if tree.body else []
        if last is not None:
            codes.append(self._compile(_ast.Expression(last.value), filename, "eval"))
        if any(code.co_flags & CO_COROUTINE for code in codes):
            value = self._await(self._run_in_loop(codes))
        else:
            value = None
            for code in codes:
                value = eval(code, self.namespace)
        if last is not None:
            sys.displayhook(value)

    def _compile(self, tree: Any, filename: str, kind: str) -> CodeType:
        code: CodeType = compile(tree, filename, kind, self._top_level_await | self._future_flags, True)
        self._future_flags |= code.co_flags & self._future_mask
        return code

    async def _run_in_loop(self, codes: list[CodeType]) -> Any:
        value = None
        for code in codes:
            value = eval(code, self.namespace)
            if code.co_flags & CO_COROUTINE:
                value = await value
        return value

    def _await(self, coroutine: Any) -> Any:
        import asyncio

        if self._loop is None or self._loop.is_closed():
            self._loop = asyncio.new_event_loop()
            asyncio.set_event_loop(self._loop)
        task = self._loop.create_task(coroutine)
        try:
            return self._loop.run_until_complete(task)
        except KeyboardInterrupt:
            task.cancel()
            try:
                self._loop.run_until_complete(task)
            except BaseException:
                pass  # how the cancelled task ends does not matter: the interrupt is what the user sees
            raise

    # -- showing values ---------------------------------------------------------------------------------------

    def echo(self, value: Any) -> None:
        """``sys.displayhook``: show a cell's last value and keep it as ``_``."""
        if value is None:
            return
        builtins._ = None  # type: ignore[attr-defined]
        if type(value) in PLAIN_TYPES or not self._show_rich(value):
            self._print(repr(value) + "\n")
        builtins._ = value  # type: ignore[attr-defined]

    def display(self, *values: Any) -> None:
        """Show values in their richest form."""
        for value in values:
            if not self._show_rich(value):
                self._print((value if isinstance(value, str) else repr(value)) + "\n")

    def show_media(self, mime: str, content: str) -> None:
        """Append an image or another piece with a type; binary content comes as base64."""
        self._runner.sink.show(mime, content)

    def _show_rich(self, value: Any) -> bool:
        if isinstance(value, type):
            return False
        from .display import rich_form

        form = rich_form(value)
        if form is None:
            return False
        self.show_media(*form)
        return True

    def _print(self, text: str) -> None:
        """Write to what user code made of sys.stdout, or to ours where that does not work."""
        try:
            sys.stdout.write(text)
        except KeyboardInterrupt:
            raise
        except Exception:
            self._runner.own_streams[0].write(text)

    def _end_of_run(self) -> None:
        if self._figures is not None:
            self._figures(self.show_media)
        if "ctypes" in sys.modules:
            # What C code printed through stdio waits in its buffers.
            import ctypes

            ctypes.CDLL(None).fflush(None)

    # -- errors -----------------------------------------------------------------------------------------------

    def _exit_code(self, error: SystemExit) -> int:
        code = error.code
        if code is None:
            return 0
        if isinstance(code, int):
            return code & 0xFF
        self._runner.own_streams[1].write("%s\n" % (code,))
        return 1

    def _show_traceback(self, error: BaseException) -> None:
        stderr = self._runner.own_streams[1]
        try:
            traceback = self._user_frames(error.__traceback__)
            error.__traceback__ = traceback
            if sys.excepthook is not sys.__excepthook__:
                self._runner.call_user(sys.excepthook, type(error), error, traceback)
                return
            import traceback as formatter

            lines = self._runner.call_user(formatter.format_exception, type(error), error, traceback)
            stderr.write("".join(lines))
        except BaseException as failure:
            self._runner.sink.guard = 1
            stderr.write(
                "%s (and its traceback cannot be shown: %s)\n" % (type(error).__name__, type(failure).__name__)
            )

    def _user_frames(self, traceback: TracebackType | None) -> TracebackType | None:
        """Cut the runner's own frames off both ends."""
        while traceback is not None and self._is_ours(traceback):
            traceback = traceback.tb_next
        last = traceback
        while last is not None and last.tb_next is not None:
            if self._is_ours(last.tb_next):
                last.tb_next = None
            last = last.tb_next
        return traceback

    def _is_ours(self, traceback: TracebackType) -> bool:
        return traceback.tb_frame.f_code.co_filename.startswith(self._package_dir)

    def _remember_source(self, filename: str, source: str) -> None:
        """Keep a cell's text for tracebacks and inspect."""
        self._cells[filename] = source
        linecache = sys.modules.get("linecache")
        if linecache is not None:
            linecache.cache[filename] = _cache_entry(filename, source)
        if len(self._cells) > MAX_KEPT_CELLS:
            oldest = next(iter(self._cells))
            del self._cells[oldest]
            if linecache is not None:
                linecache.cache.pop(oldest, None)

    # -- modules that need to know where they run -------------------------------------------------------------

    def _adapt_linecache(self, module: Any) -> None:
        for filename, source in self._cells.items():
            module.cache[filename] = _cache_entry(filename, source)

    def _adapt_getpass(self, module: Any) -> None:
        def getpass(prompt: str = "Password: ", stream: Any = None, **_: Any) -> str:
            """Ask the client for a line that is not shown."""
            (stream or sys.stdout).write(prompt)
            line = self._runner.ask_line(True)
            if not line:
                raise EOFError
            return line[:-1]

        module.getpass = getpass

    def _adapt_matplotlib(self, module: Any) -> None:
        if not os.environ.get("MPLBACKEND"):
            from .inline_plots import show_figures, use

            use(module, self.show_media)
            self._figures = show_figures


def _cache_entry(filename: str, source: str) -> tuple[int, None, list[str], str]:
    return len(source), None, [line + "\n" for line in source.splitlines()], filename
