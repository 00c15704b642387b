"""Responses of servers that may send anything: nothing is unpacked, none is longer or takes longer than was said."""

import aiohttp
import httpx

MAX_REPLY = 4 * 2**20  # bytes; an answer of a thousand tokens with their probabilities has a tenth
MOST_BYTES = "most_bytes"  # extension of a request: of its response
ON_LINE = "on_line"  # extension of a request: called with each line of a response of lines, as soon as it is there
LINES = "application/x-ndjson"  # content type of a response of lines
NOTHING_PACKED = {"Accept-Encoding": "identity"}


class BoundedHttp(httpx.AsyncBaseTransport):
    """aiohttp as a transport of httpx, at a fourth of the processor time of httpx's own, which is written in Python.

    What is in front of a busy model runs on the cores that the model's own front end needs, so the difference is
    throughput. Unlimited connections; no redirects, cookies, or proxies of the environment, nothing is unpacked.
    Requests raise httpx's TimeoutException after the limits in their `timeout` extension, of which `read` is that of
    the whole response, NetworkError when there is no response, and RemoteProtocolError for an encoded one and one of
    more bytes than their extension MOST_BYTES says (default MAX_REPLY). Lines that went to their extension ON_LINE are
    not in the content of the response any more; what that raises ends the request.
    """

    def __init__(self) -> None:
        self._session: aiohttp.ClientSession | None = None  # created inside the event loop

    async def handle_async_request(self, request: httpx.Request) -> httpx.Response:
        limits = request.extensions["timeout"]
        most = request.extensions.get(MOST_BYTES, MAX_REPLY)
        whole_s = limits["read"] and limits["read"] + (limits["connect"] or 0)
        try:
            async with self._open().request(
                request.method,
                str(request.url),
                data=request.content or None,
                headers=request.headers.multi_items(),
                timeout=aiohttp.ClientTimeout(total=whole_s, sock_connect=limits["connect"], sock_read=limits["read"]),
                allow_redirects=False,
            ) as response:
                encoding = ", ".join(response.headers.getall("Content-Encoding", []))  # it may be said in several lines
                if _is_encoded(encoding):
                    raise httpx.RemoteProtocolError(f"an encoded response ({encoding[:20]!r})", request=request)
                on_line = request.extensions.get(ON_LINE) if response.content_type == LINES else None
                content, received = bytearray(), 0
                async for chunk in response.content.iter_any():
                    content += chunk
                    received += len(chunk)
                    if received > most:
                        raise httpx.RemoteProtocolError(f"a response of over {most} bytes", request=request)
                    if on_line and b"\n" in chunk:
                        *lines, content = content.split(b"\n")
                        for line in lines:
                            on_line(bytes(line))
                return httpx.Response(response.status, headers=response.raw_headers, content=bytes(content))
        except TimeoutError as err:
            raise httpx.ReadTimeout(str(err), request=request) from err
        except (aiohttp.ClientError, OSError) as err:
            raise httpx.NetworkError(f"{type(err).__name__}: {err}", request=request) from err

    async def aclose(self) -> None:
        if self._session is not None:
            await self._session.close()

    def _open(self) -> aiohttp.ClientSession:
        if self._session is None:
            self._session = aiohttp.ClientSession(
                connector=aiohttp.TCPConnector(limit=0, ssl=httpx.create_ssl_context(trust_env=False)),
                cookie_jar=aiohttp.DummyCookieJar(),
                auto_decompress=False,  # a kilobyte can be a gigabyte
                skip_auto_headers=("Accept-Encoding", "User-Agent"),
            )
        return self._session


def _is_encoded(header: str) -> bool:
    return header.strip().lower() not in ("", "identity")
