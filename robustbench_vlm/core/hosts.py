"""Check whether hosts can be reached. Each host is checked once, and several hosts are checked at the same time."""

import socket
import threading
import time
from collections.abc import Iterable, Mapping
from urllib.parse import urlsplit

from robustbench_vlm.core.addresses import check_public, proxy_of

_SECONDS = 1.5
"""Seconds to wait for a connection. A command without a network must answer within 5 seconds."""
_PORTS = {"https": 443, "socks5": 1080, "socks5h": 1080}
"""Default ports of the schemes of addresses and proxies. The default of other schemes is 80."""


class Hosts:
    """The hosts that a command needs. Each host is checked once.

    `addresses` are addresses that the command will probably need. Their hosts are checked in the first call of
    `unreachable`, together with the hosts of that call.
    """

    def __init__(self, addresses: Iterable[str] = ()) -> None:
        self._expected = {_end(address) for address in addresses}
        self._reasons: dict[tuple[str, int], str] = {}

    def unreachable(self, addresses: Iterable[str]) -> Mapping[str, str]:
        """Return the unreachable hosts among the hosts of `addresses`, as a mapping from host to reason.

        Behind a proxy, the connection to the proxy is checked instead. Raises UserError if an address fails
        `check_public`, so that an address from a file of other people opens no connection in a private network.
        """
        for address in (addresses := list(addresses)):
            check_public(address)
        ends = {address: _end(address) for address in addresses}
        if new := {*ends.values()} - self._reasons.keys():
            self._check(new | (self._expected - self._reasons.keys()))
        return {
            host_of(address): _with_proxy(address, end, reason)
            for address, end in ends.items()
            if (reason := self._reasons[end])
        }

    def mark_unreachable(self, address: str, reason: str) -> None:
        """Count the host of an address as unreachable from now on."""
        self._reasons[_end(address)] = reason

    def _check(self, ends: Iterable[tuple[str, int]]) -> None:
        found: dict[tuple[str, int], str] = {}

        def connect(end: tuple[str, int]) -> None:
            try:
                socket.create_connection(end, timeout=_SECONDS).close()
                found[end] = ""
            except OSError as error:
                found[end] = (error.strerror or str(error)).lower()

        # A DNS look-up has no time limit, so the wait for each thread has one.
        threads = {end: threading.Thread(target=connect, args=(end,), daemon=True) for end in ends}
        for thread in threads.values():
            thread.start()
        last = time.monotonic() + _SECONDS + 0.3
        for end, thread in threads.items():
            thread.join(max(0.0, last - time.monotonic()))
            self._reasons[end] = found.get(end, f"no answer within {_SECONDS:g} seconds")


def host_of(address: str) -> str:
    """Return the host of an address, with the port if the address states one."""
    return urlsplit(address).netloc.rpartition("@")[2]


def unreachable_text(hosts: Mapping[str, str]) -> str:
    """Return the text "cannot reach" with each host and its reason."""
    return f"cannot reach {', '.join(f'{host} ({reason})' for host, reason in hosts.items())}"


def _with_proxy(address: str, end: tuple[str, int], reason: str) -> str:
    return reason if urlsplit(address).hostname == end[0] else f"proxy {end[0]}:{end[1]}: {reason}"


def _end(address: str) -> tuple[str, int]:
    """Return the host and port to which a request for an address connects.

    If a proxy is used, return the host and port of the proxy.
    """
    parts, proxy = urlsplit(address), proxy_of(address)
    if proxy:
        parts = urlsplit(proxy if "//" in proxy else f"http://{proxy}")
    return parts.hostname or "", parts.port or _PORTS.get(parts.scheme, 80)
