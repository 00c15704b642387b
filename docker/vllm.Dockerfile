# The grounding model. Weights come from a Hugging Face cache mounted at /models; nothing is baked in.
FROM vllm/vllm-openai:v0.32.0
COPY labeler/engines/serve_vllm.sh /usr/local/bin/serve_vllm.sh
RUN useradd --uid 10001 --create-home vllm
USER 10001
ENV SERVE_HOST=0.0.0.0 HF_HOME=/models VLLM_NO_USAGE_STATS=1
EXPOSE 8000
HEALTHCHECK --interval=10s --timeout=10s --start-period=30m --retries=6 \
  CMD ["python3", "-c", "import urllib.request as r; r.urlopen('http://127.0.0.1:8000/health', timeout=5)"]
ENTRYPOINT ["/usr/local/bin/serve_vllm.sh"]
