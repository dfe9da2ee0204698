"""Opens the pictures that clients link to: data URIs and, if allowed, public addresses.

    picture = open_link(link, limits)     a PIL picture, upright and RGB, or Refused

Clients are not trusted. Nothing is read from this machine or its network: only http and https, only public
addresses. A name is resolved once, and the connection goes to the address that was checked. This also
holds after a redirect. docs/serve.md lists the limits.
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
from ..inputs.image import SourceBytes, open_image
from .request import Link, RequestError

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
_PUBLIC_6 = ip_network("2000::/3")  # the only part of IPv6 that is allocated
_WRAPPED_4 = (  # IPv4 inside IPv6: the network, and how many bits to shift right to get the address
    (ip_network("::ffff:0:0/96"), 0),
    (ip_network("64:ff9b::/96"), 0),
    (ip_network("2002::/16"), 80),
)
# Magic bytes of the accepted formats. Pillow has more decoders, which clients must not be able to choose.
_BEGINNINGS = re.compile(
    rb"\x89PNG\r\n|\xff\xd8\xff|GIF8[79]a|RIFF....WEBP|BM|II\*\0|MM\0\*|....ftyp", re.DOTALL
)

Address = IPv4Address | IPv6Address
Resolve = Callable[[str, int], Sequence[str]]


def is_public(address: Address) -> bool:
    """Return whether this is a public unicast address. IPv4 wrapped in IPv6 is unwrapped first."""
    if isinstance(address, IPv6Address):
        for network, shift in _WRAPPED_4:
            if address in network:
                return is_public(IPv4Address(int(address) >> shift & 0xFFFF_FFFF))
        if address not in _PUBLIC_6:
            return False
    return not any(address in network for network in _NOT_PUBLIC)


def addresses(host: str, port: int) -> list[str]:
    """Resolve a name to all of its addresses."""
    found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)
    return list(dict.fromkeys(str(where[0]) for *_, where in found))


@dataclass(frozen=True, slots=True)
class Limits:
    remote: bool = False  # whether to fetch pictures from the web
    most_bytes: int = 20 * 2**20  # size of one encoded picture
    most_pixels: int = 64_000_000
    fetch_s: float = 10.0  # total time for one picture
    resolve: Resolve = addresses  # resolves a name
    allowed: Callable[[Address], bool] = is_public  # whether to connect to an address


def open_link(link: Link, limits: Limits) -> Image.Image:
    """Return the picture, upright, RGB and with bounded sides."""
    data = fetch(link, limits)
    if not _BEGINNINGS.match(data):
        raise _refused(link, "is not a PNG, JPEG, WebP, GIF, BMP, TIFF, HEIC or AVIF picture; send one")
    try:
        picture = open_image(data, most_pixels=limits.most_pixels)
    except ImageError as error:
        raise RequestError(str(error), param=link.at, code="invalid_image") from None
    side = math.isqrt(limits.most_pixels)
    if max(picture.size) > side:  # a long strip would be padded to a huge square
        picture.thumbnail((side, side), Image.Resampling.BICUBIC)
    return picture


def fetch(link: Link, limits: Limits) -> SourceBytes:
    """Return the encoded bytes of a picture."""
    scheme = link.url[:6].lower()
    if scheme.startswith("data:"):
        data = _of_data_uri(link, limits)
    elif not scheme.startswith(("http:", "https:")):
        raise _refused(link, "is neither a data URI nor an http(s) address; send data:image/png;base64,…")
    elif not limits.remote:
        found = "is a remote address and this server fetches none (--allow-remote-images is off)"
        raise _refused(link, f"{found}; send the picture as data:image/png;base64,…")
    else:
        data = _Fetch(link, limits, time.monotonic() + limits.fetch_s).run()
    fetched = SourceBytes(data)
    fetched.origin = link.at
    return fetched


def _refused(link: Link, found: str, status: int = 400, code: str = "invalid_image_url") -> RequestError:
    return RequestError(f"{link.at} {found}", status, param=link.at, code=code)


def _too_large(link: Link, limits: Limits) -> RequestError:
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
    if len(body) > limits.most_bytes * 4:  # percent-encoded base64 takes 4 characters a byte
        raise _too_large(link, limits)
    try:
        data = urllib.parse.unquote_to_bytes(body)
        if encoded:
            bare = b"".join(data.split()).rstrip(b"=")  # browsers ignore spaces and padding, too
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
        """Return the body, or the address of a redirect."""
        host = url.hostname
        if url.scheme not in ("http", "https") or not host:
            raise _refused(self.link, "leads to something that is not an http(s) address; check it")
        if url.username is not None or url.password is not None:
            raise _refused(self.link, "contains a user name or password; leave them out")
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
        connection.auto_open = 0  # never connects by itself
        with contextlib.ExitStack() as opened:
            stream = opened.enter_context(self.connected(name, port))
            if secure:
                stream.settimeout(_left(self.until))
                stream = opened.enter_context(_tls().wrap_socket(stream, server_hostname=name))
            connection.sock = _Timed(stream, self.until)
            connection.request("GET", f"{path}?{query}" if query else path, headers=headers)
            return self.body(connection.getresponse())

    def connected(self, host: str, port: int) -> socket.socket:
        """Connect to the address that was checked. Resolving again could return another one."""
        found = self.resolved(host, port)
        if not found or not all(self.limits.allowed(ip_address(address)) for address in found):
            raise _refused(self.link, "is not a public address; send the picture as data:image/png;base64,…")
        *others, last = found
        for n, address in enumerate(others):
            with contextlib.suppress(OSError):
                return socket.create_connection((address, port), _left(self.until) / (len(found) - n))
        return socket.create_connection((last, port), _left(self.until))

    def resolved(self, host: str, port: int) -> Sequence[str]:
        """Resolve a name in a thread, since getaddrinfo has no timeout."""
        answer: queue.SimpleQueue[Sequence[str] | Exception] = queue.SimpleQueue()

        def resolve() -> None:
            try:
                answer.put(self.limits.resolve(host, port))
            except (OSError, ValueError) as error:
                answer.put(error)

        threading.Thread(target=resolve, daemon=True).start()
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
        if response.length:  # bytes that http.client still expects
            raise _refused(self.link, "was cut short in transfer; try again")
        return bytes(data)


class _Timed(io.RawIOBase):
    """A socket with one deadline for all sends and receives together."""

    def __init__(self, sock: socket.socket, until: float) -> None:
        self._sock = sock
        self._until = until

    def sendall(self, data: bytes) -> None:
        self._sock.settimeout(_left(self._until))
        self._sock.sendall(data)

    def makefile(self, mode: str) -> io.BufferedReader:
        return io.BufferedReader(self)

    def close(self) -> None:
        """Do nothing: http.client would close it before the body is read. The opener closes the socket."""

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
