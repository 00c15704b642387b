#!/usr/bin/env bash
# The one place that says how vLLM is started for grounding: the image, `make vllm` and `dgreid vllm` run this.
#   labeler/engines/serve_vllm.sh MODEL [more vLLM flags]
set -euo pipefail
model="${1:?which model? e.g. make vllm MODEL=Qwen/Qwen2.5-VL-7B-Instruct}"
shift
# - white space is switched off in guided JSON: a model may otherwise fill its answer with it up to the token limit
# - one image per prompt: a question is about one crop
# - a crop is at most about 1,500 tokens and an answer under 200, so a short context leaves memory for more requests
# - a model's own sampling defaults (top_k, repetition_penalty) would undo the temperatures that we ask with
# - our variables are not called VLLM_*: VLLM_PORT is vLLM's own, for talk between its workers
exec python3 -m vllm.entrypoints.openai.api_server \
  --model "$model" \
  --host "${SERVE_HOST:-127.0.0.1}" --port "${SERVE_PORT:-8000}" \
  --max-model-len "${SERVE_MAX_MODEL_LEN:-4096}" \
  --generation-config vllm \
  --limit-mm-per-prompt '{"image":1}' \
  --structured-outputs-config '{"backend":"xgrammar","disable_any_whitespace":true}' \
  "$@"
