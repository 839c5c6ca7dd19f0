"""Check addresses from other people's files: only public hosts over https, unless the user allows a host.

A model card or an entry may have any address. Without these checks, its download could send requests to services in the
private network of the user, and an error message could show their answers. The environment variable
VLMBENCH_ALLOWED_HOSTS lists hosts that are allowed although they are not public, separated by commas. The host of a
mirror in HF_ENDPOINT is allowed too.
"""

import functools
import ipaddress
import os
import socket
from urllib.parse import SplitResult, urlsplit
from urllib.request import getproxies, proxy_bypass

from robustbench_vlm.core.errors import UserError

_VARIABLE = "VLMBENCH_ALLOWED_HOSTS"
_NAT64 = ipaddress.ip_network("64:ff9b::/96")
"""IPv6 addresses whose last 32 bits are an IPv4 address (RFC 6052)."""


def check_address(url: str, *, resolve: bool = True) -> None:
    """Raise UserError if an address is not https, or if its host is not public and not allowed.

    An allowed host on this machine may also use http. A name is not public if it resolves to a private address. Names
    are not resolved if `resolve` is false, or behind a proxy, because the proxy resolves them.
    """
    parts = _split(url)
    host = parts.hostname or ""
    if not host or not (parts.scheme == "https" or (parts.scheme == "http" and _is_loopback(host))):
        raise UserError(
            f"{url} is not an https address: other connections are not protected against changes of the file; give an"
            " address that starts with https://"
        )
    check_public(url)
    if resolve and not is_allowed(host) and not proxy_of(url) and _resolves_to_private(host, parts.port or 443):
        raise not_public(url)


def check_public(url: str) -> None:
    """Raise UserError if the host of an address is a private IP address or a local name, and is not allowed."""
    host = _split(url).hostname or ""
    if not is_allowed(host) and _is_private(host):
        raise not_public(url)


def check_connected(url: str, address: str) -> None:
    """Raise UserError if the connection for an address went to a private IP address, and its host is not allowed.

    A name may resolve to another address than a moment before, when `check_address` resolved it.
    """
    if not is_allowed(_split(url).hostname or "") and not proxy_of(url) and not is_public(address):
        raise not_public(url)


def not_public(url: str) -> UserError:
    """Return the error for an address whose host is not public and not allowed."""
    host = _split(url).hostname or ""
    return UserError(
        f"{url} is on {host}, which is this machine or a host in a private network: give a public https address, or"
        f" allow the host with {_VARIABLE}={host}"
    )


def is_allowed(host: str) -> bool:
    """Return whether the user's configuration allows a host, even if it is not public."""
    names = {name.strip().lower() for name in os.environ.get(_VARIABLE, "").split(",")} - {""}
    mirror = urlsplit(os.environ.get("HF_ENDPOINT", "")).hostname
    return host.lower() in names | ({mirror} if mirror else set())


def proxy_of(url: str) -> str:
    """Return the proxy that requests for an address use, or "" if they do not use a proxy."""
    parts, proxies = urlsplit(url), getproxies()
    proxy = proxies.get(parts.scheme) or proxies.get("all") or ""
    return "" if proxy and proxy_bypass(parts.hostname or "") else proxy


def is_public(address: str) -> bool:
    """Return whether an IP address is public: not loopback, private, link-local, reserved or multicast."""
    found = ipaddress.ip_address(address.partition("%")[0])
    if isinstance(found, ipaddress.IPv6Address):
        inner = found.ipv4_mapped or found.sixtofour
        if found in _NAT64:
            inner = ipaddress.IPv4Address(int(found) & 0xFFFFFFFF)
        if inner is not None:
            return is_public(str(inner))
    return found.is_global and not found.is_multicast


def _split(url: str) -> SplitResult:
    try:
        parts = urlsplit(url)
        _ = parts.port
    except ValueError as error:
        raise UserError(f"{url} is not a valid address ({error}): give an address that starts with https://") from error
    return parts


def _is_private(host: str) -> bool:
    """Return whether a host is an IP address that is not public, or a name that is only used in local networks."""
    try:
        return not is_public(host)
    except ValueError:
        return host == "localhost" or host.endswith((".localhost", ".local", ".internal"))


@functools.cache
def _resolves_to_private(host: str, port: int) -> bool:
    """Return whether a name resolves to an address that is not public. False for a name that cannot be resolved.

    The result is cached, because a look-up may take seconds. `check_connected` detects if the name changes.
    """
    try:
        found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)
    except (OSError, UnicodeError):
        return False
    return not all(is_public(str(place[0])) for *_, place in found)


def _is_loopback(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"
