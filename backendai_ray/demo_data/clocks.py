"""How far are the world's clocks from the sun?

For every place of the IANA time zone database: its longitude says when the sun is highest there, its standard time
says what the clock shows then. Reads zone1970.tab and tzdata.zi, writes out/clocks.csv.
"""

from __future__ import annotations

import csv
import math
import os
import re
import sys
from collections.abc import Iterator
from typing import Any


def degrees(text: str) -> float:
    """Return an ISO 6709 coordinate (sign, degrees, minutes, seconds) in degrees."""
    sign = -1 if text[0] == "-" else 1
    digits = text[1:]
    whole = len(digits) - (4 if len(digits) > 5 else 2)
    minutes, seconds = digits[whole : whole + 2], digits[whole + 2 :] or "0"
    return sign * (int(digits[:whole]) + int(minutes) / 60 + int(seconds) / 3600)


def read_places(path: str) -> Iterator[tuple[str, float, float]]:
    """Yield (name, latitude, longitude) of every place in a zone table."""
    with open(path, encoding="utf-8") as table:
        for line in table:
            if line.startswith("#"):
                continue
            _, coordinates, name = line.rstrip("\n").split("\t")[:3]
            latitude, longitude = re.findall(r"[+-]\d+", coordinates)
            yield name, degrees(latitude), degrees(longitude)


def read_clocks(path: str) -> dict[str, tuple[float, int]]:
    """Return (present standard time in hours from UTC, how many eras of its clock) by place."""
    clocks: dict[str, tuple[float, int]] = {}
    name = ""
    with open(path, encoding="utf-8") as database:
        for line in database:
            fields = line.split()
            if fields[0] == "Z":
                name, fields = fields[1], fields[2:]
            elif fields[0] in ("#", "R", "L"):
                continue
            sign = -1 if fields[0].startswith("-") else 1
            hours, minutes, seconds = ([abs(int(part)) for part in fields[0].split(":")] + [0, 0])[:3]
            eras = clocks.get(name, (0, 0))[1]
            clocks[name] = (sign * (hours + minutes / 60 + seconds / 3600), eras + 1)
    return clocks


def equation_of_time(day: int) -> float:
    """Return by how many minutes the sun is late on a day of the year."""
    angle = 2 * math.pi * (day - 81) / 365
    return -(9.87 * math.sin(2 * angle) - 7.53 * math.cos(angle) - 1.5 * math.sin(angle))


def minutes_off(longitude: float, offset: float) -> float:
    """Return by how many minutes a clock is ahead of the sun; which day it shows does not matter."""
    return (60 * offset - 4 * longitude + 720) % 1440 - 720


def solar_noons(off: float) -> list[float]:
    """Return when the sun is highest on each day of the year, in minutes after midnight by the clock."""
    return [720 + off + equation_of_time(day) for day in range(1, 366)]


def clock_time(minutes: float) -> str:
    """Return minutes after midnight as hh:mm."""
    hours, rest = divmod(round(minutes), 60)
    return f"{hours:02}:{rest:02}"


def analyse(places_path: str = "zone1970.tab", clocks_path: str = "tzdata.zi") -> list[dict[str, Any]]:
    """Return a row for every place; says on the way what it found on each continent."""
    clocks = read_clocks(clocks_path)
    continents: dict[str, list[tuple[str, float, float]]] = {}
    for name, latitude, longitude in read_places(places_path):
        continents.setdefault(name.split("/")[0], []).append((name, latitude, longitude))
    rows: list[dict[str, Any]] = []
    for continent, places in sorted(continents.items()):
        found: list[dict[str, Any]] = []
        for name, latitude, longitude in places:
            offset, eras = clocks[name]
            off = minutes_off(longitude, offset)
            noons = solar_noons(off)
            found.append(
                {
                    "place": name,
                    "latitude": round(latitude, 4),
                    "longitude": round(longitude, 4),
                    "utc_offset_h": offset,
                    "eras": eras,
                    "earliest_noon": clock_time(min(noons)),
                    "latest_noon": clock_time(max(noons)),
                    "off_min": round(off, 1),
                }
            )
        mean = sum(abs(row["off_min"]) for row in found) / len(found)
        print(f"{continent:10} {len(found):3} places, clocks {mean:4.1f} min from the sun on average", flush=True)
        rows += found
    changed = sum(row["eras"] > 5 for row in rows)
    print(f"{len(rows)} places; {changed} clocks changed their rules at least five times")
    return rows


def write(rows: list[dict[str, Any]], path: str = "out/clocks.csv") -> str:
    """Write the rows as CSV, the clock farthest from the sun first."""
    os.makedirs(os.path.dirname(path), exist_ok=True)
    with open(path, "w", newline="") as file:
        table = csv.DictWriter(file, rows[0])
        table.writeheader()
        table.writerows(sorted(rows, key=lambda row: -abs(row["off_min"])))
    return path


if __name__ == "__main__":
    print("wrote", write(analyse(*sys.argv[1:])))
