"""A vision-language model in this process, through transformers: for one small GPU, or none.

Prompts, parser and coordinates are those of a served model. transformers has no guided decoding, so answers are free
text, and a model that does not keep to the requested form is better served by vLLM.
"""

import asyncio
from collections.abc import Sequence
from functools import partial
from typing import Self

from PIL import Image

from labeler.engines.answers import LONG_ANSWER, outcomes
from labeler.engines.local_transformers_model import LocalModel, LocalQuestion, LocalReply
from labeler.engines.micro_batches import MicroBatches
from labeler.grounding.coordinates import prepare
from labeler.grounding.engine import EngineAnswer, EngineIdentity, PartOutcome
from labeler.grounding.prompts import Prompts
from labeler.grounding.retry import Attempt
from labeler.grounding.vocabulary import load_vocabulary
from labeler.settings import Settings


class LocalTransformers:
    """The engine `local`.

    Args:
        model: loaded and ready.
        prompts: of the model's family.
        batch_questions: largest number of questions in one batch.
    """

    def __init__(self, model: LocalModel, prompts: Prompts, *, batch_questions: int = 8) -> None:
        self._prompts = prompts
        self._batches: MicroBatches[LocalQuestion, LocalReply] = MicroBatches(
            model.answer, lambda question: question.attempt, batch_questions
        )
        self.identity = EngineIdentity("local", model.name, prompts.version)

    @classmethod
    def from_settings(cls, settings: Settings) -> Self:
        """Loads the model. Raises ConfigError when it cannot be found or is of no known family."""
        model = LocalModel.load(settings)
        prompts = Prompts.choose(model.family, settings.prompt_mode, load_vocabulary(settings.parts_file))
        return cls(model, prompts, batch_questions=settings.local_batch)

    async def ground(self, image: Image.Image, parts: Sequence[str], attempt: Attempt) -> EngineAnswer:
        resized, sent = await asyncio.to_thread(prepare, image, self._prompts.family)
        asked = self._prompts.questions(parts, sent, with_schema=False)
        replies = await asyncio.gather(
            *(self._batches.ask(LocalQuestion(resized, one.text, one.max_tokens, attempt)) for one in asked)
        )
        found: dict[str, PartOutcome] = {}
        for question, reply in zip(asked, replies, strict=True):
            read = partial(
                outcomes, question, reply.text, reply.finish_reason, reply.logprobs, sent, self._prompts.vocabulary
            )
            found |= await asyncio.to_thread(read) if len(reply.text) > LONG_ANSWER else read()
        return EngineAnswer(
            found,
            sent.name,
            prompt_tokens=sum(reply.prompt_tokens for reply in replies),
            completion_tokens=sum(reply.completion_tokens for reply in replies),
        )

    async def check(self) -> None:
        """Always ready: the model is loaded."""

    async def close(self) -> None:
        await self._batches.close()
