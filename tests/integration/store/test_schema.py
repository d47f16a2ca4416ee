"""The database's schema and the code's are the same, and neither is taken for the other."""

from __future__ import annotations

import sqlite3
from pathlib import Path

import pytest
from alembic.autogenerate import compare_metadata
from alembic.migration import MigrationContext
from sqlalchemy import text

from backendai_ray.core.errors import StoreUnavailable
from backendai_ray.store import Store, schema, tables
from backendai_ray.store.engines import Location, writer_engine


def test_head_is_the_newest_migration() -> None:
    assert schema.script_directory().get_current_head() == schema.HEAD
    assert len(schema.script_directory().get_heads()) == 1


async def test_migrations_lead_to_the_tables_of_the_code(store_url: str) -> None:
    await (await Store.open(store_url)).close()
    engine = writer_engine(Location.parse(store_url))
    with engine.connect() as connection:
        context = MigrationContext.configure(connection, opts={"compare_type": True})
        assert compare_metadata(context, tables.metadata) == []
    engine.dispose()


async def test_a_newer_store_is_refused(store_url: str) -> None:
    await (await Store.open(store_url)).close()
    engine = writer_engine(Location.parse(store_url))
    with engine.begin() as connection:
        connection.execute(text("UPDATE alembic_version SET version_num = '9999'"))
    engine.dispose()
    with pytest.raises(StoreUnavailable, match=r"newer version.*9999.*upgrade backendai-ray"):
        await Store.open(store_url)
    with engine.begin() as connection:  # and it was left as it was
        connection.execute(text("UPDATE alembic_version SET version_num = :head"), {"head": schema.HEAD})
    engine.dispose()
    await (await Store.open(store_url)).close()


async def test_a_database_of_somebody_else_is_left_alone(store_url: str) -> None:
    engine = writer_engine(Location.parse(store_url))
    with engine.begin() as connection:
        connection.execute(text("CREATE TABLE theirs (x INTEGER)"))
    engine.dispose()
    with pytest.raises(StoreUnavailable, match="not ours"):
        await Store.open(store_url)


async def test_a_record_of_a_newer_format_is_refused(tmp_path: Path) -> None:
    from .builders import new_session, submission

    session = new_session()
    async with await Store.open(f"sqlite:///{tmp_path / 'store.db'}") as store:
        await store.commit(submission(session))
        with sqlite3.connect(tmp_path / "store.db") as connection:
            connection.execute("UPDATE sessions SET format = 99")
        connection.close()
        with pytest.raises(StoreUnavailable, match="newer version"):
            await store.session(session.id)
        with sqlite3.connect(tmp_path / "store.db") as connection:
            connection.execute("UPDATE sessions SET format = 1, document = '{}'")
        connection.close()
        with pytest.raises(StoreUnavailable, match="damaged"):
            await store.live_sessions()
