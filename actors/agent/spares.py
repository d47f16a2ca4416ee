"""Spares: containers started ahead for the images that are asked for most, each handed to one kernel.

A spare has a runner that waits, in folders of its own, and belongs to nobody. To hand it over is to rename it in the
engine to the life that it becomes, which the engine does once and which is all that a recovering agent looks at;
folders, limits and environment follow, and each of these steps may be repeated.
"""

from __future__ import annotations

import threading
import time
from collections import Counter
from collections.abc import Callable

import structlog

from actors.agent.backends.base import ComputeBackend, Launch, PreparedImage, Spare, SupportsSpares
from actors.agent.demand import Demand
from backendai_ray.core.errors import BackendError

log = structlog.get_logger()


class SparePool:
    """The spares of one agent. Every method but the constructor and :meth:`counts` blocks, on the engine or a lock."""

    def __init__(
        self, backend: ComputeBackend, *, size: int, uid: int, clock: Callable[[], float] = time.monotonic
    ) -> None:
        """Make a pool; :meth:`maintain` fills it.

        Args:
            backend: What makes spares; one that cannot gives an empty pool.
            size: Most spares at a time; 0: none are made.
            uid: The user that they run as.
            clock: Seconds that do not go back.
        """
        self._maker = backend if isinstance(backend, SupportsSpares) else None
        self._backend = self._maker if size > 0 else None
        self._size = size
        self._uid = uid
        self._clock = clock
        self._demand = Demand()
        self._images: dict[str, PreparedImage] = {}
        self._spares: list[Spare] = []
        self._being_handed_over: set[str] = set()
        self._lock = threading.Lock()
        self._maintaining = threading.Lock()
        self._is_closed = False
        self.handed_over = 0
        """Kernels that got a spare since the agent came."""
        self.missed = 0
        """Kernels that could have had one, had there been one."""

    @property
    def is_on(self) -> bool:
        return self._backend is not None

    def clear_old(self) -> None:
        """Remove the spares of an earlier agent: what became of them in between is not known."""
        for spare in self._maker.list_spares() if self._maker is not None else ():
            self._remove(spare)

    def clear_unknown(self) -> None:
        """Remove spares that came after :meth:`clear_old`: an engine may be slow to do what a killed agent asked."""
        if self._maker is None:
            return
        with self._maintaining:  # none is being made
            with self._lock:  # before the list: what is handed over meanwhile is on neither or on both
                known = {spare.name for spare in self._spares} | self._being_handed_over
            for spare in self._maker.list_spares():
                if spare.name not in known:
                    log.warning("spare.late", spare=spare.name)
                    self._remove(spare)

    def start(self, launch: Launch) -> str | None:
        """Start a life from a spare; returns its container id, or ``None`` when it must be made the usual way."""
        backend = self._backend
        if backend is None or launch.uid != self._uid or not backend.fits_spare(launch):
            return None
        while (spare := self._take(launch.image)) is not None:
            try:
                container_id = backend.hand_over(spare, launch)
            except BackendError as error:
                log.warning("spare.not_handed_over", life=str(launch.life), error=error.message)
                container_id = None
            if container_id is None:
                self._remove(spare)
            with self._lock:
                self._being_handed_over.discard(spare.name)
            if container_id is not None:
                self.handed_over += 1
                return container_id
        self.missed += 1
        return None

    def _take(self, image: PreparedImage) -> Spare | None:
        with self._lock:
            if self._is_closed:
                return None
            self._demand.note(image.id, self._clock())
            self._images[image.id] = image
            for spare in self._spares:
                if spare.image_id == image.id:
                    self._spares.remove(spare)
                    self._being_handed_over.add(spare.name)
                    return spare
        return None

    def maintain(self) -> bool:
        """Remove one spare that nobody wants, or make one that is missing; returns whether there may be more to do."""
        backend = self._backend
        if backend is None:
            return False
        with self._maintaining:
            surplus, image = self._next()
            if surplus is not None:
                self._remove(surplus)
                return True
            if image is None:
                return False
            try:
                spare = backend.make_spare(image, self._uid)
            except BackendError as error:
                log.warning("spare.not_made", image=image.reference, error=error.message)
                return False
            with self._lock:
                if not self._is_closed:
                    self._spares.append(spare)
                    return True
            self._remove(spare)
            return False

    def _next(self) -> tuple[Spare | None, PreparedImage | None]:
        """Return the spare to remove, or the image to make one of."""
        with self._lock:
            wanted = Counter() if self._is_closed else Counter(self._demand.shares(self._size, self._clock()))
            self._images = {image: known for image, known in self._images.items() if image in wanted}
            for spare in self._spares:
                if wanted[spare.image_id] <= 0:
                    self._spares.remove(spare)
                    return spare, None
                wanted[spare.image_id] -= 1
            return None, next((self._images[image] for image, missing in wanted.items() if missing > 0), None)

    def counts(self) -> dict[str, int]:
        """Return how many spares there are of which image, by the name it was asked for by."""
        with self._lock:
            return dict(Counter(spare.reference for spare in self._spares))

    def close(self) -> int:
        """Remove all spares and make none any more; returns how many there were."""
        with self._lock:
            self._is_closed = True
            spares, self._spares = self._spares, []
        with self._maintaining:  # one that is being made is removed by who makes it
            for spare in spares:
                self._remove(spare)
        return len(spares)

    def _remove(self, spare: Spare) -> None:
        if self._maker is None:
            return
        try:
            self._maker.remove_spare(spare)
        except BackendError as error:  # :meth:`clear_unknown` tries again
            log.warning("spare.not_removed", spare=spare.name, error=error.message)
