{{/* Who may, or where to: without peers anybody, anywhere. Takes side (from, to) and peers. */}}
{{- define "hublog.policy.peers" -}}
{{- with .peers -}}
{{ $.side }}:
  {{- toYaml . | nindent 2 }}
{{- end }}
{{- end }}

{{/* One rule: these ports, of these peers. Takes ports and peers. */}}
{{- define "hublog.policy.egress" -}}
- ports:
    {{- range .ports }}
    - {protocol: TCP, port: {{ int . }}}
    {{- end }}
  {{- include "hublog.policy.peers" (dict "side" "to" "peers" .peers) | nindent 2 }}
{{- end }}
