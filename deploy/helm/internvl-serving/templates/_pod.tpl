{{/* The program and its arguments where the image's own will not do; of (root, component). */}}
{{- define "internvl.args" -}}
{{- $values := get .root.Values .component -}}
{{- $engine := $values.engine | default "torch" -}}
{{- $program := list -}}
{{- if eq $engine "tensorrt" -}}
{{- $program = list "internvl-vision" -}}
{{- else if eq $engine "tensorrt_llm" -}}
{{- /* A process for each GPU, and not each on one core, as mpirun would have it. */ -}}
{{- $program = list "mpirun" "--bind-to" "none" "-n" (toString $values.gpuCount) "internvl-llm" -}}
{{- end -}}
{{- with concat $program $values.extraArgs -}}
{{ toYaml . }}
{{- end -}}
{{- end }}

{{- define "internvl.containerSecurity" -}}
allowPrivilegeEscalation: false
readOnlyRootFilesystem: true
capabilities: { drop: [ALL] }
{{- end }}

{{- define "internvl.podSecurity" -}}
runAsNonRoot: true
runAsUser: 10001
runAsGroup: 10001
fsGroup: 10001
fsGroupChangePolicy: OnRootMismatch
seccompProfile: { type: RuntimeDefault }
{{- end }}

{{- define "internvl.gatewayProbes" -}}
{{- $scheme := include "internvl.scheme" . | upper -}}
startupProbe:
  httpGet: { path: /health/live, port: http, scheme: {{ $scheme }} }
  periodSeconds: 1
  failureThreshold: 60
# It may wait 5 s for the services' health, and as long again for what they run.
readinessProbe:
  httpGet: { path: /health/ready, port: http, scheme: {{ $scheme }} }
  periodSeconds: 5
  timeoutSeconds: 11
  failureThreshold: 3
# Alive, whether or not it finds its services: a new gateway would find them no better.
livenessProbe:
  httpGet: { path: /health/live, port: http, scheme: {{ $scheme }} }
  periodSeconds: 20
  timeoutSeconds: 15
  failureThreshold: 6
{{- end }}

{{/* The program that asks a service for its health: it shows the service's own certificate, and
     trusts no other; of (root, component). */}}
{{- define "internvl.probe" -}}
{{- $probe := list "internvl-probe" (printf "127.0.0.1:%s" (include "internvl.port" .component)) -}}
{{- if .root.Values.tls.enabled -}}
{{- $certificate := "/run/secrets/tls/tls.crt" -}}
{{- $probe = concat $probe (list "--server-certificate-file" $certificate "--certificate-file" $certificate "--key-file" "/run/secrets/tls/tls.key") -}}
{{- end -}}
{{- toJson (concat $probe .words) -}}
{{- end }}

{{/* How a service is asked whether it serves: kubelet's own probe speaks no TLS; of (root,
     component). */}}
{{- define "internvl.serves" -}}
{{- $service := eq .component "llm" | ternary "internvl.v1.LLMService" "internvl.v1.VisionService" -}}
{{- if .root.Values.tls.enabled -}}
exec: { command: {{ include "internvl.probe" (merge (dict "words" (list "--service" $service)) .) }} }
timeoutSeconds: 10
{{- else -}}
grpc: { port: {{ include "internvl.port" .component }}, service: {{ $service }} }
timeoutSeconds: 5
{{- end }}
{{- end }}

{{/* Probes of a gRPC service; of (root, component). */}}
{{- define "internvl.serviceProbes" -}}
startupProbe:
  {{- include "internvl.serves" . | nindent 2 }}
  periodSeconds: 5
  failureThreshold: {{ divf (get .root.Values .component).startupSeconds 5 | ceil | int }}
readinessProbe:
  {{- include "internvl.serves" . | nindent 2 }}
  periodSeconds: 5
  failureThreshold: 2
# Any answer will do: a service that is NOT_SERVING drains, or its decoders are all busy, and a new
# one would lose what this one holds. A gRPC probe cannot say so. A dead engine ends its process.
livenessProbe:
  exec: { command: {{ include "internvl.probe" (merge (dict "words" (list "--alive" "--seconds" "20")) .) }} }
  periodSeconds: 60
  timeoutSeconds: 30
  failureThreshold: 3
{{- end }}

{{/* What a pod does before it gets SIGTERM; of (root, component). */}}
{{- define "internvl.lifecycle" -}}
{{- if eq .component "gateway" -}}
# It serves on until every proxy knows that it goes.
preStop: { exec: { command: [sleep, {{ .root.Values.gateway.preStopSeconds | quote }}] } }
{{- else if eq (get .root.Values .component).engine "tensorrt_llm" -}}
# mpirun passes SIGUSR1 on, which drains; after SIGTERM it kills within two seconds.
preStop:
  exec: { command: [sh, -c, "kill -USR1 1 && while kill -0 1; do sleep 1; done"] }
{{- end -}}
{{- end }}

{{/* A volume that is a claim or a host's folder; of (name, source). */}}
{{- define "internvl.volume" -}}
- name: {{ .name }}
  {{- if .source.existingClaim }}
  persistentVolumeClaim: { claimName: {{ .source.existingClaim | quote }} }
  {{- else if .source.hostPath }}
  hostPath: { path: {{ .source.hostPath | quote }}, type: Directory }
  {{- else }}
  emptyDir: { sizeLimit: {{ .source.download.sizeLimit }} }
  {{- end }}
{{- end }}

{{/* Whether a component reads TensorRT engines: "true" or nothing; of (root, component). */}}
{{- define "internvl.hasEngines" -}}
{{- if ne ((get .root.Values .component).engine | default "torch") "torch" }}true{{ end -}}
{{- end }}

{{/* Whether a component is a client of the multi-process service: "true" or nothing; of (root,
     component). */}}
{{- define "internvl.hasMps" -}}
{{- if and .root.Values.mps.hostPath (get .root.Values .component).gpuCount }}true{{ end -}}
{{- end }}

{{/* A volume that is a Secret; of (name, secret). */}}
{{- define "internvl.secretVolume" -}}
- name: {{ .name }}
  secret: { secretName: {{ .secret }}, defaultMode: 0440 }
{{- end }}

{{- define "internvl.volumes" -}}
- name: tmp
  emptyDir: { sizeLimit: {{ .root.Values.tmpSizeLimit }} }
{{- if .root.Values.tls.enabled }}
{{ include "internvl.secretVolume" (dict "name" "tls" "secret" (get .root.Values.tls.secrets .component)) }}
{{- end }}
{{- if eq .component "gateway" }}
{{- with .root.Values.gateway.tls.existingSecret }}
{{ include "internvl.secretVolume" (dict "name" "https" "secret" .) }}
{{- end }}
{{- with .root.Values.apiKeys.existingSecret }}
- name: api-keys
  secret:
    secretName: {{ . }}
    defaultMode: 0440
    items: [{ key: {{ $.root.Values.apiKeys.secretKey }}, path: keys.yaml }]
{{- end }}
{{- end }}
{{- if ne .component "gateway" }}
{{ include "internvl.volume" (dict "name" "checkpoint" "source" .root.Values.checkpoint) }}
- name: embedding-key
  secret:
    secretName: {{ include "internvl.keySecret" .root }}
    defaultMode: 0440
    items: [{ key: {{ .root.Values.embeddingKey.secretKey }}, path: embedding.key }]
{{- end }}
{{- if include "internvl.hasEngines" . }}
{{ include "internvl.volume" (dict "name" "engines" "source" .root.Values.engines) }}
{{- end }}
{{- if include "internvl.hasMps" . }}
- name: mps
  hostPath: { path: {{ .root.Values.mps.hostPath | quote }}, type: Directory }
- name: mps-memory
  hostPath: { path: /dev/shm, type: Directory }
{{- end }}
{{- if eq .component "llm" | and (include "internvl.hasEngines" .) }}
- name: shared-memory
  emptyDir: { medium: Memory, sizeLimit: {{ .root.Values.llm.sharedMemorySize }} }
{{- end }}
{{- with (get .root.Values .component).extraVolumes }}
{{ toYaml . }}
{{- end }}
{{- end }}

{{- define "internvl.volumeMounts" -}}
- { name: tmp, mountPath: /tmp }
{{- /* Whole folders: a file that is mounted by itself stays as it was. */}}
{{- if .root.Values.tls.enabled }}
- { name: tls, mountPath: /run/secrets/tls, readOnly: true }
{{- end }}
{{- if eq .component "gateway" }}
{{- if .root.Values.gateway.tls.existingSecret }}
- { name: https, mountPath: /run/secrets/https, readOnly: true }
{{- end }}
{{- if .root.Values.apiKeys.existingSecret }}
- { name: api-keys, mountPath: /run/secrets/api-keys, readOnly: true }
{{- end }}
{{- end }}
{{- if ne .component "gateway" }}
- name: checkpoint
  mountPath: /checkpoint
  readOnly: true
  {{- with .root.Values.checkpoint.subPath }}
  subPath: {{ . | quote }}
  {{- end }}
- { name: embedding-key, mountPath: /run/secrets/embedding, readOnly: true }
{{- end }}
{{- if include "internvl.hasEngines" . }}
- name: engines
  mountPath: /engines
  readOnly: true
  {{- with .root.Values.engines.subPath }}
  subPath: {{ . | quote }}
  {{- end }}
{{- end }}
{{- if include "internvl.hasMps" . }}
- { name: mps, mountPath: /mps }
- { name: mps-memory, mountPath: /dev/shm }
{{- end }}
{{- if eq .component "llm" | and (include "internvl.hasEngines" .) }}
- { name: shared-memory, mountPath: /dev/shm }
{{- end }}
{{- with (get .root.Values .component).extraVolumeMounts }}
{{ toYaml . }}
{{- end }}
{{- end }}

{{/* The container that puts a checkpoint into the pod's own volume. */}}
{{- define "internvl.download" -}}
{{- with .Values.checkpoint.download -}}
- name: download
  image: {{ .image | quote }}
  imagePullPolicy: {{ $.Values.imagePullPolicy }}
  {{- with .command }}
  command: {{ toYaml . | nindent 4 }}
  {{- end }}
  {{- with .args }}
  args: {{ toYaml . | nindent 4 }}
  {{- end }}
  env:
    - { name: CHECKPOINT, value: /checkpoint }
    - { name: HOME, value: /tmp }
    {{- range $name, $value := .env }}
    - { name: {{ $name }}, value: {{ include "internvl.optionText" $value | quote }} }
    {{- end }}
    {{- range $name, $source := .secretEnv }}
    - name: {{ $name }}
      valueFrom: { secretKeyRef: { name: {{ $source.name }}, key: {{ $source.key }} } }
    {{- end }}
  securityContext: {{ include "internvl.containerSecurity" . | nindent 4 }}
  volumeMounts:
    - { name: tmp, mountPath: /tmp }
    - { name: checkpoint, mountPath: /checkpoint }
{{- end }}
{{- end }}

{{/* A container's resources with its GPUs; of (root, component). */}}
{{- define "internvl.resources" -}}
{{- $values := get .root.Values .component -}}
{{- $resources := deepCopy $values.resources -}}
{{- with $values.gpuCount -}}
{{- $gpus := dict $.root.Values.gpuResource (int .) -}}
{{- $resources = mergeOverwrite $resources (dict "limits" $gpus "requests" $gpus) -}}
{{- end -}}
{{ toYaml $resources }}
{{- end }}

{{- define "internvl.topology" -}}
{{- $selector := include "internvl.selector" . | fromYaml -}}
{{- range (get .root.Values .component).topologySpreadConstraints }}
- {{ merge (dict "labelSelector" (dict "matchLabels" $selector)) . | toYaml | nindent 2 | trim }}
{{- end }}
{{- end }}
