"""What stands before the routes of the review page: who may ask, and what a browser may do with the answers."""

from typing import Any, Final

from starlette.responses import Response
from starlette.types import ASGIApp, Receive, Scope, Send

_HEADERS: Final = {
    "Content-Security-Policy": "default-src 'none'; img-src 'self' data:; script-src 'self'; style-src 'self'; "
    "connect-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'",
    "Referrer-Policy": "no-referrer",
    "X-Content-Type-Options": "nosniff",
    "Cache-Control": "no-store",
}


class Guard:
    """Refuses other Host headers, and changes that do not come as JSON from the page; adds the security headers."""

    def __init__(self, app: ASGIApp, hosts: tuple[str, ...]) -> None:
        """Stand before an application that answers to these hosts."""
        self._app, self._hosts = app, hosts

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer, or pass the request on."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        headers = {key.decode("latin-1").lower(): value.decode("latin-1") for key, value in scope["headers"]}
        refused = self._why_not(scope["method"], headers)
        if refused is not None:
            await Response(refused, status_code=403)(scope, receive, send)
            return

        async def with_headers(message: Any) -> None:
            if message["type"] == "http.response.start":
                message["headers"] += [(k.lower().encode(), v.encode()) for k, v in _HEADERS.items()]
            await send(message)

        await self._app(scope, receive, with_headers)

    def _why_not(self, method: str, headers: dict[str, str]) -> str | None:
        if headers.get("host") not in self._hosts:
            return "wrong Host header"
        origin = headers.get("origin")
        if origin is not None and origin.removeprefix("http://") not in self._hosts:
            return "wrong Origin header"
        if method == "POST" and headers.get("content-type", "").partition(";")[0] != "application/json":
            return "JSON only"
        return None
