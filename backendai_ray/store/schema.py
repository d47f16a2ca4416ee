"""Bringing a database to the schema of this code: forward only, by the scripts in ``migrations/versions``."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from sqlalchemy import Connection, inspect, text

from backendai_ray.core.errors import StoreUnavailable

if TYPE_CHECKING:
    from alembic.script import ScriptDirectory

HEAD: Final = "0004"
"""The newest migration. Known here so that an ordinary start need not load Alembic; a test keeps it true."""

MIGRATIONS: Final = Path(__file__).with_name("migrations")


def migrate(connection: Connection) -> None:
    """Bring the database up to :data:`HEAD`, each migration whole or not at all.

    Raises:
        StoreUnavailable: the database was written by a newer version, or holds something else.
    """
    found = _version(connection)
    connection.rollback()
    if found == HEAD:
        return
    scripts = script_directory()
    if found is not None and found not in {script.revision for script in scripts.walk_revisions()}:
        raise StoreUnavailable(
            f"the store was written by a newer version of backendai-ray (schema {found}, known up to {HEAD}); "
            "upgrade backendai-ray, or point it at another store",
            found=found,
            known=HEAD,
        )
    if found is None and inspect(connection).get_table_names():
        raise StoreUnavailable("the database holds tables that are not ours; give the store one of its own")
    connection.rollback()
    _upgrade(connection, scripts)


def script_directory() -> ScriptDirectory:
    """Return Alembic's view of our migrations."""
    from alembic.script import ScriptDirectory

    return ScriptDirectory(str(MIGRATIONS))


def _version(connection: Connection) -> str | None:
    if not inspect(connection).has_table("alembic_version"):
        return None
    return connection.execute(text("SELECT version_num FROM alembic_version")).scalar_one_or_none()


def _upgrade(connection: Connection, scripts: ScriptDirectory) -> None:
    from alembic.config import Config
    from alembic.runtime.environment import EnvironmentContext

    def steps(revision: Any, _context: Any) -> Any:
        return scripts._upgrade_revs(HEAD, revision)

    with EnvironmentContext(Config(), scripts, fn=steps) as environment:
        environment.configure(connection=connection, transaction_per_migration=True, transactional_ddl=True)
        with environment.begin_transaction():
            environment.run_migrations()
    connection.commit()
