{{/* What all names begin with: short enough that a pod's name keeps all of it. */}}
{{- define "internvl.name" -}}
{{- $name := .Values.fullnameOverride | default .Release.Name -}}
{{- if gt (len $name) 38 -}}
{{- printf "%s-%s" (trunc 31 $name | trimSuffix "-") (sha256sum $name | trunc 6) -}}
{{- else -}}
{{- $name -}}
{{- end -}}
{{- end }}

{{/* Labels by which pods are selected; of (root, component). */}}
{{- define "internvl.selector" -}}
app.kubernetes.io/name: {{ .root.Chart.Name }}
app.kubernetes.io/instance: {{ .root.Release.Name }}
app.kubernetes.io/component: {{ .component }}
{{- end }}

{{/* Labels of an object; of (root, component), the latter "" for what belongs to none. */}}
{{- define "internvl.labels" -}}
app.kubernetes.io/name: {{ .root.Chart.Name }}
app.kubernetes.io/instance: {{ .root.Release.Name }}
{{- with .component }}
app.kubernetes.io/component: {{ . }}
{{- end }}
app.kubernetes.io/version: {{ .root.Chart.AppVersion | quote }}
app.kubernetes.io/part-of: internvl-serving
app.kubernetes.io/managed-by: {{ .root.Release.Service }}
helm.sh/chart: {{ printf "%s-%s" .root.Chart.Name .root.Chart.Version }}
{{- end }}

{{- define "internvl.port" -}}
{{- get (dict "gateway" "8000" "vision" "50051" "llm" "50052") . -}}
{{- end }}

{{- define "internvl.metricsPort" -}}9090{{- end }}

{{/* What the gateway speaks with its clients. */}}
{{- define "internvl.scheme" -}}
{{- if .Values.gateway.tls.existingSecret }}https{{ else }}http{{ end -}}
{{- end }}

{{/* The whole name of a Service, for which its certificate is; of (root, component). */}}
{{- define "internvl.host" -}}
{{- printf "%s-%s.%s.svc.%s" (include "internvl.name" .root) .component .root.Release.Namespace .root.Values.clusterDomain -}}
{{- end }}

{{/* The address of a service as gRPC's resolver takes it: all its pods; of (root, component). */}}
{{- define "internvl.address" -}}
{{- printf "dns:///%s:%s" (include "internvl.host" .) (include "internvl.port" .component) -}}
{{- end }}

{{- define "internvl.keySecret" -}}
{{- .Values.embeddingKey.existingSecret | default (printf "%s-embedding-key" (include "internvl.name" .)) -}}
{{- end }}

{{/* An image's name; of (root, component). */}}
{{- define "internvl.image" -}}
{{- $values := get .root.Values .component -}}
{{- $engine := eq ($values.engine | default "torch") "torch" | ternary "" (printf "-%s" $values.engine) -}}
{{- $repository := $values.image.repository | default (printf "internvl-%s%s" .component $engine) -}}
{{- $tag := $values.image.tag | default .root.Values.imageTag | default .root.Chart.AppVersion -}}
{{- with .root.Values.imageRegistry }}{{ trimSuffix "/" . }}/{{ end }}{{ $repository }}:{{ $tag }}
{{- end }}
