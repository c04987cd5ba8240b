"""A browser's part of a visit to the viewer: send a camera, wait for rendered pictures."""

import asyncio
import io
import time

import msgspec
import numpy as np
import websockets
from PIL import Image

CAMERA = {
    "type": "ViewerCameraMessage",
    "wxyz": [0.707, -0.707, 0.0, 0.0],
    "position": [0.0, -10.0, 1.0],
    "fov": 0.9,
    "aspect": 1.333,
    "look_at": [0.0, 0.0, 0.0],
    "up_direction": [0.0, 0.0, 1.0],
}


def visit(port: int, seconds: float) -> np.ndarray:
    """The first picture [H, W, 3] a viewer at this port renders; TimeoutError when there is none in time."""
    return asyncio.run(_visit(port, time.monotonic() + seconds))


async def _visit(port: int, deadline: float) -> np.ndarray:
    while True:
        try:
            async with websockets.connect(f"ws://127.0.0.1:{port}", max_size=None) as socket:
                await socket.send(msgspec.msgpack.encode(CAMERA))
                return await asyncio.wait_for(_first_picture(socket), deadline - time.monotonic())
        except (OSError, websockets.InvalidHandshake, websockets.ConnectionClosed):
            if time.monotonic() > deadline:
                raise TimeoutError(f"no viewer answers at port {port}") from None
            await asyncio.sleep(1)


async def _first_picture(socket) -> np.ndarray:
    while True:
        content = msgspec.msgpack.decode(await socket.recv())
        messages = content if isinstance(content, list) else content.get("messages", [content])
        for message in messages:
            if message.get("type") == "BackgroundImageMessage":
                data = next(value for key, value in message.items() if "rgb" in key and value)
                return np.asarray(Image.open(io.BytesIO(data)).convert("RGB"))
