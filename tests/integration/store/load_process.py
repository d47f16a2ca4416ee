"""A process that commits as fast as it can and says what was acknowledged: ``python -m … URL``.

It prints ``ready`` once it holds the store, then one session id per acknowledged commit.
"""

from __future__ import annotations

import asyncio
import sys

from backendai_ray.store import Store

from .builders import new_session, submission

CALLERS = 16


async def main(url: str) -> None:
    store = await Store.open(url, takeover_wait_s=20)
    print("ready", flush=True)

    async def commit_for_ever() -> None:
        while True:
            session = new_session()
            await store.commit(submission(session))
            print(session.id, flush=True)

    await asyncio.gather(*(commit_for_ever() for _ in range(CALLERS)))


if __name__ == "__main__":
    asyncio.run(main(sys.argv[1]))
