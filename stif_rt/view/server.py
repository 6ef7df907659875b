"""The page and its websocket, for browsers of this machine alone."""

import asyncio
import json
import logging
import socket
import struct
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from fractions import Fraction
from importlib.resources import files
from typing import Any
from urllib.parse import urlsplit

import av
import numpy as np
import uvicorn
from numpy.typing import NDArray
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import PlainTextResponse, Response
from starlette.routing import Route, WebSocketRoute
from starlette.types import ASGIApp, Receive, Scope, Send
from starlette.websockets import WebSocket

from stif_rt.dtypes import dtype_name
from stif_rt.view.pictures import LAYERS, Viewer, Wish, parse_wish

log = logging.getLogger(__name__)

HOST = "127.0.0.1"
LOCAL_NAMES = {"127.0.0.1", "localhost"}
LARGEST_MESSAGE = 1 << 16
"""Bytes from a page; larger ones end the connection."""
JPEG_QUALITY = 2
"""FFmpeg's scale, 1 to 31: lower is better."""
FILES = {
    "/": ("index.html", "text/html"),
    "/view.js": ("view.js", "text/javascript"),
    "/view.css": ("view.css", "text/css"),
}
HEADERS = {
    "Cache-Control": "no-store",
    "Content-Security-Policy": "default-src 'self'; img-src 'self' data:; frame-ancestors 'none'; form-action 'none'",
    "Cross-Origin-Resource-Policy": "same-origin",
    "X-Content-Type-Options": "nosniff",
}


class LocalOnly:
    """Refuses what pages of other sites send here, websockets too: a foreign Origin, or a name of another machine.

    The port is not compared, lest a tunnel to another port be refused, but that of the Origin with that of the Host.
    """

    def __init__(self, app: ASGIApp) -> None:
        self.app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] not in ("http", "websocket") or is_local(scope["headers"]):
            await self.app(scope, receive, send)
        elif scope["type"] == "websocket":
            await receive()
            await send({"type": "websocket.close", "code": 1008})
        else:
            await PlainTextResponse("only pages of this machine are served", 403)(scope, receive, send)


def is_local(headers: list[tuple[bytes, bytes]]) -> bool:
    """Whether a request's headers name this machine, and no origin but the page itself."""
    hosts = [value.decode("latin-1") for name, value in headers if name == b"host"]
    origins = [value.decode("latin-1") for name, value in headers if name == b"origin"]
    if len(hosts) != 1 or len(origins) > 1:
        return False
    try:
        local = urlsplit(f"//{hosts[0]}").hostname in LOCAL_NAMES
    except ValueError:
        return False
    return local and all(origin.lower() == f"http://{hosts[0].lower()}" for origin in origins)


def make_app(viewer: Viewer) -> Starlette:
    """The web application that shows one clip; all its pictures are made in one thread."""
    worker = ThreadPoolExecutor(1, "viewer")
    routes = [Route(path, _file(*file)) for path, file in FILES.items()]

    async def session(websocket: WebSocket) -> None:
        await _Session(websocket, viewer, worker).run()

    app = Starlette(routes=[*routes, WebSocketRoute("/wishes", session)])
    app.add_middleware(LocalOnly)
    return app


def _file(name: str, kind: str) -> Any:
    content = (files("stif_rt.view") / name).read_bytes()

    async def respond(request: Request) -> Response:
        return Response(content, media_type=kind, headers=HEADERS)

    return respond


class _Session:
    """One open page. Of its wishes the newest is answered; one that comes later ends the answers to the one before."""

    def __init__(self, websocket: WebSocket, viewer: Viewer, worker: ThreadPoolExecutor) -> None:
        self.websocket, self.viewer, self.worker = websocket, viewer, worker
        self.newest: Wish | None = None
        self.changed = asyncio.Event()
        self.said: set[str] = set()

    async def run(self) -> None:
        await self.websocket.accept()
        await self.websocket.send_json({"event": "clip", **describe(self.viewer)})
        answering = asyncio.create_task(self._answer())
        try:
            while (message := await self.websocket.receive())["type"] == "websocket.receive":
                try:
                    self.newest = parse_wish(message.get("text") or "")
                    self.changed.set()
                except ValueError as error:
                    await self._say("error", str(error))
        finally:
            answering.cancel()

    async def _answer(self) -> None:
        loop = asyncio.get_running_loop()
        while await self.changed.wait():
            self.changed.clear()
            assert self.newest is not None
            messages = _messages(self.viewer, self.newest)
            try:
                while not self.changed.is_set():
                    message = await loop.run_in_executor(self.worker, next, messages, None)
                    if message is None:
                        break
                    await self.websocket.send_bytes(message)
            except Exception as error:  # whatever it is, the page shows it and the server goes on
                log.info("a wish failed: %s", error, exc_info=True)
                await self._say("error", str(error) or type(error).__name__)
            for notice in self.viewer.clip.reader.notices:
                if notice.text not in self.said:
                    self.said.add(notice.text)
                    await self._say("notice", str(notice))

    async def _say(self, event: str, message: str) -> None:
        await self.websocket.send_json({"event": event, "message": message})


def describe(viewer: Viewer) -> dict[str, Any]:
    """The clip's properties, for the page when it opens."""
    runtime, reader = viewer.runtime, viewer.clip.reader
    return {
        "name": reader.path.resolve().name,
        "width": viewer.size[1],
        "height": viewer.size[0],
        "duration": float(viewer.clip.duration),
        "rate": float(reader.rate),
        "layers": [layer for layer in LAYERS if layer != "flow" or runtime.config.flow],
        "engine": f"{runtime.weights}, {runtime.device}, {dtype_name(runtime.dtype)}",
    }


def _messages(viewer: Viewer, wish: Wish) -> Iterator[bytes]:
    """Each answer as the page gets it: the header's length (4 bytes, little-endian), the header in JSON, a JPEG."""
    for image, header in viewer.answers(wish):
        text = json.dumps(header).encode()
        yield struct.pack("<I", len(text)) + text + jpeg(image)


def jpeg(image: NDArray[np.uint8]) -> bytes:
    """A picture, uint8 [h, w, 3], in full chroma. By PyAV, which the package needs anyway."""
    encoder = av.CodecContext.create("mjpeg", "w")
    assert isinstance(encoder, av.VideoCodecContext)
    encoder.height, encoder.width = image.shape[:2]
    encoder.pix_fmt, encoder.time_base, encoder.thread_count = "yuvj444p", Fraction(1), 1
    encoder.options = {"flags": "+qscale", "global_quality": str(118 * JPEG_QUALITY)}  # in units of lambda
    frame = av.VideoFrame.from_ndarray(image, format="rgb24")
    # one thread: with several, swscale leaves rows of small pictures unwritten
    frame = frame.reformat(format="yuvj444p", dst_colorspace="ITU601", dst_color_range="JPEG", threads=1)
    return b"".join(bytes(packet) for packet in [*encoder.encode(frame), *encoder.encode(None)])


def listen(port: int) -> socket.socket:
    """A socket of this machine alone; port 0 takes any that is free.

    Raises:
        ValueError: The port is taken, or not for everyone.
    """
    listener = socket.socket()
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        listener.bind((HOST, port))
        listener.listen()
    except OSError as error:
        listener.close()
        raise ValueError(
            f"port {port} cannot be used ({error.strerror}): give another --port, or 0 for any that is free"
        ) from error
    return listener


def serve(viewer: Viewer, listener: socket.socket) -> None:
    """Serves the page until Ctrl-C."""
    config = uvicorn.Config(
        make_app(viewer), log_level="warning", ws_max_size=LARGEST_MESSAGE, timeout_graceful_shutdown=1, lifespan="off"
    )
    uvicorn.Server(config).run(sockets=[listener])
