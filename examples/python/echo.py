"""A session called "echo" that answers whoever says something to it, across lost connections and killed nodes.

Start ``make up``, then:  .venv/bin/python examples/python/echo.py http://127.0.0.1:8000 http://127.0.0.1:8001
Where the service asks for access tokens:  HUBLOG_TOKEN=$(.venv/bin/hublog token --user echo --hub echo) …
Anybody in the hub "echo" may call  say(<their session>, <text>)  on the user "echo", and is called back:  said(<text>).
"""

import asyncio
import os
import sys

from hublog import Client, Resync, State


async def main(urls: list[str]) -> None:
    token = os.environ.get("HUBLOG_TOKEN")  # a service that runs for long gives a function that fetches fresh ones
    client = Client(urls, "echo", user="echo", token=token)

    async def say(session: str, text: str) -> None:
        await client.invoke({"to": "client", "session": session}, "said", text)

    def show(state: State) -> None:
        print(f"* {state}", flush=True)

    def warn(resync: Resync) -> None:
        print(f"* messages may be {resync.kind}: session {resync.session.session_id}", flush=True)

    client.on("say", say)
    client.on_state(show)
    client.on_resync(warn)
    async with client:
        await client.wait_closed()
    print(f"* ended: {client.error}")


if __name__ == "__main__":
    asyncio.run(main(sys.argv[1:] or ["http://127.0.0.1:8000", "http://127.0.0.1:8001"]))
