"""A store in memory that keeps the rules of the real one and can be made to fail."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence

from backendai_ray.core.errors import Conflict, IdempotencyMismatch, NameInUse, StoreUnavailable
from backendai_ray.core.ids import AccessKey, AgentId, ResourceGroupName, SessionId
from backendai_ray.core.lifecycle import StatusChange
from backendai_ray.core.quotas import Scope
from backendai_ray.core.scheduling_history import KEPT, SchedulingEntry
from backendai_ray.core.sessions import Session
from backendai_ray.core.usage import HOUR_S
from backendai_ray.store import (
    AgentRecord,
    Batch,
    GroupRecord,
    IdempotencyRecord,
    KeypairRecord,
    QuotaRecord,
    UsageRecord,
)


class MemoryStore:
    """What was committed, as the real store would return it."""

    def __init__(self) -> None:
        self.records: dict[str, Session] = {}
        self.changes: list[StatusChange] = []
        self.kernel_logs: dict[str, bytes] = {}
        self.keys: dict[tuple[AccessKey, str], IdempotencyRecord] = {}
        self.keypair_records: dict[str, KeypairRecord] = {}
        self.agent_records: dict[AgentId, AgentRecord] = {}
        self.group_records: dict[ResourceGroupName, GroupRecord] = {}
        self.quota_records: dict[Scope, QuotaRecord] = {}
        self.usage_records: list[UsageRecord] = []
        self.scheduling: dict[tuple[SessionId, int], SchedulingEntry] = {}
        self.commits: list[Batch] = []
        self.is_away = False
        self.forgets_to_answer = 0
        """How many of the next commits happen, but say that their outcome is not known."""

    async def commit(self, batch: Batch) -> None:
        await self._arrive()
        self._judge(batch)
        self.commits.append(batch)
        self.records.update({session.id: session for session in batch.sessions})
        self.changes.extend(batch.changes)
        self.kernel_logs.update({log.kernel_id: log.log for log in batch.kernel_logs})
        self.keys.update({(record.access_key, record.key): record for record in batch.idempotency})
        self.keypair_records.update({record.access_key: record for record in batch.keypairs})
        self.agent_records.update({record.agent_id: record for record in batch.agents})
        self.group_records.update({record.name: record for record in batch.groups})
        self.usage_records.extend(batch.usage)
        self.quota_records.update({record.scope: record for record in batch.quotas})
        for entry in batch.scheduling:
            self.scheduling[entry.session_id, entry.number % KEPT] = entry
        if self.forgets_to_answer:
            self.forgets_to_answer -= 1
            raise StoreUnavailable("whether the last change was saved is not known yet", outcome="unknown")

    def _judge(self, batch: Batch) -> None:
        for note in batch.scheduling:
            if note.session_id not in self.records:
                raise Conflict("an entry of an unknown session", session_id=note.session_id)
        for session in batch.sessions:
            known = self.records.get(session.id)
            if known is not None and known.version >= session.version:
                raise Conflict(f"session {session.id} is stored in the same or a newer version")
            for other in self.records.values():
                if other.id == session.id or other.is_terminal or session.is_terminal:
                    continue
                if (other.spec.access_key, other.spec.name) == (session.spec.access_key, session.spec.name):
                    raise NameInUse(session_id=other.id)
        for record in batch.idempotency:
            earlier = self.keys.get((record.access_key, record.key))
            if earlier is not None and earlier.expires_at > record.created_at:
                if earlier.fingerprint != record.fingerprint:
                    raise IdempotencyMismatch
                raise Conflict("the key was used already", session_id=earlier.session_id)

    async def sweep_scheduling(self, before: float) -> int:
        await self._arrive()
        old = [key for key, entry in self.scheduling.items() if entry.at < before]
        for key in old:
            del self.scheduling[key]
        return len(old)

    async def scheduling_history(self, session_id: str) -> list[SchedulingEntry]:
        await self._arrive()
        found = [entry for entry in self.scheduling.values() if entry.session_id == session_id]
        return sorted(found, key=lambda entry: entry.number)

    async def last_scheduling(self, session_ids: Sequence[str]) -> dict[SessionId, SchedulingEntry]:
        return {SessionId(i): found[-1] for i in session_ids if (found := await self.scheduling_history(i))}

    async def sweep_idempotency(self, now: float) -> int:
        await self._arrive()
        expired = [key for key, record in self.keys.items() if record.expires_at <= now]
        for key in expired:
            del self.keys[key]
        return len(expired)

    async def live_sessions(self) -> list[Session]:
        await self._arrive()
        live = [session for session in self.records.values() if not session.is_terminal]
        return sorted(live, key=lambda session: (session.created_at, session.id))

    async def recently_ended(self, limit: int) -> list[Session]:
        await self._arrive()
        ended = [session for session in self.records.values() if session.is_terminal]
        return sorted(ended, key=lambda session: (session.created_at, session.id), reverse=True)[:limit]

    async def session(self, session_id: str) -> Session | None:
        await self._arrive()
        return self.records.get(session_id)

    async def find(self, access_key: AccessKey | None, name_or_id: str) -> Session | None:
        await self._arrive()
        own = [s for s in self.records.values() if access_key in (None, s.spec.access_key)]
        own.sort(key=lambda session: (session.is_terminal, -session.created_at))
        for matches in (
            [s for s in own if not s.is_terminal and s.spec.name == name_or_id],
            [s for s in own if s.id == name_or_id.lower()],
            [s for s in own if s.spec.name == name_or_id],
            [s for s in own if len(name_or_id) >= 8 and s.id.startswith(name_or_id.lower())],
        ):
            if matches:
                return matches[0]
        return None

    async def page(
        self, access_key: AccessKey | None, statuses: Sequence[str] = (), limit: int = 100, offset: int = 0
    ) -> tuple[list[Session], int]:
        await self._arrive()
        found = [
            session
            for session in self.records.values()
            if access_key in (None, session.spec.access_key) and (not statuses or session.status.value in statuses)
        ]
        found.sort(key=lambda session: (session.created_at, session.id), reverse=True)
        return found[offset : offset + limit], len(found)

    async def history(self, session_id: str) -> list[StatusChange]:
        await self._arrive()
        return [change for change in self.changes if change.session_id == session_id]

    async def kernel_log(self, kernel_id: str) -> bytes | None:
        await self._arrive()
        return self.kernel_logs.get(kernel_id)

    async def idempotent(self, access_key: AccessKey, key: str) -> IdempotencyRecord | None:
        await self._arrive()
        return self.keys.get((access_key, key))

    async def keypair(self, access_key: str) -> KeypairRecord | None:
        await self._arrive()
        return self.keypair_records.get(access_key)

    async def keypairs(self) -> list[KeypairRecord]:
        await self._arrive()
        return list(self.keypair_records.values())

    async def agents(self) -> list[AgentRecord]:
        await self._arrive()
        return list(self.agent_records.values())

    async def groups(self) -> list[GroupRecord]:
        await self._arrive()
        return list(self.group_records.values())

    async def quotas(self) -> list[QuotaRecord]:
        await self._arrive()
        return [record for record in self.quota_records.values() if record.limits]

    async def usage(self, since: float) -> list[UsageRecord]:
        await self._arrive()
        return [record for record in self.usage_records if record.charge.hour >= since - HOUR_S]

    async def sweep_usage(self, before: float) -> int:
        await self._arrive()
        kept = [record for record in self.usage_records if record.charge.hour >= before]
        dropped, self.usage_records = len(self.usage_records) - len(kept), kept
        return dropped

    async def dependents(self, session_id: str) -> list[SessionId]:
        await self._arrive()
        return [s.id for s in self.records.values() if session_id in s.spec.depends_on]

    async def close(self) -> None:
        """Nothing to let go of."""

    async def _arrive(self) -> None:
        await asyncio.sleep(0)
        if self.is_away:
            raise StoreUnavailable("the store is away")
