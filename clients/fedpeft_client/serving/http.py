"""The routes: OpenAI's completions, chat completions, embeddings and models, vLLM's /classify, /health.

Every answer that is no success has OpenAI's form. A body is read to its limit and not beyond; a client that goes away
frees its rows. Whoever may not ask learns nothing but that.
"""

import asyncio
import base64
import contextlib
import hmac
import itertools
import json
from collections.abc import AsyncIterator, Callable, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

import numpy as np
from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.middleware import Middleware
from starlette.middleware.trustedhost import TrustedHostMiddleware
from starlette.requests import Request
from starlette.responses import JSONResponse, Response, StreamingResponse
from starlette.routing import Route

from fedpeft.entropy import os_entropy
from fedpeft.errors import ConfigInvalid, FedpeftError
from fedpeft_client.inference import Choice, Piece
from fedpeft_client.serving.choices import as_json, asked_texts
from fedpeft_client.serving.engine import Embedded, Engine, Job, Outcome, Question
from fedpeft_client.serving.failures import HANDLERS, error_body
from fedpeft_client.serving.registry import Served, expect_served
from fedpeft_client.serving.requests import (
    GenerationRequest,
    RequestRefused,
    chat_of,
    classify_of,
    completions_of,
    embeddings_of,
)

__all__ = ["Limits", "application"]

LOCAL_HOSTS = ("127.0.0.1", "localhost", "[::1]")
Parsed = TypeVar("Parsed")


@dataclass(frozen=True, slots=True, kw_only=True)
class Limits:
    """What one request may take.

    Args:
        body_bytes: of its body.
        seconds: from its arrival to the end of its answer.
    """

    body_bytes: int = 1 << 20
    seconds: float = 300.0


def application(engine: Engine, *, token: str | None = None, limits: Limits | None = None) -> Starlette:
    """The ASGI application.

    Args:
        engine: computes.
        token: what ``Authorization: Bearer`` must say; None: nothing, and then only this machine's own names are
            taken in ``Host``, so that no page of the web can point a name of its own at it.
        limits: of a request.
    """
    routes = _Routes(engine, token, limits or Limits())
    return Starlette(
        routes=[
            Route("/health", routes.health),
            Route("/v1/models", routes.models),
            Route("/v1/completions", routes.completions, methods=["POST"]),
            Route("/v1/chat/completions", routes.chat, methods=["POST"]),
            Route("/v1/embeddings", routes.embeddings, methods=["POST"]),
            Route("/classify", routes.classify, methods=["POST"]),
            Route("/v1/classify", routes.classify, methods=["POST"]),
        ],
        middleware=[] if token else [Middleware(TrustedHostMiddleware, allowed_hosts=list(LOCAL_HOSTS))],
        exception_handlers=HANDLERS,
    )


class _Routes:
    def __init__(self, engine: Engine, token: str | None, limits: Limits) -> None:
        self._engine, self._token, self._limits = engine, token, limits

    async def health(self, _request: Request) -> Response:
        """For a load balancer; says nothing about what is served."""
        return JSONResponse({"status": "ok", "waiting": self._engine.depth})

    async def models(self, request: Request) -> Response:
        """The adapters by name."""
        self._admit(request)
        listed = [
            {
                "id": one.name,
                "object": "model",
                "created": 0,
                "owned_by": "fedpeft",
                "task": one.task.name,
                "classes": list(one.outputs) if one.task.named_outputs else [],
            }
            for one in self._engine.registry.served.values()
        ]
        return JSONResponse({"object": "list", "data": listed})

    async def completions(self, request: Request) -> Response:
        """Texts that go on."""
        words = await self._parsed(request, completions_of)
        return await self._answered(request, words, "text_completion", "cmpl", _as_text)

    async def chat(self, request: Request) -> Response:
        """The next turn of a conversation."""
        words = await self._parsed(request, chat_of)
        return await self._answered(request, words, "chat.completion", "chatcmpl", _as_turn)

    async def classify(self, request: Request) -> Response:
        """What a model with outputs of its own says of each text, pair of texts or list of words."""
        asked = await self._parsed(request, classify_of)
        served = self._served(asked.model)
        if not served.outputs:
            kind = "language model" if served.task.writes else "model of vectors; ask /v1/embeddings"
            raise RequestRefused(f"Expected a model with classes, found {served.name}, a {kind}.", "model")
        works = [asked_texts(served, row) for row in asked.rows]
        data = []
        async for row, one in self._outcomes(request, served, works, "class"):
            if isinstance(one, Choice):
                data.append({"index": row, **as_json(served, one)})
        data.sort(key=lambda entry: int(str(entry["index"])))
        return JSONResponse({"id": _name("cls"), "object": "list", "model": served.name, "data": data})

    async def embeddings(self, request: Request) -> Response:
        """A vector for each text: the mean of the last layer over its tokens."""
        asked = await self._parsed(request, embeddings_of)
        served = self._served(asked.model)
        data, tokens = [], 0
        async for row, one in self._outcomes(request, served, [(text,) for text in asked.texts], "embed"):
            if isinstance(one, Embedded):
                tokens += one.tokens
                packed = base64.b64encode(np.asarray(one.values, "<f4").tobytes()).decode()
                data.append({"object": "embedding", "index": row, "embedding": packed if asked.base64 else one.values})
        data.sort(key=lambda entry: int(str(entry["index"])))
        usage = {"prompt_tokens": tokens, "total_tokens": tokens}
        return JSONResponse({"object": "list", "model": served.name, "data": data, "usage": usage})

    async def _answered(
        self,
        request: Request,
        words: GenerationRequest,
        kind: str,
        prefix: str,
        form: "Callable[[str, bool], dict[str, Any]]",
    ) -> Response:
        served = self._served(words.model)
        if served.outputs:
            raise RequestRefused(f"Expected a language model, found {served.name}, which classifies.", "model")
        head = {"id": _name(prefix), "object": kind, "created": _now(self._engine), "model": served.name}
        outcomes = self._outcomes(request, served, words.questions, "ask")
        if words.stream:
            first = await anext(outcomes)  # so that a refusal is an answer with its status
            if kind == "chat.completion":
                head["object"] = "chat.completion.chunk"
            return StreamingResponse(_events(head, first, outcomes, words, form), media_type="text/event-stream")
        choices: dict[int, dict[str, Any]] = {}
        asked = made = 0
        async for row, one in outcomes:
            if isinstance(one, Piece) and one.answer is not None:
                asked, made = asked + one.answer.asked, made + one.answer.tokens
                reason = "stop" if one.answer.complete else "length"
                choices[row] = {"index": row, **form(one.answer.text, False), "finish_reason": reason}
        return JSONResponse(
            {**head, "choices": [choices[row] for row in sorted(choices)], "usage": _usage(asked, made)}
        )

    async def _outcomes(
        self, request: Request, served: Served, works: Sequence[Question | tuple[str, ...]], kind: str
    ) -> AsyncIterator[tuple[int, Outcome]]:
        """What the engine delivers for these rows, until each is complete.

        Raises:
            FedpeftError: a row was refused.
        """
        loop, arrived = asyncio.get_running_loop(), asyncio.Queue[tuple[int, Outcome]]()
        deadline = self._engine.clock.monotonic_s() + self._limits.seconds

        def deliver(row: int) -> Callable[[Outcome], None]:
            def to_loop(outcome: Outcome) -> None:
                with contextlib.suppress(RuntimeError):  # the loop has ended: nobody waits
                    loop.call_soon_threadsafe(arrived.put_nowait, (row, outcome))

            return to_loop

        jobs = [
            Job(served=served, work=work, kind=kind, deliver=deliver(row), deadline_s=deadline)
            for row, work in enumerate(works)
        ]
        self._engine.submit(jobs)
        complete: set[int] = set()
        try:
            while len(complete) < len(jobs):
                try:
                    row, outcome = await asyncio.wait_for(arrived.get(), 1.0)
                except TimeoutError:
                    if await request.is_disconnected():
                        return
                    continue
                if isinstance(outcome, FedpeftError):
                    raise outcome
                if outcome is None or not isinstance(outcome, Piece) or outcome.answer is not None:
                    complete.add(row)
                if outcome is not None:
                    yield row, outcome
        finally:
            for job in jobs:
                job.wanted = False

    def _served(self, name: str) -> Served:
        try:
            return expect_served(self._engine.registry, name)
        except ConfigInvalid as unknown:
            raise HTTPException(404, str(unknown)) from unknown

    async def _parsed(self, request: Request, parse: Callable[[bytes], Parsed]) -> Parsed:
        self._admit(request)
        kind = request.headers.get("content-type", "").partition(";")[0].strip().lower()
        if kind != "application/json":
            raise HTTPException(415, f"Expected application/json, found {kind or 'no content type'!r:.60}.")
        body, most = bytearray(), self._limits.body_bytes
        try:
            async with asyncio.timeout(30):
                async for piece in request.stream():
                    body += piece
                    if len(body) > most:
                        raise HTTPException(413, f"Expected a body of at most {most:,} bytes, found more.")
        except TimeoutError as late:
            raise HTTPException(408, "Expected the body within 30 seconds.") from late
        return parse(bytes(body))

    def _admit(self, request: Request) -> None:
        if self._token is None:
            return
        given = request.headers.get("authorization", "").removeprefix("Bearer ")
        if not hmac.compare_digest(given.encode(), self._token.encode()):
            raise HTTPException(401, "Expected the token of this server as a bearer token, found another or none.")


async def _events(
    head: dict[str, Any],
    first: tuple[int, Outcome],
    rest: AsyncIterator[tuple[int, Outcome]],
    words: GenerationRequest,
    form: "Callable[[str, bool], dict[str, Any]]",
) -> AsyncIterator[str]:
    asked = made = 0
    try:
        async for row, one in _chain(first, rest):
            if not isinstance(one, Piece):
                continue
            reason = None
            if one.answer is not None:
                asked, made = asked + one.answer.asked, made + one.answer.tokens
                reason = "stop" if one.answer.complete else "length"
            choice = {"index": row, **form(one.text, True), "finish_reason": reason}
            yield f"data: {json.dumps({**head, 'choices': [choice]}, ensure_ascii=False)}\n\n"
        if words.usage:
            yield f"data: {json.dumps({**head, 'choices': [], 'usage': _usage(asked, made)})}\n\n"
    except FedpeftError as refused:  # the status has gone out already
        yield f"data: {json.dumps(error_body(str(refused), 'server_error'))}\n\n"
    yield "data: [DONE]\n\n"


async def _chain(
    first: tuple[int, Outcome], rest: AsyncIterator[tuple[int, Outcome]]
) -> AsyncIterator[tuple[int, Outcome]]:
    yield first
    async for one in rest:
        yield one


def _as_text(text: str, _piece: bool) -> dict[str, Any]:
    return {"text": text, "logprobs": None}


def _as_turn(text: str, piece: bool) -> dict[str, Any]:
    return {"delta" if piece else "message": {"role": "assistant", "content": text}}


def _usage(asked: int, made: int) -> dict[str, int]:
    return {"prompt_tokens": asked, "completion_tokens": made, "total_tokens": asked + made}


_numbers = itertools.count()


def _name(prefix: str) -> str:
    return f"{prefix}-{os_entropy(8).hex()}{next(_numbers)}"


def _now(engine: Engine) -> int:
    return int(engine.clock.utc().timestamp())
