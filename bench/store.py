"""Durable commits per second: 64 callers at once, against a bare INSERT … COMMIT loop on the same disk or server."""

from __future__ import annotations

import argparse
import asyncio
import sqlite3
import tempfile
import time
import uuid
from collections.abc import Iterator
from pathlib import Path

import psycopg

from backendai_ray.core.ids import AccessKey, KernelId, SessionId
from backendai_ray.core.lifecycle import StatusChange
from backendai_ray.core.sessions import Kernel, Reason, Session, SessionSpec, Status
from backendai_ray.core.slots import ResourceSlots
from backendai_ray.store import Batch, Store
from bench.figures import Report

ROW_BYTES = 1200
"""About what a session's document takes."""


def add_options(parser: argparse.ArgumentParser) -> None:
    """Declare this bench's options."""
    parser.add_argument("--commits", type=int, default=2000, help="commits per round")
    parser.add_argument("--callers", type=int, default=64, help="callers that commit at the same time")
    parser.add_argument("--rounds", type=int, default=3, help="rounds, each beside the bare loop")
    parser.add_argument("--postgres", metavar="URL", help="measure there too; needs an empty database")


def run(report: Report, options: argparse.Namespace) -> None:
    """Measure on SQLite, and on PostgreSQL where one is given; the two take turns with the bare loop."""
    with tempfile.TemporaryDirectory(prefix="bai-bench-") as folder:
        ours: list[float] = []
        bare: list[float] = []
        for number in range(options.rounds):
            bare.append(_bare_sqlite(Path(folder) / f"bare-{number}.db", options.commits))
            ours.append(asyncio.run(_commits(f"sqlite:///{folder}/store-{number}.db", options)))
        _report(report, "sqlite", ours, bare)
    if options.postgres:
        ours, bare = [], []
        for _ in range(options.rounds):
            bare.append(_bare_postgres(options.postgres, options.commits))
            ours.append(asyncio.run(_commits(options.postgres, options)))
        _report(report, "postgres", ours, bare)


def _report(report: Report, where: str, ours: list[float], bare: list[float]) -> None:
    mine = report.add(f"store.{where}.commits_per_s", "1/s", ours)
    peer = report.add(f"store.{where}.bare.commits_per_s", "1/s", bare)
    report.ratio(f"store.{where}.ratio", mine, peer)


async def _commits(url: str, options: argparse.Namespace) -> float:
    batches = iter([_submission() for _ in range(options.commits)])
    async with await Store.open(url) as store:
        await store.commit(_submission())
        started = time.perf_counter()
        await asyncio.gather(*(_commit_all(store, batches) for _ in range(options.callers)))
        return float(options.commits / (time.perf_counter() - started))


async def _commit_all(store: Store, batches: Iterator[Batch]) -> None:
    for batch in batches:
        await store.commit(batch)


def _submission() -> Batch:
    session_id = SessionId(str(uuid.uuid4()))
    spec = SessionSpec(
        id=session_id,
        name=f"s-{session_id[:13]}",
        access_key=AccessKey("AKIABENCH"),
        image="python",
        slots=ResourceSlots({"cpu": 1000, "mem": 2**28}),
    )
    kernel = Kernel(id=KernelId(str(uuid.uuid4())), role="main", index=1)
    change = StatusChange(
        session_id=session_id,
        kernel_id=None,
        before=Status.PENDING,
        after=Status.PENDING,
        reason=Reason.SUBMITTED,
        message="",
        at=0.0,
        cause="bench",
    )
    return Batch(sessions=(Session(spec=spec, kernels=(kernel,)),), changes=(change,))


def _bare_sqlite(path: Path, commits: int) -> float:
    connection = sqlite3.connect(path, isolation_level=None)
    connection.execute("PRAGMA journal_mode=WAL")
    connection.execute("PRAGMA synchronous=FULL")
    connection.execute("CREATE TABLE bare (id TEXT PRIMARY KEY, document TEXT)")
    started = time.perf_counter()
    for number in range(commits):
        connection.execute("BEGIN")
        connection.execute("INSERT INTO bare VALUES (?, ?)", (str(number), "x" * ROW_BYTES))
        connection.execute("COMMIT")
    per_s = commits / (time.perf_counter() - started)
    connection.close()
    return per_s


def _bare_postgres(url: str, commits: int) -> float:
    with psycopg.connect(url, autocommit=True) as connection:
        connection.execute("CREATE SCHEMA bench")
        connection.execute("CREATE TABLE bench.bare (id TEXT PRIMARY KEY, document TEXT)")
        started = time.perf_counter()
        for number in range(commits):
            with connection.transaction():
                connection.execute("INSERT INTO bench.bare VALUES (%s, %s)", (str(number), "x" * ROW_BYTES))
        per_s = commits / (time.perf_counter() - started)
        connection.execute("DROP SCHEMA bench CASCADE")
    return per_s
