"""The chart as Helm renders it: objects, and what their containers are told when the Secrets are there.

``render(values)`` gives the objects of a release, ``containers`` those of one object with the kind of place they have,
``environment`` the variables of a container as the kubelet would set them. Rendering takes milliseconds and no cluster;
it is the library of Helm itself that does it, so what a wrong value is told here it is told everywhere.
"""

import base64
import re
from collections.abc import Hashable, Iterator, Mapping
from pathlib import Path
from typing import Any

import helm_python
import yaml

CHART = Path(__file__).resolve().parents[2] / "helm"
MINIMAL: dict[str, Any] = {"nats": {"existingSecret": "nats"}, "postgres": {"existingSecret": "postgres"}}
"""The two Secrets that an install must name."""

FIELDS = {"metadata.name": "pod-0", "metadata.namespace": "hublog"}
"""Of a pod, where a test names none."""

Secrets = Mapping[str, Mapping[str, str]]
"""By the name of the Secret, then the key in it."""


def render(
    values: Mapping[str, Any] | None = None,
    *,
    name: str = "hublog",
    namespace: str = "hublog",
    upgrade: bool = False,
    chart: Path = CHART,
) -> list[dict[str, Any]]:
    """The objects of a release with ``values`` (``MINIMAL`` where None), hooks included.

    Raises: helm_python.HelmError with Helm's own words.
    """
    files = templates(
        MINIMAL if values is None else values, name=name, namespace=namespace, upgrade=upgrade, chart=chart
    )
    return [
        found
        for path, text in files.items()
        if not path.endswith("NOTES.txt")
        for found in yaml.load_all(text, Loader=_StrictLoader)
        if found is not None
    ]


class _StrictLoader(yaml.CSafeLoader):
    """A key that comes twice is a mistake: an API server takes either, and says nothing."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Hashable, Any]:
        keys = [self.construct_object(key, deep=deep) for key, _ in node.value]
        twice = {key for key in keys if keys.count(key) > 1}
        assert not twice, f"written twice: {twice}{node.start_mark}"
        return super().construct_mapping(node, deep=deep)


def templates(
    values: Mapping[str, Any],
    *,
    name: str = "hublog",
    namespace: str = "hublog",
    upgrade: bool = False,
    chart: Path = CHART,
) -> dict[str, str]:
    """The text that each template gives, NOTES.txt among them. Raises: helm_python.HelmError."""
    helm_python.validate_release_name(name)
    with helm_python.Chart.load(chart) as loaded:
        return loaded.render(
            dict(values),
            name=name,
            namespace=namespace,
            is_install=not upgrade,
            is_upgrade=upgrade,
            revision=1 + upgrade,
        )


def validate(values: Mapping[str, Any]) -> None:
    """What rendering does first, alone. Raises: helm_python.HelmValuesError."""
    with helm_python.Chart.load(CHART) as loaded:
        loaded.validate_schema(dict(values))


def only(objects: list[dict[str, Any]], kind: str, ending: str = "") -> dict[str, Any]:
    """The one object of that kind whose name ends so."""
    (found,) = [it for it in objects if it["kind"] == kind and it["metadata"]["name"].endswith(ending)]
    return found


def pod_spec(owner: Mapping[str, Any]) -> dict[str, Any] | None:
    """The pod that an object is or makes; None for one that has to do with none."""
    if owner["kind"] == "Pod":
        return owner["spec"]  # type: ignore[no-any-return]
    if owner["kind"] in {"Deployment", "StatefulSet", "Job"}:
        return owner["spec"]["template"]["spec"]  # type: ignore[no-any-return]
    return None


def containers(owner: Mapping[str, Any]) -> Iterator[tuple[str, dict[str, Any]]]:
    """Each container with its place: ``initContainers`` or ``containers``."""
    spec = pod_spec(owner) or {}
    for place in ("initContainers", "containers"):
        for container in spec.get(place, []):
            yield place, container


def command_line(container: Mapping[str, Any]) -> list[str]:
    """What is started: ``["python", "-m", "service", "gateway"]``."""
    return [*container["command"], *container.get("args", [])]


def environment(
    container: Mapping[str, Any],
    secrets: Secrets,
    *,
    objects: list[dict[str, Any]] | None = None,
    fields: Mapping[str, str] | None = None,
) -> dict[str, str]:
    """The variables that the chart sets, in full.

    References are looked up in ``secrets``, then in the Secrets among ``objects``; ``fields`` are the pod's, like
    ``metadata.name``. A reference that leads nowhere is a KeyError, as it would keep a pod from starting.
    """
    known: dict[str, Mapping[str, str]] = {**_rendered_secrets(objects or []), **secrets}
    found: dict[str, str] = {}
    for entry in container.get("env", []):
        source = entry.get("valueFrom")
        if source is None:
            found[entry["name"]] = _expanded(entry["value"], found)
        elif "fieldRef" in source:
            found[entry["name"]] = {**FIELDS, **(fields or {})}[source["fieldRef"]["fieldPath"]]
        else:
            (reference,) = source.values()
            values = known.get(reference["name"], {})
            if not reference.get("optional") or reference["key"] in values:
                found[entry["name"]] = values[reference["key"]]
    return found


def _expanded(text: str, known: Mapping[str, str]) -> str:
    """What the kubelet makes of a value: ``$(NAME)`` is a reference to an earlier one, ``$$`` a dollar."""
    return re.sub(
        r"\$\$|\$\(([^)]*)\)", lambda it: "$" if it[1] is None else known.get(it[1], it[0]), text, flags=re.DOTALL
    )


def _rendered_secrets(objects: list[dict[str, Any]]) -> dict[str, Mapping[str, str]]:
    return {
        it["metadata"]["name"]: {key: base64.b64decode(value).decode() for key, value in it.get("data", {}).items()}
        for it in objects
        if it["kind"] == "Secret"
    }
