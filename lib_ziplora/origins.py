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
    address = urlsplit(origin).netloc.lower()
    return "" if address and address in (name.lower() for name in own) else origin


def rebound_name(headers: Mapping[str, str], address: str) -> str:
    """The name by which a server was asked for that it doesn't have, or "".

    A page elsewhere can have its own name point at this machine and then counts as the
    server's own page. It can't do that with a number or with ``localhost``.

    Args:
        headers: of the request, by lower-case name.
        address: the name or number that the server listens on.
    """
    name = urlsplit(f"//{headers.get('host', '')}").hostname or ""
    if name in ("", LOCAL_NAME, address.lower()):
        return ""
    try:
        ipaddress.ip_address(name)
    except ValueError:
        return name
    return ""
