{{/* An option's value as a variable has it. Helm reads every number as a float: 3e9 is no count. */}}
{{- define "internvl.optionText" -}}
{{- if kindIs "slice" . -}}
{{- toJson . -}}
{{- else if and (kindIs "float64" .) (eq (floor .) .) -}}
{{- printf "%.0f" . -}}
{{- else -}}
{{- toString . -}}
{{- end -}}
{{- end }}

{{/* The options that the chart decides, since other objects depend on them; of (root, component). */}}
{{- define "internvl.ownOptions" -}}
{{- $values := get .root.Values .component -}}
host: "0.0.0.0"
port: {{ include "internvl.port" .component }}
{{- if .root.Values.metrics.enabled }}
metrics-port: {{ include "internvl.metricsPort" . }}
{{- end }}
{{- with .root.Values.traces.otlpEndpoint }}
otlp-endpoint: {{ . | quote }}
{{- end }}
{{- if eq .component "gateway" }}
vision-address: {{ include "internvl.address" (dict "root" .root "component" "vision") }}
llm-address: {{ include "internvl.address" (dict "root" .root "component" "llm") }}
{{- if .root.Values.tls.enabled }}
service-ca-file: /run/secrets/tls/ca.crt
service-certificate-file: /run/secrets/tls/tls.crt
service-key-file: /run/secrets/tls/tls.key
{{- end }}
{{- if .root.Values.gateway.tls.existingSecret }}
tls-certificate-file: /run/secrets/https/tls.crt
tls-key-file: /run/secrets/https/tls.key
{{- end }}
{{- if .root.Values.apiKeys.existingSecret }}
api-keys-file: /run/secrets/api-keys/keys.yaml
gateway-count: {{ printf "dns:///%s" (include "internvl.host" (dict "root" .root "component" "gateways")) }}
{{- end }}
{{- else }}
{{- if .root.Values.tls.enabled }}
tls-certificate-file: /run/secrets/tls/tls.crt
tls-key-file: /run/secrets/tls/tls.key
tls-client-ca-file: /run/secrets/tls/ca.crt
tls-client-names: [{{ .root.Values.tls.gatewayName | default (include "internvl.host" (dict "root" .root "component" "gateway")) | quote }}]
{{- end }}
checkpoint: /checkpoint
embedding-key-file: /run/secrets/embedding/embedding.key
engine: {{ $values.engine }}
served-model-name: {{ .root.Values.modelName | quote }}
{{- end }}
{{- if eq ($values.engine | default "") "tensorrt" }}
tensorrt.plan: {{ printf "/engines/%s" $values.plan | quote }}
{{- else if eq ($values.engine | default "") "tensorrt_llm" }}
tensorrt-llm.engine-folder: {{ printf "/engines/%s" $values.engineFolder | quote }}
{{- end }}
{{- end }}

{{/* The container's variables; of (root, component). */}}
{{- define "internvl.env" -}}
{{- $values := get .root.Values .component -}}
{{- $options := merge (include "internvl.ownOptions" . | fromYaml) $values.options -}}
{{- range $option, $value := $options }}
- name: INTERNVL_{{ upper $.component }}_{{ $option | replace "-" "_" | replace "." "_" | upper }}
  value: {{ include "internvl.optionText" $value | quote }}
{{- end }}
{{- if include "internvl.hasMps" . }}
- { name: CUDA_MPS_PIPE_DIRECTORY, value: /mps }
{{- end }}
{{- with $values.extraEnv }}
{{ toYaml . }}
{{- end }}
{{- end }}

{{/* Seconds of an option that another object depends on; of (options, name, default). */}}
{{- define "internvl.seconds" -}}
{{- hasKey .options .name | ternary (get .options .name) .default -}}
{{- end }}

{{/* How long a pod may take to end: whatever it does before it refuses, the drain, and 10 s for
     the rest; of (root, component). */}}
{{- define "internvl.graceSeconds" -}}
{{- $values := get .root.Values .component -}}
{{- $notice := include "internvl.seconds" (dict "options" $values.options "name" "drain-notice-seconds" "default" 2) | float64 -}}
{{- $drain := include "internvl.seconds" (dict "options" $values.options "name" "drain-seconds" "default" 30) | float64 -}}
{{- addf $notice $drain ($values.preStopSeconds | default 0) 10 | ceil | int -}}
{{- end }}
