# The labelling service: no torch, no weights.
FROM python:3.11.14-slim-bookworm
WORKDIR /opt/dgreid
COPY pyproject.toml constraints.txt README.md LICENSE ./
COPY shared shared
COPY labeler labeler
RUN pip install --no-cache-dir -c constraints.txt '.[labeler]' && useradd --uid 10001 --create-home labeler
USER 10001
# Inside a container the loopback interface reaches nobody; the compose file publishes the port on the host's loopback only.
ENV LABELER_HOST=0.0.0.0 PYTHONDONTWRITEBYTECODE=1
EXPOSE 8300
HEALTHCHECK --interval=10s --timeout=40s --start-period=2m --retries=6 \
  CMD ["python", "-c", "import urllib.request as r; r.urlopen('http://127.0.0.1:8300/readyz', timeout=30)"]
ENTRYPOINT ["python", "-m", "labeler", "serve"]
