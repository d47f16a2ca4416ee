"""Quotas as the API reads and shows them."""

from __future__ import annotations

from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, Field

from actors.contracts import QuotaView
from backendai_ray.core.quotas import Limits
from backendai_ray.core.slots import ResourceSlots, parse_amount, plain_amount

_Count = Annotated[int, Field(strict=True, ge=0)]


class SetQuota(BaseModel):
    """The limits of a scope; what is absent is not limited, also where it was before."""

    model_config = ConfigDict(extra="forbid")

    slots: dict[str, Any] = Field(
        default_factory=dict, max_length=64, description="Amounts by slot that its sessions may hold together."
    )
    sessions: _Count | None = Field(None, description="How many sessions may hold resources at the same time.")
    pending: _Count | None = Field(None, description="How many may wait; one more is refused when it is submitted.")

    def to_core(self) -> Limits:
        """Return the limits.

        Raises:
            InvalidParameter: a slot's name or an amount is not usable.
        """
        ResourceSlots.parse(self.slots, field="slots")  # names; it would drop zeros, which are limits here
        slots = {name: parse_amount(name, amount, field="slots") for name, amount in self.slots.items()}
        return Limits(slots=slots, sessions=self.sessions, pending=self.pending)


class ShownQuota(BaseModel):
    """A quota, and how much of it is taken."""

    scope: str = Field(description="`keypair`, `user`, `project` or `domain`.")
    name: str
    slots: dict[str, str] = Field(description="Limits by slot; memory in bytes.")
    sessions: int | None
    pending: int | None
    used_slots: dict[str, str]
    used_sessions: int
    used_pending: int

    @classmethod
    def of(cls, view: QuotaView) -> ShownQuota:
        """Show a quota."""
        return cls(
            scope=view.scope.kind,
            name=view.scope.name,
            slots=_plain(view.limits.slots),
            sessions=view.limits.sessions,
            pending=view.limits.pending,
            used_slots=_plain(view.used.slots),
            used_sessions=view.used.sessions,
            used_pending=view.waiting,
        )


def _plain(units: Any) -> dict[str, str]:
    return {slot: plain_amount(slot, amount) for slot, amount in sorted(units.items())}
