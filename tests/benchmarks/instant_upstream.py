"""A model server that answers every question at once with the same boxes, in a process of its own.

    python instant_upstream.py

It reads requests without looking at them, so that a benchmark measures what is in front of it.
"""

import asyncio
import json

MODEL = "Qwen/Qwen2.5-VL-7B-Instruct"
BOXES = '{"head":[100,22,184,120],"upper_body":[56,120,224,290],"legs":[64,290,216,540]}'


def _response(content: object) -> bytes:
    body = json.dumps(content).encode()
    return b"HTTP/1.1 200 OK\r\ncontent-type: application/json\r\ncontent-length: %d\r\n\r\n%s" % (len(body), body)


ANSWER = _response({"choices": [{"message": {"content": BOXES}, "finish_reason": "stop"}]})
MODELS = _response({"data": [{"id": MODEL}]})


class Instant(asyncio.Protocol):
    """One connection: heads are read, bodies only counted."""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        self._transport, self._head, self._missing, self._reply = transport, b"", 0, b""

    def data_received(self, data: bytes) -> None:
        while data:
            if not self._missing:
                self._head += data
                head, found, data = self._head.partition(b"\r\n\r\n")
                if not found:
                    return
                self._head = b""
                _, _, after = head.lower().partition(b"content-length:")
                self._missing = int(after.split(b"\r\n", 1)[0] or 0)
                self._reply = MODELS if b"/v1/models" in head.split(b"\r\n", 1)[0] else ANSWER
            body, data = data[: self._missing], data[self._missing :]
            self._missing -= len(body)
            if not self._missing:
                self._transport.write(self._reply)


async def serve() -> None:
    server = await asyncio.get_running_loop().create_server(Instant, "127.0.0.1", 0)
    print(f"running on http://127.0.0.1:{server.sockets[0].getsockname()[1]}", flush=True)
    await server.serve_forever()


if __name__ == "__main__":
    asyncio.run(serve())
