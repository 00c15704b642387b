"""A model server that misbehaves on demand, in a process of its own.

    python stand_in_app.py PORT

POST /control {"faults": [...], "every": n} makes every n-th question meet the next of these faults, in turn: 500, hang,
cut, html, garbage (to a first attempt only), hold (until POST /release), endless, trickle, bomb (a gzip of a gigabyte),
tokens (more of them than there are), 401, 429, schema (400 to a question that has
one). An image whose corner is white is refused
whatever else happens, one whose corner is black gets no boxes. GET /count says how many questions came.
"""

import asyncio
import base64
import io
import json
import sys
import zlib
from typing import Any

import uvicorn
from PIL import Image

MODEL = "Qwen/Qwen2.5-VL-7B-Instruct"
_packer = zlib.compressobj(9, wbits=31)
BOXES = '{"head":[100,22,184,120],"upper_body":[56,120,224,290],"legs":[64,290,216,540]}'
BOMB = b"".join(_packer.compress(bytes(2**20)) for _ in range(1024)) + _packer.flush()


class StandInApp:
    def __init__(self) -> None:
        self.faults: list[str] = []
        self.every = 1
        self.questions = 0
        self.released = asyncio.Event()

    async def __call__(self, scope: dict[str, Any], receive: Any, send: Any) -> None:
        if scope["type"] != "http":
            return
        body = b""
        while True:
            message = await receive()
            body += message.get("body", b"")
            if not message.get("more_body"):
                break
        match scope["path"]:
            case "/control":
                asked = json.loads(body)
                self.faults, self.every = asked["faults"], asked.get("every", 1)
                await answer(send, 200, b"{}")
            case "/release":
                self.released.set()
                await answer(send, 200, b"{}")
            case "/count":
                await answer(send, 200, str(self.questions).encode())
            case "/v1/models":
                await answer(send, 200, json.dumps({"data": [{"id": MODEL}]}).encode())
            case _:
                await self.question(json.loads(body), send)

    async def question(self, payload: dict[str, Any], send: Any) -> None:
        number = self.questions
        self.questions += 1
        fault = self.faults[number // self.every % len(self.faults)] if self.faults and not number % self.every else ""
        text = said(payload)
        match fault:
            case "500":
                await answer(send, 500, b"engine dead")
                return
            case "hang":
                await asyncio.sleep(3600)
            case "401" | "429":
                await answer(send, int(fault), b"{}", (b"retry-after", b"1"))
                return
            case "schema" if "response_format" in payload:
                await answer(send, 400, b'{"message": "response_format is not supported"}')
                return
            case "endless" | "trickle":
                await send({"type": "http.response.start", "status": 200, "headers": []})
                while True:
                    piece = b" " * (2**20 if fault == "endless" else 1)
                    await send({"type": "http.response.body", "body": piece, "more_body": True})
                    await asyncio.sleep(0 if fault == "endless" else 0.1)
            case "bomb":
                await answer(send, 200, BOMB, (b"content-encoding", b"gzip"))
                return
            case "cut":
                await send({"type": "http.response.start", "status": 200, "headers": [(b"content-length", b"1000")]})
                await send({"type": "http.response.body", "body": b'{"choices": [', "more_body": True})
                return
            case "html":
                await answer(send, 200, b"<html>bad gateway</html>")
                return
            case "garbage":
                text = "%$ 12 boxes [[" if payload["temperature"] == 0 else text
            case "hold":
                await self.released.wait()
        choice = {"message": {"content": text}, "finish_reason": "stop"}
        usage = f', "usage": {{"completion_tokens": 1{"0" * 400}}}' if fault == "tokens" else ""
        await answer(send, 200, json.dumps({"choices": [choice]})[:-1].encode() + usage.encode() + b"}")


def said(payload: dict[str, Any]) -> str:
    url = payload["messages"][0]["content"][0]["image_url"]["url"]
    with Image.open(io.BytesIO(base64.b64decode(url.split(",", 1)[1]))) as image:
        corner = image.convert("L").getpixel((0, 0))
    if corner > 245:
        return "I'm sorry, I can't help with that."
    return "there is a person in this image" if corner < 10 else BOXES


async def answer(send: Any, status: int, body: bytes, *more: tuple[bytes, bytes]) -> None:
    headers = [(b"content-type", b"application/json"), (b"content-length", str(len(body)).encode()), *more]
    await send({"type": "http.response.start", "status": status, "headers": headers})
    await send({"type": "http.response.body", "body": body})


if __name__ == "__main__":
    uvicorn.run(StandInApp(), port=int(sys.argv[1]), access_log=False)
