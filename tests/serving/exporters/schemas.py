"""What the four places take, as far as we write it.

No package that the environments have carries these schemas, so that they are written here by hand, from the reference
of each: the Compose specification; KServe's API `serving.kserve.io/v1alpha2`; the `values.schema.json` of
production-stack's chart; KubeRay's API `ray.io/v1` with the config of Ray Serve and Ray Serve LLM. They are closed: a
field that is not listed is a mistake.
"""

from __future__ import annotations

from typing import Any

Schema = dict[str, Any]

TEXT: Schema = {"type": "string", "minLength": 1}
WHOLE: Schema = {"type": "integer", "minimum": 0}
FLAGS: Schema = {"type": "array", "items": {"type": "string"}}  # never a number: a container's argument is text
NAME: Schema = {"type": "string", "pattern": "^[a-z0-9]([-a-z0-9]{0,61}[a-z0-9])?$"}
QUANTITY: Schema = {"type": "string", "pattern": "^[0-9]+(Mi|Gi)?$"}
LABELS: Schema = {"type": "object", "additionalProperties": {"type": "string"}}


def closed(required: Schema, **optional: Schema) -> Schema:
    return {
        "type": "object",
        "properties": {**required, **optional},
        "required": list(required),
        "additionalProperties": False,
    }


def several(items: Schema) -> Schema:
    return {"type": "array", "items": items, "minItems": 1}


DURATION: Schema = {"type": "string", "pattern": "^[0-9]+s$"}
DEVICE = closed({"driver": TEXT, "count": WHOLE, "capabilities": several(TEXT)})
SERVICE = closed(
    {"image": TEXT, "entrypoint": FLAGS, "command": FLAGS},
    environment=LABELS,
    labels=LABELS,
    ports=several(TEXT),
    volumes=several(closed({"type": {"const": "bind"}, "source": TEXT, "target": TEXT, "read_only": {"const": True}})),
    shm_size=TEXT,
    cap_drop=several(TEXT),
    security_opt=several(TEXT),
    restart={"enum": ["no", "always", "on-failure", "unless-stopped"]},
    stop_grace_period=DURATION,
    healthcheck=closed(
        {"test": FLAGS, "interval": DURATION, "timeout": DURATION, "retries": WHOLE, "start_period": DURATION}
    ),
    deploy=closed({"resources": closed({"reservations": closed({"devices": several(DEVICE)})})}),
)
COMPOSE = closed({"name": NAME, "services": {"type": "object", "additionalProperties": SERVICE}})

METADATA = closed({"name": NAME}, annotations=LABELS)
ENVIRONMENT = several(closed({"name": TEXT, "value": {"type": "string"}}))
AMOUNTS = {"type": "object", "additionalProperties": QUANTITY}
RESOURCES = closed({"requests": AMOUNTS}, limits=AMOUNTS)
GET = closed({"path": {"type": "string", "pattern": "^/"}, "port": WHOLE}, scheme={"enum": ["HTTP", "HTTPS"]})
PROBE = closed(
    {"httpGet": GET}, initialDelaySeconds=WHOLE, periodSeconds=WHOLE, timeoutSeconds=WHOLE, failureThreshold=WHOLE
)
MOUNTS = several(closed({"name": NAME, "mountPath": TEXT}, readOnly={"type": "boolean"}))
VOLUMES = several(
    closed(
        {"name": NAME},
        persistentVolumeClaim=closed({"claimName": TEXT}, readOnly={"type": "boolean"}),
        emptyDir=closed({"medium": {"enum": ["", "Memory"]}}, sizeLimit=QUANTITY),
    )
)
CONTAINER = closed(
    {"name": NAME, "image": TEXT, "resources": RESOURCES},
    command=FLAGS,
    args=FLAGS,
    env=ENVIRONMENT,
    startupProbe=PROBE,
    readinessProbe=PROBE,
    livenessProbe=PROBE,
    lifecycle=closed({"preStop": closed({"exec": closed({"command": FLAGS})})}),
    volumeMounts=MOUNTS,
)
POD = closed({"containers": several(CONTAINER)}, volumes=VOLUMES, terminationGracePeriodSeconds=WHOLE)

KSERVE = closed({
    "apiVersion": {"const": "serving.kserve.io/v1alpha2"},
    "kind": {"const": "LLMInferenceService"},
    "metadata": METADATA,
    "spec": closed({
        "model": closed({"uri": {"type": "string", "pattern": "^(pvc|s3|hf|oci)://"}, "name": TEXT}),
        "replicas": WHOLE,
        "router": closed({"route": closed({})}, gateway=closed({}), scheduler=closed({})),
        "template": POD,
    }),
})  # fmt: skip

MODEL = closed(
    {"name": NAME, "repository": TEXT, "tag": TEXT, "modelURL": TEXT, "replicaCount": WHOLE},
    annotations=LABELS,
    requestCPU=WHOLE,
    requestMemory=QUANTITY,
    requestGPU=WHOLE,
    resources=RESOURCES,
    env=ENVIRONMENT,
    extraVolumes=VOLUMES,
    extraVolumeMounts=MOUNTS,
    vllmConfig=closed({"enablePrefixCaching": {"type": "boolean"}, "extraArgs": FLAGS}),
)
ROLLING = closed({"maxSurge": WHOLE, "maxUnavailable": WHOLE})
PRODUCTION_STACK = closed({
    "servingEngineSpec": closed({
        "enableEngine": {"type": "boolean"},
        "containerPort": WHOLE,
        "strategy": closed({"type": {"enum": ["RollingUpdate", "Recreate"]}}, rollingUpdate=ROLLING),
        "startupProbe": PROBE,
        "modelSpec": several(MODEL),
    }),
    "routerSpec": closed({"enableRouter": {"type": "boolean"}, "replicaCount": WHOLE}),
})  # fmt: skip

TEMPLATE = closed({"spec": POD})
PARAMETERS = {"type": "object", "additionalProperties": {"type": "string"}}
GROUP = closed({
    "groupName": NAME,
    "replicas": WHOLE,
    "minReplicas": WHOLE,
    "maxReplicas": WHOLE,
    "rayStartParams": PARAMETERS,
    "template": TEMPLATE,
})  # fmt: skip
RAYSERVICE = closed({
    "apiVersion": {"const": "ray.io/v1"},
    "kind": {"const": "RayService"},
    "metadata": METADATA,
    "spec": closed({
        "serveConfigV2": TEXT,
        "rayClusterConfig": closed({
            "headGroupSpec": closed({"rayStartParams": PARAMETERS, "template": TEMPLATE}),
            "workerGroupSpecs": several(GROUP),
        }),
    }),
})  # fmt: skip

OURS = {"pattern": "^[a-z_]+$", "not": {"enum": ["model", "served_model_name"]}}  # those two are Ray's to set
LLM = closed({
    "model_loading_config": closed({"model_id": TEXT, "model_source": TEXT}),
    "engine_kwargs": {"type": "object", "propertyNames": OURS},
    "deployment_config": closed({"num_replicas": WHOLE, "graceful_shutdown_timeout_s": WHOLE}),
})  # fmt: skip
APPLICATION = closed({
    "name": TEXT,
    "route_prefix": {"const": "/"},
    "import_path": {"const": "ray.serve.llm:build_openai_app"},
    "runtime_env": closed({"env_vars": LABELS}),
    "args": closed({"llm_configs": several(LLM)}),
})  # fmt: skip
RAY_SERVE = closed({"applications": several(APPLICATION)})

SCHEMAS = {
    "compose": COMPOSE,
    "kserve": KSERVE,
    "production-stack": PRODUCTION_STACK,
    "rayservice": RAYSERVICE,
}
