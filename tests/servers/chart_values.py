"""Sets of values that the chart is rendered with in tests: from the least to everything, and what nobody should try."""

from typing import Any

from events.ids import b64url
from tests.servers.chart import MINIMAL

PUBLIC_KEY = """-----BEGIN PUBLIC KEY-----
MCowBQYDK2VwAyEAGb9ECWmEzf6FQbrBZ9w7lshQhqowtrbLDFw4rXAxZuE=
-----END PUBLIC KEY-----
"""
SECRETS = {
    "nats": {"url": "nats://hublog:pw@nats-0:4222,nats://nats-1:4222"},
    "postgres": {"dsn": "postgresql://hublog:pw@postgres/hublog"},
    "own-keys": {"seal": b64url(bytes(32)), "verify": b64url(b"k" * 32), "public": PUBLIC_KEY},
    "collector": {"headers": "authorization=Bearer x"},
    "probe-token": {"token": "a.b.c"},
}
"""What the sets refer to."""

ALLOWED = {"matchLabels": {"team": "edge"}}
ROUTED = {
    "ingress": {
        "enabled": True,
        "className": "nginx",
        "annotations": {"nginx.ingress.kubernetes.io/proxy-read-timeout": "3600"},
        "hosts": ["hub.example.com", "*.hub.example.com"],
        "tlsSecret": "hub-tls",
    },
    "httpRoute": {
        "enabled": True,
        "parentRefs": [{"name": "edge", "namespace": "infra", "sectionName": "https", "port": 443}],
        "hostnames": ["hub.example.com"],
    },
}
PLACED = {
    "podLabels": {"team": "edge"},
    "podAnnotations": {"example.com/note": "placed"},
    "nodeSelector": {"kubernetes.io/arch": "amd64"},
    "tolerations": [{"key": "dedicated", "operator": "Equal", "value": "hub", "effect": "NoSchedule"}],
    "affinity": {
        "nodeAffinity": {
            "requiredDuringSchedulingIgnoredDuringExecution": {
                "nodeSelectorTerms": [{"matchExpressions": [{"key": "disk", "operator": "In", "values": ["ssd"]}]}]
            },
            "preferredDuringSchedulingIgnoredDuringExecution": [
                {"weight": 1, "preference": {"matchExpressions": [{"key": "new", "operator": "Exists"}]}}
            ],
        },
        "podAntiAffinity": {
            "requiredDuringSchedulingIgnoredDuringExecution": [
                {"topologyKey": "kubernetes.io/hostname", "labelSelector": ALLOWED, "namespaces": ["batch"]}
            ],
            "preferredDuringSchedulingIgnoredDuringExecution": [
                {"weight": 100, "podAffinityTerm": {"topologyKey": "zone", "namespaceSelector": {}}}
            ],
        },
    },
    "priorityClassName": "high",
}
FILLED = {
    **PLACED,
    "extraEnv": [
        {"name": "SSL_CERT_FILE", "value": "/etc/ca/ca.crt"},
        {"name": "ZONE", "valueFrom": {"fieldRef": {"fieldPath": "metadata.namespace"}}},
        {"name": "PGAPPNAME", "valueFrom": {"secretKeyRef": {"name": "names", "key": "pg", "optional": True}}},
    ],
    "files": [{"mountPath": "/etc/ca", "configMap": "ca"}, {"mountPath": "/etc/nats-ca", "secret": "nats-ca"}],
}

LEAST: dict[str, Any] = {
    **MINIMAL,
    "auth": {"mode": "none", "noneBeyondLoopback": "yes-i-know"},
    "keys": {"existingSecret": "own-keys", "key": "seal"},
    "serviceAccount": {"existing": "ops"},
    "podSecurity": {"runAsUser": None, "runAsGroup": None},
    "topologySpread": [],
    "migrate": {"run": "never"},
    "networkPolicy": {"enabled": False},
    "probe": {"enabled": False},
    "gateway": {
        "replicas": 1,
        "readPostgres": False,
        "preStopSeconds": 0,
        "drainSeconds": 0,
        "disruption": {"enabled": False},
        "resources": {},
    },
    "api": {"replicas": 1, "preStopSeconds": 0, "disruption": {"enabled": False}},
    "projector": {"replicas": 1, "disruption": {"enabled": False}},
}

EVERYTHING: dict[str, Any] = {
    "nameOverride": "hub",
    "labels": {"example.com/owner": "edge", "team": "all", "release": "none"},
    "logLevel": "debug",
    "allowedOrigins": ["https://app.example.com", "https://other.example.com"],
    "image": {
        "repository": "images.example.com:5000/edge/hublog",
        "digest": "sha256:" + "0a" * 32,
        "pullPolicy": "Always",
        "pullSecrets": ["pull"],
    },
    "nats": {"existingSecret": "nats", "key": "url"},
    "postgres": {"existingSecret": "postgres", "key": "dsn"},
    "keys": {"existingSecret": "own-keys", "key": "seal"},
    "auth": {
        "algorithm": "HS256",
        "existingSecret": "own-keys",
        "key": "verify",
        "issuer": "https://id.example.com",
        "audience": "hublog",
    },
    "log": {"partitions": 16, "replicas": 5, "maxAge": "3d", "duplicateWindow": "10m"},
    "sessions": {"ttl": "2h", "manager": "own.package:factory"},
    "readModels": {"staleAfter": "2m"},
    "connections": {
        "natsGrace": "45s",
        "messageBytesMax": "64KiB",
        "outboxBytesMax": "2MiB",
        "outboxAge": "20s",
        "pingInterval": "10s",
        "clientTimeout": "25s",
        "handshakeTimeout": "5s",
    },
    "gateway": {
        "maxSurge": "50%",
        "preStopSeconds": 10,
        "drainSeconds": 120,
        "canaryEvery": "2m",
        "autoscaling": {"enabled": True, "minReplicas": 3, "maxReplicas": 20},
        "service": {"type": "LoadBalancer", "port": 8080, "annotations": {"example.com/lb": "internal"}},
        **ROUTED,
        **FILLED,
    },
    "api": {**ROUTED, **FILLED},
    "projector": FILLED,
    "migrate": FILLED,
    "serviceAccount": {"annotations": {"example.com/role": "hublog"}},
    "networkPolicy": {
        "from": {
            "gateway": [{"namespaceSelector": ALLOWED, "podSelector": ALLOWED}],
            "api": [{"podSelector": {"matchExpressions": [{"key": "team", "operator": "In", "values": ["edge"]}]}}],
            "admin": [{"namespaceSelector": {"matchLabels": {"kubernetes.io/metadata.name": "monitoring"}}}],
        },
        "to": {
            "dns": {"ports": [53], "peers": [{"namespaceSelector": {}}]},
            "nats": {"ports": [4222, 4223], "peers": [{"podSelector": ALLOWED}]},
            "postgres": {"ports": [6432], "peers": [{"ipBlock": {"cidr": "10.0.0.0/8", "except": ["10.1.0.0/16"]}}]},
            "otlp": {"ports": [4318], "peers": [{"namespaceSelector": ALLOWED}]},
            "jwks": {"enabled": True, "ports": [443], "peers": [{"ipBlock": {"cidr": "2001:db8::/32"}}]},
        },
    },
    "monitoring": {
        "serviceMonitor": {"enabled": True, "labels": {"release": "prometheus"}},
        "prometheusRule": {"enabled": True, "labels": {"release": "prometheus"}},
        "dashboard": {
            "enabled": True,
            "annotations": {"grafana_folder": "hublog"},
        },
    },
    "telemetry": {
        "otlpEndpoint": "http://collector.observability:4318",
        "traceRatio": 0.00001,
        "headersSecret": "collector",
    },
    "probe": {"hub": "smoke", "tokenSecret": "probe-token", **PLACED},
}

GITOPS: dict[str, Any] = {
    **MINIMAL,
    "keys": {"existingSecret": "own-keys", "key": "seal"},
    "auth": {"algorithm": "EdDSA", "existingSecret": "own-keys", "key": "public"},
    "probe": {"tokenSecret": "probe-token"},
    "migrate": {"run": "job"},
    "gateway": {"autoscaling": {"enabled": True, "connections": None}},
}

NASTY = (
    'it\'s "quoted": {{ .Values.keys }} {{ fail "no" }} $(HUBLOG_SECRETS) `id` # not a comment\n'
    "- name: EVIL\n---\nkind: Secret"
)
HOSTILE: dict[str, Any] = {
    **MINIMAL,
    "labels": {"true": "1e3", "no": "null", "example.com/on": "0777"},
    "fullnameOverride": "a" * 63,
    "nats": {"existingSecret": "nats", "key": "0777"},
    "auth": {"issuer": "{{.Values}}'\"#&*!|>%@`", "audience": "yes"},
    "image": {"repository": "hublog", "tag": "0777"},
    "serviceAccount": {"annotations": {"example.com/nasty": NASTY}},
    "gateway": {
        "service": {"annotations": {"example.com/nasty": NASTY}},
        "podAnnotations": {"example.com/nasty": NASTY, "null": "~"},
        "podLabels": {"yes": "off"},
        "extraEnv": [{"name": "NASTY", "value": NASTY}, {"name": "EMPTY", "value": ""}],
        "files": [{"mountPath": "/etc/{{evil}}'\"", "secret": "1e3"}],
        "tolerations": [{"key": NASTY, "operator": "Exists"}],
        "priorityClassName": "1e3",
        "ingress": {"enabled": True, "annotations": {"example.com/nasty": NASTY}},
    },
    "networkPolicy": {"from": {"gateway": [{"podSelector": {"matchLabels": {"true": "no"}}}]}},
}

SETS: dict[str, dict[str, Any]] = {
    "defaults": MINIMAL,
    "least": LEAST,
    "everything": EVERYTHING,
    "gitops": GITOPS,
    "hostile": HOSTILE,
}
