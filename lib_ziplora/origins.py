"""Which web pages may talk to a server of ours: its own, and those that were allowed by name."""

from __future__ import annotations

import ipaddress
import re
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from urllib.parse import urlsplit

LOCAL_NAME = "localhost"


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


def foreign_page(headers: Mapping[str, str], allowed: AllowedOrigins) -> str:
    """The origin of a page elsewhere that sent a request, or "" when nothing speaks against it.

    Browsers name the page in ``Origin``; programs send none. A proxy in front of the server
    names the address that the browser sees in ``X-Forwarded-Host``, which no page elsewhere
    can set without being asked for permission first.

    Args:
        headers: of the request, by lower-case name.
        allowed: other pages that are welcome.
    """
    origin = headers.get("origin", "")
    if not origin or origin in allowed:
        return ""
    own = (headers.get("host", ""), headers.get("x-forwarded-host", ""))
    address = origin.partition("://")[2].lower()
    return "" if address and address in (name.lower() for name in own) else origin


def is_local(name: str) -> bool:
    """Whether a name or number means this machine and can be reached from it alone."""
    try:
        return name == LOCAL_NAME or ipaddress.ip_address(name).is_loopback
    except ValueError:
        return False


def rebound_name(headers: Mapping[str, str]) -> str:
    """The name by which a request from this machine asked for it, or "" when it is one of its own.

    A page elsewhere can have its own name point at this machine, and then its requests come
    from the server's own page as far as a browser knows.

    Args:
        headers: of the request, by lower-case name.
    """
    name = _host_name(headers.get("host", ""))
    return "" if not name or is_local(name) else name


def _host_name(netloc: str) -> str:
    try:
        return urlsplit(f"//{netloc}").hostname or ""
    except ValueError:  # a bracket without its other half
        return netloc
