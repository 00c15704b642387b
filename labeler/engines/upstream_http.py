"""aiohttp behind the interface of httpx's transports: a question to a model server for a fourth of the processor time.

httpx and httpcore speak HTTP in Python, aiohttp in C. What is in front of a busy model is computed on the cores that
the model's own front end needs, so that difference is throughput.
"""

import aiohttp
import httpx


class UpstreamHttp(httpx.AsyncBaseTransport):
    """Connections to any hosts, as many as there are requests; no redirects, cookies or proxies of the environment.

    Requests raise httpx's TimeoutException when their `timeout` extension says so, NetworkError when nobody answers.
    """

    def __init__(self) -> None:
        self._session: aiohttp.ClientSession | None = None  # made inside the event loop

    async def handle_async_request(self, request: httpx.Request) -> httpx.Response:
        limits = request.extensions["timeout"]
        try:
            async with self._open().request(
                request.method,
                str(request.url),
                data=request.content or None,
                headers=request.headers.multi_items(),
                timeout=aiohttp.ClientTimeout(sock_connect=limits["connect"], sock_read=limits["read"]),
                allow_redirects=False,
            ) as response:
                content = await response.read()
                return httpx.Response(response.status, headers=response.raw_headers, content=content)
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
                auto_decompress=False,  # the response does that
                skip_auto_headers=("Accept-Encoding", "User-Agent"),
            )
        return self._session
