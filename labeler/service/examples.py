"""What a request and its answers look like, for the OpenAPI page; a test sends the request and checks the answers."""

from typing import Any

GREY_PNG = "iVBORw0KGgoAAAANSUhEUgAAAAgAAAAQCAAAAAAO4WGhAAAAEUlEQVR42mNsYIAAJoZBwQAAURAAoGlIcOMAAAAASUVORK5CYII="

REQUEST: dict[str, Any] = {"images": [GREY_PNG], "parts": ["head", "legs"]}

ANSWER: dict[str, Any] = {
    "engine": "vllm_server",
    "model": "Qwen/Qwen2.5-VL-7B-Instruct",
    "prompt_version": "joint-0d1e2f3a",
    "images": [
        {
            "image_id": "c0cc66f780e10b8b",
            "width": 64,
            "height": 128,
            "space": "sent_pixels@280x560",
            "parts": [
                {
                    "part": "head",
                    "status": "ok",
                    "box": [22.9, 5.0, 42.1, 27.4],
                    "score": 0.93,
                    "raw_box": [100, 22, 184, 120],
                    "attempts": 1,
                },
                {"part": "legs", "status": "absent", "attempts": 1},
            ],
            "prompt_tokens": 318,
            "completion_tokens": 34,
        }
    ],
}

PROBLEM: dict[str, Any] = {
    "error": "32 requests are in flight",
    "fix": "come back after Retry-After seconds",
    "request_id": "4b0f3a0c6f0e4f6c8f0d2b1a9e8c7d6f",
}
