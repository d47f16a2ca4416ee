"""The richest form in which a value can be shown: the ``_repr_*_`` methods that notebooks know."""

from __future__ import annotations

BINARY = (("_repr_png_", "image/png"), ("_repr_jpeg_", "image/jpeg"), ("_repr_pdf_", "application/pdf"))
TEXT = (
    ("_repr_svg_", "image/svg+xml"),
    ("_repr_html_", "text/html"),
    ("_repr_markdown_", "text/markdown"),
    ("_repr_latex_", "text/latex"),
    ("_repr_json_", "application/json"),
)
BUNDLE_ORDER = [mime for _, mime in BINARY[:2] + TEXT]

MYPY = False
if MYPY:
    from typing import Any


def rich_form(value: Any) -> tuple[str, str] | None:
    """Return (mime type, content) of *value*, or None if it has only a plain repr."""
    bundle = _call(value, "_repr_mimebundle_")
    if isinstance(bundle, tuple):
        bundle = bundle[0]
    if isinstance(bundle, dict):
        for mime in BUNDLE_ORDER:
            if bundle.get(mime):
                return mime, _as_text(bundle[mime])
    for name, mime in BINARY + TEXT:
        content = _call(value, name)
        if isinstance(content, tuple) and content:
            content = content[0]
        if content is not None:
            return mime, _as_text(content)
    return None


def _call(value: Any, name: str) -> Any:
    """Call one of the methods; objects that answer to every name or fail have none."""
    if getattr(type(value), name, None) is None:
        return None
    try:
        return getattr(value, name)()
    except KeyboardInterrupt:
        raise
    except Exception:
        return None


def _as_text(content: Any) -> str:
    if isinstance(content, (bytes, bytearray, memoryview)):
        from binascii import b2a_base64

        return b2a_base64(bytes(content), newline=False).decode("ascii")
    if isinstance(content, str):
        return content
    import json

    return json.dumps(content)
