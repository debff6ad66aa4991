"""What a client with a key may send to do harm: addresses, bombs, broken images, options. The real vLLM answers."""

from __future__ import annotations

import base64
import io
import re
import socket
import struct
import sys
import tempfile
import threading
import zlib
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import httpx
import psutil
import pytest
from PIL import Image

from pipelines.config import Config
from pipelines.settings import ROOT
from tests.serving.security.conftest import Service

TEXT = {"type": "text", "text": "Which digit is this?"}
FOLDERS = "|".join(re.escape(f"{folder}/") for folder in (Path.home(), tempfile.gettempdir(), ROOT, sys.prefix))
LEAKS = re.compile(rf"Traceback|File \"|site-packages|{FOLDERS}|\.py\b|0x[0-9a-f]{{6,}}|127\.0\.0\.1:\d")
"""What an error must not tell: code, folders, addresses of memory or of the engine."""


def picture(url: str) -> dict[str, object]:
    return {"type": "image_url", "image_url": {"url": url}}


def data_url(content: bytes, kind: str = "image/png") -> str:
    return f"data:{kind};base64,{base64.b64encode(content).decode()}"


def encoded(image: Image.Image, form: str = "PNG", **more: object) -> bytes:
    file = io.BytesIO()
    image.save(file, form, **more)
    return file.getvalue()


def bomb(width: int, height: int) -> bytes:
    """A PNG of a few kilobytes that promises a large picture of one colour, and keeps the promise for some rows."""

    def chunk(kind: bytes, body: bytes) -> bytes:
        return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))

    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    rows = zlib.compress(b"\0" * min(height * (1 + 3 * width), 50_000_000), 9)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", rows) + chunk(b"IEND", b"")


REFUSALS = {*range(400, 500), 501}
"""501: vLLM's word for data URLs that are not base64."""

BEYOND_PILLOW = ("bomb of 900 megapixels", "bomb of 4 gigapixels", "largest")
"""Refused undecoded by Pillow itself, above 179 megapixels, with an error that vLLM does not expect."""


def accepted_or_refused(answer: httpx.Response, *more: int) -> None:
    assert answer.status_code in {200, *REFUSALS, *more}, (answer.status_code, answer.text[:500])
    assert not LEAKS.search(answer.text), answer.text[:1000]


@pytest.fixture(autouse=True)
def alive(service: Service) -> Iterator[None]:
    """After each test the same engine still answers."""
    started = service.started()
    yield
    assert service.chat(TEXT).status_code == 200
    assert service.started() == started


@pytest.fixture
def canary() -> Iterator[tuple[int, list[bytes]]]:
    """A server that nobody may be made to ask: its port, and what it heard. It redirects to itself."""
    heard: list[bytes] = []
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]

        def listen() -> None:
            with suppress(OSError):
                while True:
                    connection, _ = server.accept()
                    heard.append(connection.recv(4096))
                    connection.sendall(b"HTTP/1.1 302 Found\r\nLocation: /x\r\nContent-Length: 0\r\n\r\n")
                    connection.close()

        thread = threading.Thread(target=listen)
        thread.start()
        yield port, heard
        server.shutdown(socket.SHUT_RDWR)
        thread.join(10)


def test_no_address_is_ever_fetched(service: Service, canary: tuple[int, list[bytes]]) -> None:
    port, heard = canary
    hosts = ("127.0.0.1", "2130706433", "0x7f000001", "0177.0.0.1", "127.1", "localhost", "localhost.", "[::1]", "0")
    names = ("127.0.0.1.nip.io", "no/host", "no%2fhost", "no%2fhost@127.0.0.1", "127.0.0.1#no/host", "no\\host")
    urls = [
        *(f"http://{host}:{port}/x.png" for host in (*hosts, *names)),
        *(f"{scheme}://127.0.0.1:{port}/x.png" for scheme in ("https", "ftp", "gopher", "HTTP", "s3", "ws")),
        *("file:///etc/passwd", "file://localhost/etc/passwd", "/etc/passwd", "FILE:///etc/passwd", "http:/x", "", "x"),
        *(f"http:\\\\127.0.0.1:{port}/x.png", f"//127.0.0.1:{port}/x.png", f"http://no/host\\@127.0.0.1:{port}/"),
    ]
    for url in urls:
        answer = service.chat(TEXT, picture(url))
        assert answer.status_code in REFUSALS, (url, answer.status_code, answer.text[:300])
        assert "Traceback" not in answer.text
        assert "root:" not in answer.text
    for kind in ("video_url", "audio_url"):
        url = f"http://127.0.0.1:{port}/x"
        assert 400 <= service.chat(TEXT, {"type": kind, kind: {"url": url}}).status_code < 500
    assert heard == []


SOUND = Image.new("RGB", (64, 64), "red")
IMAGES = {
    "truncated": encoded(SOUND)[:60],
    "truncated jpeg": encoded(SOUND, "JPEG")[:-200],
    "cmyk": encoded(SOUND.convert("CMYK"), "JPEG"),
    "16 bit": encoded(Image.new("I;16", (64, 64), 40_000)),
    "float": encoded(Image.new("F", (64, 64)), "TIFF"),
    "palette with transparency": encoded(SOUND.convert("P"), "PNG", transparency=0),
    "rgba": encoded(SOUND.convert("RGBA")),
    "one bit": encoded(SOUND.convert("1")),
    "animated": encoded(SOUND, "GIF", save_all=True, append_images=[Image.new("RGB", (64, 64), "blue")] * 2),
    "one pixel": encoded(Image.new("RGB", (1, 1))),
    "1 to 300": encoded(Image.new("RGB", (1, 300))),
    "300 to 1": encoded(Image.new("RGB", (900, 3))),
    "text": b"this is no image, whatever it is called",
    "svg": b"<svg xmlns='http://www.w3.org/2000/svg'><image href='file:///etc/passwd'/></svg>",
    "postscript": b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n%%EndComments\n(/etc/passwd) (r) file\n%%EOF\n",
    "empty": b"",
    "wrong checksum": encoded(SOUND)[:-8] + b"\0" * 8,
    "bomb of 50 megapixels": bomb(7_100, 7_100),
    "bomb of 100 megapixels": bomb(10_000, 10_000),
    "bomb of 900 megapixels": bomb(30_000, 30_000),
    "bomb of 4 gigapixels": bomb(65_000, 65_000),
    "no width": bomb(0, 10),
    "largest": bomb(2**31 - 1, 2**31 - 1),
    "long text chunk": encoded(SOUND)[:33] + struct.pack(">I", 9) + b"zTXtx\0\0abcdef" + b"\0" * 4,
}  # fmt: skip


@pytest.mark.parametrize("name", IMAGES)
def test_an_odd_image_is_answered_or_refused(service: Service, name: str) -> None:
    accepted_or_refused(service.chat(TEXT, picture(data_url(IMAGES[name]))))


@pytest.mark.parametrize("name", ["bomb of 50 megapixels", "bomb of 100 megapixels", "text", "empty", "no width"])
def test_what_is_no_image_of_a_bearable_size_is_refused(service: Service, name: str) -> None:
    assert service.chat(TEXT, picture(data_url(IMAGES[name]))).status_code in REFUSALS


@pytest.mark.parametrize("name", BEYOND_PILLOW)
def test_what_pillow_itself_refuses_costs_no_memory(service: Service, name: str) -> None:
    process = psutil.Process(service.engine.pid)
    before = process.memory_info().rss
    answer = service.chat(TEXT, picture(data_url(IMAGES[name])))
    assert answer.status_code == 400
    assert "more pixels than are ever decoded" in answer.json()["error"]["message"]
    assert process.memory_info().rss - before < 200e6


@pytest.mark.parametrize(
    "url",
    [
        *("data:", "data:,", "data:image/png,xx", "data:image/png;base64,!!!", "data:image/png;base64"),
        *("data:text/plain;base64,aGVsbG8=", "data:video/mp4;base64,AAAA", "DATA:image/png;base64,AAAA"),
    ],
)
def test_a_broken_data_url_is_refused(service: Service, url: str) -> None:
    answer = service.chat(TEXT, picture(url))
    assert answer.status_code in REFUSALS, (answer.status_code, answer.text[:300])
    assert not LEAKS.search(answer.text), answer.text[:1000]


@pytest.mark.parametrize(
    "options",
    [
        {"mm_processor_kwargs": {"size": {"shortest_edge": 65536, "longest_edge": 2**28}}},
        {"mm_processor_kwargs": {"max_pixels": 2**28}},
        {"mm_processor_kwargs": {"images_kwargs": {"do_resize": False}}},
        {"media_io_kwargs": {"image": {"rgba_background_color": [0, 0, 0]}}},
        {"chat_template": "{{ 'x' * 10 }}"},
    ],
)
def test_clients_set_no_limit_of_ours(service: Service, options: dict[str, object]) -> None:
    image = picture(data_url(encoded(Image.new("RGB", (640, 640)))))
    answer = service.chat(TEXT, image, **options)
    assert answer.status_code == 400
    assert not LEAKS.search(answer.text), answer.text[:1000]


def test_the_pixel_cap_holds_whatever_is_sent(service: Service, smoke: Config) -> None:
    tokens = []
    for side in (32, 640, 3000):
        answer = service.chat(TEXT, picture(data_url(encoded(Image.new("RGB", (side, side))))))
        assert answer.status_code == 200, answer.text[:300]
        tokens.append(answer.json()["usage"]["prompt_tokens"])
    assert tokens[1] == tokens[2] <= tokens[0] + smoke.images.max_pixels // 32**2


@pytest.mark.parametrize(
    "more",
    [
        {"max_tokens": 10**9},
        {"max_tokens": -1},
        {"n": 10_000},
        {"temperature": "hot"},
        {"messages": []},
        {"messages": "x"},
        {"model": "../../etc/passwd"},
        {"logprobs": True, "top_logprobs": 10**6},
        {"stop": ["x"] * 10_000},
        {"prompt_logprobs": 10**6},
        {"structured_outputs": {"regex": "(" * 1000}},
    ],
)
def test_absurd_requests_are_refused(service: Service, more: dict[str, object]) -> None:
    accepted_or_refused(service.chat(TEXT, **more), 503)  # as many answers as there are no places for


@pytest.mark.parametrize("body", [b"", b"{", b"[]", b"null", b"\xff\xfe", b'{"messages":' + b"[" * 50_000])
def test_a_body_that_is_no_request_is_refused(service: Service, body: bytes) -> None:
    answer = service.post("/v1/chat/completions", content=body)
    assert 400 <= answer.status_code < 500, (answer.status_code, answer.text[:300])
    assert not LEAKS.search(answer.text), answer.text[:1000]


def test_a_body_over_the_limit_is_refused(service: Service) -> None:
    answer = service.chat(TEXT, picture(data_url(b"x" * 20_000_000)))
    assert answer.status_code == 413
