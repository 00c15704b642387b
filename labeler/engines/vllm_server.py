"""A vision-language model behind an OpenAI-compatible server such as vLLM.

One question is one POST /v1/chat/completions: the crop, already resized (see coordinates.py), as a data URL; guided
decoding into a small JSON schema; few tokens. Transport failures are retried here, unusable answers by the caller.
"""

import asyncio
import base64
import io
import json
import logging
import random
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, Literal, Self

import httpx
from PIL import Image

from labeler.engines.answers import LONG_ANSWER, only_reasoned, outcomes, refused
from labeler.engines.replicas import Replicas
from labeler.engines.token_check import TokenCheck
from labeler.grounding.coordinates import ModelFamily, Sent, family_of, prepare
from labeler.grounding.engine import (
    EngineAnswer,
    EngineAwayError,
    EngineError,
    EngineIdentity,
    EngineRefusedError,
    PartOutcome,
    UpstreamState,
)
from labeler.grounding.prompts import Prompts, Question
from labeler.grounding.retry import Attempt, pause_s
from labeler.grounding.vocabulary import Vocabulary, load_vocabulary
from labeler.settings import Settings
from shared.errors import ConfigError

log = logging.getLogger(__name__)

JPEG_QUALITY = 95
HALF_CHROMA_FROM = (
    2.0  # enlarged that many times colours are smooth: 4:2:0 moves real crops by 0.05 of 255 more than 4:4:4
)
MAX_TOKENS = 2**31  # a count from there on is none
FIRST_PAUSE_S = 0.25
LONGEST_PAUSE_S = 4.0


class VllmServer:
    """The engine `vllm_server`.

    Args:
        servers: one or several servers of the model; closed by `close`.
        model: name of the served model.
        prompts: of the model's family.
        logprobs: whether to request the token log-probabilities that box scores are computed from.
        transport_attempts: requests for one question before it counts as failed.
    """

    def __init__(
        self,
        servers: Replicas,
        model: str,
        prompts: Prompts,
        *,
        logprobs: bool = False,
        transport_attempts: int = 3,
    ) -> None:
        self._servers, self._model, self._prompts = servers, model, prompts
        self._logprobs, self._transport_attempts = logprobs, transport_attempts
        self._takes_schema: bool | None = None  # None: no question with one was answered yet
        self._tokens = TokenCheck(prompts.family, self._count_tokens)
        self.identity = EngineIdentity("vllm_server", model, prompts.version)

    @classmethod
    def from_settings(cls, settings: Settings, transport: httpx.AsyncBaseTransport | None = None) -> Self:
        """Raises ConfigError when the model's family is unknown. `transport` replaces the network in tests."""
        prompts = Prompts.choose(family_of_served(settings), settings.prompt_mode, load_vocabulary(settings.parts_file))
        return cls(
            Replicas.from_settings(settings, transport),
            settings.model,
            prompts,
            logprobs=settings.logprobs,
            transport_attempts=settings.transport_attempts,
        )

    async def ground(self, image: Image.Image, parts: Sequence[str], attempt: Attempt) -> EngineAnswer:
        url, sent = await asyncio.to_thread(_prepared, image, self._prompts.family)
        asked = self._prompts.questions(parts, sent, with_schema=attempt.with_schema)
        around = [await self._tokens.of_text(question.text) for question in asked]
        replies = await asyncio.gather(*(self._post(self._payload(question, url, attempt)) for question in asked))
        found: dict[str, PartOutcome] = {}
        for question, text_tokens, reply in zip(asked, around, replies, strict=True):
            counted = _tokens(reply, "prompt_tokens")
            self._tokens.verify(question.text, text_tokens, sent.sent_width, sent.sent_height, counted)
            if _length(reply) > LONG_ANSWER:
                found |= await asyncio.to_thread(_outcomes, question, reply, sent, self._prompts.vocabulary)
            else:
                found |= _outcomes(question, reply, sent, self._prompts.vocabulary)
        return EngineAnswer(
            found,
            sent.name,
            prompt_tokens=sum(_tokens(reply, "prompt_tokens") or 0 for reply in replies),
            completion_tokens=sum(_tokens(reply, "completion_tokens") or 0 for reply in replies),
        )

    async def check(self) -> None:
        await self._servers.check()

    async def close(self) -> None:
        await self._servers.close()

    def upstreams(self) -> Sequence[UpstreamState]:
        return self._servers.states()

    def _payload(self, question: Question, url: str, attempt: Attempt) -> dict[str, Any]:
        content = [{"type": "image_url", "image_url": {"url": url}}, {"type": "text", "text": question.text}]
        payload: dict[str, Any] = {
            "model": self._model,
            "messages": [{"role": "user", "content": content}],
            "max_tokens": question.max_tokens,
            "temperature": attempt.temperature,
            "seed": attempt.number,
        }
        if question.schema is not None:
            schema = {"name": "boxes", "schema": question.schema, "strict": True}
            payload["response_format"] = {"type": "json_schema", "json_schema": schema}
        if self._logprobs:
            payload["logprobs"] = True
        return payload

    async def _count_tokens(self, text: str, width: int, height: int) -> int | None:
        url = await asyncio.to_thread(_data_url, Image.new("RGB", (width, height), "gray"), enlarged=HALF_CHROMA_FROM)
        question = Question(parts=(), text=text, schema=None, max_tokens=1)
        return _tokens(await self._post(self._payload(question, url, Attempt(with_schema=False))), "prompt_tokens")

    async def _post(self, payload: dict[str, Any]) -> dict[str, Any]:
        """The reply; without the schema where the server refuses a question only because of it."""
        if "response_format" not in payload:
            return await self._patiently(payload)
        free = {key: value for key, value in payload.items() if key != "response_format"}
        if self._takes_schema is False:
            return await self._patiently(free)
        try:
            reply = await self._patiently(payload)
            self._takes_schema = True
            return reply
        except EngineRefusedError as refusal:
            try:
                reply = await self._patiently(free)
            except EngineRefusedError:
                raise refusal from None
            if self._takes_schema is None:
                self._takes_schema = False
                log.warning("the model server refuses JSON schemas and is asked without: %s", refusal.what)
            return reply

    async def _patiently(self, payload: dict[str, Any]) -> dict[str, Any]:
        """The reply, after repeated requests where the server cannot answer now."""
        for failures in range(1, self._transport_attempts):
            try:
                return await self._servers.ask("/v1/chat/completions", payload, chat_fault)
            except EngineAwayError as err:
                pause = pause_s(
                    failures,
                    random.random(),
                    base_s=FIRST_PAUSE_S,
                    longest_s=LONGEST_PAUSE_S,
                    asked_s=err.retry_after_s,
                )
                await asyncio.sleep(pause)
        return await self._servers.ask("/v1/chat/completions", payload, chat_fault)


def family_of_served(settings: Settings, transport: httpx.AsyncBaseTransport | None = None) -> ModelFamily:
    """The family of a model that may be served under any name (`--served-model-name mine`).

    The first of LABELER_FAMILY, config.json in the model's folder, its name, and `root` in the server's model list that
    names a family.

    Args:
        transport: replaces the network in tests.

    Raises ConfigError when none of them names a known family, or the server's address is none.
    """
    if settings.family:
        return family_of(settings.model, settings.family)
    for texts in (lambda: (_configured_as(settings.model), settings.model), lambda: _roots(settings, transport)):
        for text in texts():
            try:
                return family_of(text)
            except ConfigError:
                continue
    return family_of(settings.model)


def _configured_as(model: str) -> str:
    """Model type and architectures in config.json of a model's folder; empty when there is none."""
    try:
        config = json.loads((Path(model) / "config.json").read_text(encoding="utf-8"))
        return " ".join([str(config.get("model_type", "")), *map(str, config.get("architectures") or ())])
    except (OSError, ValueError, AttributeError, TypeError):
        return ""


def _roots(settings: Settings, transport: httpx.AsyncBaseTransport | None) -> list[str]:
    """Where the first server loaded its model from (`root` in vLLM's model list), and the configuration there."""

    async def listed() -> list[Any]:
        servers = Replicas.from_settings(settings, transport)
        try:
            return await servers.listed()
        except EngineError:
            return []  # not up, or not vLLM
        finally:
            await servers.close()

    with ThreadPoolExecutor(1) as thread:  # this one may have an event loop of its own
        entries = thread.submit(asyncio.run, listed()).result()
    roots = [
        str(entry["root"])
        for entry in entries
        if isinstance(entry, dict) and entry.get("id") == settings.model and entry.get("root")
    ]
    return [*map(_configured_as, roots), *roots]


def _prepared(image: Image.Image, family: ModelFamily) -> tuple[str, Sent]:
    resized, sent = prepare(image, family)
    enlarged = min(sent.sent_width / sent.image_width, sent.sent_height / sent.image_height)
    return _data_url(resized, enlarged=enlarged), sent


def _data_url(image: Image.Image, *, enlarged: float) -> str:
    """`enlarged`: factor by which its sides were enlarged before."""
    buffer = io.BytesIO()
    chroma = "4:2:0" if enlarged >= HALF_CHROMA_FROM else "4:4:4"
    image.save(buffer, "JPEG", quality=JPEG_QUALITY, subsampling=chroma)
    return f"data:image/jpeg;base64,{base64.b64encode(buffer.getvalue()).decode()}"


def chat_fault(reply: dict[str, Any]) -> str:
    """Why an object is not a chat completion; "" when it is one, whatever its text says."""
    choices = reply.get("choices")
    if not isinstance(choices, list) or not choices or not isinstance(choices[0], dict):
        return "it has no choices"
    choice = choices[0]
    message = choice.get("message")
    if not isinstance(message, dict):
        return "its choice has no message"
    told = {"content": message.get("content"), "finish_reason": choice.get("finish_reason")}
    odd = [f"{name} is {type(value).__name__}" for name, value in told.items() if not isinstance(value, str | None)]
    return " and ".join(odd)


def _outcomes(question: Question, reply: dict[str, Any], sent: Sent, vocabulary: Vocabulary) -> dict[str, PartOutcome]:
    """Outcomes of one chat completion."""
    choice = reply["choices"][0]
    message = choice["message"]
    if isinstance(refusal := message.get("refusal"), str) and refusal:
        return refused(question, refusal)
    text, finish = message.get("content"), choice.get("finish_reason")
    if not (text and text.strip()) and (reasoning := _reasoning(message)):
        log.warning(
            "the answer is empty, its text stands in reasoning_content: ask a model or a chat template that does not "
            "think, or start the server without --reasoning-parser"
        )
        return only_reasoned(question, reasoning, finish)
    return outcomes(question, text, finish, choice.get("logprobs"), sent, vocabulary)


def _reasoning(message: dict[str, Any]) -> str:
    """What the server took out of the answer as reasoning; empty where there is none. vLLM has called it both ways."""
    texts = (message.get(key) for key in ("reasoning_content", "reasoning"))
    return next((text for text in texts if isinstance(text, str) and text.strip()), "")


def _tokens(reply: dict[str, Any], kind: Literal["prompt_tokens", "completion_tokens"]) -> int | None:
    """The server's count; None when it reports none."""
    usage = reply.get("usage")
    count = usage.get(kind) if isinstance(usage, dict) else None
    return count if type(count) is int and 0 < count < MAX_TOKENS else None


def _length(reply: dict[str, Any]) -> int:
    """Characters, or tokens with their probabilities, that are read as an answer; whichever is more."""
    choice = reply["choices"][0]
    texts = choice["message"].values()
    logprobs = choice.get("logprobs")
    tokens = logprobs.get("content") if isinstance(logprobs, dict) else None
    return max([len(one) for one in (*texts, tokens) if isinstance(one, str | list)], default=0)
