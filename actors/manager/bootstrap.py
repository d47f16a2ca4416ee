"""What a new store gets: the first resource group and the first keypair."""

from __future__ import annotations

import secrets
import string

from actors.contracts import Keypair
from backendai_ray.config import SchedulerSettings
from backendai_ray.core.ids import AccessKey, ResourceGroupName
from backendai_ray.store import Batch, GroupRecord, KeypairRecord

from .ports import ManagerStore

DEFAULT_GROUP = ResourceGroupName("default")

_ACCESS_ALPHABET = string.ascii_uppercase + string.digits
_SECRET_ALPHABET = string.ascii_letters + string.digits


async def load_groups(store: ManagerStore, settings: SchedulerSettings) -> dict[ResourceGroupName, GroupRecord]:
    """Return the resource groups; ``default`` follows the settings and is made when it is not there."""
    groups = {group.name: group for group in await store.groups()}
    wanted = founded(DEFAULT_GROUP, settings)
    if groups.get(DEFAULT_GROUP) != wanted:
        await store.commit(Batch(groups=(wanted,)))
        groups[DEFAULT_GROUP] = wanted
    return groups


def founded(name: ResourceGroupName, settings: SchedulerSettings) -> GroupRecord:
    """Return a resource group that is scheduled as the settings say."""
    return GroupRecord(name=name, policy=settings.policy, selection=settings.selection, options=dict(settings.options))


async def load_first_keypair(store: ManagerStore, now: float) -> Keypair:
    """Return the first administrator's keypair; made, with random secrets, when there is none."""
    admins = [keypair for keypair in await store.keypairs() if keypair.is_admin]
    if admins:
        return as_keypair(min(admins, key=lambda keypair: (keypair.created_at, keypair.access_key)))
    first = KeypairRecord(
        access_key=AccessKey("AKIA" + _random(_ACCESS_ALPHABET, 16)),
        secret_key=_random(_SECRET_ALPHABET, 40),
        user="admin",
        is_admin=True,
        created_at=now,
    )
    await store.commit(Batch(keypairs=(first,)))
    return as_keypair(first)


def as_keypair(record: KeypairRecord) -> Keypair:
    """Return a stored keypair as other actors see it."""
    return Keypair(
        access_key=record.access_key,
        secret_key=record.secret_key,
        user=record.user,
        domain=record.domain,
        project=record.project,
        is_active=record.is_active,
        is_admin=record.is_admin,
    )


def _random(alphabet: str, length: int) -> str:
    return "".join(secrets.choice(alphabet) for _ in range(length))
