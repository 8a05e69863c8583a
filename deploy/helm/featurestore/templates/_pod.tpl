{{- /* The Pod, the same in a Deployment and in a StatefulSet. */ -}}
{{- define "featurestore.pod" -}}
{{- $secrets := "/run/secrets/featurestore" -}}
metadata:
  labels:
    {{- include "featurestore.selector" . | nindent 4 }}
    {{- with .Values.podLabels }}
    {{- toYaml . | nindent 4 }}
    {{- end }}
  annotations:
    checksum/config: {{ .Values.config | sha256sum }}
    {{- with .Values.podAnnotations }}
    {{- toYaml . | nindent 4 }}
    {{- end }}
spec:
  serviceAccountName: {{ include "featurestore.serviceAccount" . }}
  automountServiceAccountToken: false
  # Kubernetes' own FEATURESTORE_* and REDIS_* names of Services stay out of the environment.
  enableServiceLinks: false
  # The drain, the writes under way (30 s at most), and what is flushed and closed at the end.
  terminationGracePeriodSeconds: {{ add .Values.drain.delaySeconds .Values.drain.timeoutSeconds 50 }}
  securityContext:
    runAsNonRoot: true
    runAsUser: 65532
    runAsGroup: 65532
    fsGroup: 65532
    fsGroupChangePolicy: OnRootMismatch
    seccompProfile:
      type: RuntimeDefault
  {{- with .Values.imagePullSecrets }}
  imagePullSecrets:
    {{- toYaml . | nindent 4 }}
  {{- end }}
  {{- with .Values.priorityClassName }}
  priorityClassName: {{ . }}
  {{- end }}
  {{- with .Values.nodeSelector }}
  nodeSelector:
    {{- toYaml . | nindent 4 }}
  {{- end }}
  {{- with .Values.tolerations }}
  tolerations:
    {{- toYaml . | nindent 4 }}
  {{- end }}
  {{- with .Values.affinity }}
  affinity:
    {{- toYaml . | nindent 4 }}
  {{- end }}
  {{- if .Values.topologySpread.enabled }}
  topologySpreadConstraints:
    {{- range list "topology.kubernetes.io/zone" "kubernetes.io/hostname" }}
    - topologyKey: {{ . }}
      maxSkew: 1
      whenUnsatisfiable: {{ $.Values.topologySpread.whenUnsatisfiable }}
      labelSelector:
        matchLabels:
          {{- include "featurestore.selector" $ | nindent 10 }}
    {{- end }}
  {{- end }}
  containers:
    - name: featurestore
      image: {{ include "featurestore.image" . | quote }}
      imagePullPolicy: {{ .Values.image.pullPolicy }}
      args: [serve]
      securityContext:
        allowPrivilegeEscalation: false
        readOnlyRootFilesystem: true
        capabilities:
          drop: [ALL]
      env:
        - name: FEATURESTORE_CONFIG
          value: /etc/featurestore/featurestore.toml
        - name: FEATURESTORE_LISTEN
          value: 0.0.0.0:50051
        - name: FEATURESTORE_ADMIN_LISTEN
          value: 0.0.0.0:9464
        {{- if not (and .Values.tls.enabled .Values.tokens.enabled) }}
        - name: FEATURESTORE_INSECURE_BIND
          value: "true"
        {{- end }}
        - name: FEATURESTORE_DRAIN_DELAY
          value: {{ printf "%ds" (int .Values.drain.delaySeconds) | quote }}
        - name: FEATURESTORE_DRAIN_TIMEOUT
          value: {{ printf "%ds" (int .Values.drain.timeoutSeconds) | quote }}
        {{- if eq .Values.mode "embedded" }}
        - name: FEATURESTORE_DATA_DIR
          value: /data/store
        {{- else }}
        - name: MONGO_URI_FILE
          value: {{ $secrets }}/mongodb/uri
        - name: MONGO_DB
          value: {{ .Values.mongodb.database | quote }}
        {{- end }}
        {{- if eq .Values.mode "redis-mongodb" }}
        - name: REDIS_URL_FILE
          value: {{ $secrets }}/redis/url
        {{- end }}
        {{- if .Values.tls.enabled }}
        - name: FEATURESTORE_TLS_CERT_FILE
          value: {{ $secrets }}/tls/tls.crt
        - name: FEATURESTORE_TLS_KEY_FILE
          value: {{ $secrets }}/tls/tls.key
        {{- if .Values.tls.clientAuth }}
        - name: FEATURESTORE_TLS_CLIENT_CA_FILE
          value: {{ $secrets }}/tls/ca.crt
        {{- end }}
        {{- end }}
        {{- if .Values.tokens.enabled }}
        - name: FEATURESTORE_AUTH_TOKENS_FILE
          value: {{ $secrets }}/tokens/tokens.toml
        {{- end }}
        {{- with .Values.logFilter }}
        - name: RUST_LOG
          value: {{ . | quote }}
        {{- end }}
        {{- if .Values.otel.endpoint }}
        - name: OTEL_EXPORTER_OTLP_ENDPOINT
          value: {{ .Values.otel.endpoint | quote }}
        - name: OTEL_SERVICE_NAME
          value: {{ .Values.otel.serviceName | quote }}
        - name: OTEL_TRACES_SAMPLER
          value: parentbased_traceidratio
        - name: OTEL_TRACES_SAMPLER_ARG
          value: {{ divf .Values.otel.samplePercent 100 | quote }}
        - name: POD_NAME
          valueFrom:
            fieldRef:
              fieldPath: metadata.name
        - name: OTEL_RESOURCE_ATTRIBUTES
          {{- $attributes := list (printf "k8s.namespace.name=%s" .Release.Namespace) "k8s.pod.name=$(POD_NAME)" "service.instance.id=$(POD_NAME)" }}
          {{- range $name, $text := .Values.otel.resourceAttributes }}
          {{- $attributes = append $attributes (printf "%s=%s" $name $text) }}
          {{- end }}
          value: {{ join "," $attributes | quote }}
        {{- end }}
        {{- with .Values.extraEnv }}
        {{- toYaml . | nindent 8 }}
        {{- end }}
      ports:
        - name: grpc
          containerPort: 50051
        - name: admin
          containerPort: 9464
      # The process is up: neither looks at Redis or MongoDB.
      startupProbe:
        grpc:
          port: 9464
          service: ""
        periodSeconds: 2
        timeoutSeconds: 2
        failureThreshold: {{ div (add .Values.startupSeconds 1) 2 }}
      livenessProbe:
        grpc:
          port: 9464
          service: ""
        periodSeconds: 10
        timeoutSeconds: 5
        failureThreshold: 6
      # L2 was reached once, and it does not drain.
      readinessProbe:
        grpc:
          port: 9464
          service: featurestore.v1.FeatureStoreService
        periodSeconds: 2
        timeoutSeconds: 2
        failureThreshold: 2
      resources:
        {{- toYaml .Values.resources | nindent 8 }}
      volumeMounts:
        - name: config
          mountPath: /etc/featurestore
          readOnly: true
        {{- if eq .Values.mode "embedded" }}
        - name: data
          mountPath: /data
        {{- else }}
        - name: mongodb
          mountPath: {{ $secrets }}/mongodb
          readOnly: true
        {{- end }}
        {{- if eq .Values.mode "redis-mongodb" }}
        - name: redis
          mountPath: {{ $secrets }}/redis
          readOnly: true
        {{- end }}
        {{- /* Whole folders, never a subPath: only these are renewed when the Secret is. */}}
        {{- if .Values.tls.enabled }}
        - name: tls
          mountPath: {{ $secrets }}/tls
          readOnly: true
        {{- end }}
        {{- if .Values.tokens.enabled }}
        - name: tokens
          mountPath: {{ $secrets }}/tokens
          readOnly: true
        {{- end }}
        {{- with .Values.extraVolumeMounts }}
        {{- toYaml . | nindent 8 }}
        {{- end }}
  volumes:
    - name: config
      configMap:
        name: {{ include "featurestore.fullname" . }}
    {{- if eq .Values.mode "redis-mongodb" }}
    - name: mongodb
      secret:
        secretName: {{ .Values.mongodb.secretName }}
        defaultMode: 0440
        items:
          - key: {{ .Values.mongodb.secretKey }}
            path: uri
    {{- end }}
    {{- if eq .Values.mode "redis-mongodb" }}
    - name: redis
      secret:
        secretName: {{ .Values.redis.secretName }}
        defaultMode: 0440
        items:
          - key: {{ .Values.redis.secretKey }}
            path: url
    {{- end }}
    {{- if .Values.tls.enabled }}
    - name: tls
      secret:
        secretName: {{ .Values.tls.secretName }}
        defaultMode: 0440
    {{- end }}
    {{- if .Values.tokens.enabled }}
    - name: tokens
      secret:
        secretName: {{ .Values.tokens.secretName }}
        defaultMode: 0440
        items:
          - key: {{ .Values.tokens.secretKey }}
            path: tokens.toml
    {{- end }}
    {{- with .Values.extraVolumes }}
    {{- toYaml . | nindent 4 }}
    {{- end }}
{{- end -}}
