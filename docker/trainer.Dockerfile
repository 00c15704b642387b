# Labelling client, training, evaluation and reports: mount the data sets at /data (read-only) and results at /runs.
FROM python:3.11.14-slim-bookworm
WORKDIR /opt/dgreid
COPY pyproject.toml constraints.txt README.md LICENSE ./
COPY shared shared
COPY labeler labeler
COPY reid reid
COPY pipelines pipelines
RUN pip install --no-cache-dir -c constraints.txt '.[labeler,reid]' && useradd --uid 10001 --create-home trainer
USER 10001
# Caches go to /tmp: the file system may be read-only, and whoever owns /runs may be another user than this one.
ENV DATA_ROOT=/data RUNS_ROOT=/runs HOME=/tmp USER=trainer MPLCONFIGDIR=/tmp/matplotlib PYTHONDONTWRITEBYTECODE=1
ENTRYPOINT ["python", "-m", "pipelines"]
