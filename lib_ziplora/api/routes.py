"""The routes: what each does, what it refuses, and how it is described in OpenAPI."""

from __future__ import annotations

import json
import threading
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from fastapi import APIRouter, Depends, FastAPI, HTTPException
from starlette.responses import JSONResponse

from ..config import MergeRequest, MergeSettings
from ..errors import ConfigError, OutputError, ZipLoraError
from ..hosts import Draws, Sampler, ServesApi
from ..jobs.queue import REMEMBERED, Job
from ..jobs.requests import Request, outputs
from ..jobs.service import Service
from ..library import overview
from ..library.catalog import catalog
from ..names import readable, validate_output
from ..options import from_json
from ..origins import AllowedOrigins
from ..pictures.comparison import CompareRequest
from ..pipeline.matrix import MatrixRequest
from ..pipeline.reexport import ReexportRequest
from ..pipeline.scan import PATIENCE, ScanRequest, scan
from ..report.document import document
from . import models, views
from .bodies import SCHEMAS, ExplainRequest, InspectRequest, merge_request
from .guard import JSON, json_object, own_pages_only
from .refusals import refusals

PREFIX = "/ziplora/v1"
TAG = "ZipLoRA"
BODY_PROBLEMS = {
    400: "The body is no JSON",
    413: "The body is too large",
    415: "The body's Content-Type is not application/json",
    422: "A field is unknown, missing or out of range, or a LoRA can't be used",
}
BODY = Depends(json_object)
UNKNOWN_LORA = "There is no LoRA of that name"
UNKNOWN_JOB = "There is no job of that id, or it is forgotten"
TAKEN = {
    404: UNKNOWN_LORA,
    409: "The name is taken, or the model can't be used",
    429: "The queue is full",
}


def add_routes(
    app: FastAPI,
    service: Service,
    *,
    dependencies: Sequence[Any] = (),
    origins: AllowedOrigins = AllowedOrigins(),  # noqa: B008  frozen
) -> None:
    """Put the API on an application.

    Args:
        app: FastAPI's, started or not.
        service: does what is asked; the same as that of the tab, so that each shows the other's jobs.
        dependencies: FastAPI's ``Depends`` that every route asks first (authentication).
        origins: web pages, other than the server's own, that may use the API.
    """
    own = Depends(own_pages_only(origins))
    router = APIRouter(prefix=PREFIX, tags=[TAG], dependencies=[own, *dependencies])
    endpoints = _Endpoints(service)
    _add_job_routes(router, endpoints)
    _add_lora_routes(router, endpoints)
    app.include_router(router)
    app.openapi_schema = None


def add_webui_routes(app: FastAPI, service: Service) -> None:
    """Put the API on the WebUI's application, as closed as the WebUI's own; nothing when that is off."""
    access = service.host.api_access() if isinstance(service.host, ServesApi) else None
    if access is not None:
        add_routes(app, service, dependencies=access.dependencies, origins=access.origins)


class _Endpoints:
    """What the endpoints do. They are plain functions, which FastAPI runs in its own threads."""

    def __init__(self, service: Service) -> None:
        self.service, self.host = service, service.host
        self._reading = threading.Lock()

    def merge(self, body: dict[str, Any] = BODY) -> models.Queued:
        """Check the request and queue it; one merge runs after the other.

        It waits for pictures that are being drawn, as they wait for it.
        """
        with refusals():
            return self._submit(merge_request(body))

    def check(self, body: dict[str, Any] = BODY) -> models.CheckView:
        """What can be told of a merge before it is made; nothing is queued, no model is needed.

        The body is that of ``/merge``. The first look at large files takes a second or two.
        """
        with refusals():
            request = merge_request(body)
            self._require_usable(request)
            with self._reading:
                found = self.service.preflight(request)
        return views.check_view(found, views.wording(self.host, request))

    def scan(self, body: dict[str, Any] = BODY) -> dict[str, Any]:
        """Which LoRAs go together: the columns' overlap of every subject with every style, the best first.

        No model is needed. It answers after some seconds; while ``pending`` is not 0, ask again: what was found is
        remembered.
        """
        with refusals():
            request = from_json(ScanRequest, body)
            self._require_installed(*request.subjects, *request.styles)
            with self._reading:
                found = scan(request, self.host, PATIENCE).to_json()
        return {**found, "pairs": [views.overview_view(pair) for pair in found["pairs"]]}

    def explain(self, body: dict[str, Any] = BODY) -> dict[str, Any]:
        """What a merge did, from its saved coefficients: words, figures by block, settings, every update."""
        with refusals():
            name = from_json(ExplainRequest, body).lora
            self._require_installed(name)
            with self._reading:
                found = document(self.host, name)
        return views.explanation_view(found)

    def reexport(self, body: dict[str, Any] = BODY) -> models.Queued:
        """Queue writing a merge again with other strengths, rank or precision.

        Nothing is learnt: it takes what the merge has left beside its file, and its LoRAs.
        """
        with refusals():
            return self._submit(from_json(ReexportRequest, body))

    def matrix(self, body: dict[str, Any] = BODY) -> models.Queued:
        """Queue merging every subject with every style, one after the other, as one job.

        A pair that can't be merged, or fails, doesn't stop the rest: the job's ``pairs`` say how each
        has ended. It is refused only when there is no pair that can be merged.
        """
        with refusals():
            return self._submit(from_json(MatrixRequest, body))

    def compare(self, body: dict[str, Any] = BODY) -> models.Queued:
        """Queue drawing a merge beside what it was made of, with the same seeds.

        The rows are each LoRA alone, the plain sum and the merge. The job's ``pictures`` name the sheet.
        What is absent is drawn as the host draws by itself.
        """
        with refusals():
            plain = self.host.default_sampler() if isinstance(self.host, Draws) else Sampler()
            return self._submit(from_json(CompareRequest, body, sampler=plain))

    def _submit(self, request: Request) -> models.Queued:
        self._require_usable(request)
        try:
            job = self.service.submit(request)
        except ZipLoraError as error:
            raise type(error)(views.wording(self.host, request)(str(error))) from error
        return models.Queued(id=job.id, state="queued")

    def _require_usable(self, request: Request) -> None:
        """Names alone are taken, of LoRAs that are installed and for files that can be written."""
        for output in outputs(request):
            try:
                validate_output(output)
            except OutputError as error:
                raise ConfigError(str(error)) from error
        named = [lora.lora for lora in views.loras_of(request)]
        if isinstance(request, (ReexportRequest, CompareRequest)):
            named.append(request.source)
        self._require_installed(*named)

    def jobs(self) -> list[models.JobView]:
        """The last 32 jobs of this host, wherever they were begun, the oldest first."""
        word = views.wording(self.host)
        return [views.job_view(one, word) for one in self.service.jobs()]

    def job(self, job_id: str) -> models.JobView:
        """The state of a job: its progress, then what it has made or the sentence that says what was wrong."""
        found = self._find(job_id)
        return views.job_view(found, views.wording(self.host, found.request))

    def interrupt(self, job_id: str) -> models.JobView:
        """Stop a job and throw its work away; one that waits is taken off the queue.

        What a matrix or a comparison has finished by then stays.
        """
        with refusals():
            self.service.interrupt(self._find(job_id))
        return self.job(job_id)

    def finish(self, job_id: str) -> models.JobView:
        """Have a running job stop and keep what there is: a merge is written, a matrix begins no other pair."""
        with refusals():
            self.service.finish(self._find(job_id))
        return self.job(job_id)

    def loras(self) -> list[models.LoraView]:
        """Every installed LoRA: base model, rank, layers, a prompt, and whether it can be merged."""
        return views.lora_views(catalog(self.host))

    def inspect(self, body: dict[str, Any] = BODY) -> dict[str, Any]:
        """What is in a LoRA file; with ``other``, where the two overlap.

        The overlap of a layer is the mean absolute cosine between the same columns of the two
        delta weights: 0 when they use different columns, 1 when they pull in one direction.
        """
        with refusals():
            request = from_json(InspectRequest, body)
            named = (request.lora, request.other) if request.other else (request.lora,)
            paths = self._require_installed(*named)
            with self._reading:  # one at a time: files can be large
                if request.other:
                    summary = overview.describe_pair(*paths)
                else:
                    summary = overview.describe_file(paths[0], layers=request.layers)
        return views.overview_view(summary)

    def settings(self) -> list[models.SettingView]:
        """Every setting of a merge: label, help, range or choices, default."""
        return views.setting_views(MergeSettings)

    def _find(self, job_id: str) -> Job:
        found = self.service.get(job_id)
        if found is None:
            raise HTTPException(
                404, f"There is no job {job_id!r:.60} (the last {REMEMBERED} are remembered)."
            )
        return found

    def _require_installed(self, *names: str) -> list[Path]:
        """The files of names that the host lists; paths and other ways to name a file are refused."""
        installed = {lora.name: lora.path for lora in self.host.loras()}
        for name in names:
            if name not in installed:
                raise HTTPException(
                    404, f"There is no LoRA named {name!r:.200}. GET {PREFIX}/loras lists what there is."
                )
        return [installed[name] for name in names]


class _Json(JSONResponse):
    """JSON in which whatever of a file's name is no text shows as replacement characters."""

    def render(self, content: Any) -> bytes:
        return readable(json.dumps(content, ensure_ascii=False, allow_nan=False)).encode()


def _add_job_routes(router: APIRouter, does: _Endpoints) -> None:
    gone, late = {404: UNKNOWN_JOB}, {404: UNKNOWN_JOB, 409: "The job can't be asked that now"}
    queued: Sequence[tuple[str, Callable[..., Any], str, type]] = (
        ("/merge", does.merge, "Merge LoRAs", MergeRequest),
        ("/re-export", does.reexport, "Write a merge again", ReexportRequest),
        ("/matrix", does.matrix, "Merge every subject with every style", MatrixRequest),
        ("/compare", does.compare, "Draw a merge beside its LoRAs", CompareRequest),
    )
    for path, endpoint, summary, request in queued:
        _add(router, "POST", path, endpoint, summary, models.Queued, {**BODY_PROBLEMS, **TAKEN}, request, 202)
    asked, look = {**BODY_PROBLEMS, 404: UNKNOWN_LORA}, "Look at a merge beforehand"
    _add(router, "POST", "/check", does.check, look, models.CheckView, asked, MergeRequest)
    _add(router, "GET", "/jobs", does.jobs, "List the jobs", list[models.JobView])
    _add(router, "GET", "/jobs/{job_id}", does.job, "Follow a job", models.JobView, gone)
    stop, finish = "/jobs/{job_id}/interrupt", "/jobs/{job_id}/finish"
    _add(router, "POST", stop, does.interrupt, "Interrupt a job", models.JobView, late)
    _add(router, "POST", finish, does.finish, "Finish a job now", models.JobView, late)


def _add_lora_routes(router: APIRouter, does: _Endpoints) -> None:
    asked, any_json = {**BODY_PROBLEMS, 404: UNKNOWN_LORA}, dict[str, Any]
    _add(router, "GET", "/loras", does.loras, "List the installed LoRAs", list[models.LoraView])
    _add(router, "POST", "/inspect", does.inspect, "Inspect one LoRA or two", any_json, asked, InspectRequest)
    _add(router, "POST", "/explain", does.explain, "Explain a merge", any_json, asked, ExplainRequest)
    _add(router, "POST", "/scan", does.scan, "Tell which LoRAs go together", any_json, asked, ScanRequest)
    _add(router, "GET", "/settings", does.settings, "List the settings", list[models.SettingView])


def _add(
    router: APIRouter,
    method: str,
    path: str,
    endpoint: Callable[..., Any],
    summary: str,
    model: Any,
    problems: dict[int, str] | None = None,
    request: type | None = None,
    status: int = 200,
) -> None:
    described = {**(problems or {}), 401: "Name or password is wrong", 403: "Sent by a page elsewhere"}
    content = {JSON: {"schema": SCHEMAS[request]}} if request else {}
    router.add_api_route(
        path,
        endpoint,
        methods=[method],
        summary=summary,
        response_model=model,
        status_code=status,
        response_class=_Json,
        responses={code: {"model": models.Problem, "description": text} for code, text in described.items()},
        openapi_extra={"requestBody": {"required": True, "content": content}} if request else None,
    )
