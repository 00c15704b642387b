"""From the text of a model's answer to outcomes per part: the same for a served model and one in this process."""

from typing import Any

from labeler.engines.token_scores import box_scores
from labeler.grounding.coordinates import Sent
from labeler.grounding.engine import PartOutcome
from labeler.grounding.parsing.parse import kept_text, parse_answer
from labeler.grounding.prompts import Question
from labeler.grounding.vocabulary import Vocabulary
from shared.schemas import LabelStatus

LONG_ANSWER = 2_000  # characters; from there on an answer is read in a thread: the worst of 6,000 took 0.13 s
REASONING_ONLY = "reasoning_only"  # flag of a part whose answer is empty, while there is a text called reasoning


def outcomes(
    question: Question, text: str | None, finish_reason: str | None, logprobs: Any, sent: Sent, vocabulary: Vocabulary
) -> dict[str, PartOutcome]:
    """One outcome for each part of the question.

    Args:
        finish_reason: why the answer ended; "stop" when it ended by itself.
        logprobs: of its tokens, in the shape of the OpenAI API; None when there are none.
        sent: the image as the model saw it, which its boxes are converted with.
    """
    parsed = parse_answer(text, finish_reason, question.parts, vocabulary, size=sent.limits)
    scores = box_scores(logprobs, question.parts, vocabulary)
    found: dict[str, PartOutcome] = {}
    for part, answer in parsed.items():
        found[part] = PartOutcome(
            answer.status,
            raw_box=tuple(answer.box) if answer.box else None,
            image_box=sent.to_image(answer.box) if answer.box else None,
            score=scores.get(part) if answer.box else None,
            flags=answer.flags,
            raw_text=kept_text(text),
        )
    return found


def only_reasoned(question: Question, reasoning: str, finish_reason: str | None) -> dict[str, PartOutcome]:
    """The answer's text is empty and the server calls all that the model wrote its reasoning, where drafts stand too:
    no box is taken from it, and the flag REASONING_ONLY says where the text was."""
    status = LabelStatus.TRUNCATED if finish_reason == "length" else LabelStatus.UNPARSEABLE
    outcome = PartOutcome(status, flags=(REASONING_ONLY,), raw_text=kept_text(reasoning))
    return dict.fromkeys(question.parts, outcome)


def refused(question: Question, text: str) -> dict[str, PartOutcome]:
    """A refusal that came as one, apart from any text."""
    return dict.fromkeys(question.parts, PartOutcome(LabelStatus.REFUSED, raw_text=kept_text(text)))
