"""What answers a question about an image: a vLLM server or several, a model in this process, the body prior."""
