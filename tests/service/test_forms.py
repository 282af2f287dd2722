"""The forms that pictures come in: what clients really send is taken, and what was cut is refused."""

import base64
import io
import json
import socket
import threading
from collections.abc import Generator
from typing import Any

import httpx
import pytest
from PIL import Image
from scan_bombs import progressive
from serving import LABELS, Running, picture, serving

FIELDS = {"labels": ",".join(LABELS), "defense": "jpeg:50", "top_k": "0"}


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Generator[Running]:
    with serving(tmp_path_factory.mktemp("forms"), engine={"decode_threads": 1}) as running:
        yield running


def part(name: str, value: bytes, *, file: bool = False) -> bytes:
    filename = '; filename="x.png"' if file else ""
    return (
        f'--XX\r\nContent-Disposition: form-data; name="{name}"{filename}\r\n\r\n'.encode() + value + b"\r\n"
    )


def form() -> bytes:
    """The picture first, so that what a cut loses are the fields."""
    return (
        part("image", picture(size=16), file=True)
        + b"".join(part(name, value.encode()) for name, value in FIELDS.items())
        + b"--XX--\r\n"
    )


def post_form(server: Running, body: bytes, boundary: str = "XX") -> httpx.Response:
    headers = {"content-type": f"multipart/form-data; boundary={boundary}"}
    return server.client.post("/classify", content=body, headers=headers)


def test_a_form_that_was_cut_anywhere_is_refused(server: Running) -> None:
    body = form()
    assert body.endswith(b"--XX--\r\n")
    middle = body.index(b'name="labels"')
    for length in [*range(0, middle, 37), *range(middle, len(body) - 2)]:
        response = post_form(server, body[:length])
        assert (response.status_code, response.json()["code"]) == (400, "malformed-multipart"), body[:length]


@pytest.mark.parametrize("route", ["/classify", "/probe"])
def test_a_form_without_its_closing_delimiter_says_so(server: Running, route: str) -> None:
    response = server.client.post(
        route, content=form()[:-8], headers={"content-type": "multipart/form-data; boundary=XX"}
    )
    assert (response.status_code, response.json()["code"]) == (400, "malformed-multipart")
    assert "closing delimiter" in response.json()["detail"]


@pytest.mark.parametrize(
    "end", [b"--XX--", b"--XX--\r\n", b"--XX--\r\nepilogue", b"--XX--  \r\n--XX\r\njunk"]
)
def test_what_follows_the_closing_delimiter_is_no_matter(server: Running, end: bytes) -> None:
    response = post_form(server, form()[:-8] + end)
    assert response.status_code == 200, response.text
    assert response.json()["defense"][0]["quality"] == 50


def test_other_broken_forms_are_refused(server: Running) -> None:
    assert post_form(server, form(), boundary="YY").json()["code"] == "malformed-multipart"
    twice = form()[:-8] + part("top_k", b"1") + b"--XX--"
    assert post_form(server, twice).json()["errors"][0]["pointer"] == "#/top_k"
    unknown = form()[:-8] + part("top_kk", b"1") + b"--XX--"
    assert post_form(server, unknown).json()["errors"][0]["pointer"] == "#/top_kk"
    asked = part("request", json.dumps({"seed": 1}).encode())
    both = post_form(server, form()[:-8] + asked + asked + b"--XX--").json()
    assert (both["code"], both["errors"][0]["pointer"]) == ("validation", "#/request")
    nameless = form()[:-8] + b"--XX\r\nContent-Disposition: form-data\r\n\r\nx\r\n--XX--"
    assert post_form(server, nameless).json()["code"] == "malformed-multipart"


def test_a_form_longer_than_its_content_length_is_refused(server: Running) -> None:
    host, port = server.url.removeprefix("http://").split(":")
    body = form()
    with socket.create_connection((host, int(port)), timeout=20) as connection:
        head = f"POST /classify HTTP/1.1\r\nHost: localhost\r\nContent-Length: {len(body) - 40}\r\n"
        kind = "Content-Type: multipart/form-data; boundary=XX\r\n\r\n"
        connection.sendall((head + kind).encode() + body)
        assert connection.recv(4096).startswith(b"HTTP/1.1 400")


TEXT = base64.b64encode(picture()).decode()


def in_lines(length: int, end: str) -> str:
    return "".join(TEXT[at : at + length] + end for at in range(0, len(TEXT), length))


@pytest.mark.parametrize("uri", [False, True])
@pytest.mark.parametrize(
    "text",
    [
        in_lines(76, "\r\n"),
        in_lines(76, "\n"),
        in_lines(64, "\r"),
        in_lines(60, " \t\r\n  "),
        f" \n{TEXT}\t \n",
        f"\r\n\r\n{in_lines(4, chr(10) * 2)}",
    ],
)
def test_base64_in_lines_is_taken(server: Running, text: str, uri: bool) -> None:
    image = f"data:image/png;base64,{text}" if uri else {"type": "base64", "data": text}
    response = server.client.post("/classify", json={"image": image, "labels": LABELS})
    assert response.status_code == 200, response.text


@pytest.mark.parametrize(
    "text",
    [
        TEXT[:40] + " " + TEXT[40:],
        TEXT[:-5] + "-",
        TEXT[:40] + "\v" + TEXT[40:],
        TEXT[:40] + "\u00a0" + TEXT[40:],
        "\n",
        "%%%\n",
    ],
)
def test_other_base64_is_refused(server: Running, text: str) -> None:
    body = {"image": {"type": "base64", "data": text}, "labels": LABELS}
    response = server.client.post("/classify", json=body)
    assert (response.status_code, response.json()["errors"][0]["pointer"]) == (422, "#/image")


def test_line_breaks_do_not_count_as_bytes_of_the_picture(server: Running) -> None:
    spread = "\n\n\n\n".join(TEXT) + "\n" * 2**22
    body = {"image": {"type": "base64", "data": spread}, "labels": LABELS}
    assert server.client.post("/classify", json=body).status_code == 200


def post_raw(server: Running, data: bytes, kind: str | None) -> httpx.Response:
    headers = {} if kind is None else {"content-type": kind}
    return server.client.post("/classify", params={"labels": LABELS}, content=data, headers=headers)


@pytest.mark.parametrize(
    "kind",
    [
        "image/jpg",
        "image/pjpeg",
        "image/x-png",
        "image/gif",
        "IMAGE/JPEG; q=1",
        "binary/octet-stream",
        "application/octet-stream",
        None,
    ],
)
@pytest.mark.parametrize("form", ["PNG", "JPEG", "WEBP"])
def test_the_first_bytes_decide_and_not_the_type(server: Running, kind: str | None, form: str) -> None:
    response = post_raw(server, picture(form=form), kind)
    assert response.status_code == 200, response.text
    assert response.json()["results"][0]["image"]["format"].upper() == form


@pytest.mark.parametrize("kind", ["image/heic", "image/tiff", "application/octet-stream", None])
@pytest.mark.parametrize(
    ("name", "data"),
    [
        ("HEIC", b"\0\0\0\x18ftypheic\0\0\0\0mif1heic"),
        ("AVIF", b"\0\0\0\x18ftypavif\0\0\0\0mif1avif"),
        ("TIFF", b"II*\0"),
    ],
)
def test_other_kinds_are_answered_by_their_names(
    server: Running, kind: str | None, name: str, data: bytes
) -> None:
    body = post_raw(server, data + bytes(100), kind).json()
    assert (body["status"], body["code"], name in body["detail"]) == (422, "image-format-refused", True), body
    assert "JPEG" in body["help"]


@pytest.mark.parametrize("route", ["/classify", "/probe"])
def test_a_scan_bomb_is_refused_by_name(server: Running, route: str) -> None:
    files = {"image": progressive(7000, 7000, 500)}
    body = server.client.post(route, files=files, data={"labels": LABELS}).json()
    assert (body["status"], body["code"], body["errors"][0]["pointer"]) == (
        422,
        "image-too-costly",
        "#/image",
    )


def test_a_deadline_blames_the_wait_for_a_decoder(server: Running, monkeypatch: pytest.MonkeyPatch) -> None:
    busy, free = threading.Event(), threading.Event()

    def occupy() -> None:
        busy.set()
        free.wait(30)

    server.service.engine._pool.submit(occupy)  # pyright: ignore[reportPrivateUsage]
    assert busy.wait(10)
    try:
        body = server.client.post(
            "/classify", files={"image": picture()}, data={"labels": LABELS, "deadline_ms": "700"}
        ).json()
    finally:
        free.set()
    assert (body["status"], body["code"]) == (504, "deadline-exceeded")
    assert "the wait for a decoder" in body["detail"]


def test_a_deadline_blames_a_slow_decoder(server: Running, monkeypatch: pytest.MonkeyPatch) -> None:
    engine = server.service.engine
    release, real = threading.Event(), engine.pixels

    def slow(data: bytes) -> Any:
        release.wait(30)
        return real(data)

    monkeypatch.setattr(engine, "pixels", slow)
    try:
        body = server.client.post(
            "/classify", files={"image": picture()}, data={"labels": LABELS, "deadline_ms": "700"}
        ).json()
    finally:
        release.set()
    assert body["detail"].endswith("most of it went to decode.")


def test_a_large_transparent_picture_is_answered(server: Running) -> None:
    buffer = io.BytesIO()
    Image.new("RGBA", (3000, 2000), (10, 20, 30, 128)).save(buffer, format="PNG")
    assert post_raw(server, buffer.getvalue(), "image/png").status_code == 200
