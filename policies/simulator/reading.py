"""Lines and fields of files, with errors that say where."""

from __future__ import annotations

import csv
import json
from collections.abc import Iterable, Iterator, Mapping
from typing import Any, NamedTuple

from backendai_ray.core.errors import InvalidParameter

from .jobs import format_error

_MOST = 2.0**53


class Line(NamedTuple):
    """One record of a file: the fields of a CSV line, or a JSON object."""

    file: str
    number: int
    fields: Mapping[str, Any]

    def error(self, field: str, problem: str) -> InvalidParameter:
        """Return the error for a field of this line."""
        return format_error(self.file, self.number, field, problem)

    def number_of(self, field: str, default: float | None = None, *, at_least: float = 0.0) -> float:
        """Return a field as a finite number.

        Raises:
            InvalidParameter: it is missing and has no default, is no number, or is too small or too large.
        """
        value = self.fields.get(field)
        if value is None or value == "":
            if default is None:
                raise self.error(field, "is missing")
            return default
        try:
            number = float(value) if isinstance(value, str | int | float) and not isinstance(value, bool) else None
        except (ValueError, OverflowError):
            number = None
        if number is None or not at_least <= number < _MOST:
            raise self.error(field, f"{str(value)[:40]!r} is no number of {at_least:g} or more")
        return number

    def whole(self, field: str, default: int | None = None, *, at_least: int = 0) -> int:
        """Return a field as a whole number.

        Raises:
            InvalidParameter: as for :meth:`number_of`, or it is not whole.
        """
        number = self.number_of(field, default, at_least=at_least)
        if number != int(number):
            raise self.error(field, f"{number:g} is not whole")
        return int(number)

    def text(self, field: str, default: str | None = None) -> str:
        """Return a field as text that is not empty.

        Raises:
            InvalidParameter: it is missing or empty and has no default, or is no text.
        """
        value = self.fields.get(field)
        if value is None or value == "":
            if default is None:
                raise self.error(field, "is missing")
            return default
        if not isinstance(value, str):
            raise self.error(field, f"{str(value)[:40]!r} is no text")
        return value


def is_json(lines: list[str]) -> bool:
    """Return whether a file holds JSON lines rather than CSV."""
    return next((line for line in lines if line.strip()), "").lstrip().startswith("{")


def header(lines: list[str]) -> list[str]:
    """Return the names of the columns of a CSV file."""
    return [name.strip() for name in next(csv.reader(lines[:1]), [])]


def csv_lines(file: str, lines: list[str]) -> Iterator[Line]:
    """Return the records of a CSV file with a header."""
    reader = csv.DictReader(lines)
    try:
        for fields in reader:
            yield Line(file, reader.line_num, fields)
    except csv.Error as error:
        raise format_error(file, reader.line_num + 1, "line", str(error)) from None


def json_lines(file: str, lines: Iterable[str], known: frozenset[str]) -> Iterator[Line]:
    """Return the records of a file of JSON lines; empty lines are passed over.

    Raises:
        InvalidParameter: a line is no JSON object, or has a field that is not known.
    """
    for number, text in enumerate(lines, 1):
        if not text.strip():
            continue
        try:
            fields = json.loads(text)
        except ValueError as error:
            raise format_error(file, number, "line", f"is no JSON: {error}") from None
        if not isinstance(fields, dict):
            raise format_error(file, number, "line", "is no JSON object")
        if unknown := fields.keys() - known:
            field = min(unknown)
            raise format_error(file, number, field, f"is not known; there are: {', '.join(sorted(known))}")
        yield Line(file, number, fields)
