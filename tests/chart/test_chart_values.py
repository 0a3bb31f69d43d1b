"""Values: what is wrong is refused by its name before anything is rendered; what there is, is described."""

import importlib.util
import re
import tarfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import helm_python
import pytest
import yaml

from service import VERSION
from tests.servers.chart import CHART, MINIMAL, only, render, templates, validate
from tests.servers.chart_values import SETS
from tests.servers.kubernetes import OLDEST

TEXT = (CHART / "values.yaml").read_text(encoding="utf-8")
DEFAULTS: dict[str, Any] = yaml.safe_load(TEXT)
OF_OTHERS = {"global", "natscluster.global", "natscluster.nats"}
"""Objects whose fields are not ours to know: Helm's own, and the official chart's."""


def described() -> Any:
    spec = importlib.util.spec_from_file_location("values_table", CHART / "values_table.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def put(values: dict[str, Any], path: str, value: Any) -> dict[str, Any]:
    """``values`` with one more, at its dotted name."""
    *above, last = path.split(".")
    at = values
    for key in above:
        at = at.setdefault(key, {})
    at[last] = value
    return values


def refusal(values: dict[str, Any], *, by: Callable[[dict[str, Any]], object] = validate) -> str:
    with pytest.raises(helm_python.HelmError) as refused:
        by(values)
    return str(refused.value)


def objects_of(values: dict[str, Any], path: str = "") -> Iterator[str]:
    """The dotted names of all values that hold values of the chart."""
    yield path
    for key, value in values.items():
        if isinstance(value, dict) and value and (inner := f"{path}.{key}".lstrip(".")) not in OF_OTHERS:
            yield from objects_of(value, inner)


def leaves_of(values: dict[str, Any], path: str = "") -> Iterator[tuple[str, Any]]:
    for key, value in values.items():
        inner = f"{path}.{key}".lstrip(".")
        if isinstance(value, dict) and value:
            yield from leaves_of(value, inner)
        else:
            yield inner, value


def test_unknown_values_are_refused_by_name_wherever_they_are() -> None:
    paths = [path for path in objects_of(DEFAULTS) if path != "monitoring.dashboard.labels"]
    values: dict[str, Any] = {}
    for path in paths:
        put(values, f"{path}.surplus".lstrip("."), "x")
    said = refusal(values)
    for path in paths:
        where = f"/{path.replace('.', '/')}" if path else ""
        assert f"at '{where}': additional properties 'surplus' not allowed" in said


def test_values_of_another_type_are_refused_by_name_wherever_they_are() -> None:
    values: dict[str, Any] = {}
    for path, default in leaves_of(DEFAULTS):
        put(values, path, ["not this"] if isinstance(default, dict) else {"not": "this"})
    said = refusal(values)
    for path, _ in leaves_of(DEFAULTS):
        assert f"at '/{path.replace('.', '/')}" in said


@pytest.mark.parametrize(
    ("path", "value"),
    [
        ("gateway.replicas", 0),
        ("gateway.replicas", "2"),
        ("gateway.drainSeconds", 1.5),
        ("gateway.maxSurge", 0),
        ("log.maxAge", "7"),
        ("log.partitions", 65),
        ("log.replicas", 2),
        ("auth.algorithm", "none"),
        ("image.digest", "sha256:abc"),
        ("image.tag", "a b"),
        ("nats.existingSecret", "Not A Name"),
        ("podSecurity.runAsUser", 0),
        ("allowedOrigins", ["example.com"]),
        ("allowedOrigins", ["https://*.example.com"]),
        ("allowedOrigins", ["https://app.example.com:443"]),
        ("labels", {"app.kubernetes.io/name": "other"}),
        ("gateway.podLabels", {"a b": "c"}),
        ("gateway.podAnnotations", {"helm.sh/hook": "test"}),
        ("gateway.extraEnv", [{"name": "HUBLOG_HOST", "value": "::"}]),
        ("gateway.extraEnv", [{"name": "A", "value": "b", "valueFrom": {"fieldRef": {"fieldPath": "x"}}}]),
        ("gateway.files", [{"mountPath": "/a", "hostPath": "/"}]),
        ("gateway.files", [{"mountPath": "/a"}]),
        ("gateway.tolerations", [{"key": "a", "effect": "Sometimes"}]),
        ("gateway.resources", {"limits": {"gpu": "1"}}),
        ("gateway.affinity", {"podAffinity": {"required": []}}),
        ("gateway.ingress.hosts", ["https://example.com"]),
        ("gateway.httpRoute.parentRefs", [{"gateway": "edge"}]),
        ("networkPolicy.to.nats.ports", []),
        ("networkPolicy.from.api", [{}]),
        ("topologySpread", [{"topologyKey": "zone", "maxSkew": 1, "whenUnsatisfiable": "Never"}]),
        ("telemetry.otlpEndpoint", "collector:4317"),
        ("telemetry.traceRatio", 2),
        ("monitoring.serviceMonitor.interval", "1.5m"),
        ("monitoring.prometheusRule.runbooks", "docs"),
        ("monitoring.prometheusRule.runbooks", "ftp://git.example.com/hublog"),
        ("monitoring.prometheusRule.runbooks", "https://git.example.com/hublog/"),
        ("monitoring.prometheusRule.runbooks", "https://git.example.com/hublog?plain=1"),
        ("monitoring.prometheusRule.runbooks", "https://git.example.com/{{ $labels.namespace }}"),
        ("probe.hub", "No Hub"),
    ],
)
def test_a_value_that_cannot_be_is_refused_by_name(path: str, value: Any) -> None:
    said = refusal(put({}, path, value))
    assert f"'/{path.replace('.', '/')}" in said or any(repr(key) in said for key in value), said


@pytest.mark.parametrize("path", [path for path in objects_of(DEFAULTS) if path and "labels" not in path])
def test_a_section_that_is_taken_away_is_missed_by_name(path: str) -> None:
    """``null`` takes a default away. What a template could do without stays allowed."""
    if path.endswith(("resources", "requests", "limits")):
        assert render({**MINIMAL, **put({}, path, None)})
    else:
        # Only rendering knows that a subchart's defaults went, too.
        by = templates if path == "natscluster" else validate
        assert f"missing property '{path.rpartition('.')[2]}'" in refusal(put({}, path, None), by=by)


def test_what_the_command_line_makes_of_numbers_is_taken() -> None:
    said = helm_python.parse_set_string(
        "telemetry.otlpEndpoint=http://c:4318,telemetry.traceRatio=0.25,gateway.replicas=12,gateway.maxSurge=50%,"
        "gateway.drainSeconds=3600,gateway.service.port=65535,podSecurity.runAsUser=1000000001"
    )
    gateway = only(render({**MINIMAL, **said}), "Deployment", "gateway")["spec"]
    assert (gateway["replicas"], gateway["strategy"]["rollingUpdate"]["maxSurge"]) == (12, "50%")
    assert gateway["template"]["spec"]["securityContext"]["runAsUser"] == 1_000_000_001
    assert {"name": "HUBLOG_TRACE_RATIO", "value": "0.250000000"} in gateway["template"]["spec"]["containers"][0]["env"]


@pytest.mark.parametrize(
    ("values", "named"),
    [
        ({}, ["postgres.existingSecret", "nats.existingSecret"]),
        ({**MINIMAL, "auth": {"mode": "none"}}, ["auth.noneBeyondLoopback"]),
        ({**MINIMAL, "auth": {"algorithm": "EdDSA"}}, ["auth.existingSecret"]),
        ({**MINIMAL, "auth": {"key": "secrets"}}, ["keys.key and auth.key"]),
        (
            {**MINIMAL, "natscluster": {"enabled": True}},
            ["natscluster.enabled", "migrate.run", "helm dependency build"],
        ),
        (
            {**MINIMAL, "gateway": {"autoscaling": {"enabled": True, "minReplicas": 3, "maxReplicas": 2}}},
            ["gateway.autoscaling.maxReplicas"],
        ),
        (
            {**MINIMAL, "gateway": {"autoscaling": {"enabled": True, "connections": None, "cpuPercent": None}}},
            ["gateway.autoscaling: connections and cpuPercent"],
        ),
        ({**MINIMAL, "api": {"httpRoute": {"enabled": True}}}, ["api.httpRoute.parentRefs"]),
        ({**MINIMAL, "keys": {"existingSecret": "hublog-keys"}}, ["keys.existingSecret: hublog-keys"]),
        ({**MINIMAL, "auth": {"existingSecret": "hublog-keys"}}, ["auth.existingSecret: hublog-keys"]),
        (
            {**MINIMAL, "monitoring": {"serviceMonitor": {"enabled": True, "interval": "5s"}}},
            ["monitoring.serviceMonitor.scrapeTimeout"],
        ),
    ],
)
def test_values_that_contradict_each_other_are_all_named_at_once(values: dict[str, Any], named: list[str]) -> None:
    said = refusal(values, by=templates)
    assert all(name in said for name in named), said


@pytest.mark.parametrize("tag", ["_x", "1.0-", "a" * 62 + ".b", "v1.2.3-rc.1_amd64"])
def test_every_tag_of_an_image_makes_labels(tag: str) -> None:
    for it in render({**MINIMAL, "image": {"tag": tag}}):
        version = it["metadata"]["labels"]["app.kubernetes.io/version"]
        assert re.fullmatch(r"[A-Za-z0-9]([-A-Za-z0-9_.]{0,61}[A-Za-z0-9])?", version)


def test_values_that_only_seem_to_contradict_each_other_are_taken() -> None:
    both = {"keys": {"existingSecret": "hublog-keys"}, "auth": {"existingSecret": "hublog-keys"}}
    kinds = {it["kind"] for it in render({**MINIMAL, **both})}
    assert "Secret" not in kinds
    monitor = {"serviceMonitor": {"enabled": True, "interval": "1m", "scrapeTimeout": "60s"}}
    assert render({**MINIMAL, "monitoring": monitor})


def test_rendering_looks_at_the_schema_first() -> None:
    assert "'surplus'" in refusal({"gateway": {"surplus": 1}}, by=templates)


def test_no_object_of_the_schema_is_open() -> None:
    with helm_python.Chart.load(CHART) as chart:
        schema = chart.schema
    assert schema is not None

    def look(found: Any, path: str) -> Iterator[str]:
        if isinstance(found, dict):
            if found.get("type") == "object" and "additionalProperties" not in found:
                yield path
            for key, value in found.items():
                yield from look(value, path if key in {"properties", "items"} else f"{path}.{key}".lstrip("."))
        elif isinstance(found, list):
            for value in found:
                yield from look(value, path)

    assert set(look(schema, "")) == OF_OTHERS


def test_the_schema_has_every_value_and_no_other() -> None:
    with helm_python.Chart.load(CHART) as chart:
        schema = chart.schema or {}

    def resolved(node: dict[str, Any]) -> dict[str, Any]:
        reference = node.get("$ref", "").rpartition("/")[2]
        return schema["definitions"][reference] if reference else node

    def compare(node: dict[str, Any], values: dict[str, Any], path: str) -> None:
        properties = resolved(node).get("properties")
        if properties is None:
            return
        assert properties.keys() - {"global"} == values.keys(), path
        for key, inner in properties.items():
            if key not in {"global", "resources", "affinity"} and isinstance(values[key], dict):
                compare(inner, values[key], f"{path}.{key}".lstrip("."))

    compare(schema, DEFAULTS, "")


def test_the_readme_has_todays_values() -> None:
    table = described()
    text = (CHART / "README.md").read_text(encoding="utf-8")
    assert text.count(table.BEGIN) == text.count(table.END) == 1
    assert text.partition(table.BEGIN)[2].partition(table.END)[0] == table.table(TEXT), (
        "run .venv/bin/python helm/values_table.py"
    )


def test_every_value_is_described() -> None:
    names = [name for name, _ in described().described(TEXT)]
    undescribed = [
        path
        for path, _ in leaves_of(DEFAULTS)
        if not any(path == name or path.startswith(f"{name}.") for name in names)
    ]
    assert undescribed == []
    assert all(meaning.endswith(".") for _, meaning in described().described(TEXT))


def test_the_chart_is_of_this_release() -> None:
    chart = yaml.safe_load((CHART / "Chart.yaml").read_text())
    assert chart["appVersion"] == chart["version"] == VERSION
    assert chart["kubeVersion"] == f">={OLDEST}.0-0", "the oldest that the tests check against"


def test_helm_finds_nothing_to_complain_of() -> None:
    for values in SETS.values():
        report = helm_python.lint(CHART, values, strict=True)
        assert [it for it in report["messages"] if it["severity"] > 1] == []
        assert report["errors"] == []


def test_helm_installs_the_defaults_without_fetching_anything() -> None:
    """The real install, as far as it goes without a cluster: it refuses a declared dependency that is not there."""
    nowhere = {
        "apiVersion": "v1",
        "kind": "Config",
        "current-context": "nowhere",
        "contexts": [{"name": "nowhere", "context": {"cluster": "nowhere", "user": "nobody"}}],
        "clusters": [{"name": "nowhere", "cluster": {"server": "https://127.0.0.1:9"}}],
        "users": [{"name": "nobody", "user": {}}],
    }
    with helm_python.Config(kubeconfig_content=yaml.safe_dump(nowhere)) as config:
        release = config.install(str(CHART), "hublog", MINIMAL, namespace="hublog", dry_run="client")
    shown = [it for it in yaml.safe_load_all(release["manifest"]) if it]
    hooks = {"Job/hublog-migrate", "ServiceAccount/hublog-migrate", "NetworkPolicy/hublog-migrate", "Pod/hublog-probe"}

    def names(objects: list[dict[str, Any]]) -> set[str]:
        return {f"{it['kind']}/{it['metadata']['name']}" for it in objects}

    assert names(shown) == names(render()) - hooks


def test_a_package_has_what_the_chart_needs_and_not_what_made_it(tmp_path: Path) -> None:
    archive = Path(helm_python.package(CHART, destination=tmp_path))
    with tarfile.open(archive) as packed:
        names = {name.removeprefix("hublog/") for name in packed.getnames()}
    assert {"files/alerts.yaml", "files/dashboard.json", "charts/natscluster/values.yaml", "README.md"} <= names
    assert not [name for name in names if name.endswith((".py", ".pyc"))]
    kept = [it for it in render() if it["kind"] != "Secret"]
    assert [it for it in render(chart=archive) if it["kind"] != "Secret"] == kept


def test_the_notes_say_what_to_do_next() -> None:
    notes = templates(MINIMAL)["hublog/templates/NOTES.txt"]
    assert "helm test hublog" in notes
    assert "service token --user ann" in notes
    assert "Postgres (5432)" in notes
    open_door = templates(SETS["least"])["hublog/templates/NOTES.txt"]
    assert "THE DOOR IS OPEN" in open_door
    assert not re.search("Keys were made|Network policies", open_door)
    assert "https://hub.example.com/hubs/<hub>" in templates(SETS["everything"])["hublog/templates/NOTES.txt"]
    own_host = {"ingress": {"enabled": True, "hosts": ["ops.example.com"], "tlsSecret": "ops"}}
    telling = {**MINIMAL, "api": own_host, "telemetry": {"otlpEndpoint": "http://collector:9999"}}
    said = templates(telling)["hublog/templates/NOTES.txt"]
    assert "https://ops.example.com/schema" in said
    assert "Traces get out by 4317, 4318 only" in said
    assert "Traces" not in notes
