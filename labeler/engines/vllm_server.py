"""A vision-language model behind an OpenAI-compatible server such as vLLM.

One question is one POST /v1/chat/completions: the crop enlarged by us (see coordinates.py) as a data URL, the answer
forced into a small JSON schema, few tokens. Faults of the transport are repeated here; answers that cannot be used are
the caller's to ask again.
"""

import asyncio
import base64
import io
import logging
import random
from collections.abc import Sequence
from typing import Any, Literal, Self

import httpx
from PIL import Image

from labeler.coordinates import ModelFamily, Sent, prepare
from labeler.engines.answers import only_reasoned, outcomes, refused
from labeler.engines.base import (
    EngineAnswer,
    EngineAwayError,
    EngineIdentity,
    PartOutcome,
    UpstreamState,
)
from labeler.engines.replicas import Replicas
from labeler.engines.served_family import family_of_served
from labeler.engines.token_check import TokenCheck
from labeler.prompts import Prompts, Question
from labeler.retry import Attempt, pause_s
from labeler.settings import Settings
from labeler.vocabulary import Vocabulary, load_vocabulary

log = logging.getLogger(__name__)

JPEG_QUALITY = 95
HALF_CHROMA_FROM = 2.0  # times enlarged: colours are smooth then, 4:2:0 moves real crops by 0.05 of 255 more than 4:4:4
FIRST_PAUSE_S = 0.25
LONGEST_PAUSE_S = 4.0


class VllmServer:
    """The engine `vllm_server`.

    Args:
        servers: one or several equal servers of that model; closed by `close`.
        model: the served model's name.
        prompts: what it is asked, and the family that says how it sees images and answers.
        logprobs: whether to ask for the token probabilities that boxes are scored with.
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
        for failures in range(1, self._transport_attempts):
            try:
                return await self._servers.ask("/v1/chat/completions", payload)
            except EngineAwayError as err:
                pause = pause_s(
                    failures,
                    random.random(),
                    base_s=FIRST_PAUSE_S,
                    longest_s=LONGEST_PAUSE_S,
                    asked_s=err.retry_after_s,
                )
                await asyncio.sleep(pause)
        return await self._servers.ask("/v1/chat/completions", payload)


def _prepared(image: Image.Image, family: ModelFamily) -> tuple[str, Sent]:
    resized, sent = prepare(image, family)
    enlarged = min(sent.sent_width / sent.image_width, sent.sent_height / sent.image_height)
    return _data_url(resized, enlarged=enlarged), sent


def _data_url(image: Image.Image, *, enlarged: float) -> str:
    """`enlarged`: how many times its sides have grown before."""
    buffer = io.BytesIO()
    chroma = "4:2:0" if enlarged >= HALF_CHROMA_FROM else "4:4:4"
    image.save(buffer, "JPEG", quality=JPEG_QUALITY, subsampling=chroma)
    return f"data:image/jpeg;base64,{base64.b64encode(buffer.getvalue()).decode()}"


def _outcomes(question: Question, reply: dict[str, Any], sent: Sent, vocabulary: Vocabulary) -> dict[str, PartOutcome]:
    """Outcomes of one reply, whatever its shape."""
    choices = reply.get("choices")
    choice = choices[0] if isinstance(choices, list) and choices and isinstance(choices[0], dict) else {}
    message = choice.get("message")
    message = message if isinstance(message, dict) else {}
    if isinstance(refusal := message.get("refusal"), str) and refusal:
        return refused(question, refusal)
    text = message.get("content")
    text = text if isinstance(text, str) else None
    finish = choice.get("finish_reason")
    finish = finish if isinstance(finish, str) else None
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
    """What the server counted; None when it does not say."""
    usage = reply.get("usage")
    count = usage.get(kind) if isinstance(usage, dict) else None
    return count if isinstance(count, int) and count > 0 else None
