"""One thread that listens to the engine and tells what happened to our containers and to images."""

from __future__ import annotations

import threading
from collections.abc import Callable, Mapping
from typing import Any

import docker
import structlog
from docker.errors import DockerException
from requests.exceptions import RequestException

log = structlog.get_logger()

_ACTIONS = ("die", "oom", "tag", "untag", "delete", "import", "load", "pull")
_RETRY_S = 1.0


class EventWatcher:
    """Calls back for each event, and with ``{}`` whenever events may have been missed (at each new connection)."""

    def __init__(self, connect: Callable[[], docker.APIClient], on_event: Callable[[Mapping[str, Any]], None]) -> None:
        self._connect = connect
        self._on_event = on_event
        self._stopped = threading.Event()
        self._stream: Any = None
        self._thread = threading.Thread(target=self._run, name="docker-events", daemon=True)

    def start(self) -> None:
        self._thread.start()

    def stop(self) -> None:
        """End the thread; it may take a moment to notice."""
        self._stopped.set()
        stream = self._stream
        if stream is not None:
            try:
                stream.close()
            except (DockerException, RequestException, OSError, AttributeError):
                pass  # it was not connected any more
        self._thread.join(2)

    def _run(self) -> None:
        while not self._stopped.is_set():
            try:
                self._listen()
            except (DockerException, RequestException, OSError, ValueError, AttributeError) as error:
                # AttributeError: what urllib3 raises when the stream is closed under a blocking read.
                if not self._stopped.is_set():
                    log.warning("docker.events_lost", error=str(error)[:200])
            self._stopped.wait(_RETRY_S)

    def _listen(self) -> None:
        api = self._connect()
        try:
            filters = {"type": ["container", "image"], "event": list(_ACTIONS)}
            self._stream = api.events(decode=True, filters=filters)
            self._on_event({})
            for event in self._stream:
                if self._stopped.is_set():
                    return
                self._on_event(event)
        finally:
            self._stream = None
            api.close()
