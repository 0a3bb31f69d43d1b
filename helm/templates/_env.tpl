{{/*
What the processes are told: HUBLOG_* variables made from values. Each role gets what it reads and the Secrets that it
needs, no more. A number goes through int: Go would write a large one as 1e+06. A dollar is doubled: the kubelet would
take $(NAME) for a reference.
*/}}

{{- define "hublog.env.pair" -}}
- name: {{ .name }}
  value: {{ .value | toString | replace "$" "$$" | quote }}
{{- end }}

{{- define "hublog.env.secret" -}}
- name: {{ .name }}
  valueFrom:
    secretKeyRef:
      name: {{ .secret | quote }}
      key: {{ .key | quote }}
{{- end }}

{{/* Where the log is, and how `migrate` makes it: the same for all, or a process refuses a log that drifted. */}}
{{- define "hublog.env.log" -}}
{{- if .Values.natscluster.enabled }}
{{- include "hublog.env.pair" (dict "name" "HUBLOG_NATS_URL" "value" (include "hublog.natscluster.url" .)) }}
{{- else }}
{{- include "hublog.env.secret" (dict "name" "HUBLOG_NATS_URL" "secret" .Values.nats.existingSecret "key" .Values.nats.key) }}
{{- end }}
{{- with .Values }}
{{ include "hublog.env.pair" (dict "name" "HUBLOG_PARTITIONS" "value" (int .log.partitions)) }}
{{ include "hublog.env.pair" (dict "name" "HUBLOG_NATS_REPLICAS" "value" (int .log.replicas)) }}
{{ include "hublog.env.pair" (dict "name" "HUBLOG_MAX_AGE" "value" .log.maxAge) }}
{{ include "hublog.env.pair" (dict "name" "HUBLOG_DUPLICATE_WINDOW" "value" .log.duplicateWindow) }}
{{- end }}
{{- end }}

{{- define "hublog.env.postgres" -}}
{{- with .Values.postgres }}
{{- include "hublog.env.secret" (dict "name" "HUBLOG_POSTGRES_DSN" "secret" .existingSecret "key" .key) }}
{{- end }}
{{- end }}

{{/* What every long-running process is told. */}}
{{- define "hublog.env.served" -}}
{{ include "hublog.env.pair" (dict "name" "HUBLOG_HOST" "value" "0.0.0.0") }}
{{ include "hublog.env.pair" (dict "name" "HUBLOG_ADMIN_PORT" "value" (include "hublog.adminBase" .)) }}
{{ include "hublog.env.pair" (dict "name" "HUBLOG_LOG_LEVEL" "value" .Values.logLevel) }}
{{ include "hublog.env.auth" . }}
{{- with .Values.telemetry }}
{{- if .otlpEndpoint }}
{{ include "hublog.env.pair" (dict "name" "HUBLOG_OTLP_ENDPOINT" "value" .otlpEndpoint) }}
{{ include "hublog.env.pair" (dict "name" "HUBLOG_TRACE_RATIO" "value" (printf "%.9f" (float64 .traceRatio))) }}
{{- if .headersSecret }}
{{ include "hublog.env.secret" (dict "name" "OTEL_EXPORTER_OTLP_HEADERS" "secret" .headersSecret "key" .headersKey) }}
{{- end }}
{{- end }}
{{- end }}
{{- end }}

{{- define "hublog.env.auth" -}}
{{- $auth := .Values.auth -}}
{{ include "hublog.env.pair" (dict "name" "HUBLOG_AUTH" "value" $auth.mode) }}
{{- if eq $auth.mode "none" }}
{{ include "hublog.env.pair" (dict "name" "HUBLOG_AUTH_NONE_BEYOND_LOOPBACK" "value" $auth.noneBeyondLoopback) }}
{{- end }}
{{- end }}

{{/* How access tokens are known: for those whom clients show theirs, and for who mints one. */}}
{{- define "hublog.env.jwt" -}}
{{- if eq .Values.auth.mode "jwt" }}
{{- with .Values.auth }}
{{ include "hublog.env.pair" (dict "name" "HUBLOG_JWT_ALGORITHM" "value" .algorithm) }}
{{ include "hublog.env.secret" (dict "name" "HUBLOG_JWT_KEY" "secret" (include "hublog.jwtSecret" $) "key" .key) }}
{{- with .issuer }}
{{ include "hublog.env.pair" (dict "name" "HUBLOG_JWT_ISSUER" "value" .) }}
{{- end }}
{{- with .audience }}
{{ include "hublog.env.pair" (dict "name" "HUBLOG_JWT_AUDIENCE" "value" .) }}
{{- end }}
{{- end }}
{{- end }}
{{- end }}

{{/* The probe is a client: it shows a token, its own where one is given, else one that it mints. */}}
{{- define "hublog.env.probe" -}}
{{- if .Values.probe.tokenSecret }}
{{ include "hublog.env.secret" (dict "name" "HUBLOG_TOKEN" "secret" .Values.probe.tokenSecret "key" .Values.probe.tokenKey) }}
{{- else }}
{{- include "hublog.env.jwt" . }}
{{- end }}
{{- end }}

{{- define "hublog.env.origins" -}}
{{- with .Values.allowedOrigins }}
{{ include "hublog.env.pair" (dict "name" "HUBLOG_ALLOWED_ORIGINS" "value" (join "," .)) }}
{{- end }}
{{- end }}

{{- define "hublog.env.sessionTtl" -}}
{{ include "hublog.env.pair" (dict "name" "HUBLOG_SESSION_TTL" "value" .Values.sessions.ttl) }}
{{- end }}

{{- define "hublog.env.staleAfter" -}}
{{ include "hublog.env.pair" (dict "name" "HUBLOG_STALE_AFTER" "value" .Values.readModels.staleAfter) }}
{{- end }}

{{- define "hublog.env.sessionManager" -}}
{{- with .Values.sessions.manager }}
{{ include "hublog.env.pair" (dict "name" "HUBLOG_SESSION_MANAGER" "value" .) }}
{{- end }}
{{- end }}

{{- define "hublog.env.gateway" -}}
{{- $ports := (include "hublog.ports" . | fromYaml).gateway -}}
{{ include "hublog.env.log" . }}
{{- if .Values.gateway.readPostgres }}
{{ include "hublog.env.postgres" . }}
{{- end }}
{{ include "hublog.env.served" . }}
{{ include "hublog.env.secret" (dict "name" "HUBLOG_SECRETS" "secret" (include "hublog.keysSecret" .) "key" .Values.keys.key) }}
- name: HUBLOG_NODE
  valueFrom:
    fieldRef:
      fieldPath: metadata.name
{{ include "hublog.env.pair" (dict "name" "HUBLOG_GATEWAY_PORT" "value" (int $ports.public)) }}
{{ include "hublog.env.pair" (dict "name" "HUBLOG_DRAIN" "value" (int .Values.gateway.drainSeconds)) }}
{{ include "hublog.env.pair" (dict "name" "HUBLOG_CANARY_EVERY" "value" .Values.gateway.canaryEvery) }}
{{- include "hublog.env.jwt" . }}
{{- include "hublog.env.origins" . }}
{{ include "hublog.env.sessionTtl" . }}
{{- include "hublog.env.sessionManager" . }}
{{- with .Values.connections }}
{{ include "hublog.env.pair" (dict "name" "HUBLOG_NATS_GRACE" "value" .natsGrace) }}
{{ include "hublog.env.pair" (dict "name" "HUBLOG_MESSAGE_BYTES_MAX" "value" .messageBytesMax) }}
{{ include "hublog.env.pair" (dict "name" "HUBLOG_OUTBOX_BYTES_MAX" "value" .outboxBytesMax) }}
{{ include "hublog.env.pair" (dict "name" "HUBLOG_OUTBOX_AGE" "value" .outboxAge) }}
{{ include "hublog.env.pair" (dict "name" "HUBLOG_PING_INTERVAL" "value" .pingInterval) }}
{{ include "hublog.env.pair" (dict "name" "HUBLOG_CLIENT_TIMEOUT" "value" .clientTimeout) }}
{{ include "hublog.env.pair" (dict "name" "HUBLOG_HANDSHAKE_TIMEOUT" "value" .handshakeTimeout) }}
{{- end }}
{{- end }}

{{- define "hublog.env.api" -}}
{{- $ports := (include "hublog.ports" . | fromYaml).api -}}
{{ include "hublog.env.log" . }}
{{ include "hublog.env.postgres" . }}
{{ include "hublog.env.served" . }}
{{ include "hublog.env.pair" (dict "name" "HUBLOG_API_PORT" "value" (int $ports.public)) }}
{{ include "hublog.env.staleAfter" . }}
{{- include "hublog.env.jwt" . }}
{{- include "hublog.env.origins" . }}
{{- include "hublog.env.sessionManager" . }}
{{- end }}

{{- define "hublog.env.projector" -}}
{{ include "hublog.env.log" . }}
{{ include "hublog.env.postgres" . }}
{{ include "hublog.env.served" . }}
{{ include "hublog.env.sessionTtl" . }}
{{ include "hublog.env.staleAfter" . }}
{{- end }}

{{- define "hublog.env.migrate" -}}
{{ include "hublog.env.log" . }}
{{ include "hublog.env.postgres" . }}
{{- end }}
