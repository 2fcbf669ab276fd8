"""Which addresses of the network a client of this service may make it speak to, and connections to those alone."""

from __future__ import annotations

import ipaddress
import socket
import ssl
import time
from collections.abc import Callable, Collection, Iterable
from typing import Any

import httpcore

IPAddress = ipaddress.IPv4Address | ipaddress.IPv6Address
NAT64 = ipaddress.ip_network("64:ff9b::/96")
"""RFC 6052: how hosts of IPv4 look from a network that has IPv6 alone."""
Resolve = Callable[[str, int], list[str]]
"""Host and port -> addresses."""


class ForbiddenAddressError(Exception):
    """A host that leads to an address that may not be spoken to."""


def is_public(text: str) -> bool:
    """Whether an address belongs to a host of the open internet: not private, shared, loopback, link-local, multicast, reserved
    or unspecified, in whichever way it is written, nor an IPv6 address that stands for such a one of IPv4.

    >>> is_public("1.1.1.1"), is_public("::ffff:127.0.0.1"), is_public("fe80::1%eth0")
    (True, False, False)
    """
    address = ipaddress.ip_address(text.partition("%")[0])
    return all(_is_public(one) for one in (address, *_within(address)))


def _is_public(address: IPAddress) -> bool:
    if isinstance(address, ipaddress.IPv6Address) and (address.ipv4_mapped is not None or address in NAT64):
        return True  # as far as the address of IPv4 is, which it is but another spelling of
    odd = (address.is_private, address.is_loopback, address.is_link_local, address.is_multicast, address.is_reserved)
    local = isinstance(address, ipaddress.IPv6Address) and address.is_site_local
    return address.is_global and not any(odd) and not address.is_unspecified and not local


def _within(address: IPAddress) -> Iterable[ipaddress.IPv4Address]:
    """The addresses of IPv4 that one of IPv6 leads to."""
    if isinstance(address, ipaddress.IPv4Address):
        return
    if address.ipv4_mapped is not None:
        yield address.ipv4_mapped
    if address.sixtofour is not None:
        yield address.sixtofour
    if address.teredo is not None:
        yield from address.teredo
    if address in NAT64 or int(address) >> 32 == 0:
        yield ipaddress.IPv4Address(int(address) & 0xFFFFFFFF)


def resolve(host: str, port: int) -> list[str]:
    """Raises OSError."""
    try:
        found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)
    except UnicodeError as error:  # two dots, or a label of 64 letters
        raise OSError(f"{host!r} is no name of a host") from error
    return list(dict.fromkeys(str(entry[4][0]) for entry in found))


class CheckedBackend(httpcore.NetworkBackend):
    """Resolves a host, looks at every address that it has, and connects to one of just those: what the name leads to a moment
    later does not matter. The addresses share the timeout: a host of many is no slower to fail, and one silent address leaves time
    for the next. private: hosts whose addresses may be private."""

    def __init__(
        self, private: Collection[str] = (), resolve: Resolve = resolve, dial: httpcore.NetworkBackend | None = None
    ) -> None:
        self._private, self._resolve, self._dial = frozenset(private), resolve, dial or httpcore.SyncBackend()

    def connect_tcp(
        self,
        host: str,
        port: int,
        timeout: float | None = None,
        local_address: str | None = None,
        socket_options: Iterable[Any] | None = None,
    ) -> httpcore.NetworkStream:
        """Raises ForbiddenAddressError, httpcore.ConnectError, httpcore.ConnectTimeout."""
        until = None if timeout is None else time.monotonic() + timeout
        try:
            addresses = self._resolve(host, port)
        except OSError as error:
            raise httpcore.ConnectError(f"{host} has no address: {error}") from error
        if host not in self._private and (wrong := [one for one in addresses if not is_public(one)]):
            raise ForbiddenAddressError(f"{host} leads to {wrong[0]}, which is no address of the open internet")
        share: float | None = None
        failed: Exception | None = None
        for number, address in enumerate(addresses):
            if until is not None:
                if (left := until - time.monotonic()) <= 0:
                    failed = failed or httpcore.ConnectTimeout(f"to find the addresses of {host} took {timeout:g} s")
                    break
                share = left / (len(addresses) - number)
            try:
                return self._dial.connect_tcp(address, port, share, local_address, socket_options)
            except (httpcore.ConnectError, httpcore.ConnectTimeout) as error:
                failed = error
        raise failed or httpcore.ConnectError(f"{host} has no address")

    def connect_unix_socket(
        self, path: str, timeout: float | None = None, socket_options: Iterable[Any] | None = None
    ) -> httpcore.NetworkStream:
        raise ForbiddenAddressError("a socket of this machine")


class TimedBackend(httpcore.NetworkBackend):
    """Of another backend, all that is made within so many seconds from now on: a peer that sends a byte now and then gains no time.
    What takes longer raises httpcore.TimeoutException."""

    def __init__(self, backend: httpcore.NetworkBackend, seconds: float) -> None:
        self._backend, self._until = backend, time.monotonic() + seconds

    def left(self) -> float:
        if (left := self._until - time.monotonic()) <= 0:
            raise httpcore.ReadTimeout("the time for the whole exchange is over")
        return left

    def connect_tcp(
        self,
        host: str,
        port: int,
        timeout: float | None = None,
        local_address: str | None = None,
        socket_options: Iterable[Any] | None = None,
    ) -> httpcore.NetworkStream:
        return _TimedStream(self._backend.connect_tcp(host, port, self.left(), local_address, socket_options), self)

    def connect_unix_socket(
        self, path: str, timeout: float | None = None, socket_options: Iterable[Any] | None = None
    ) -> httpcore.NetworkStream:
        return _TimedStream(self._backend.connect_unix_socket(path, self.left(), socket_options), self)


class _TimedStream(httpcore.NetworkStream):
    def __init__(self, stream: httpcore.NetworkStream, time_of: TimedBackend) -> None:
        self._stream, self._time_of = stream, time_of

    def read(self, max_bytes: int, timeout: float | None = None) -> bytes:
        return self._stream.read(max_bytes, self._time_of.left())

    def write(self, buffer: bytes, timeout: float | None = None) -> None:
        self._stream.write(buffer, self._time_of.left())

    def close(self) -> None:
        self._stream.close()

    def start_tls(
        self, ssl_context: ssl.SSLContext, server_hostname: str | None = None, timeout: float | None = None
    ) -> httpcore.NetworkStream:
        return _TimedStream(self._stream.start_tls(ssl_context, server_hostname, self._time_of.left()), self._time_of)

    def get_extra_info(self, info: str) -> Any:
        return self._stream.get_extra_info(info)
