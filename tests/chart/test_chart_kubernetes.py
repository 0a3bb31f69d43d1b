"""The oldest and the newest Kubernetes take every object, and a namespace under ``restricted`` admits every pod."""

from typing import Any

import jsonschema
import pytest

from tests.servers.chart import MINIMAL, containers, only, pod_spec, render
from tests.servers.chart_values import HOSTILE, NASTY, SETS
from tests.servers.kubernetes import VERSIONS, refuse_what_is_wrong

NAME_CHARS_MAX = 63


@pytest.mark.parametrize("version", VERSIONS)
@pytest.mark.parametrize("name", SETS)
def test_each_object_fits_the_schema(name: str, version: str) -> None:
    objects = render(SETS[name], name="r" * 53, namespace="n" * 63)
    for found in objects:
        refuse_what_is_wrong(found, version)
        assert len(found["metadata"]["name"]) <= NAME_CHARS_MAX
        assert found["metadata"]["namespace"] == "n" * 63
    names = [(it["apiVersion"], it["kind"], it["metadata"]["name"]) for it in objects]
    assert len(set(names)) == len(names)


def test_the_schemas_do_refuse() -> None:
    found = only(render(), "Deployment", "gateway")
    found["spec"]["template"]["spec"]["replica"] = 1
    for version in VERSIONS:
        with pytest.raises(jsonschema.ValidationError, match="replica"):
            refuse_what_is_wrong(found, version)


@pytest.mark.parametrize("name", SETS)
def test_pods_are_restricted(name: str) -> None:
    pods = [(owner, spec) for owner in render(SETS[name]) if (spec := pod_spec(owner)) is not None]
    assert pods
    for owner, spec in pods:
        assert spec["automountServiceAccountToken"] is False
        assert spec["securityContext"]["runAsNonRoot"] is True
        assert spec["securityContext"]["seccompProfile"] == {"type": "RuntimeDefault"}
        assert spec["securityContext"].get("runAsUser", 65_532) != 0
        # Or a Service named hublog-gateway would set HUBLOG_GATEWAY_PORT in every pod, to tcp://….
        assert spec["enableServiceLinks"] is False
        assert not spec.keys() & {"hostNetwork", "hostPID", "hostIPC", "hostUsers"}
        assert all(volume.keys() - {"name"} <= {"secret", "configMap"} for volume in spec.get("volumes", []))
        for _, container in containers(owner):
            assert container["securityContext"] == {
                "allowPrivilegeEscalation": False,
                "privileged": False,
                "readOnlyRootFilesystem": True,
                "runAsNonRoot": True,
                "capabilities": {"drop": ["ALL"]},
                "seccompProfile": {"type": "RuntimeDefault"},
            }, f"{container['name']} of {owner['metadata']['name']}"
            assert all(mount["readOnly"] for mount in container.get("volumeMounts", []))
            assert not any("hostPort" in port for port in container.get("ports", []))


def test_strange_values_stay_where_they_are() -> None:
    objects = render(HOSTILE)
    gateway = only(objects, "Deployment", "gateway")
    assert gateway["spec"]["template"]["metadata"]["annotations"] == {"example.com/nasty": NASTY, "null": "~"}
    assert only(objects, "Service", "gateway")["metadata"]["annotations"]["example.com/nasty"] == NASTY
    assert gateway["metadata"]["labels"]["true"] == "1e3"
    spec: dict[str, Any] = gateway["spec"]["template"]["spec"]
    assert spec["containers"][0]["volumeMounts"][0]["mountPath"] == "/etc/{{evil}}'\""
    assert spec["volumes"][0]["secret"]["secretName"] == "1e3"
    assert spec["tolerations"][0]["key"] == NASTY
    assert spec["containers"][0]["image"] == "hublog:0777"
    assert [it["kind"] for it in objects].count("Secret") == 1


def test_long_names_that_differ_late_stay_different() -> None:
    one, two = (
        {it["metadata"]["name"] for it in render(MINIMAL, name=name)} for name in ("r" * 50 + "one", "r" * 50 + "two")
    )
    assert not one & two
