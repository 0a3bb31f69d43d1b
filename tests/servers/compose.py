"""compose.yaml as ``docker compose`` reads it, and its containers as processes of this machine.

Owns interpolation, the environment, the mounted files and the health check of each service, in which nothing is changed
but names of services, ``0.0.0.0`` and ``127.0.0.1``: each service has an address of this machine instead. It refuses to
know what the services are for.
"""

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml

from tests.servers.containers import Network

_VARIABLE = re.compile(r"\$\{(\w+)(?:(:[-?])([^}]*))?\}")
_UNITS = {"s": 1.0, "m": 60.0}


def read_env(file: Path) -> dict[str, str]:
    lines = [line for line in file.read_text().splitlines() if line and not line.startswith("#")]
    return dict(line.split("=", 1) for line in lines)  # type: ignore[arg-type]


def interpolated(text: str, variables: Mapping[str, str]) -> str:
    """Raises: KeyError with the file's own words where a variable that must be set is not."""

    def value(found: re.Match[str]) -> str:
        name, operator, rest = found.groups()
        if variables.get(name):
            return variables[name]
        if operator == ":-":
            return str(rest)
        raise KeyError(f"{name}: {rest}")

    return _VARIABLE.sub(value, "\n".join(line for line in text.splitlines() if not line.lstrip().startswith("#")))


def load(file: Path, variables: Mapping[str, str]) -> dict[str, Any]:
    found: dict[str, Any] = yaml.safe_load(interpolated(file.read_text(), variables))
    return found


class Compose:
    """The services of a file, each at an address of its own."""

    def __init__(self, file: Path, variables: Mapping[str, str]) -> None:
        self._folder = file.parent
        self.services: dict[str, dict[str, Any]] = load(file, variables)["services"]
        self._network = Network()
        names = "|".join(map(re.escape, self.services))
        self._places = re.compile(rf"(?<![\w.-])(?:{names}|0\.0\.0\.0|127\.0\.0\.1)(?![\w.-])")

    def address(self, service: str) -> str:
        return self._network.address(service)

    def moved(self, service: str, text: str) -> str:
        """``text`` with the addresses that its names have here; ``service`` is whose text it is."""

        def place(found: re.Match[str]) -> str:
            return self.address(found[0] if found[0] in self.services else service)

        return self._places.sub(place, text)

    def environment(self, service: str) -> dict[str, str]:
        """``HUBLOG_NODE`` and the like are names as well, and stay: addresses are what follows ``//``, ``@`` or stands
        alone as ``0.0.0.0``."""
        told: dict[str, str] = self.services[service].get("environment", {})
        assert all(isinstance(value, str) for value in told.values()), f"{service}: a number that should be text"
        return {
            name: self.moved(service, value) if "://" in value or value == "0.0.0.0" else value
            for name, value in told.items()
        }

    def command(self, service: str) -> list[str]:
        return list(self.services[service]["command"])

    def mounted(self, service: str, inside: str) -> str:
        """The text of a file of this folder that is mounted into the service, with its addresses."""
        (source,) = [
            volume.split(":")[0] for volume in self.services[service]["volumes"] if volume.split(":")[1] == inside
        ]
        return self.moved(service, (self._folder / source).read_text())

    def health_check(self, service: str) -> list[str]:
        """What is run in the container, with its addresses."""
        kind, *command = self.services[service]["healthcheck"]["test"]
        assert kind == "CMD"
        return [self.moved(service, word) for word in command]

    def grace_s(self, service: str) -> float:
        text = self.services[service]["stop_grace_period"]
        return float(text[:-1]) * _UNITS[text[-1]]

    def order(self) -> list[str]:
        """The services, each behind those that it depends on. Raises: RecursionError where they wait for each other."""
        found: list[str] = []

        def add(service: str) -> None:
            for other in self.services[service].get("depends_on", {}):
                add(other)
            if service not in found:
                found.append(service)

        for service in self.services:
            add(service)
        return found
