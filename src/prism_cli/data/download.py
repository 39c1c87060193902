"""Fetching a picture from a host the user allowed, and from nowhere else.

A row is a stranger's text. Its URL could point into this machine or its network, directly, by a name that resolves
there, by one that resolves differently the second time, or by a redirect: so each hop's name is resolved once, all
addresses are judged, and the connection goes to a judged address.
"""

import socket
import time
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from ipaddress import IPv4Address, IPv6Address, IPv6Network, ip_address
from threading import Thread

import httpx

from prism_cli.errors import DataError

LARGEST = 50_000_000
SECONDS = 30.0
REDIRECTS = 5
NAT64 = IPv6Network("64:ff9b::/96")
# IPv4 written as IPv6, a network's own translation, and site-local: all lead inside, though Python calls some global.
INSIDE = (IPv6Network("::/96"), IPv6Network("64:ff9b:1::/48"), IPv6Network("fec0::/10"))

Address = IPv4Address | IPv6Address


def is_public(address: Address) -> bool:
    """Whether an address belongs to the open internet, an IPv4 address inside an IPv6 one included."""
    inner: list[IPv4Address] = []
    if isinstance(address, IPv6Address):
        inner = [a for a in (address.ipv4_mapped, address.sixtofour, *(address.teredo or ())) if a is not None]
        if any(address in network for network in INSIDE):
            return False
        if address in NAT64:
            inner.append(IPv4Address(int(address) & 0xFFFFFFFF))
        if address.ipv4_mapped is not None:
            return is_public(address.ipv4_mapped)
    return address.is_global and not address.is_multicast and all(map(is_public, inner))


def fetch(
    url: str,
    hosts: Sequence[str],
    *,
    largest: int = LARGEST,
    seconds: float = SECONDS,
    may_reach: Callable[[Address], bool] = is_public,
) -> bytes:
    """The bytes behind a URL.

    Args:
        url: http or https.
        hosts: Names of the hosts that may be asked; a redirect must stay among them.
        largest: Bytes at most.
        seconds: Time at most, looking up names and redirects included.
        may_reach: Whether an address may be connected to.

    Raises:
        DataError: not allowed, not reachable, or too large.
    """
    answer: Future[bytes] = Future()

    def work() -> None:
        try:
            answer.set_result(_fetch(url, hosts, largest, seconds, may_reach))
        except DataError as error:
            answer.set_exception(error)

    # A look-up can't be given a deadline, nor can a host that sends a header letter by letter: they are left behind.
    thread = Thread(target=work, daemon=True)
    thread.start()
    thread.join(seconds)
    if thread.is_alive():
        raise DataError(f"{url!r} takes too long", "download the picture into the data's folder")
    return answer.result(timeout=0)


def _fetch(url: str, hosts: Sequence[str], largest: int, seconds: float, may_reach: Callable[[Address], bool]) -> bytes:
    ends = time.monotonic() + seconds
    allowed = {host.lower().rstrip(".") for host in hosts}
    # No proxy from the environment: it would resolve the name again, out of our sight.
    with httpx.Client(trust_env=False, follow_redirects=False, timeout=seconds / 3) as client:
        here = url
        for _ in range(REDIRECTS + 1):
            request = _request(client, here, allowed, may_reach)
            try:
                response = client.send(request, stream=True)
                try:
                    if response.next_request is None:
                        return _body(here, response, largest, ends)
                    here = str(httpx.URL(here).join(response.headers["location"]))
                finally:
                    response.close()
            except (httpx.HTTPError, httpx.InvalidURL) as error:
                reason = str(error) or type(error).__name__
                raise DataError(f"{here!r} can't be fetched: {reason}", "try again, or drop the row") from None
    raise DataError(f"{url!r} is redirected more than {REDIRECTS} times", "give the picture's own URL")


def _request(client: httpx.Client, url: str, allowed: set[str], may_reach: Callable[[Address], bool]) -> httpx.Request:
    """A request that connects to a judged address of the URL's host, under the host's name."""
    try:
        parts = httpx.URL(url)
    except httpx.InvalidURL:
        raise DataError(f"{url[:80]!r} is no URL", "give an http or https URL") from None
    host = parts.host.lower().rstrip(".")
    if parts.scheme not in ("http", "https") or parts.userinfo:
        raise DataError(f"{url[:80]!r} is not fetched", "give an http or https URL without a user's name")
    if host not in allowed:
        raise DataError(
            f"{url[:80]!r} is not fetched: {host or 'its host'} is not allowed",
            f"if you trust it, allow_urls: [{host}]; else download the picture into the data's folder",
        )
    address = _address(host, parts.port or (443 if parts.scheme == "https" else 80), may_reach)
    return client.build_request(
        "GET",
        parts.copy_with(host=str(address)),
        headers={"Host": parts.netloc.decode(), "Accept-Encoding": "identity"},
        extensions={"sni_hostname": host},
    )


def _address(host: str, port: int, may_reach: Callable[[Address], bool]) -> Address:
    try:
        found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)
    except (OSError, UnicodeError):
        raise DataError(f"host {host} is not known", "check the URL and the network") from None
    addresses = [ip_address(str(entry[4][0]).partition("%")[0]) for entry in found]
    if refused := [address for address in addresses if not may_reach(address)]:
        raise DataError(
            f"host {host} is at {refused[0]}, which is not on the open internet",
            "download the picture into the data's folder",
        )
    return addresses[0]


def _body(url: str, response: httpx.Response, largest: int, ends: float) -> bytes:
    if response.status_code != 200:
        raise DataError(f"{url!r} answers {response.status_code}", "check the URL, or drop the row")
    if response.headers.get("content-encoding", "identity") != "identity":
        raise DataError(f"{url!r} answers compressed", "download the picture into the data's folder")
    found = bytearray()
    for chunk in response.iter_raw():
        found += chunk
        if len(found) > largest:
            raise DataError(f"{url!r} has more than {largest // 1_000_000} MB", "scale the picture down")
        if time.monotonic() > ends:
            raise DataError(f"{url!r} takes too long", "download the picture into the data's folder")
    return bytes(found)
