"""Checks whether hosts can be reached: one check for each host, and all hosts at the same time."""

import socket
import threading
import time
from collections.abc import Iterable, Mapping
from urllib.parse import urlsplit
from urllib.request import getproxies, proxy_bypass

_SECONDS = 1.5
"""Seconds to wait for a connection. A command without a network must answer within 5 seconds."""
_PORTS = {"https": 443, "socks5": 1080, "socks5h": 1080}
"""Default ports of the schemes of addresses and proxies. The default of other schemes is 80."""


class Hosts:
    """The hosts that a command needs. Each host is checked once.

    `addresses` are addresses that the command will probably need. They are checked together with the first address that
    is asked for.
    """

    def __init__(self, addresses: Iterable[str] = ()) -> None:
        self._expected = {_end(address) for address in addresses}
        self._reasons: dict[tuple[str, int], str] = {}

    def unreachable(self, addresses: Iterable[str]) -> Mapping[str, str]:
        """Return the hosts of the addresses that cannot be reached, each with the reason.

        Behind a proxy, the connection to the proxy is checked instead.
        """
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

        # A look-up of a name has no time limit, so the threads are not joined without one.
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
    """Return a clause with the hosts that cannot be reached and the reasons."""
    return f"cannot reach {', '.join(f'{host} ({reason})' for host, reason in hosts.items())}"


def _with_proxy(address: str, end: tuple[str, int], reason: str) -> str:
    return reason if urlsplit(address).hostname == end[0] else f"proxy {end[0]}:{end[1]}: {reason}"


def _end(address: str) -> tuple[str, int]:
    """Return the host and port to which a request of an address connects.

    If there is a proxy, they are the host and port of the proxy.
    """
    parts = urlsplit(address)
    proxies = getproxies()
    proxy = proxies.get(parts.scheme) or proxies.get("all")
    if proxy and not proxy_bypass(parts.hostname or ""):
        parts = urlsplit(proxy if "//" in proxy else f"http://{proxy}")
    return parts.hostname or "", parts.port or _PORTS.get(parts.scheme, 80)
