"""Options that both command lines of the lab have, and what is said of a value that is none.

Owns words for people only: what an installation is, ``lab.install`` says.
"""

from pathlib import Path

import msgspec
import typer

from lab.install import read_processes


def processes(path: Path | None) -> Path | None:
    """A ``processes.json`` of an installation that has gateways. Raises: typer.BadParameter."""
    if path is None:
        return None
    try:
        found = read_processes(path, "as found")
    except (OSError, ValueError, msgspec.DecodeError) as exc:
        why = exc.strerror if isinstance(exc, OSError) else "it is no processes.json"
        raise typer.BadParameter(f"{path}: {why}. `hublog up` writes one, and removes it when it stops") from exc
    if not found.gateways:
        raise typer.BadParameter(f"{path} names no gateway")
    return path
