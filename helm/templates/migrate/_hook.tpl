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
