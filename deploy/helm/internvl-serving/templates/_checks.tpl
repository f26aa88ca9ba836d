{{/* What the schema cannot say; a sentence for whoever installs. */}}
{{- define "internvl.checks" -}}
{{- $sources := list -}}
{{- with .Values.checkpoint.existingClaim }}{{ $sources = append $sources . }}{{ end -}}
{{- with .Values.checkpoint.hostPath }}{{ $sources = append $sources . }}{{ end -}}
{{- with .Values.checkpoint.download.image }}{{ $sources = append $sources . }}{{ end -}}
{{- if ne (len $sources) 1 -}}
{{- fail (printf "checkpoint: %d sources are given; set one of checkpoint.existingClaim, checkpoint.hostPath and checkpoint.download.image" (len $sources)) -}}
{{- end -}}
{{- $engines := list -}}
{{- with .Values.engines.existingClaim }}{{ $engines = append $engines . }}{{ end -}}
{{- with .Values.engines.hostPath }}{{ $engines = append $engines . }}{{ end -}}
{{- $wanted := or (ne .Values.vision.engine "torch") (ne .Values.llm.engine "torch") -}}
{{- if and $wanted (ne (len $engines) 1) -}}
{{- fail (printf "engines: %d sources are given; an engine of TensorRT needs one of engines.existingClaim and engines.hostPath" (len $engines)) -}}
{{- end -}}
{{- if and .Values.mps.hostPath (eq .Values.llm.engine "tensorrt_llm") -}}
{{- fail "mps.hostPath: it is for engines of torch; the processes of tensorrt_llm have a /dev/shm of their own" -}}
{{- end -}}
{{- range $component := list "gateway" "vision" "llm" -}}
{{- if and $.Values.tls.enabled (not (get $.Values.tls.secrets $component)) -}}
{{- fail (printf "tls.secrets.%s: none is given; each of the three needs a certificate" $component) -}}
{{- end -}}
{{- $scaling := (get $.Values $component).autoscaling -}}
{{- if gt $scaling.minReplicas $scaling.maxReplicas -}}
{{- fail (printf "%s.autoscaling: minReplicas is %v; maxReplicas, %v, must be at least that" $component $scaling.minReplicas $scaling.maxReplicas) -}}
{{- end -}}
{{- if and $scaling.enabled (not $.Values.metrics.enabled) -}}
{{- fail (printf "%s.autoscaling: it goes by metrics; set metrics.enabled" $component) -}}
{{- end -}}
{{- end -}}
{{- end }}
