"""Checks before a request is read: its page is our own or it comes from a program, it is small, it is JSON."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

from fastapi import HTTPException
from starlette.requests import ClientDisconnect, Request

from ..origins import AllowedOrigins, foreign_page

LARGEST_BODY = 256 * 1024
JSON = "application/json"


def own_pages_only(allowed: AllowedOrigins) -> Callable[[Request], None]:
    """A dependency that refuses requests which a web page elsewhere made somebody's browser send."""

    def refuse_foreign_pages(request: Request) -> None:
        page = foreign_page(request.headers, allowed)
        if page:
            raise HTTPException(
                403, f"The page {page} may not use this API; it takes requests from programs."
            )

    return refuse_foreign_pages


async def json_object(request: Request) -> dict[str, Any]:
    """A dependency: the request's body, a JSON object.

    A page elsewhere can't send the type ``application/json`` without being asked for permission first.
    """
    kind = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    if kind != JSON:
        raise HTTPException(415, f"Send JSON, with the header Content-Type: {JSON}.")
    body = bytearray()
    try:
        async for chunk in request.stream():
            body += chunk
            if len(body) > LARGEST_BODY:
                raise HTTPException(413, f"The request is larger than {LARGEST_BODY >> 10} kB.")
    except ClientDisconnect as error:  # nobody is there to read the answer
        raise HTTPException(400, "The request was cut off.") from error
    return _object(bytes(body))


def _object(body: bytes) -> dict[str, Any]:
    try:
        text = body.decode()
        value = json.loads(text, parse_constant=_refuse_constant)
        json.dumps(value, ensure_ascii=False).encode()  # half of a surrogate pair is no text
    except (ValueError, RecursionError) as error:
        raise HTTPException(400, f"The body is no JSON ({type(error).__name__}: {error}).") from error
    if not isinstance(value, dict):
        raise HTTPException(422, "The body must be a JSON object, {...}.")
    return value


def _refuse_constant(name: str) -> float:
    raise ValueError(f"{name} is no JSON number")
