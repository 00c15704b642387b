# The grounding model. Weights come from a mounted Hugging Face cache; nothing is baked in.
FROM vllm/vllm-openai:latest
COPY labeler/engines/serve_vllm.sh /usr/local/bin/serve_vllm.sh
ENV SERVE_HOST=0.0.0.0
ENTRYPOINT ["/usr/local/bin/serve_vllm.sh"]
