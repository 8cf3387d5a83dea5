"""Which web pages may talk to a server of ours, and by which names it goes."""

from __future__ import annotations

import ipaddress
import re
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from urllib.parse import urlsplit

LOCAL_NAME = "localhost"
ANOTHER = "of another site"


@dataclass(frozen=True)
class AllowedOrigins:
    """Other pages that may use a server.

    Attributes:
        names: origins such as ``https://studio.example``; ``*`` allows every page.
        pattern: a regular expression that a whole origin may match, or "".
    """

    names: Collection[str] = ()
    pattern: str = ""

    def __contains__(self, origin: object) -> bool:
        matches = self.pattern and re.fullmatch(self.pattern, str(origin))
        return "*" in self.names or origin in self.names or bool(matches)


@dataclass(frozen=True)
class ServedNames:
    """The names that a server goes by, as the ``Host`` of a request has them.

    A page elsewhere can have a name of its own point at this server, and its requests then come
    from the server's own page as far as the browser knows. So only names that are known pass;
    the numbers of this machine can't be pointed anywhere.

    Attributes:
        address: the name or number that the server listens on.
        more: what the user calls it besides, such as ``studio.example``.
    """

    address: str = "127.0.0.1"
    more: Collection[str] = ()

    def __contains__(self, netloc: object) -> bool:
        name = _host_name(str(netloc))
        if is_local(name) or name == self.address.lower() or self.named(str(netloc)):
            return True
        everywhere = _number(self.address)
        return bool(everywhere and everywhere.is_unspecified and _number(name))

    def named(self, netloc: str) -> bool:
        """Whether a host, with or without a port, is one that the user has named."""
        return _host_name(netloc) in {name.lower() for name in self.more}


def foreign_page(headers: Mapping[str, str], allowed: AllowedOrigins) -> str:
    """The origin of a page elsewhere that sent a request, or "" when nothing speaks against it.

    Browsers name the page in ``Origin`` or ``Referer``, and say in ``Sec-Fetch-Site`` whether it is
    the server's own; programs send none of them. No other header is believed: once a server grants
    a preflight, a page elsewhere can set any.

    Args:
        headers: of the request, by lower-case name.
        allowed: other pages that are welcome.
    """
    page = headers.get("origin", "") or _origin(headers.get("referer", ""))
    if page in allowed:
        return ""
    if page and page.partition("://")[2].lower() != (headers.get("host") or "nowhere").lower():
        return page
    site = headers.get("sec-fetch-site", "none")
    return "" if site in ("none", "same-origin") else page or ANOTHER


def is_local(name: str) -> bool:
    """Whether a name or number means this machine and can be reached from it alone."""
    number = _number(name)
    return number.is_loopback if number else name == LOCAL_NAME


def _number(name: str) -> ipaddress.IPv4Address | ipaddress.IPv6Address | None:
    try:
        return ipaddress.ip_address(name)
    except ValueError:
        return None


def _host_name(netloc: str) -> str:
    """The name without its port, "" where it is no plain ``name:port``."""
    try:
        parts = urlsplit(f"//{netloc}")
        return (parts.hostname or "") if parts.netloc == netloc and "@" not in netloc else ""
    except ValueError:  # a bracket without its other half
        return ""


def _origin(address: str) -> str:
    try:
        parts = urlsplit(address)
    except ValueError:
        return address
    return f"{parts.scheme}://{parts.netloc}" if parts.netloc else address
