"""Processes of the image, each as if in a container of its own: its environment, its user, its address.

Owns the likeness: the command is the image's entrypoint with the container's arguments, the environment is the image's
and the container's and nothing of this machine's, the file system is read-only. In place of a network there is an
address of 127.0.0.0/8 for each, so that everybody has all ports and keeps theirs. It refuses to know which containers
there are.
"""

import random
import signal
from collections.abc import Mapping
from pathlib import Path

from service.up.child import Child, spawn
from tests.servers import contained
from tests.servers.image import Stage


class Network:
    """Names and their addresses, in a block that nobody else is likely to use."""

    def __init__(self) -> None:
        self._block = f"127.{random.randint(1, 250)}.{random.randint(1, 250)}"
        self._addresses: dict[str, str] = {}

    def address(self, name: str) -> str:
        """The same for the same name."""
        return self._addresses.setdefault(name, f"{self._block}.{len(self._addresses) + 1}")


def start(
    name: str,
    image: Stage,
    arguments: list[str],
    environment: Mapping[str, str],
    folder: Path,
    *,
    uid: int | None = None,
) -> Child:
    """Run the image with ``arguments``; what it says goes to ``<folder>/<name>.log``."""
    return spawn(
        name,
        contained.command(image.command(*arguments), uid=uid or int(image.user.partition(":")[0])),
        log_file=folder / f"{name}.log",
        death_signal=signal.SIGKILL,
        env={**image.variables(), **environment},
        cwd=image.path("."),
    )
