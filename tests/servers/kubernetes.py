"""What an API server of a given version would say of an object: its own schemas, and ours for the kinds that are added.

The schemas of Kubernetes are those of ``kubernetes-validate``, strict: a field that the version does not know is wrong.
Kinds of the Prometheus operator and of the Gateway API have no schema there; what we use of them is written down here.
"""

import functools
from typing import Any

import jsonschema
import kubernetes_validate
from kubernetes_validate import utils

OLDEST, NEWEST = "1.30", kubernetes_validate.latest_version()
VERSIONS = (OLDEST, NEWEST)

# They are megabytes, and read anew for each object.
utils.schema_contents = functools.cache(utils.schema_contents)

_NAMED = {"type": "object", "required": ["name", "namespace", "labels"]}


def _kind(spec: dict[str, Any]) -> dict[str, Any]:
    return {
        "type": "object",
        "additionalProperties": False,
        "required": ["apiVersion", "kind", "metadata", "spec"],
        "properties": {"apiVersion": {}, "kind": {}, "metadata": _NAMED, "spec": _object(spec)},
    }


def _object(properties: dict[str, Any], *optional: str) -> dict[str, Any]:
    required = [name for name in properties if name not in optional]
    return {"type": "object", "additionalProperties": False, "required": required, "properties": properties}


_TEXT = {"type": "string", "minLength": 1}
_TEXTS = {"type": "array", "items": _TEXT, "minItems": 1}
_DURATION = {"type": "string", "pattern": r"^([0-9]+h)?([0-9]+m)?([0-9]+s)?$", "minLength": 1}
_PORT = {"type": "integer", "minimum": 1, "maximum": 65_535}
_MAP = {"type": "object", "additionalProperties": {"type": "string"}}


def _list(item: dict[str, Any]) -> dict[str, Any]:
    return {"type": "array", "items": item, "minItems": 1}


ADDED = {
    ("monitoring.coreos.com/v1", "ServiceMonitor"): _kind(
        {
            "namespaceSelector": _object({"matchNames": _TEXTS}),
            "selector": _object({"matchLabels": _MAP}),
            "podTargetLabels": _TEXTS,
            "endpoints": _list(
                _object({"port": _TEXT, "path": _TEXT, "interval": _DURATION, "scrapeTimeout": _DURATION})
            ),
        }
    ),
    ("monitoring.coreos.com/v1", "PrometheusRule"): _kind(
        {
            "groups": _list(
                _object(
                    {
                        "name": _TEXT,
                        "interval": _DURATION,
                        "rules": _list(
                            _object(
                                {
                                    "alert": {"type": "string", "pattern": "^[A-Za-z_][A-Za-z0-9_]*$"},
                                    "record": {"type": "string", "pattern": "^[a-zA-Z_:][a-zA-Z0-9_:]*$"},
                                    "expr": _TEXT,
                                    "for": _DURATION,
                                    "keep_firing_for": _DURATION,
                                    "labels": _MAP,
                                    "annotations": _MAP,
                                },
                                *("alert", "record", "for", "keep_firing_for", "labels", "annotations"),
                            )
                        ),
                    },
                    "interval",
                )
            )
        }
    ),
    ("gateway.networking.k8s.io/v1", "HTTPRoute"): _kind(
        {
            "parentRefs": _list(
                _object(
                    {"name": _TEXT, "namespace": _TEXT, "sectionName": _TEXT, "port": _PORT, "kind": {}, "group": {}},
                    *("namespace", "sectionName", "port", "kind", "group"),
                )
            ),
            "hostnames": _TEXTS,
            "rules": _list(
                _object(
                    {
                        "matches": _list(
                            _object({"path": _object({"type": {"enum": ["PathPrefix"]}, "value": _TEXT})})
                        ),
                        "timeouts": _object({"request": _DURATION}),
                        "backendRefs": _list(_object({"name": _TEXT, "port": _PORT})),
                    },
                    "timeouts",
                )
            ),
        }
    ),
}
ADDED["gateway.networking.k8s.io/v1", "HTTPRoute"]["properties"]["spec"]["required"].remove("hostnames")


def refuse_what_is_wrong(found: dict[str, Any], version: str) -> None:
    """Raises: jsonschema.ValidationError, kubernetes_validate.SchemaNotFoundError."""
    added = ADDED.get((found["apiVersion"], found["kind"]))
    if added is not None:
        jsonschema.validate(found, added)
        return
    kubernetes_validate.validate(found, version, strict=True)
