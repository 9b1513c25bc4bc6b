{{/* What finetune_operator/control/environment.py reads. Values are text. */}}
{{- define "finetune-operator.environment" -}}
- name: POD_NAME
  valueFrom: {fieldRef: {fieldPath: metadata.name}}
- name: POD_NAMESPACE
  valueFrom: {fieldRef: {fieldPath: metadata.namespace}}
- name: POD_IP
  valueFrom: {fieldRef: {fieldPath: status.podIP}}
- name: FINETUNE_LEASE_NAME
  value: {{ include "finetune-operator.fullname" . | quote }}
- name: FINETUNE_LEASE_SECONDS
  value: {{ .Values.leaseSeconds | quote }}
- name: FINETUNE_WATCH_NAMESPACES
  value: {{ join "," .Values.watchNamespaces | quote }}
- name: FINETUNE_TRAINER_IMAGE
  value: {{ include "finetune-operator.image" (dict "root" . "image" .Values.trainer.image "tag" .Chart.AppVersion) | quote }}
- name: FINETUNE_VLLM_IMAGE
  value: {{ include "finetune-operator.image" (dict "root" . "image" .Values.vllm.image "tag" "") | quote }}
- name: FINETUNE_IMAGE_PULL_POLICY
  value: {{ .Values.trainer.image.pullPolicy | quote }}
- name: FINETUNE_IMAGE_PULL_SECRETS
  value: {{ join "," .Values.trainer.imagePullSecrets | quote }}
- name: FINETUNE_HTTPS_HOSTS
  value: {{ join "," .Values.sources.httpsHosts | quote }}
- name: FINETUNE_ALLOW_PRIVATE_ADDRESSES
  value: {{ .Values.sources.allowPrivateAddresses | quote }}
{{- with .Values.sources.env }}
- name: FINETUNE_SOURCES_ENV
  value: {{ toJson . | quote }}
{{- end }}
- name: FINETUNE_RUN_HISTORY_LIMIT
  value: {{ .Values.runHistoryLimit | quote }}
- name: FINETUNE_SETTLE_SECONDS
  value: {{ .Values.settleSeconds | quote }}
- name: FINETUNE_SERVER_ROLLOUTS
  value: {{ .Values.serverRollouts | quote }}
{{- if .Values.prices.gpuHour }}
- name: FINETUNE_PRICES
  value: {{ toJson .Values.prices | quote }}
{{- end }}
- name: FINETUNE_CONCURRENCY
  value: {{ .Values.concurrency | quote }}
- name: FINETUNE_RESYNC_SECONDS
  value: {{ .Values.resyncSeconds | quote }}
- name: FINETUNE_API_QPS
  value: {{ .Values.apiQps | quote }}
- name: FINETUNE_API_BURST
  value: {{ .Values.apiBurst | quote }}
- name: FINETUNE_LOG_FORMAT
  value: {{ .Values.logs.format | quote }}
- name: FINETUNE_LOG_LEVEL
  value: {{ .Values.logs.level | quote }}
{{- with .Values.tracing }}
{{- if .endpoint }}
- name: FINETUNE_TRACES_ENDPOINT
  value: {{ .endpoint | quote }}
- name: FINETUNE_TRACES_SAMPLING
  value: {{ .sampling | quote }}
{{- with .headersSecret }}
{{- if .name }}
- name: FINETUNE_TRACES_HEADERS
  valueFrom: {secretKeyRef: {name: {{ .name }}, key: {{ .key }}}}
{{- end }}
{{- end }}
{{- end }}
{{- end }}
{{- if .Values.progress.enabled }}
- name: FINETUNE_PROGRESS_URL
  value: {{ printf "https://%s.%s.svc:8443" (include "finetune-operator.fullname" .) .Release.Namespace | quote }}
- name: FINETUNE_PROGRESS_AUDIENCE
  value: {{ .Values.progress.audience | quote }}
- name: FINETUNE_TOKEN_ISSUER
  value: {{ .Values.progress.tokenIssuer | quote }}
- name: FINETUNE_PROGRESS_INTERVAL_SECONDS
  value: {{ .Values.progress.intervalSeconds | quote }}
- name: FINETUNE_PROGRESS_CERT
  value: /etc/finetune-operator/tls/tls.crt
- name: FINETUNE_PROGRESS_KEY
  value: /etc/finetune-operator/tls/tls.key
- name: FINETUNE_PROGRESS_CA
  value: /etc/finetune-operator/tls/ca.crt
{{- end }}
{{- end }}
