"""Notices calls that stop an event loop: sleeping, resolving, connecting, waiting for a process."""

import asyncio
import functools
import socket
import subprocess
import sys
import time
from collections.abc import Callable

import psycopg
import pytest

BLOCKING: tuple[tuple[object, str], ...] = (
    (time, "sleep"),
    (socket, "getaddrinfo"),
    (socket, "create_connection"),
    (subprocess, "run"),
    (psycopg.Connection, "connect"),
    (psycopg, "connect"),
)


def watch(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """From now on, what blocks a running loop is added to the list that this returns."""
    noticed: list[str] = []

    def guarded(name: str, original: Callable[..., object]) -> Callable[..., object]:
        @functools.wraps(original)
        def call(*args: object, **kwargs: object) -> object:
            if asyncio._get_running_loop() is not None:
                caller = sys._getframe(1)
                noticed.append(f"{name} by {caller.f_code.co_filename}:{caller.f_lineno}")
            return original(*args, **kwargs)

        return call

    for owner, name in BLOCKING:
        monkeypatch.setattr(owner, name, guarded(name, getattr(owner, name)))
    return noticed
