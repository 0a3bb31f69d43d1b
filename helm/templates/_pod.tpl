{{/* What all pods have alike. Restricted Pod Security is written here and nowhere configurable. */}}

{{- define "hublog.image" -}}
{{- with .Values.image -}}
{{- if .digest -}}
{{ printf "%s@%s" .repository .digest | quote }}
{{- else -}}
{{ printf "%s:%s" .repository (default $.Chart.AppVersion .tag) | quote }}
{{- end -}}
{{- end -}}
{{- end }}

{{/* Takes root, the values of the role, and its service account where that is another. */}}
{{- define "hublog.pod.common" -}}
serviceAccountName: {{ default (include "hublog.serviceAccount" .root) .serviceAccount | quote }}
automountServiceAccountToken: false
enableServiceLinks: false
{{- with .root.Values.image.pullSecrets }}
imagePullSecrets:
  {{- range . }}
  - name: {{ . | quote }}
  {{- end }}
{{- end }}
securityContext:
  runAsNonRoot: true
  {{- if not (kindIs "invalid" .root.Values.podSecurity.runAsUser) }}
  runAsUser: {{ int .root.Values.podSecurity.runAsUser }}
  {{- end }}
  {{- if not (kindIs "invalid" .root.Values.podSecurity.runAsGroup) }}
  runAsGroup: {{ int .root.Values.podSecurity.runAsGroup }}
  {{- end }}
  seccompProfile:
    type: RuntimeDefault
{{- with .values.nodeSelector }}
nodeSelector:
  {{- toYaml . | nindent 2 }}
{{- end }}
{{- with .values.tolerations }}
tolerations:
  {{- toYaml . | nindent 2 }}
{{- end }}
{{- with .values.affinity }}
affinity:
  {{- toYaml . | nindent 2 }}
{{- end }}
{{- with .values.priorityClassName }}
priorityClassName: {{ . | quote }}
{{- end }}
{{- end }}

{{- define "hublog.container.common" -}}
image: {{ include "hublog.image" . }}
imagePullPolicy: {{ .Values.image.pullPolicy }}
securityContext:
  allowPrivilegeEscalation: false
  privileged: false
  readOnlyRootFilesystem: true
  runAsNonRoot: true
  capabilities:
    drop: [ALL]
  seccompProfile:
    type: RuntimeDefault
command: [python, -m, service]
{{- end }}

{{/* Replicas of a role on different zones and machines, per revision. Takes root and component. */}}
{{- define "hublog.pod.spread" -}}
{{- with .root.Values.topologySpread -}}
topologySpreadConstraints:
  {{- range . }}
  - maxSkew: {{ int .maxSkew }}
    topologyKey: {{ .topologyKey | quote }}
    whenUnsatisfiable: {{ .whenUnsatisfiable }}
    labelSelector:
      matchLabels:
        {{- include "hublog.selector" $ | nindent 8 }}
    matchLabelKeys: [pod-template-hash]
  {{- end }}
{{- end }}
{{- end }}

{{- define "hublog.pod.metadata" -}}
labels:
  {{- include "hublog.labels" (merge (dict "more" .values.podLabels) .) | nindent 2 }}
  {{- if .scraped }}
  hublog/scraped: "true"
  {{- end }}
{{- with .values.podAnnotations }}
annotations:
  {{- toYaml . | nindent 2 }}
{{- end }}
{{- end }}

{{- define "hublog.probes" -}}
{{/* A process opens its admin port once it has the log; whoever cannot get it says why and is started again. */}}
startupProbe:
  httpGet: {path: /livez, port: admin}
  periodSeconds: 2
  timeoutSeconds: 2
  failureThreshold: 60
livenessProbe:
  httpGet: {path: /livez, port: admin}
  periodSeconds: 10
  timeoutSeconds: 5
  failureThreshold: 3
readinessProbe:
  httpGet: {path: /readyz, port: admin}
  periodSeconds: 2
  timeoutSeconds: 3
  failureThreshold: 2
{{- end }}

{{/*
Leaving, in one sum: Kubernetes counts the grace period from the moment that it takes the pod out of the Services, so
it holds the pause (until proxies have noticed), the drain of the process, and what is left to do after it.
*/}}
{{- define "hublog.leaving.margin" -}}15{{- end }}
{{- define "hublog.leaving.grace" -}}
{{- add (int .preStopSeconds) (int .drainSeconds) (include "hublog.leaving.margin" . | int) -}}
{{- end }}
{{- define "hublog.leaving.preStop" -}}
{{- if int .preStopSeconds -}}
lifecycle:
  preStop:
    sleep:
      seconds: {{ int .preStopSeconds }}
{{- end }}
{{- end }}

{{- define "hublog.serviceAccount" -}}
{{- default (include "hublog.fullname" .) .Values.serviceAccount.existing -}}
{{- end }}

{{/* The api finishes the requests that it has, for 5 s (service/api/server.py): not a setting. */}}
{{- define "hublog.leaving.api" -}}
{preStopSeconds: {{ int .Values.api.preStopSeconds }}, drainSeconds: 5}
{{- end }}

{{- define "hublog.env.extra" -}}
{{- with .extraEnv }}
{{- toYaml . }}
{{- end }}
{{- end }}

{{/* Files of one's own, a CA above all: read-only, from Secrets and ConfigMaps. */}}
{{- define "hublog.mounts" -}}
{{- with .files -}}
volumeMounts:
  {{- range $i, $file := . }}
  - {name: files-{{ $i }}, mountPath: {{ $file.mountPath | quote }}, readOnly: true}
  {{- end }}
{{- end }}
{{- end }}

{{- define "hublog.volumes" -}}
{{- with .files -}}
volumes:
  {{- range $i, $file := . }}
  - name: files-{{ $i }}
    {{- with $file.secret }}
    secret: {secretName: {{ . | quote }}, defaultMode: 0444}
    {{- end }}
    {{- with $file.configMap }}
    configMap: {name: {{ . | quote }}, defaultMode: 0444}
    {{- end }}
  {{- end }}
{{- end }}
{{- end }}

{{/*
A pod starts its process once `hublog migrate` is through, in whatever order things are applied; until then its own log
says what it waits for. Takes root, and the variables of the role.
*/}}
{{- define "hublog.waiting" -}}
initContainers:
  - name: wait
    {{- include "hublog.container.common" .root | nindent 4 }}
    args: [wait, --at-most, {{ int .root.Values.migrate.waitSeconds | quote }}]
    env:
      {{- include "hublog.env.log" .root | trim | nindent 6 }}
      {{- if .postgres }}
      {{- include "hublog.env.postgres" .root | trim | nindent 6 }}
      {{- end }}
      {{- include "hublog.env.extra" .values | nindent 6 }}
    resources:
      {{- toYaml (default dict .values.resources) | nindent 6 }}
    {{- include "hublog.mounts" .values | nindent 4 }}
{{- end }}
