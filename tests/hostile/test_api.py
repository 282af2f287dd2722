"""Hostile input over HTTP: each kind gets its own 4xx problem that names the field, and the service goes on
as if nothing had been.
"""

import base64
import io
import resource
import socket
import struct
import zlib
from collections.abc import Generator
from typing import Any

import httpx
import numpy
import pytest
from PIL import Image
from prompt_sets import learned_set
from serving import LABELS, Running, picture, serving

from robustclip.models.clip import Clip


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Generator[Running]:
    with serving(
        tmp_path_factory.mktemp("hostile"), limits={"body_bytes": 30 * 2**20, "body_seconds": 1.0}
    ) as running:
        yield running


def png_header(width: int, height: int) -> bytes:
    """A PNG that announces a size and holds next to nothing."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0))
    return b"\x89PNG\r\n\x1a\n" + header + chunk(b"IDAT", zlib.compress(bytes(100))) + chunk(b"IEND", b"")


def animation() -> bytes:
    frames = [Image.fromarray(numpy.full((32, 32, 3), value, numpy.uint8)) for value in (0, 255)]
    buffer = io.BytesIO()
    frames[0].save(buffer, format="WEBP", save_all=True, append_images=frames[1:])
    return buffer.getvalue()


def gif() -> bytes:
    buffer = io.BytesIO()
    Image.new("P", (8, 8)).save(buffer, format="GIF")
    return buffer.getvalue()


IMAGES = {
    "empty": (b"", "image-undecodable"),
    "truncated": (picture(form="JPEG")[:200], "image-undecodable"),
    "a header of 60000 x 60000": (png_header(60_000, 60_000), "image-too-many-pixels"),
    "one very long side": (png_header(20_000, 1), "image-too-many-pixels"),
    "animated": (animation(), "image-format-refused"),
    "GIF": (gif(), "image-format-refused"),
    "text": (b"GET / HTTP/1.1", "image-format-refused"),
    "too many bytes": (picture() + bytes(21 * 2**20), "body-too-large"),
}


@pytest.mark.parametrize("kind", IMAGES)
@pytest.mark.parametrize("form", ["raw", "form", "json"])
@pytest.mark.parametrize("route", ["/classify", "/probe"])
def test_a_hostile_picture_gets_its_own_problem_in_every_form(
    server: Running, kind: str, form: str, route: str
) -> None:
    data, code = IMAGES[kind]
    if form == "raw" and route == "/probe":
        response = server.client.post(
            route, params={"labels": LABELS}, content=data, headers={"content-type": "image/png"}
        )
    elif form == "raw":
        response = server.client.post(
            route, params={"labels": LABELS}, content=data, headers={"content-type": "image/jpeg"}
        )
    elif form == "form":
        response = server.client.post(route, files={"image": data}, data={"labels": LABELS})
    else:
        image = {"type": "base64", "data": base64.b64encode(data).decode()}
        response = server.client.post(route, json={"image": image, "labels": LABELS})
    body = response.json()
    assert response.headers["content-type"] == "application/problem+json"
    assert body["code"] == code, body
    assert 400 <= response.status_code < 500
    assert body["errors"][0]["pointer"] == "#/image"


REQUESTS: dict[str, tuple[dict[str, Any], int, str, str]] = {
    "one label": ({"labels": ["cat"]}, 422, "validation", "#/labels"),
    "no labels": ({"labels": []}, 422, "validation", "#/labels"),
    "absent labels": ({"labels": ...}, 422, "validation", "#/labels"),
    "labels that are no texts": ({"labels": [1, 2]}, 422, "validation", "#/labels/0"),
    "a repeated label": ({"labels": ["cat", "dog", "cat"]}, 422, "validation", "#/labels/2"),
    "labels that look alike": ({"labels": ["caf\u00e9", "cafe\u0301 "]}, 422, "validation", "#/labels/1"),
    "an empty label": ({"labels": ["cat", "  "]}, 422, "validation", "#/labels/1"),
    "labels that only CLIP takes for one": (
        {"labels": ["dog", "cat", "Cat"]},
        422,
        "validation",
        "#/labels/2",
    ),
    "a special token": ({"labels": ["cat", "dog <end_of_text>"]}, 422, "validation", "#/labels/1"),
    "a special token in disguise": (
        {"labels": ["cat", "&lt;START_OF_TEXT&gt;"]},
        422,
        "validation",
        "#/labels/1",
    ),
    "more words than CLIP reads": ({"labels": ["cat", "no " * 72 + "dog"]}, 422, "validation", "#/labels/1"),
    "a long label": ({"labels": ["cat", "x" * 257]}, 422, "validation", "#/labels/1"),
    "100,000 labels": (
        {"labels": [f"label {index}" for index in range(100_000)]},
        422,
        "too-many-labels",
        "#/labels",
    ),
    "no image": ({"image": ...}, 422, "validation", "#/image"),
    "both image and images": ({"images": []}, 422, "validation", "#/image"),
    "33 images": (
        {"image": ..., "images": ["data:image/png;base64,"] * 33},
        422,
        "too-many-images",
        "#/images",
    ),
    "an address for an image": (
        {"image": {"type": "url", "url": "http://169.254.169.254/"}},
        422,
        "url-disabled",
        "#/image",
    ),
    "broken base64": ({"image": {"type": "base64", "data": "%%%"}}, 422, "validation", "#/image"),
    "an image of another type": ({"image": 7}, 422, "validation", "#/image"),
    "an unknown field": ({"labls": ["cat"]}, 422, "validation", "#/labls"),
    "an unknown prompt set": ({"prompt_set": "nowhere"}, 404, "unknown-prompt-set", "#/prompt_set"),
    "an unknown version": ({"prompt_set": "handcrafted@000000000000"}, 404, "unknown-version", "#/version"),
    "a path for a prompt set": ({"prompt_set": "../../etc/passwd"}, 422, "validation", "#/prompt_set"),
    "an absolute path": ({"prompt_set": "/etc/passwd"}, 422, "validation", "#/prompt_set"),
    "a path with a NUL": ({"prompt_set": "a\u0000b"}, 422, "validation", "#/prompt_set"),
    "a version that is a path": ({"prompt_set": "handcrafted@../x"}, 422, "validation", "#/prompt_set"),
    "an unknown defense": ({"defense": "prayer"}, 422, "validation", "#/defense/0"),
    "a defense out of range": (
        {"defense": [{"kind": "jpeg", "quality": 0}]},
        422,
        "validation",
        "#/defense/0/quality",
    ),
    "five defenses": ({"defense": ["jpeg"] * 5}, 422, "validation", "#/defense"),
    "temperature zero": ({"temperature": 0}, 422, "validation", "#/temperature"),
    "temperature nan": ({"temperature": "nan"}, 422, "validation", "#/temperature"),
    "temperature infinite": ({"temperature": "inf"}, 422, "validation", "#/temperature"),
    "a negative top_k": ({"top_k": -1}, 422, "validation", "#/top_k"),
    "a seed beyond JSON": ({"seed": 2**53}, 422, "validation", "#/seed"),
    "a negative seed": ({"seed": -1}, 422, "validation", "#/seed"),
    "no time at all": ({"deadline_ms": 0}, 422, "validation", "#/deadline_ms"),
}


@pytest.mark.parametrize("kind", REQUESTS)
def test_a_hostile_field_is_named(server: Running, kind: str) -> None:
    fields, status, code, pointer = REQUESTS[kind]
    image = {"type": "base64", "data": base64.b64encode(picture()).decode()}
    asked = {
        name: value
        for name, value in {"image": image, "labels": LABELS, **fields}.items()
        if value is not ...
    }
    response = server.client.post("/classify", json=asked)
    body = response.json()
    assert (response.status_code, body["code"]) == (status, code), body
    assert body["errors"][0]["pointer"] == pointer
    assert body["request_id"] == response.headers["x-request-id"]


@pytest.mark.parametrize(
    "kind", ["labels that only CLIP takes for one", "a special token", "more words than CLIP reads"]
)
def test_labels_that_clip_can_t_read_are_refused_by_a_probe_too(server: Running, kind: str) -> None:
    fields, status, code, pointer = REQUESTS[kind]
    body = server.client.post("/probe", files={"image": picture()}, data={**fields, "steps": "1"}).json()
    assert (body["status"], body["code"], body["errors"][0]["pointer"]) == (status, code, pointer), body


def test_a_label_too_long_for_a_learned_set_is_refused_with_its_vectors_counted(
    server: Running, tiny: Clip
) -> None:
    ref = server.store.publish(learned_set(tiny, name="long"))
    vectors = server.store.load(ref, tiny).prompts.text
    assert vectors is not None
    words = tiny.context_length - 3 - vectors.shape[-2]
    for count, status in ((words, 200), (words + 1, 422)):
        asked = {"labels": ["dog", " ".join(["a"] * count)], "prompt_set": str(ref)}
        response = server.client.post("/classify", files={"image": picture()}, data=asked)
        assert response.status_code == status, response.text
    assert response.json()["errors"][0]["pointer"] == "#/labels/1"


DEEP = b'{"labels":' + b"[" * 100_000 + b"]" * 100_000 + b"}"
BODIES: dict[str, tuple[str, bytes, int, str]] = {
    "no JSON": ("application/json", b"{", 400, "malformed-json"),
    "nothing": ("application/json", b"", 400, "malformed-json"),
    "NaN in JSON": ("application/json", b'{"temperature": NaN}', 400, "malformed-json"),
    "JSON that is not UTF-8": ("application/json", b'{"labels": ["\xff"]}', 400, "malformed-json"),
    "a lone surrogate": ("application/json", b'{"labels": ["\\ud800", "a"]}', 400, "malformed-json"),
    "100,000 brackets": ("application/json", DEEP, 400, "malformed-json"),
    "500 brackets": ("application/json", DEEP[:510] + b"]" * 500 + b"}", 422, "validation"),
    "a JSON list": ("application/json", b"[]", 422, "validation"),
    "form data without a boundary": ("multipart/form-data", b"x", 400, "malformed-multipart"),
    "form data without parts": ("multipart/form-data; boundary=x", b"x", 400, "malformed-multipart"),
    "a part without a name": (
        "multipart/form-data; boundary=x",
        b"--x\r\n\r\nx\r\n--x--\r\n",
        400,
        "malformed-multipart",
    ),
    "a web form": ("application/x-www-form-urlencoded", b"labels=cat", 415, "unsupported-media-type"),
    "a video": ("video/mp4", b"x", 415, "unsupported-media-type"),
    "no type": ("", b"x", 415, "unsupported-media-type"),
}


@pytest.mark.parametrize("kind", BODIES)
@pytest.mark.parametrize("route", ["/classify", "/probe"])
def test_a_hostile_body_gets_its_own_problem(server: Running, kind: str, route: str) -> None:
    content_type, content, status, code = BODIES[kind]
    response = server.client.post(route, content=content, headers={"content-type": content_type})
    assert (response.status_code, response.json()["code"]) == (status, code), response.text
    if status == 415:
        assert "image/png" in response.headers["accept-post"]


def test_a_compressed_body_is_not_unpacked(server: Running) -> None:
    bomb = zlib.compress(bytes(10**7))
    headers = {"content-type": "application/json", "content-encoding": "deflate"}
    assert server.client.post("/classify", content=bomb, headers=headers).status_code == 415


def test_a_body_over_the_limit_is_refused_by_its_header_and_by_counting(server: Running) -> None:
    def endless() -> Generator[bytes]:
        for _ in range(200):
            yield bytes(2**20)

    announced = server.client.post(
        "/classify", content=bytes(31 * 2**20), headers={"content-type": "image/png"}
    )
    assert (announced.status_code, announced.json()["code"]) == (413, "body-too-large")
    try:
        counted = server.client.post("/classify", content=endless(), headers={"content-type": "image/png"})
        assert (counted.status_code, counted.json()["code"]) == (413, "body-too-large")
    except httpx.WriteError:  # the server hung up while we were still sending, which is as good an answer
        pass
    assert server.client.get("/livez").status_code == 200


def test_a_body_that_never_comes_is_not_waited_for(server: Running) -> None:
    host, port = server.url.removeprefix("http://").split(":")
    with socket.create_connection((host, int(port)), timeout=20) as connection:
        connection.sendall(
            b"POST /classify HTTP/1.1\r\nHost: localhost\r\nContent-Type: image/png\r\nContent-Length: "
            b"1000\r\n\r\nx"
        )
        assert connection.recv(4096).startswith(b"HTTP/1.1 408")


@pytest.mark.parametrize("length", [b"-1", b"x", b"1_0"])
def test_a_length_that_is_no_number_is_refused(server: Running, length: bytes) -> None:
    host, port = server.url.removeprefix("http://").split(":")
    with socket.create_connection((host, int(port)), timeout=20) as connection:
        connection.sendall(
            b"POST /classify HTTP/1.1\r\nHost: localhost\r\nContent-Type: image/png\r\nContent-Length: "
            + length
            + b"\r\n\r\n"
        )
        assert connection.recv(4096).startswith(b"HTTP/1.1 400")


@pytest.mark.parametrize(
    "name",
    ["..", "%2e%2e", "..%2f..%2fetc%2fpasswd", "%00", "a%2fb", "A", "a" * 65, "%ff", "any%2fhandcrafted"],
)
@pytest.mark.parametrize("route", ["/prompt-sets/{}", "/prompt-sets/{}/versions", "/prompt-sets/{}/rollback"])
def test_path_like_names_reach_no_file(server: Running, name: str, route: str) -> None:
    method = "POST" if route.endswith("rollback") else "GET"
    response = server.client.request(method, route.format(name))
    assert response.status_code in (404, 405, 422)
    assert response.headers["content-type"] == "application/problem+json"
    assert "passwd" not in response.text.replace(name, "") or "/etc/passwd" in response.json()["instance"]


@pytest.mark.parametrize("field", ["labels", "top_k", "image"])
def test_a_field_said_twice_is_refused(server: Running, field: str) -> None:
    data = {"labels": LABELS, "top_k": "1"}
    response = server.client.post(f"/classify?{field}=1", files={"image": picture()}, data=data)
    assert response.status_code == 422
    assert response.json()["errors"][0]["pointer"] == f"#/{field}"


def test_thousands_of_parts_are_refused(server: Running) -> None:
    parts = [("image", picture())] * 40
    assert (
        server.client.post("/classify", files=parts, data={"labels": LABELS}).json()["code"]
        == "too-many-images"
    )
    labels = {f"field{index}": "x" for index in range(3000)}
    response = server.client.post("/classify", files={"image": picture()}, data=labels)
    assert (response.status_code, response.json()["code"]) == (400, "malformed-multipart")


def test_memory_stays_flat_under_bombs(server: Running) -> None:
    def bombs() -> None:
        for _ in range(10):
            for data in (png_header(60_000, 60_000), png_header(16_000, 16_000)):
                server.client.post("/classify", files={"image": data}, data={"labels": LABELS})
            server.client.post("/classify", content=DEEP, headers={"content-type": "application/json"})

    bombs()
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    bombs()
    assert (
        resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 50_000
    )  # kilobytes; a decoded 16,000 x 16,000 picture would take 768,000


def test_after_all_that_it_still_answers(server: Running) -> None:
    assert (
        server.client.post("/classify", files={"image": picture()}, data={"labels": LABELS}).status_code
        == 200
    )
