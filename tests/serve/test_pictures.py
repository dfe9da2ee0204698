"""Pictures that clients link to: opened if allowed, otherwise refused in one line."""

from __future__ import annotations

import base64
import shutil
import socket
import ssl
import subprocess
import threading
import time
import urllib.parse
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from http.server import ThreadingHTTPServer
from ipaddress import ip_address
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from picture_server import PHOTO, PNG, serving
from pictures import encoded, noise, png
from PIL import Image

from fastvlm_mlx.serve import pictures as room
from fastvlm_mlx.serve.pictures import Address, Limits, fetch, is_public, open_link
from fastvlm_mlx.serve.request import Link, RequestError

AT = "messages[0].content[1].image_url"
BASE64 = base64.b64encode(PNG).decode()
DATA = f"data:image/png;base64,{BASE64}"
REMOTE = Limits(remote=True)


def link(url: str) -> Link:
    return Link(url, AT)


def refusal(url: str, limits: Limits = REMOTE) -> RequestError:
    with pytest.raises(RequestError) as caught:
        fetch(link(url), limits)
    assert_one_line(caught.value)
    return caught.value


def assert_one_line(error: RequestError) -> None:
    assert len(str(error).splitlines()) == 1
    assert len(str(error)) < 400
    assert AT in str(error)
    assert error.param == AT
    assert error.kind == "invalid_request_error"


# --- data URIs


@pytest.mark.parametrize(
    "url",
    [
        DATA,
        f"DATA:image/PNG;charset=utf-8;BASE64,{BASE64}",
        f"data:;base64,{BASE64}",
        f"data:application/octet-stream;base64,{BASE64}",
        f"data:image/jpeg;base64,{BASE64}",  # the bytes decide, not the media type
        f"data:image/png;base64,{BASE64.rstrip('=')}",
        f"data:image/png;base64,{urllib.parse.quote(BASE64, safe='')}",
        "data:image/png;base64," + "\r\n".join(BASE64[n : n + 76] for n in range(0, len(BASE64), 76)),
        f"data:image/png,{urllib.parse.quote_from_bytes(PNG)}",
    ],
    ids=["plain", "loud", "untyped", "octets", "misnamed", "unpadded", "quoted", "folded", "percent"],
)
def test_data_uri_decodes_to_its_bytes(url: str) -> None:
    assert fetch(link(url), Limits()) == PNG
    np.testing.assert_array_equal(np.asarray(open_link(link(url), Limits())), PHOTO)


@pytest.mark.parametrize(
    ("url", "says"),
    [
        ("data:image/png;base64", "without a comma"),
        ("data:text/html;base64,PGI+", "'text/html'; send a picture"),
        ("data:image/png;base64,iVBO*", "broken base64"),
        ("data:image/png;base64,iVBO=RIE", "broken base64"),
        ("data:image/png;base64,iVBOR", "broken base64"),
        ("data:image/png;base64,iVBé", "broken base64"),
        (f"data:image/png;base64,{BASE64[:-2]}-_", "broken base64"),
    ],
)
def test_broken_data_uri_is_refused(url: str, says: str) -> None:
    error = refusal(url)
    assert says in str(error)
    assert (error.status, error.code) == (400, "invalid_image_url")


@pytest.mark.parametrize("written", [f"base64,{'A' * 1336}", "," + "%41" * 1001, "base64," + "%41" * 9000])
def test_data_uri_size_is_limited(written: str) -> None:
    error = refusal(f"data:image/png;{written}", Limits(most_bytes=1000))
    assert (error.status, error.code) == (413, "image_too_large")
    assert "larger than 1000 bytes" in str(error)


# --- files that are not pictures, or too large

BOMB = png(20_000, 20_000, 8, 2, b"")


@pytest.mark.parametrize(
    ("data", "says"),
    [
        (b"", "not a PNG, JPEG"),
        (b"hello", "not a PNG, JPEG"),
        (b"%!PS-Adobe-3.0 EPSF-3.0\n", "not a PNG, JPEG"),
        (b"P6\n64 48\n255\n" + bytes(64 * 48 * 3), "not a PNG, JPEG"),  # Pillow would read it
        (
            encoded(Image.fromarray(noise(32, 32)), "ICO"),
            "not a PNG, JPEG",
        ),  # the size is not in its header
        (PNG[: len(PNG) // 2], "damaged or cut short"),
        (BOMB, "20000×20000, more than 64000000 pixels"),
    ],
)
def test_file_that_is_not_a_picture_is_refused(data: bytes, says: str) -> None:
    url = f"data:image/png;base64,{base64.b64encode(data).decode()}"
    with pytest.raises(RequestError, match=says) as caught:
        open_link(link(url), Limits())
    assert_one_line(caught.value)
    assert caught.value.status == 400


@pytest.mark.parametrize("kind", ["PNG", "JPEG", "WEBP", "GIF", "BMP", "TIFF"])
def test_common_formats_are_opened(kind: str) -> None:
    data = encoded(Image.fromarray(PHOTO), kind)
    url = f"data:;base64,{base64.b64encode(data).decode()}"
    assert open_link(link(url), Limits()).size == (64, 48)


def test_pixels_are_limited() -> None:
    assert open_link(link(DATA), Limits(most_pixels=64 * 64)).size == (64, 48)
    with pytest.raises(RequestError, match="64×48, more than 3071 pixels"):
        open_link(link(DATA), Limits(most_pixels=64 * 48 - 1))


def test_long_strip_is_scaled_down() -> None:
    strip = encoded(Image.fromarray(noise(2, 1000)))
    url = f"data:;base64,{base64.b64encode(strip).decode()}"
    assert open_link(link(url), Limits(most_pixels=10_000)).size == (100, 1)
    assert open_link(link(url), Limits(most_pixels=1_000_000)).size == (1000, 2)


# --- addresses that are not fetched


@pytest.mark.parametrize(
    "url",
    ["file:///etc/passwd", "/etc/passwd", "cat.jpg", "ftp://a/b.png", "", "javascript:0", "gopher://a:70/_x"],
)
@pytest.mark.parametrize("limits", [Limits(), REMOTE])
def test_files_and_other_schemes_are_refused(url: str, limits: Limits) -> None:
    assert "neither a data URI nor an http(s) address" in str(refusal(url, limits))


def test_nothing_is_fetched_by_default() -> None:
    def never(*_: object) -> Sequence[str]:
        raise AssertionError

    error = refusal("https://example.com/a.png", Limits(resolve=never))
    assert "fetches none" in str(error)


NOT_PUBLIC = """0.0.0.0 10.1.2.3 100.64.0.1 127.0.0.1 127.8.9.1 169.254.169.254 172.16.0.1 172.31.255.255
    192.0.0.8 192.0.2.1 192.88.99.1 192.168.1.1 198.18.0.1 198.51.100.7 203.0.113.9 224.0.0.1 239.255.255.250
    240.0.0.1 255.255.255.255 :: ::1 ::7f00:1 ::ffff:127.0.0.1 ::ffff:10.0.0.1 ::ffff:169.254.169.254
    64:ff9b::7f00:1 64:ff9b::a00:1 64:ff9b:1::1 100::1 2001::1 2001:db8::1 2002:7f00:1:: 2002:a00:1::5
    3fff::1 4000::1 5f00::1 fc00::1 fd12:3456::1 fe80::1 fe80::1%eth0 fec0::1 ff02::1""".split()  # noqa: SIM905
PUBLIC = """1.1.1.1 8.8.8.8 9.255.255.255 100.63.255.255 100.128.0.1 172.15.0.1 172.32.0.1 192.0.1.1
    198.17.0.1 223.255.255.255 2606:4700:4700::1111 2a00:1450:4001::200e ::ffff:8.8.8.8 64:ff9b::808:808
    2002:808:808::1""".split()  # noqa: SIM905


def test_private_addresses_are_not_public_and_others_are() -> None:
    assert [address for address in NOT_PUBLIC if is_public(ip_address(address))] == []
    assert [address for address in PUBLIC if not is_public(ip_address(address))] == []


@pytest.mark.parametrize(
    "address", [*NOT_PUBLIC[:9], "::1", "::ffff:127.0.0.1", "64:ff9b::7f00:1", "fe80::1"]
)
@pytest.mark.parametrize("others", [(), ("8.8.8.8",)])
def test_name_of_a_private_address_is_refused_without_connecting(
    address: str, others: tuple[str, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    def never(*_: object) -> None:
        raise AssertionError

    monkeypatch.setattr(socket, "create_connection", never)
    error = refusal("http://innocent.example/a.png", replace(REMOTE, resolve=lambda *_: [*others, address]))
    assert "is not a public address" in str(error)
    assert address not in str(error)  # clients must not learn private addresses


@pytest.mark.parametrize(
    "host",
    [
        "localhost",
        "127.0.0.1",
        "127.1",
        "0x7f000001",
        "2130706433",
        "0",
        "0177.0.0.1",
        "[::1]",
        "[::ffff:7f00:1]",
    ],
)
@pytest.mark.parametrize("scheme", ["http", "https", "HTTP"])
def test_every_spelling_of_this_machine_is_refused(host: str, scheme: str) -> None:
    message = str(refusal(f"{scheme}://{host}:8000/a.png"))
    assert "is not a public address" in message or "cannot be fetched" in message


@pytest.mark.parametrize(
    ("url", "says"),
    [
        ("http://me:secret@example.com/a.png", "user name or password"),
        ("http://me@example.com/a.png", "user name or password"),
        ("http://example.com\\@127.0.0.1/a.png", "user name or password"),
        ("http:///a.png", "not an http(s) address"),
        ("http:a.png", "not an http(s) address"),
        ("http://[/a.png", "cannot be fetched"),
        ("http://example.com:99999/a.png", "cannot be fetched"),
        ("http://example.com:port/a.png", "cannot be fetched"),
        (f"http://{'a' * 64}.com/a.png", "cannot be fetched"),
        ("http://a\0b.example/a.png", "cannot be fetched"),
    ],
)
def test_invalid_address_is_refused(url: str, says: str) -> None:
    assert says in str(refusal(url))


# --- fetching from a server on this machine, which `allowed` permits


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[ThreadingHTTPServer]:
    for name in ("http_proxy", "https_proxy", "all_proxy"):
        monkeypatch.setenv(name, "http://127.0.0.1:9")  # nothing listens there: proxies are not used
    yield from serving(None)


def here(*_: object) -> Sequence[str]:
    return ["127.0.0.1"]


def anything(_: Address) -> bool:
    return True


LOCAL = Limits(remote=True, resolve=here, allowed=anything)
Get = Callable[..., bytes]


@pytest.fixture
def get(server: ThreadingHTTPServer) -> Get:
    def get(path: str, **limits: Any) -> bytes:
        url = f"http://pictures.test:{server.server_port}{path}"
        return fetch(link(url), replace(LOCAL, **limits))

    return get


@pytest.mark.parametrize(
    "path", ["/cat.png", "/chunked", "/unsized", "/to/%2Fcat.png", "/hops/3", "/cat?a=b c"]
)
def test_remote_picture_is_fetched(get: Get, path: str) -> None:
    assert get(path) == PNG


def test_fetch_sends_host_and_identity_encoding_and_no_credentials(
    get: Get, server: ThreadingHTTPServer
) -> None:
    get("/cat/ü b?q=ü")
    ((path, headers),) = server.seen  # type: ignore[attr-defined]
    assert path == "/cat/%C3%BC%20b?q=%C3%BC"
    assert headers["Host"] == f"pictures.test:{server.server_port}"
    assert headers["Accept-Encoding"] == "identity"
    assert not {"Cookie", "Authorization"} & headers.keys()


def test_name_is_resolved_once_per_request(get: Get) -> None:
    resolved: list[str] = []

    def resolve(host: str, _: int) -> Sequence[str]:
        resolved.append(host)
        return ["127.0.0.1"] if len(resolved) == 1 else ["10.0.0.1"]

    assert get("/cat.png", resolve=resolve) == PNG  # a second call would return another address
    assert resolved == ["pictures.test"]


def test_next_address_is_tried_if_one_does_not_answer(get: Get) -> None:
    assert get("/cat.png", resolve=lambda *_: ["::1", "127.0.0.1"]) == PNG


@pytest.mark.parametrize(
    ("path", "says"),
    [
        ("/none.png", "answered 404"),
        ("/short", "cut short"),
        ("/hops/4", "redirected more than 3 times"),
        ("/to/file%3A%2F%2F%2Fetc%2Fpasswd", "not an http(s) address"),
        ("/to/data%3Aimage%2Fpng,x", "not an http(s) address"),
        ("/to/http%3A%2F%2Fme%3Ax%40pictures.test%2F", "user name or password"),
    ],
)
def test_failed_fetch_is_refused(get: Get, path: str, says: str) -> None:
    with pytest.raises(RequestError) as caught:
        get(path)
    assert_one_line(caught.value)
    assert says in str(caught.value)


def test_redirect_is_checked_again(get: Get, server: ThreadingHTTPServer) -> None:
    def resolve(host: str, _: int) -> Sequence[str]:
        return {"pictures.test": ["127.0.0.1"], "inside.test": ["127.0.0.3"]}[host]

    target = urllib.parse.quote(f"http://inside.test:{server.server_port}/cat.png", safe="")
    how = {"resolve": resolve, "allowed": lambda address: address == ip_address("127.0.0.1")}
    with pytest.raises(RequestError, match="not a public address"):
        get(f"/to/{target}", **how)
    assert len(server.seen) == 1  # type: ignore[attr-defined]


@pytest.mark.parametrize("path", ["/cat.png", "/chunked", "/unsized"])
def test_remote_picture_size_is_limited(get: Get, path: str) -> None:
    assert get(path, most_bytes=len(PNG)) == PNG
    with pytest.raises(RequestError, match="larger than") as caught:
        get(path, most_bytes=len(PNG) - 1)
    assert caught.value.status == 413


@pytest.mark.parametrize("path", ["/drip/body", "/drip/headers"])
def test_slow_fetch_times_out(get: Get, path: str) -> None:
    began = time.monotonic()
    with pytest.raises(RequestError, match="timed out"):
        get(path, fetch_s=0.3)
    assert time.monotonic() - began < 4


def test_slow_name_resolution_times_out(get: Get) -> None:
    done = threading.Event()
    began = time.monotonic()
    with pytest.raises(RequestError, match="timed out"):
        get("/cat.png", fetch_s=0.2, resolve=lambda *_: [str(done.wait(20))])
    assert time.monotonic() - began < 4
    done.set()


def test_unknown_name_is_refused(get: Get) -> None:
    def resolve(*_: object) -> Sequence[str]:
        raise socket.gaierror(-2, "Name or service not known")

    with pytest.raises(RequestError, match="Name or service not known"):
        get("/cat.png", resolve=resolve)
    with pytest.raises(RequestError, match="not a public address"):
        get("/cat.png", resolve=lambda *_: [])


@pytest.mark.skipif(not shutil.which("openssl"), reason="needs openssl to make a certificate")
def test_tls_verifies_the_name_not_the_address(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    key, certificate = tmp_path / "key.pem", tmp_path / "cert.pem"
    making = [
        "openssl",
        "req",
        "-x509",
        "-newkey",
        "ec",
        "-pkeyopt",
        "ec_paramgen_curve:prime256v1",
        "-nodes",
    ]
    making += ["-days", "2", "-subj", "/CN=test", "-addext", "subjectAltName=DNS:pictures.test"]
    subprocess.run([*making, "-keyout", key, "-out", certificate], check=True, capture_output=True)
    trusted = ssl.create_default_context(cafile=str(certificate))
    tls = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    tls.load_cert_chain(certificate, key)
    names: list[str | None] = []
    tls.sni_callback = lambda _, name, __: names.append(name)
    for server in serving(tls):
        url = f"https://{{}}:{server.server_port}/chunked"
        assert "certificate" in str(
            refusal(url.format("pictures.test"), LOCAL)
        )  # not signed by a known authority
        monkeypatch.setattr(room, "_tls", lambda: trusted)
        assert fetch(link(url.format("pictures.test")), LOCAL) == PNG
        assert "certificate" in str(refusal(url.format("another.test"), LOCAL))
    assert names == ["pictures.test", "pictures.test", "another.test"]
