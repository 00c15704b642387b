# Labelling client, training, evaluation and reports: mount the data sets at /data (read-only) and results at /runs.
FROM python:3.11-slim
WORKDIR /opt/dgreid
COPY pyproject.toml constraints.txt README.md LICENSE ./
COPY shared shared
COPY labeler labeler
COPY reid reid
COPY pipelines pipelines
RUN pip install --no-cache-dir -c constraints.txt '.[labeler,reid]'
ENV DATA_ROOT=/data RUNS_ROOT=/runs
ENTRYPOINT ["python", "-m", "pipelines"]
