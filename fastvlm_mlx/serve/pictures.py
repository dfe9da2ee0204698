"""The picture behind a link that a stranger sent: a data URI or, where that is allowed, an address.

    picture = open_link(link, limits)     a PIL picture, upright and RGB, or Refused

Nothing is read from this machine or from its network: only http and https, only public addresses, each looked
up once and connected to as it was checked, after a redirect too. docs/serve.md has the limits.
"""

from __future__ import annotations

import base64
import binascii
import contextlib
import http.client
import io
import math
import queue
import re
import socket
import ssl
import threading
import time
import urllib.parse
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache
from ipaddress import IPv4Address, IPv6Address, ip_address, ip_network
from typing import Any

from PIL import Image

from ..errors import ImageError
from ..inputs.image import Fetched, open_image
from .request import Link, Refused

MOST_REDIRECTS = 3
_REDIRECTS = (301, 302, 303, 307, 308)
_CHUNK = 64 * 2**10
_MEDIA_TYPES = re.compile(r"(image/.*|application/octet-stream|)", re.IGNORECASE)
_NOT_PUBLIC = tuple(
    map(
        ip_network,
        (
            *("0.0.0.0/8", "10.0.0.0/8", "100.64.0.0/10", "127.0.0.0/8", "169.254.0.0/16", "172.16.0.0/12"),
            *("192.0.0.0/24", "192.0.2.0/24", "192.88.99.0/24", "192.168.0.0/16", "198.18.0.0/15"),
            *("198.51.100.0/24", "203.0.113.0/24", "224.0.0.0/4", "240.0.0.0/4"),
            *("2001::/23", "2001:db8::/32", "3fff::/20"),
        ),
    )
)
_PUBLIC_6 = ip_network("2000::/3")  # the only part of IPv6 that is given out
_WRAPPED_4 = (  # IPv4 inside IPv6: the network, and how far left of the end the address stands
    (ip_network("::ffff:0:0/96"), 0),
    (ip_network("64:ff9b::/96"), 0),
    (ip_network("2002::/16"), 80),
)
# How the kinds of pictures begin that are read. Others that Pillow knows are not for strangers to choose.
_BEGINNINGS = re.compile(
    rb"\x89PNG\r\n|\xff\xd8\xff|GIF8[79]a|RIFF....WEBP|BM|II\*\0|MM\0\*|....ftyp", re.DOTALL
)

Address = IPv4Address | IPv6Address
Resolve = Callable[[str, int], Sequence[str]]


def is_public(address: Address) -> bool:
    """Is this an address in the public internet, of one machine, also if it is wrapped in IPv6?"""
    if isinstance(address, IPv6Address):
        for network, shift in _WRAPPED_4:
            if address in network:
                return is_public(IPv4Address(int(address) >> shift & 0xFFFF_FFFF))
        if address not in _PUBLIC_6:
            return False
    return not any(address in network for network in _NOT_PUBLIC)


def addresses(host: str, port: int) -> list[str]:
    """All that a name stands for."""
    found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)
    return list(dict.fromkeys(str(where[0]) for *_, where in found))


@dataclass(frozen=True, slots=True)
class Limits:
    remote: bool = False  # may pictures be fetched from the web?
    most_bytes: int = 20 * 2**20  # of one encoded picture
    most_pixels: int = 64_000_000
    fetch_s: float = 10.0  # for all of one picture
    resolve: Resolve = addresses  # looks a name up
    allowed: Callable[[Address], bool] = is_public  # may this be connected to?


def open_link(link: Link, limits: Limits) -> Image.Image:
    """The picture as a person sees it, with sides that are good to go on with."""
    data = fetch(link, limits)
    if not _BEGINNINGS.match(data):
        raise _refused(link, "is not a PNG, JPEG, WebP, GIF, BMP, TIFF, HEIC or AVIF picture; send one")
    try:
        picture = open_image(data, most_pixels=limits.most_pixels)
    except ImageError as error:
        raise Refused(str(error), param=link.at, code="invalid_image") from None
    side = math.isqrt(limits.most_pixels)
    if max(picture.size) > side:  # a long strip, which would become a vast square
        picture.thumbnail((side, side), Image.Resampling.BICUBIC)
    return picture


def fetch(link: Link, limits: Limits) -> Fetched:
    """The encoded bytes."""
    scheme = link.url[:6].lower()
    if scheme.startswith("data:"):
        data = _of_data_uri(link, limits)
    elif not scheme.startswith(("http:", "https:")):
        raise _refused(link, "is neither a data URI nor an http(s) address; send data:image/png;base64,…")
    elif not limits.remote:
        found = "is a remote address, and this server does not fetch any (--allow-remote-images is off)"
        raise _refused(link, f"{found}; send the picture as data:image/png;base64,…")
    else:
        data = _Fetch(link, limits, time.monotonic() + limits.fetch_s).run()
    fetched = Fetched(data)
    fetched.origin = link.at
    return fetched


def _refused(link: Link, found: str, status: int = 400, code: str = "invalid_image_url") -> Refused:
    return Refused(f"{link.at} {found}", status, param=link.at, code=code)


def _too_large(link: Link, limits: Limits) -> Refused:
    found = f"is larger than {limits.most_bytes} bytes; send a smaller picture"
    return _refused(link, found, 413, "image_too_large")


def _of_data_uri(link: Link, limits: Limits) -> bytes:
    head, comma, body = link.url[len("data:") :].partition(",")
    media, *parameters = (part.strip() for part in head.split(";"))
    if not comma:
        raise _refused(link, "is a data URI without a comma; write data:image/png;base64,…")
    if not _MEDIA_TYPES.fullmatch(media):
        raise _refused(link, f"is data of the type {media[:60]!r}; send a picture")
    encoded = "base64" in map(str.lower, parameters)
    if len(body) > limits.most_bytes * 4:  # so much at most, whatever the encoding
        raise _too_large(link, limits)
    try:
        data = urllib.parse.unquote_to_bytes(body)
        if encoded:
            bare = b"".join(data.split()).rstrip(b"=")  # browsers do not mind spaces or padding either
            data = base64.b64decode(bare + b"=" * (-len(bare) % 4), validate=True)
    except (binascii.Error, ValueError) as error:
        raise _refused(link, f"is broken base64 ({error}); encode the picture again") from None
    if len(data) > limits.most_bytes:
        raise _too_large(link, limits)
    return data


@dataclass(frozen=True, slots=True)
class _Fetch:
    link: Link
    limits: Limits
    until: float  # by time.monotonic

    def run(self) -> bytes:
        url = self.link.url
        try:
            for _ in range(MOST_REDIRECTS + 1):
                found = self.get(urllib.parse.urlsplit(url))
                if isinstance(found, bytes):
                    return found
                url = urllib.parse.urljoin(url, found)
        except (OSError, ValueError, http.client.HTTPException) as error:
            reason = " ".join(str(error).split()) or type(error).__name__
            raise _refused(self.link, f"cannot be fetched ({reason[:200]}); check the address") from None
        raise _refused(self.link, f"was redirected more than {MOST_REDIRECTS} times; give the last address")

    def get(self, url: urllib.parse.SplitResult) -> bytes | str:
        """The body, or where a redirect leads."""
        host = url.hostname
        if url.scheme not in ("http", "https") or not host:
            raise _refused(self.link, "leads to something that is no http(s) address; check it")
        if url.username is not None or url.password is not None:
            raise _refused(self.link, "has a user's name or password in it; leave them out")
        secure = url.scheme == "https"
        name = host if ":" in host else host.encode("idna").decode()
        port = url.port if url.port is not None else (443 if secure else 80)
        path = urllib.parse.quote(url.path or "/", safe="/:@!$&'()*+,;=%~")
        query = urllib.parse.quote(url.query, safe="/?:@!$&'()*+,;=%~")
        headers = {"User-Agent": "fastvlm-mlx", "Accept": "image/*", "Connection": "close"}
        connection = (
            http.client.HTTPSConnection(name, port, context=_tls())
            if secure
            else http.client.HTTPConnection(name, port)
        )
        connection.auto_open = 0  # never by itself
        with contextlib.ExitStack() as opened:
            stream = opened.enter_context(self.connected(name, port))
            if secure:
                stream.settimeout(_left(self.until))
                stream = opened.enter_context(_tls().wrap_socket(stream, server_hostname=name))
            connection.sock = _Timed(stream, self.until)
            connection.request("GET", f"{path}?{query}" if query else path, headers=headers)
            return self.body(connection.getresponse())

    def connected(self, host: str, port: int) -> socket.socket:
        """To the very address that was checked: another look-up could give another."""
        found = self.looked_up(host, port)
        if not found or not all(self.limits.allowed(ip_address(address)) for address in found):
            raise _refused(self.link, "is not a public address; send the picture as data:image/png;base64,…")
        *others, last = found
        for n, address in enumerate(others):
            with contextlib.suppress(OSError):
                return socket.create_connection((address, port), _left(self.until) / (len(found) - n))
        return socket.create_connection((last, port), _left(self.until))

    def looked_up(self, host: str, port: int) -> Sequence[str]:
        """In a thread, as a look-up cannot be given a time."""
        answer: queue.SimpleQueue[Sequence[str] | Exception] = queue.SimpleQueue()

        def look_up() -> None:
            try:
                answer.put(self.limits.resolve(host, port))
            except (OSError, ValueError) as error:
                answer.put(error)

        threading.Thread(target=look_up, daemon=True).start()
        try:
            found = answer.get(timeout=_left(self.until))
        except queue.Empty:
            raise TimeoutError("timed out") from None
        if isinstance(found, Exception):
            raise found
        return found

    def body(self, response: http.client.HTTPResponse) -> bytes | str:
        target = response.headers.get("Location")
        if response.status in _REDIRECTS and target:
            return target
        if response.status != 200:
            raise _refused(self.link, f"answered {response.status}; check the address")
        if (response.length or 0) > self.limits.most_bytes:
            raise _too_large(self.link, self.limits)
        data = bytearray()
        while piece := response.read(_CHUNK):
            data += piece
            if len(data) > self.limits.most_bytes:
                raise _too_large(self.link, self.limits)
        if response.length:  # that http.client still waits for
            raise _refused(self.link, "was cut short on its way; try again")
        return bytes(data)


class _Timed(io.RawIOBase):
    """A socket whose every send and receive ends when the time for all of them does."""

    def __init__(self, sock: socket.socket, until: float) -> None:
        self._sock = sock
        self._until = until

    def sendall(self, data: bytes) -> None:
        self._sock.settimeout(_left(self._until))
        self._sock.sendall(data)

    def makefile(self, mode: str) -> io.BufferedReader:
        return io.BufferedReader(self)

    def close(self) -> None:
        """Whoever opened the socket closes it; http.client would before the body is read."""

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        self._sock.settimeout(_left(self._until))
        return self._sock.recv_into(buffer)


def _left(until: float) -> float:
    left = until - time.monotonic()
    if left <= 0:
        raise TimeoutError("timed out")
    return left


@cache
def _tls() -> ssl.SSLContext:
    return ssl.create_default_context()
