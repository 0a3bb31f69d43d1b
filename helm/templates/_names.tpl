{{/* Names and labels. Names are DNS labels whatever the release is called; a long one keeps a piece of its hash. */}}

{{- define "hublog.shortened" -}}
{{- $name := .name -}}
{{- if gt (len $name) (int .longest) -}}
{{- $name = printf "%s-%s" (trunc (int (sub .longest 9)) $name | trimSuffix "-") (sha256sum $name | trunc 8) -}}
{{- end -}}
{{- $name -}}
{{- end }}

{{- define "hublog.name" -}}
{{- include "hublog.shortened" (dict "name" (default .Chart.Name .Values.nameOverride) "longest" 40) -}}
{{- end }}

{{/* What stands behind it is at most 18 characters: "-migrate-" and a hash. */}}
{{- define "hublog.fullname" -}}
{{- $name := .Values.fullnameOverride -}}
{{- if not $name -}}
{{- $name = default .Chart.Name .Values.nameOverride -}}
{{- $name = ternary .Release.Name (printf "%s-%s" .Release.Name $name) (contains $name .Release.Name) -}}
{{- end -}}
{{- include "hublog.shortened" (dict "name" $name "longest" 40) -}}
{{- end }}

{{/* What a selector matches: never changes during the life of a release. Takes root and component. */}}
{{- define "hublog.selector" -}}
app.kubernetes.io/name: {{ include "hublog.name" .root }}
app.kubernetes.io/instance: {{ .root.Release.Name }}
{{- with .component }}
app.kubernetes.io/component: {{ . }}
{{- end }}
{{- end }}

{{/* Takes root, component, and more labels, which go over those of all objects. */}}
{{- define "hublog.labels" -}}
{{ include "hublog.selector" . }}
app.kubernetes.io/version: {{ default .root.Chart.AppVersion .root.Values.image.tag | trunc 63 | trimAll "-_." | quote }}
app.kubernetes.io/part-of: hublog
app.kubernetes.io/managed-by: {{ .root.Release.Service }}
helm.sh/chart: {{ printf "%s-%s" .root.Chart.Name .root.Chart.Version | replace "+" "_" | trunc 63 | quote }}
{{- with mergeOverwrite dict (default dict .root.Values.labels) (default dict .more) }}
{{ toYaml . }}
{{- end }}
{{- end }}

{{/* name, namespace and labels of an object. Takes root, component, what the name ends in, and more labels. */}}
{{- define "hublog.metadata" -}}
name: {{ include "hublog.fullname" .root }}{{ with .suffix }}-{{ . }}{{ end }}
namespace: {{ .root.Release.Namespace }}
labels:
  {{- include "hublog.labels" . | nindent 2 }}
{{- end }}

{{/* Where each process listens. The only place: ports of containers, Services, policies and settings come from here. */}}
{{- define "hublog.ports" -}}
gateway: {public: 8000, admin: 8200}
api: {public: 8100, admin: 8300}
projector: {admin: 8301}
{{- end }}
{{- define "hublog.adminBase" -}}8200{{- end }}

{{- define "hublog.keysSecret" -}}
{{- default (printf "%s-keys" (include "hublog.fullname" .)) .Values.keys.existingSecret -}}
{{- end }}

{{/* 32 random bytes in base64url. */}}
{{- define "hublog.newKey" -}}
{{- randBytes 32 | replace "+" "-" | replace "/" "_" | trimSuffix "=" -}}
{{- end }}

{{- define "hublog.jwtSecret" -}}
{{- default (printf "%s-keys" (include "hublog.fullname" .)) .Values.auth.existingSecret -}}
{{- end }}

{{/* The official chart below charts/natscluster, as "yes" or nothing: it is fetched apart, see Chart.yaml. */}}
{{- define "hublog.natscluster.found" -}}
{{- with .Subcharts -}}{{- with .natscluster -}}{{- with .Subcharts -}}{{- if .nats }}yes{{ end -}}{{- end -}}{{- end -}}{{- end -}}
{{- end }}

{{/* Its Service, by its own rule. Where it is missing, checks.yaml says so. */}}
{{- define "hublog.natscluster.url" -}}
{{- if include "hublog.natscluster.found" . -}}
nats://{{ include "nats.fullname" .Subcharts.natscluster.Subcharts.nats }}:4222
{{- end -}}
{{- end }}

{{- define "hublog.natscluster.selector" -}}
app.kubernetes.io/name: nats
app.kubernetes.io/instance: {{ .Release.Name }}
{{- end }}

{{/* A duration in seconds, and a size in bytes: what to compare, as floats. */}}
{{- define "hublog.seconds" -}}
{{- $units := dict "s" 1 "m" 60 "h" 3600 "d" 86400 -}}
{{- mulf (regexFind "^[0-9.]+" . | float64) (get $units (regexFind "[a-z]+$" .)) -}}
{{- end }}
{{- define "hublog.bytes" -}}
{{- $units := dict "" 1 "KiB" 1024 "MiB" 1048576 -}}
{{- mulf (regexFind "^[0-9]+" . | float64) (get $units (regexFind "[A-Za-z]*$" .)) -}}
{{- end }}
