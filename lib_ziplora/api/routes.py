"""The routes: what each does, what it refuses, and how it is described in OpenAPI."""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

from fastapi import APIRouter, Depends, FastAPI, HTTPException
from starlette.responses import JSONResponse

from ..errors import ZipLoraError
from ..hosts import Draws, Host, Sampler, ServesApi
from ..jobs.queue import REMEMBERED, Job, JobQueue
from ..jobs.service import Request, names_of
from ..library import overview
from ..library.catalog import catalog
from ..library.json_store import data_folder
from ..library.timing import Pace
from ..origins import AllowedOrigins
from ..pipeline.preflight import preflight
from ..report.document import document
from . import models, views
from .bodies import (
    explain_request,
    explain_schema,
    inspect_request,
    inspect_schema,
    merge_request,
    merge_schema,
    reexport_request,
    reexport_schema,
)
from .fields import Schema
from .guard import JSON, json_object, own_pages_only
from .many import compare_schema, compare_task, matrix_schema, matrix_task
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


def add_routes(
    app: FastAPI,
    host: Host,
    *,
    dependencies: Sequence[Any] = (),
    origins: AllowedOrigins = AllowedOrigins(),  # noqa: B008  frozen
) -> JobQueue:
    """Put the API on an application.

    Args:
        app: FastAPI's, started or not.
        host: where LoRAs are installed and merges run.
        dependencies: FastAPI's ``Depends`` that every route asks first (authentication).
        origins: web pages, other than the server's own, that may use the API.

    Returns:
        The queue of the merges, for the caller to stop in the end.
    """
    desk = _Desk(host)
    own = Depends(own_pages_only(origins))
    router = APIRouter(prefix=PREFIX, tags=[TAG], dependencies=[own, *dependencies])
    _add_job_routes(router, desk)
    _add_lora_routes(router, desk)
    app.include_router(router)
    app.openapi_schema = None
    return desk.queue


def add_webui_routes(app: FastAPI, host: Host) -> JobQueue | None:
    """Put the API on the WebUI's application, as closed as the WebUI's own; None when that is off."""
    access = host.api_access() if isinstance(host, ServesApi) else None
    if access is None:
        return None
    return add_routes(app, host, dependencies=access.dependencies, origins=access.origins)


class _Desk:
    """What the endpoints do. They are plain functions, which FastAPI runs in its own threads."""

    def __init__(self, host: Host) -> None:
        self.host = host
        self.pace = Pace(data_folder(host))
        self.queue = JobQueue(host, wording=self._wording, on_merged=self.pace.note)
        self._reading = threading.Lock()

    def _wording(self, request: Request) -> Callable[[str], str]:
        folders = views.folders_of(self.host, names_of(request)[:1])
        return partial(views.without_folders, folders=folders)

    def merge(self, body: dict[str, Any] = BODY) -> models.Queued:
        """Check the request and queue it; one merge runs after the other.

        It waits for pictures that are being drawn, as they wait for it.
        """
        with refusals():
            request = merge_request(body)
            for one in request.loras:
                self._require_installed(one.lora)
            return self._submit(request)

    def check(self, body: dict[str, Any] = BODY) -> models.CheckView:
        """What can be told of a merge before it is made; nothing is queued, no model is needed.

        The body is that of ``/merge``. The first look at large files takes a second or two.
        """
        with refusals():
            request = merge_request(body)
            for one in request.loras:
                self._require_installed(one.lora)
            with self._reading:
                found = preflight(request, self.host)
        seconds = None if found.problems else self.pace.seconds(request, self.host)
        return views.check_view(found, seconds, views.folders_of(self.host, [request.output]))

    def explain(self, body: dict[str, Any] = BODY) -> dict[str, Any]:
        """What a merge did, from its saved coefficients: words, figures by block, settings, every update."""
        with refusals():
            name = explain_request(body)
            self._require_installed(name)
            with self._reading:
                found = document(self.host, name)
        return views.explanation_view(found)

    def reexport(self, body: dict[str, Any] = BODY) -> models.Queued:
        """Queue writing a merge again with other strengths, rank or precision.

        Nothing is learnt: it takes what the merge has left beside its file, and its LoRAs.
        """
        with refusals():
            request = reexport_request(body)
            self._require_installed(request.source)
            return self._submit(request)

    def matrix(self, body: dict[str, Any] = BODY) -> models.Queued:
        """Queue merging every subject with every style, one after the other, as one job.

        A pair that can't be merged, or fails, doesn't stop the rest: the job's ``pairs`` say how each
        has ended. It is refused only when there is no pair that can be merged.
        """
        with refusals():
            task = matrix_task(body)
            for one in (*task.matrix.subjects, *task.matrix.styles):
                self._require_installed(one.lora)
            return self._submit(task)

    def compare(self, body: dict[str, Any] = BODY) -> models.Queued:
        """Queue drawing a merge beside what it was made of, with the same seeds.

        The rows are each LoRA alone, the plain sum and the merge. The job's ``pictures`` name the sheet.
        """
        with refusals():
            plain = self.host.default_sampler() if isinstance(self.host, Draws) else Sampler()
            task = compare_task(body, plain)
            self._require_installed(task.comparison.merged)
            return self._submit(task)

    def _submit(self, request: Request) -> models.Queued:
        try:
            queued = self.queue.submit(request)
        except ZipLoraError as error:
            raise type(error)(self._wording(request)(str(error))) from error
        return models.Queued(id=queued.id, state="queued")

    def jobs(self) -> list[models.JobView]:
        """The last 32 jobs of this API, the oldest first."""
        return [views.job_view(one) for one in self.queue.jobs()]

    def job(self, job_id: str) -> models.JobView:
        """The state of a job: its progress, then what it has made or the sentence that says what was wrong."""
        return views.job_view(self._find(job_id))

    def interrupt(self, job_id: str) -> models.JobView:
        """Stop a job and throw its work away; one that waits is taken off the queue.

        What a matrix or a comparison has finished by then stays.
        """
        return self._ask(job_id, self.queue.interrupt)

    def finish(self, job_id: str) -> models.JobView:
        """Have a running job stop and keep what there is: a merge is written, a matrix begins no other pair."""
        return self._ask(job_id, self.queue.finish)

    def loras(self) -> list[models.LoraView]:
        """Every installed LoRA: base model, rank, layers, a prompt, and whether it can be merged."""
        return views.lora_views(catalog(self.host))

    def inspect(self, body: dict[str, Any] = BODY) -> dict[str, Any]:
        """What is in a LoRA file; with ``other``, where the two overlap.

        The overlap of a layer is the mean absolute cosine between the same columns of the two
        delta weights: 0 when they use different columns, 1 when they pull in one direction.
        """
        with refusals():
            name, other, layers = inspect_request(body)
            paths = [self._require_installed(one) for one in (name, other) if one]
            with self._reading:  # one at a time: files can be large
                if other:
                    summary = overview.describe_pair(*paths)
                else:
                    summary = overview.describe_file(paths[0], layers=layers)
        return views.overview_view(summary)

    def settings(self) -> list[models.SettingView]:
        """Every setting of a merge: label, help, range or choices, default."""
        return views.setting_views()

    def _ask(self, job_id: str, ask: Callable[[Job], None]) -> models.JobView:
        found = self._find(job_id)
        with refusals():
            ask(found)
        return views.job_view(found)

    def _find(self, job_id: str) -> Job:
        found = self.queue.get(job_id)
        if found is None:
            raise HTTPException(
                404, f"There is no job {job_id!r:.60} (the last {REMEMBERED} are remembered)."
            )
        return found

    def _require_installed(self, name: str) -> Any:
        """The file of a name that the host lists; paths and other ways to name a file are refused."""
        for lora in self.host.loras():
            if lora.name == name:
                return lora.path
        raise HTTPException(
            404, f"There is no LoRA named {name!r:.200}. GET {PREFIX}/loras lists what there is."
        )


def _add_job_routes(router: APIRouter, desk: _Desk) -> None:
    gone, late = {404: UNKNOWN_JOB}, {404: UNKNOWN_JOB, 409: "The job can't be asked that now"}
    taken = {
        404: UNKNOWN_LORA,
        409: "The name is taken, or the model can't be used",
        429: "The queue is full",
    }
    body = {**BODY_PROBLEMS, **taken}
    _add(router, "POST", "/merge", desk.merge, "Merge LoRAs", models.Queued, body, merge_schema(), 202)
    again = "Write a merge again"
    _add(router, "POST", "/re-export", desk.reexport, again, models.Queued, body, reexport_schema(), 202)
    many, drawn = "Merge every subject with every style", "Draw a merge beside its LoRAs"
    _add(router, "POST", "/matrix", desk.matrix, many, models.Queued, body, matrix_schema(), 202)
    _add(router, "POST", "/compare", desk.compare, drawn, models.Queued, body, compare_schema(), 202)
    asked, look = {**BODY_PROBLEMS, 404: UNKNOWN_LORA}, "Look at a merge beforehand"
    _add(router, "POST", "/check", desk.check, look, models.CheckView, asked, merge_schema())
    _add(router, "GET", "/jobs", desk.jobs, "List the jobs", list[models.JobView])
    _add(router, "GET", "/jobs/{job_id}", desk.job, "Follow a job", models.JobView, gone)
    stop, finish = "/jobs/{job_id}/interrupt", "/jobs/{job_id}/finish"
    _add(router, "POST", stop, desk.interrupt, "Interrupt a job", models.JobView, late)
    _add(router, "POST", finish, desk.finish, "Finish a job now", models.JobView, late)


def _add_lora_routes(router: APIRouter, desk: _Desk) -> None:
    body = {**BODY_PROBLEMS, 404: UNKNOWN_LORA}
    schema = inspect_schema()
    _add(router, "GET", "/loras", desk.loras, "List the installed LoRAs", list[models.LoraView])
    _add(router, "POST", "/inspect", desk.inspect, "Look into one LoRA or two", dict[str, Any], body, schema)
    told = "Explain a merge"
    _add(router, "POST", "/explain", desk.explain, told, dict[str, Any], body, explain_schema())
    _add(router, "GET", "/settings", desk.settings, "List the settings", list[models.SettingView])


def _add(
    router: APIRouter,
    method: str,
    path: str,
    endpoint: Callable[..., Any],
    summary: str,
    model: Any,
    problems: dict[int, str] | None = None,
    body: Schema | None = None,
    status: int = 200,
) -> None:
    described = {**(problems or {}), 401: "Name or password is wrong", 403: "Sent by a page elsewhere"}
    content = {JSON: {"schema": body}}
    router.add_api_route(
        path,
        endpoint,
        methods=[method],
        summary=summary,
        response_model=model,
        status_code=status,
        response_class=JSONResponse,
        responses={code: {"model": models.Problem, "description": text} for code, text in described.items()},
        openapi_extra={"requestBody": {"required": True, "content": content}} if body else None,
    )
