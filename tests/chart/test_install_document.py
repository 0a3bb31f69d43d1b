"""docs/install.md, as far as it goes without a cluster: its values render, and what its commands name is there."""

import re
from pathlib import Path
from typing import Any

import pytest
import yaml

from service import VERSION
from tests.servers.chart import containers, environment, only, render

TEXT = (Path(__file__).resolve().parents[2] / "docs/install.md").read_text()
KUBERNETES = TEXT.partition("## Kubernetes")[2]
SECRETS = {
    name: {key: value}
    for name, key, value in re.findall(r"secret generic (\S+) \\\n +--from-literal=(\w+)='([^']+)'", KUBERNETES)
}


@pytest.fixture(scope="module")
def objects() -> list[dict[str, Any]]:
    (values,) = re.findall(r"```yaml\n(.*?)```", KUBERNETES, re.DOTALL)
    (installed,) = re.findall(r"^helm install (\S+) \./helm --namespace (\S+) --values values.yaml", TEXT, re.MULTILINE)
    release, namespace = installed
    return render(yaml.safe_load(values), name=release, namespace=namespace)


def test_its_values_render_with_the_secrets_and_the_image_that_it_makes(objects: list[dict[str, Any]]) -> None:
    assert len(SECRETS) == 2
    pushed = re.findall(r"^docker push (\S+)$", KUBERNETES, re.MULTILINE)
    assert pushed == [f"registry.example.com/hublog:{VERSION}"]
    for owner in objects:
        for _, container in containers(owner):
            assert [container["image"]] == pushed
            told = environment(container, SECRETS, objects=objects)
            assert told.get("HUBLOG_NATS_REPLICAS", "3") == "3"
            assert told.get("HUBLOG_NATS_URL", SECRETS["hublog-nats"]["url"]) == SECRETS["hublog-nats"]["url"]


def test_what_its_commands_look_at_is_there(objects: list[dict[str, Any]]) -> None:
    looked_at = re.findall(r"deploy/(\S+)(?: --container (\S+))?", KUBERNETES)
    assert len(looked_at) == 2
    for name, container in looked_at:
        names = [found["name"] for _, found in containers(only(objects, "Deployment", name))]
        assert not container or container in names
