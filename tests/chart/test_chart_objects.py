"""How objects fit each other: sums that add up, selectors that select, ports that are there, policies that let pass."""

import json
import re
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import helm_python
import pytest
import yaml

from service.process.up import STOP_GRACE_S
from service.settings import Settings
from service.telemetry.catalogue import CATALOGUE
from tests.servers.chart import CHART, MINIMAL, containers, environment, only, pod_spec, render
from tests.servers.chart_values import EVERYTHING, GITOPS, SECRETS, SETS

Objects = list[dict[str, Any]]
OFFICIAL = {
    "Chart.yaml": "apiVersion: v2\nname: nats\nversion: 1.3.0\n",
    "templates/_helpers.tpl": (
        '{{- define "nats.fullname" }}'
        '{{- default (printf "%s-%s" .Release.Name .Chart.Name) .Values.fullnameOverride }}{{ end }}'
    ),
    "templates/stand-in.yaml": "kind: StandIn\nvalues: {{ .Values | toJson }}\n",
}
"""In place of the official chart, which tests do not fetch: what we take from it, and what it is given."""


def pods(objects: Objects) -> dict[str, tuple[Mapping[str, str], dict[str, Any]]]:
    """Labels and specification of each kind of pod, by its component."""
    found = {}
    for owner in objects:
        spec = pod_spec(owner)
        if spec is not None:
            labels = (owner if owner["kind"] == "Pod" else owner["spec"]["template"])["metadata"]["labels"]
            found[labels["app.kubernetes.io/component"]] = (labels, spec)
    return found


def selects(selector: Mapping[str, str], labels: Mapping[str, str]) -> bool:
    return selector.items() <= labels.items()


def of(objects: Objects, kind: str) -> Objects:
    return [it for it in objects if it["kind"] == kind]


@pytest.mark.parametrize(("pause", "drain"), [(0, 0), (5, 30), (20, 600)])
def test_a_gateway_has_the_time_that_leaving_takes(pause: int, drain: int) -> None:
    autoscaling = {"enabled": True}
    gateway = {"preStopSeconds": pause, "drainSeconds": drain, "autoscaling": autoscaling}
    objects = render({**MINIMAL, "gateway": gateway})
    deployment = only(objects, "Deployment", "gateway")
    _, spec = pods(objects)["gateway"]
    ((_, container),) = [it for it in containers(deployment) if it[0] == "containers"]
    told = Settings.read(environment(container, SECRETS, objects=objects), "gateway")
    slept = container.get("lifecycle", {}).get("preStop", {}).get("sleep", {}).get("seconds", 0)
    assert (slept, told.drain_s) == (pause, drain)
    assert spec["terminationGracePeriodSeconds"] >= slept + told.drain_s + STOP_GRACE_S
    assert spec["terminationGracePeriodSeconds"] == pause + drain + 15
    assert deployment["spec"]["strategy"]["rollingUpdate"]["maxUnavailable"] == 0
    down = only(objects, "HorizontalPodAutoscaler")["spec"]["behavior"]["scaleDown"]
    assert down["stabilizationWindowSeconds"] == 900
    ((policy),) = down["policies"]
    assert (policy["type"], policy["value"]) == ("Pods", 1)
    assert policy["periodSeconds"] >= min(1800, spec["terminationGracePeriodSeconds"])


def test_the_autoscaler_owns_the_number_of_gateways_and_asks_for_a_metric_that_exists() -> None:
    objects = render(EVERYTHING)
    assert "replicas" not in only(objects, "Deployment", "gateway")["spec"]
    scaler = only(objects, "HorizontalPodAutoscaler")["spec"]
    assert scaler["scaleTargetRef"]["name"] == only(objects, "Deployment", "gateway")["metadata"]["name"]
    by_connections, by_cpu = scaler["metrics"]
    metric = by_connections["pods"]["metric"]["name"]
    assert [it.roles for it in CATALOGUE if it.name == metric] == [("gateway",)]
    assert by_cpu["resource"]["target"]["averageUtilization"] == 70
    assert [it["type"] for it in only(render(GITOPS), "HorizontalPodAutoscaler")["spec"]["metrics"]] == ["Resource"]


@pytest.mark.parametrize("name", SETS)
def test_whatever_selects_pods_selects_those_it_means(name: str) -> None:
    objects = render(SETS[name])
    known = pods(objects)
    for it in [*of(objects, "Deployment"), *of(objects, "PodDisruptionBudget")]:
        role = it["metadata"]["labels"]["app.kubernetes.io/component"]
        selector = it["spec"]["selector"]["matchLabels"]
        assert [who for who, (labels, _) in known.items() if selects(selector, labels)] == [role]
    for service in of(objects, "Service"):
        role = service["metadata"]["labels"]["app.kubernetes.io/component"]
        meant = ["api", "gateway", "projector"] if role == "metrics" else [role]
        chosen = {who: spec for who, (labels, spec) in known.items() if selects(service["spec"]["selector"], labels)}
        assert sorted(chosen) == meant
        for port in service["spec"]["ports"]:
            for spec in chosen.values():
                assert port["targetPort"] in {named["name"] for named in spec["containers"][0]["ports"]}


def test_routes_lead_to_services_that_are_there() -> None:
    objects = render(EVERYTHING)
    ports = {
        it["metadata"]["name"]: {port["name"]: port["port"] for port in it["spec"]["ports"]}
        for it in of(objects, "Service")
    }
    for ingress in of(objects, "Ingress"):
        assert [rule["host"] for rule in ingress["spec"]["rules"]] == ["hub.example.com", "*.hub.example.com"]
        assert ingress["spec"]["tls"] == [{"secretName": "hub-tls", "hosts": ["hub.example.com", "*.hub.example.com"]}]
        for rule in ingress["spec"]["rules"]:
            (path,) = rule["http"]["paths"]
            assert path["backend"]["service"]["port"]["name"] in ports[path["backend"]["service"]["name"]]
    for route in of(objects, "HTTPRoute"):
        (backend,) = route["spec"]["rules"][0]["backendRefs"]
        assert backend["port"] in ports[backend["name"]].values()
    gateway = only(objects, "HTTPRoute", "gateway")["spec"]["rules"][0]
    assert gateway["matches"][0]["path"]["value"] == "/hubs"
    assert gateway["timeouts"] == {"request": "0s"}
    (probe,) = of(objects, "Pod")
    urls = [argument for argument in probe["spec"]["containers"][0]["args"] if argument.startswith("http://")]
    assert sorted(urls) == sorted(
        f"http://{name}:{ports[name]['http']}" for name in ports if not name.endswith("metrics")
    )


def reached(policy: Mapping[str, Any]) -> set[int]:
    """The TCP ports that may be connected to."""
    return {port["port"] for rule in policy["spec"]["egress"] for port in rule["ports"] if port["protocol"] == "TCP"}


def heard(policy: Mapping[str, Any]) -> set[int]:
    return {port["port"] for rule in policy["spec"]["ingress"] for port in rule["ports"]}


def test_policies_let_pass_what_is_needed_and_no_more() -> None:
    objects = render()
    policies = {it["metadata"]["labels"]["app.kubernetes.io/component"]: it for it in of(objects, "NetworkPolicy")}
    known = pods(objects)
    assert policies.keys() == known.keys()
    for role, policy in policies.items():
        assert policy["spec"]["policyTypes"] == ["Ingress", "Egress"]
        chosen = [
            who for who, (labels, _) in known.items() if selects(policy["spec"]["podSelector"]["matchLabels"], labels)
        ]
        assert chosen == [role]
        opened = {port["containerPort"] for it in known[role][1]["containers"] for port in it.get("ports", [])}
        assert heard(policy) == opened
    assert {role: sorted(reached(policy)) for role, policy in policies.items()} == {
        "gateway": [53, 4222, 5432],
        "api": [53, 4222, 5432],
        "projector": [53, 4222, 5432],
        "migrate": [53, 4222, 5432],
        "probe": [53, 8000, 8100],
    }
    for rule in policies["probe"]["spec"]["egress"][1:]:
        ((peer),) = rule["to"]
        assert (
            len([who for who, (labels, _) in known.items() if selects(peer["podSelector"]["matchLabels"], labels)]) == 1
        )


def test_policies_by_peer() -> None:
    objects = render(EVERYTHING)
    policies = {it["metadata"]["labels"]["app.kubernetes.io/component"]: it for it in of(objects, "NetworkPolicy")}
    assert sorted(reached(policies["gateway"])) == [53, 443, 4222, 4223, 4318, 6432]
    assert sorted(reached(policies["projector"])) == [53, 4222, 4223, 4318, 6432]
    assert sorted(reached(policies["migrate"])) == [53, 4222, 4223, 6432]
    public, admin = policies["gateway"]["spec"]["ingress"]
    *named, probe = public["from"]
    assert named == EVERYTHING["networkPolicy"]["from"]["gateway"]
    labels, _ = pods(objects)["probe"]
    assert selects(probe["podSelector"]["matchLabels"], labels), "or helm test would not come through"
    assert admin["from"] == EVERYTHING["networkPolicy"]["from"]["admin"]
    assert all(rule.get("to") for rule in policies["gateway"]["spec"]["egress"])


def test_the_migration_comes_first_as_a_hook_with_all_it_needs() -> None:
    objects = render()
    hooks = {
        (it["kind"], it["metadata"]["name"]): int(it["metadata"]["annotations"]["helm.sh/hook-weight"])
        for it in objects
        if it["metadata"].get("annotations", {}).get("helm.sh/hook") == "pre-install,pre-upgrade"
    }
    job = only(objects, "Job")
    account = job["spec"]["template"]["spec"]["serviceAccountName"]
    assert hooks[("ServiceAccount", account)] < hooks[("Job", job["metadata"]["name"])]
    assert hooks[("NetworkPolicy", "hublog-migrate")] < hooks[("Job", job["metadata"]["name"])]
    assert len(hooks) == 3
    assert {
        it["kind"]: it["metadata"]["annotations"]["helm.sh/hook-delete-policy"]
        for it in objects
        if (it["kind"], it["metadata"]["name"]) in hooks
    } == {
        "Job": "before-hook-creation",
        "ServiceAccount": "before-hook-creation,hook-succeeded",
        "NetworkPolicy": "before-hook-creation,hook-succeeded",
    }
    assert job["spec"]["ttlSecondsAfterFinished"] == 86_400


def test_as_a_plain_job_it_is_another_one_when_its_pod_is() -> None:
    def name(**values: Any) -> str:
        return only(render({**GITOPS, **values}), "Job")["metadata"]["name"]  # type: ignore[no-any-return]

    assert name() == name(logLevel="debug")
    names = [
        *(name(), name(image={"tag": "next"}), name(log={"maxAge": "9d"})),
        # None of these changes what is done, and an API server refuses each as a change of the same Job.
        *(
            name(labels={"team": "hub"}),
            name(podSecurity={"runAsUser": None}),
            name(serviceAccount={"existing": "own"}),
        ),
        name(migrate={**GITOPS["migrate"], "extraEnv": [{"name": "A", "value": "b"}]}),
        name(migrate={**GITOPS["migrate"], "resources": {"requests": {"cpu": "1"}}}),
    ]
    assert len(set(names)) == len(names)
    job = only(render(GITOPS), "Job")
    assert "annotations" not in job["metadata"]
    assert (
        job["spec"]["template"]["spec"]["serviceAccountName"]
        == only(render(GITOPS), "ServiceAccount")["metadata"]["name"]
    )
    assert not of(render({**MINIMAL, "migrate": {"run": "never"}}), "Job")


def test_what_is_scraped_is_what_there_is() -> None:
    objects = render(EVERYTHING)
    monitor = only(objects, "ServiceMonitor")["spec"]
    services = [
        it for it in of(objects, "Service") if selects(monitor["selector"]["matchLabels"], it["metadata"]["labels"])
    ]
    assert [it["metadata"]["name"] for it in services] == [only(objects, "Service", "metrics")["metadata"]["name"]]
    assert services[0]["spec"]["publishNotReadyAddresses"] is True
    assert [it["port"] for it in monitor["endpoints"]] == [port["name"] for port in services[0]["spec"]["ports"]]
    assert only(objects, "ServiceMonitor")["metadata"]["labels"]["release"] == "prometheus"
    assert only(objects, "Deployment", "gateway")["metadata"]["labels"]["team"] == "all"
    assert {labels["team"] for labels, _ in pods(objects).values()} == {"edge"}, "what is nearer wins"


def test_alerts_and_dashboard_arrive_as_they_are_written() -> None:
    objects = render(EVERYTHING)
    alerts = (CHART / "files" / "alerts.yaml").read_text(encoding="utf-8")
    assert only(objects, "PrometheusRule")["spec"] == yaml.safe_load(alerts)
    (shown,) = only(objects, "ConfigMap", "dashboard")["data"].values()
    assert json.loads(shown) == json.loads((CHART / "files" / "dashboard.json").read_text(encoding="utf-8"))
    assert only(objects, "ConfigMap", "dashboard")["metadata"]["labels"]["grafana_dashboard"] == "1"


def test_alerts_lead_to_runbooks_where_it_is_said_where_they_are() -> None:
    at = "https://git.example.com:8443/ops/hublog/blob/v1~2%20x"
    rule = only(
        render({**EVERYTHING, "monitoring": {"prometheusRule": {"enabled": True, "runbooks": at}}}), "PrometheusRule"
    )
    written = yaml.safe_load((CHART / "files" / "alerts.yaml").read_text(encoding="utf-8"))
    for group in written["groups"]:
        for alert in group["rules"]:
            alert["annotations"]["runbook_url"] = f"{at}/docs/troubleshooting.md#{alert['alert'].lower()}"
    assert rule["spec"] == written


@pytest.fixture
def with_nats(tmp_path: Path) -> Path:
    """The chart as it is after ``helm dependency build`` in charts/natscluster, but for whose chart was fetched."""
    copied = tmp_path / "helm"
    shutil.copytree(CHART, copied)
    for name, text in OFFICIAL.items():
        path = copied / "charts" / "natscluster" / "charts" / "nats" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    return copied


def test_a_nats_of_its_own(with_nats: Path) -> None:
    values: dict[str, Any] = {
        "postgres": {"existingSecret": "postgres"},
        "migrate": {"run": "job"},
        "natscluster": {"enabled": True, "nats": {"config": {"jetstream": {"fileStore": {"pvc": {"size": "99Gi"}}}}}},
    }
    objects = render(values, chart=with_nats)
    given = only([{"metadata": {"name": ""}, **it} for it in objects], "StandIn")["values"]
    assert given["config"]["cluster"] == {"enabled": True, "replicas": 3}
    assert given["config"]["jetstream"]["fileStore"]["pvc"]["size"] == "99Gi"
    assert given["config"]["jetstream"]["merge"] == {"sync_interval": "always"}
    assert given["container"]["image"]["tag"] in (CHART.parent / "compose.yaml").read_text(encoding="utf-8")
    assert given["reloader"]["merge"] == given["container"]["merge"]

    def url(rendered: Objects) -> str:
        ((_, migrate),) = containers(only([it for it in rendered if "metadata" in it], "Job"))
        return environment(migrate, SECRETS)["HUBLOG_NATS_URL"]

    assert url(objects) == "nats://hublog-nats:4222"
    values["natscluster"]["nats"]["fullnameOverride"] = "log"
    assert url(render(values, chart=with_nats)) == "nats://log:4222"
    policy = next(it for it in of(objects, "NetworkPolicy") if it["metadata"]["name"] == "hublog-nats")
    clients = policy["spec"]["ingress"][0]["from"][0]["podSelector"]["matchLabels"]
    assert all(selects(clients, labels) for labels, _ in pods([it for it in objects if "metadata" in it]).values())


def test_it_stays_away_where_it_is_not_wanted(with_nats: Path) -> None:
    assert {it["kind"] for it in render(chart=with_nats)} == {it["kind"] for it in render()}


def test_keys_that_were_made_once_are_found_again(tmp_path: Path) -> None:
    """With a cluster's answer in place of the look-up, as there is none here: what exists stays, the rest is made."""
    copied = tmp_path / "helm"
    shutil.copytree(CHART, copied)
    template = copied / "templates" / "keys.yaml"
    asked = 'lookup "v1" "Secret" .Release.Namespace $name'
    assert template.read_text().count(asked) == 1
    template.write_text(template.read_text().replace(asked, '(dict "data" (dict "secrets" "a2VwdA=="))'))
    secret = only(render(chart=copied), "Secret")
    assert secret["metadata"]["annotations"] == {"helm.sh/resource-policy": "keep"}
    assert secret["data"]["secrets"] == "a2VwdA=="
    assert len(secret["data"]["jwt-key"]) == 60
    assert not of(render(EVERYTHING), "Secret")


def test_the_commands_and_names_of_the_readme(with_nats: Path) -> None:
    text = (CHART / "README.md").read_text(encoding="utf-8").partition("## Values")[0]
    installs = re.findall(r"^helm install (\S+) ./helm(.*)$", text, re.MULTILINE)
    assert len(installs) == 2
    for release, options in installs:
        values: dict[str, Any] = {}
        for expression in re.findall(r"--set (\S+)", options):
            merge(values, helm_python.parse_set_string(expression))
        assert only(
            [it for it in render(values, name=release, chart=with_nats) if "metadata" in it], "Deployment", "gateway"
        )
    with helm_python.Chart.load(CHART) as chart:
        defaults = chart.values
    for name in re.findall(r"`([a-z][A-Za-z]+(?:\.[a-zA-Z]+)+)[`:=]", text):
        found: Any = defaults
        for key in name.split("."):
            assert key in found, name
            found = found[key]


def merge(into: dict[str, Any], more: Mapping[str, Any]) -> None:
    for key, value in more.items():
        if isinstance(value, Mapping):
            merge(into.setdefault(key, {}), value)
        else:
            into[key] = value
