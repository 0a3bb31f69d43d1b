"""The data directory of an embedded install: its layout, its lock, its secrets.

Owns who may use the directory: one supervisor at a time, and nobody while a server of an earlier one still lives. It
refuses to know what the servers keep in their folders.
"""

import asyncio
import base64
import fcntl
import os
import secrets
import time
from pathlib import Path
from typing import Self

from events.errors import Misconfigured
from service import spelling

LOCK_PATIENCE_S = 3.0
"""Servers of a killed supervisor end within 300 ms; a start right after it waits for them."""
LOCK_POLL_S = 0.05
SECRET_BYTES = 32
LOG_BYTES_KEPT = 16 * 1024 * 1024


class DamagedSecrets(Misconfigured):
    """Never mended silently: with another key, nobody's session could be resumed."""

    hint = "Restore the file, or remove it: a new key is made then, and all resume tokens given so far are refused."


class DataDir:
    """A locked data directory. ``lock_fd`` is inherited by the servers, so the lock outlives a killed supervisor."""

    def __init__(self, root: Path, lock_fd: int) -> None:
        self.root = root
        self.lock_fd = lock_fd
        self.nats = root / "nats"
        self.postgres = root / "postgres"
        self.logs = root / "logs"
        self.processes_file = root / "processes.json"

    @classmethod
    async def claim(cls, root: Path, *, patience_s: float = LOCK_PATIENCE_S) -> Self:
        """Make the directory where it is missing, and take it for ourselves.

        Raises: Misconfigured when it cannot be written or is in use.
        """
        root = root.absolute()
        try:
            root.mkdir(parents=True, exist_ok=True)
            lock_fd = os.open(root / "lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        except OSError as exc:
            raise Misconfigured(
                f"the data directory {root} cannot be used: {exc.strerror}; "
                "choose another with --data-dir or HUBLOG_DATA_DIR"
            ) from exc
        try:
            await _lock(lock_fd, root, patience_s)
            data_dir = cls(root, lock_fd)
            for folder in (data_dir.nats, data_dir.postgres, data_dir.logs):
                folder.mkdir(mode=0o700, exist_ok=True)
        except BaseException as exc:
            os.close(lock_fd)
            if isinstance(exc, OSError):
                raise Misconfigured(f"the data directory {root} cannot be used: {exc.strerror}") from exc
            raise
        return data_dir

    def log_file(self, name: str) -> Path:
        """Where a process writes; what it wrote long ago is put aside once, and then thrown away."""
        path = self.logs / f"{name}.log"
        if path.exists() and path.stat().st_size > LOG_BYTES_KEPT:
            path.replace(path.with_suffix(".log.1"))
        return path

    def release(self) -> None:
        """Let go of the directory, once no server of ours is left in it."""
        os.ftruncate(self.lock_fd, 0)
        os.close(self.lock_fd)

    def secrets(self) -> str:
        """The key ring of this install, made on the first start: 32 random bytes in base64url, for the owner only.

        Raises: DamagedSecrets when the file is there and is no key ring, Misconfigured when it cannot be made.
        """
        path = self.root / "secrets"
        # A link to what is not there is a file that is missing, not a first start.
        if not os.path.lexists(path):
            key = base64.urlsafe_b64encode(secrets.token_bytes(SECRET_BYTES)).rstrip(b"=") + b"\n"
            try:
                write_private(path, key)
            except OSError as exc:
                raise Misconfigured(
                    f"the keys of this install, {path}, cannot be written: {exc.strerror}; make room there, or choose "
                    "another data directory with --data-dir or HUBLOG_DATA_DIR"
                ) from exc
        try:
            return spelling.secrets(",".join(path.read_text(encoding="ascii").split())).reveal()
        except OSError as exc:
            raise DamagedSecrets(f"the keys of this install, {path}, cannot be read: {exc.strerror}") from exc
        except ValueError:
            # Not "from exc": the cause could quote a secret.
            raise DamagedSecrets(f"{path} is damaged: it must hold keys of 32 bytes in base64url, one a line") from None


def write_private(path: Path, content: bytes) -> None:
    """Write a file that only the owner may read, in one step: readers see the old content or the new.

    Raises: OSError; then nothing of it is left.
    """
    draft = path.with_name(f".{path.name}.{os.getpid()}")
    descriptor = os.open(draft, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
    try:
        with os.fdopen(descriptor, "wb") as file:
            file.write(content)
            file.flush()
            os.fsync(descriptor)
        draft.replace(path)
    except OSError:
        draft.unlink(missing_ok=True)
        raise


async def _lock(lock_fd: int, root: Path, patience_s: float) -> None:
    give_up_at = time.monotonic() + patience_s
    while True:
        try:
            fcntl.flock(lock_fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            if time.monotonic() < give_up_at:
                await asyncio.sleep(LOCK_POLL_S)
                continue
            holder = os.pread(lock_fd, 32, 0).decode("ascii", "replace").strip() or "unknown"
            raise Misconfigured(
                f"the data directory {root} is in use by another hublog (process {holder}); "
                "stop it, or choose another with --data-dir or HUBLOG_DATA_DIR"
            ) from None
        os.ftruncate(lock_fd, 0)
        os.pwrite(lock_fd, f"{os.getpid()}\n".encode("ascii"), 0)
        return
