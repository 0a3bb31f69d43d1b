{{/*
What runs before the release does: the Job, and what it needs, which goes when all of it succeeded. The Job stays for a
day, for its log. Takes root, weight, and more policies of deletion.
*/}}
{{- define "hublog.migrate.hook" -}}
{{- if eq .root.Values.migrate.run "hook" -}}
annotations:
  helm.sh/hook: pre-install,pre-upgrade
  helm.sh/hook-weight: {{ .weight | quote }}
  helm.sh/hook-delete-policy: before-hook-creation{{ with .goes }},{{ . }}{{ end }}
{{- end }}
{{- end }}

{{/* The pod of the Job. Takes what `hublog.pod.common` does. */}}
{{- define "hublog.migrate.pod" -}}
metadata:
  {{- include "hublog.pod.metadata" . | nindent 2 }}
spec:
  {{- include "hublog.pod.common" . | nindent 2 }}
  restartPolicy: Never
  containers:
    - name: migrate
      {{- include "hublog.container.common" .root | nindent 6 }}
      args: [migrate]
      env:
        {{- include "hublog.env.migrate" .root | trim | nindent 8 }}
        {{- include "hublog.env.extra" .root.Values.migrate | nindent 8 }}
      resources:
        {{- toYaml (default dict .root.Values.migrate.resources) | nindent 8 }}
      {{- include "hublog.mounts" .root.Values.migrate | nindent 6 }}
  {{- include "hublog.volumes" .root.Values.migrate | nindent 2 }}
{{- end }}
