# A node of a Ray cluster that labels: head, workers and the driver (docker/kubernetes/ray.yaml). /data and /runs as in
# trainer.Dockerfile, and in every pod the same. KubeRay asks whether a node lives with wget.
FROM python:3.11.14-slim-bookworm
WORKDIR /opt/dgreid
# hadolint ignore=DL3008
RUN apt-get update && apt-get install -y --no-install-recommends wget && rm -rf /var/lib/apt/lists/*
COPY pyproject.toml constraints.txt README.md LICENSE ./
COPY shared shared
COPY labeler labeler
COPY reid reid
COPY pipelines pipelines
RUN pip install --no-cache-dir -c constraints.txt '.[labeler,local,ray]' 'ray[default]' && useradd --uid 10001 --create-home ray
USER 10001
ENV DATA_ROOT=/data RUNS_ROOT=/runs HOME=/tmp USER=ray PYTHONDONTWRITEBYTECODE=1 RAY_USAGE_STATS_ENABLED=0
