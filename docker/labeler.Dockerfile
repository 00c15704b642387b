# The labelling service: no torch, no weights.
FROM python:3.11-slim
WORKDIR /opt/dgreid
COPY pyproject.toml constraints.txt README.md LICENSE ./
COPY shared shared
COPY labeler labeler
RUN pip install --no-cache-dir -c constraints.txt '.[labeler]' && useradd --create-home labeler
USER labeler
# Inside a container the loopback interface reaches nobody; the compose file publishes the port on the host's loopback only.
ENV LABELER_HOST=0.0.0.0
EXPOSE 8300
ENTRYPOINT ["python", "-m", "labeler", "serve"]
