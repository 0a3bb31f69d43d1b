{{/* What runs before the release does: the Job, and what it needs. The last one stays, for its log. */}}
{{- define "hublog.migrate.hook" -}}
{{- if eq .root.Values.migrate.run "hook" }}
annotations:
  helm.sh/hook: pre-install,pre-upgrade
  helm.sh/hook-weight: {{ .weight | quote }}
  helm.sh/hook-delete-policy: before-hook-creation
{{- end }}
{{- end }}
