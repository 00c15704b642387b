"""A vision-language model behind an OpenAI-compatible server such as vLLM.

One question is one POST /v1/chat/completions: the crop enlarged by us (see coordinates.py) as a data URL, the answer
forced into a small JSON schema, few tokens. Faults of the transport are repeated here; answers that cannot be used are
the caller's to ask again.
"""

import asyncio
import base64
import io
import random
from collections.abc import Sequence
from typing import Any, Self

import httpx
from PIL import Image

from labeler.coordinates import ModelFamily, Sent, family_of, prepare
from labeler.engines.base import (
    EngineAnswer,
    EngineAwayError,
    EngineDownError,
    EngineError,
    EngineIdentity,
    EngineSlowError,
    PartOutcome,
)
from labeler.engines.token_scores import box_scores
from labeler.parsing import Parsed, kept_text, parse_answer
from labeler.prompts import PromptMode, Question, prompt_version, questions
from labeler.retry import Attempt, pause_s, retry_after_s, transport_retryable
from labeler.settings import Settings
from shared.schemas import LabelStatus

JPEG_QUALITY = 95
FIRST_PAUSE_S = 0.25
LONGEST_PAUSE_S = 4.0
FIX = "see the log of the vLLM server, and LABELER_UPSTREAM_URL, LABELER_MODEL"


class VllmServer:
    """The engine `vllm_server`.

    Args:
        http: a client whose base URL is the server's root (without /v1); closed by `close`.
        model: the served model's name.
        family: how that model sees images and answers.
        mode: `joint` or `per_part` questions.
        logprobs: whether to ask for the token probabilities that boxes are scored with.
        transport_attempts: requests for one question before it counts as failed.
    """

    def __init__(
        self,
        http: httpx.AsyncClient,
        model: str,
        family: ModelFamily,
        *,
        mode: PromptMode = "joint",
        logprobs: bool = False,
        transport_attempts: int = 3,
    ) -> None:
        self._http, self._model, self._family, self._mode = http, model, family, mode
        self._logprobs, self._transport_attempts = logprobs, transport_attempts
        self.identity = EngineIdentity("vllm_server", model, prompt_version(mode, family.space))

    @classmethod
    def from_settings(cls, settings: Settings, transport: httpx.AsyncBaseTransport | None = None) -> Self:
        """Raises ConfigError when the model's family is unknown. `transport` replaces the network in tests."""
        connections = settings.max_images_in_work * (1 if settings.prompt_mode == "joint" else 4)
        key = settings.upstream_api_key
        http = httpx.AsyncClient(
            base_url=settings.upstream_url.rstrip("/").removesuffix("/v1"),
            headers={"Authorization": f"Bearer {key.get_secret_value()}"} if key else {},
            timeout=httpx.Timeout(
                settings.answer_timeout_s, connect=settings.connect_timeout_s, pool=settings.answer_timeout_s
            ),
            limits=httpx.Limits(max_connections=connections, max_keepalive_connections=connections),
            transport=transport,
            trust_env=False,  # a proxy of the environment must never see the images
        )
        return cls(
            http,
            settings.model,
            family_of(settings.model, settings.family),
            mode=settings.prompt_mode,
            logprobs=settings.logprobs,
            transport_attempts=settings.transport_attempts,
        )

    async def ground(self, image: Image.Image, parts: Sequence[str], attempt: Attempt) -> EngineAnswer:
        url, sent = await asyncio.to_thread(_data_url, image, self._family)
        asked = questions(self._mode, parts, sent, with_schema=attempt.with_schema)
        replies = await asyncio.gather(*(self._post(self._payload(question, url, attempt)) for question in asked))
        outcomes: dict[str, PartOutcome] = {}
        for question, reply in zip(asked, replies, strict=True):
            outcomes |= _outcomes(question, reply, sent)
        usages = [usage for reply in replies if isinstance(usage := reply.get("usage"), dict)]
        return EngineAnswer(
            outcomes,
            sent.name,
            prompt_tokens=sum(_count(usage.get("prompt_tokens")) for usage in usages),
            completion_tokens=sum(_count(usage.get("completion_tokens")) for usage in usages),
        )

    async def check(self) -> None:
        reply = await self._request("GET", "/v1/models", None)
        listed = reply.get("data")
        names = (
            [str(model.get("id")) for model in listed if isinstance(model, dict)] if isinstance(listed, list) else []
        )
        if self._model not in names:
            raise EngineError(f"the server does not list {self._model!r} but {names}", path=self._where, fix=FIX)

    async def close(self) -> None:
        await self._http.aclose()

    @property
    def _where(self) -> str:
        return str(self._http.base_url)

    def _payload(self, question: Question, url: str, attempt: Attempt) -> dict[str, Any]:
        content = [{"type": "image_url", "image_url": {"url": url}}, {"type": "text", "text": question.text}]
        payload: dict[str, Any] = {
            "model": self._model,
            "messages": [{"role": "user", "content": content}],
            "max_tokens": question.max_tokens,
            "temperature": attempt.temperature,
            "seed": attempt.number,
        }
        if attempt.with_schema:
            schema = {"name": "boxes", "schema": question.schema, "strict": True}
            payload["response_format"] = {"type": "json_schema", "json_schema": schema}
        if self._logprobs:
            payload["logprobs"] = True
        return payload

    async def _post(self, payload: dict[str, Any]) -> dict[str, Any]:
        for failures in range(1, self._transport_attempts):
            try:
                return await self._request("POST", "/v1/chat/completions", payload)
            except EngineAwayError as err:
                pause = pause_s(
                    failures,
                    random.random(),
                    base_s=FIRST_PAUSE_S,
                    longest_s=LONGEST_PAUSE_S,
                    asked_s=err.retry_after_s,
                )
                await asyncio.sleep(pause)
        return await self._request("POST", "/v1/chat/completions", payload)

    async def _request(self, method: str, path: str, payload: dict[str, Any] | None) -> dict[str, Any]:
        try:
            response = await self._http.request(method, path, json=payload)
        except httpx.TimeoutException as err:
            raise EngineSlowError(f"no answer in time ({type(err).__name__})", path=self._where, fix=FIX) from err
        except httpx.HTTPError as err:
            raise EngineDownError(f"{type(err).__name__}: {err}", path=self._where, fix=FIX) from err
        if response.status_code != httpx.codes.OK:
            what = f"the server answered {response.status_code}: {response.text[:300]}"
            if transport_retryable(response.status_code):
                raise EngineDownError(what, path=self._where, fix=FIX, retry_after_s=retry_after_s(response.headers))
            raise EngineError(what, path=self._where, fix=FIX)
        try:
            reply = response.json()
        except (ValueError, RecursionError):
            reply = None
        if not isinstance(reply, dict):
            raise EngineDownError(f"not an answer: {response.text[:300]!r}", path=self._where, fix=FIX)
        return reply


def _data_url(image: Image.Image, family: ModelFamily) -> tuple[str, Sent]:
    resized, sent = prepare(image, family)
    buffer = io.BytesIO()
    resized.save(buffer, "JPEG", quality=JPEG_QUALITY, subsampling=0)
    return f"data:image/jpeg;base64,{base64.b64encode(buffer.getvalue()).decode()}", sent


def _outcomes(question: Question, reply: dict[str, Any], sent: Sent) -> dict[str, PartOutcome]:
    """Outcomes of one reply, whatever its shape."""
    choices = reply.get("choices")
    choice = choices[0] if isinstance(choices, list) and choices and isinstance(choices[0], dict) else {}
    message = choice.get("message")
    message = message if isinstance(message, dict) else {}
    if isinstance(refusal := message.get("refusal"), str) and refusal:
        return {part: _outcome(Parsed(LabelStatus.REFUSED), None, refusal, sent) for part in question.parts}
    text = message.get("content")
    text = text if isinstance(text, str) else None
    finish = choice.get("finish_reason")
    parsed = parse_answer(text, finish if isinstance(finish, str) else None, question.parts)
    scores = box_scores(choice.get("logprobs"), question.parts)
    return {part: _outcome(parsed[part], scores.get(part), text, sent) for part in question.parts}


def _outcome(parsed: Parsed, score: float | None, text: str | None, sent: Sent) -> PartOutcome:
    if parsed.box is None:
        return PartOutcome(parsed.status, raw_text=kept_text(text))
    return PartOutcome(
        LabelStatus.OK,
        raw_box=tuple(parsed.box),
        image_box=sent.to_image(parsed.box),
        score=score,
        raw_text=kept_text(text),
    )


def _count(value: object) -> int:
    return value if isinstance(value, int) and value > 0 else 0
