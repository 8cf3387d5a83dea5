"""Who may use the REST API: exactly those who may use the WebUI's own."""

from __future__ import annotations

import secrets
from collections.abc import Callable, Mapping
from typing import Any

from fastapi import Depends, HTTPException
from fastapi.security import HTTPBasic, HTTPBasicCredentials

from ...origins import AllowedOrigins
from .. import ApiAccess

BASIC = Depends(HTTPBasic())


def access() -> ApiAccess | None:
    """From --api, --nowebui, --api-auth and --cors-allow-origins; None when there is no API."""
    from modules import shared

    options = shared.cmd_opts
    if not (options.api or getattr(options, "nowebui", False)):
        return None
    names = (getattr(options, "cors_allow_origins", None) or "").split(",")
    pattern = getattr(options, "cors_allow_origins_regex", None) or ""
    check = [Depends(password_check(credentials(options.api_auth)))] if options.api_auth else []
    return ApiAccess(check, AllowedOrigins(tuple(filter(None, names)), pattern))


def credentials(text: str) -> Mapping[str, str]:
    """User -> password from ``user:password,user:password``."""
    pairs = (pair.partition(":") for pair in text.split(","))
    return {user: password for user, _, password in pairs}


def password_check(users: Mapping[str, str]) -> Callable[..., Any]:
    """A dependency that lets nobody else pass (HTTP basic authentication)."""

    def require_password(given: HTTPBasicCredentials = BASIC) -> None:
        expected = users.get(given.username, "")
        same = secrets.compare_digest(given.password.encode(), expected.encode())
        if given.username not in users or not same:
            raise HTTPException(401, "Incorrect username or password", headers={"WWW-Authenticate": "Basic"})

    return require_password
