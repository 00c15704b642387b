"""How a labelling run ended, for its closing table and for the limit on failures."""

from collections import Counter
from dataclasses import dataclass, field

from labeler.grounding.answers import ImageAnswer
from shared.schemas import FINAL_STATUSES, LabelStatus


def failure_of(answer: ImageAnswer) -> LabelStatus | None:
    """The first failed part's status; None when every part has a final answer."""
    return next((row.status for row in answer.parts if row.status not in FINAL_STATUSES), None)


@dataclass
class Summary:
    """Counts of images unless said otherwise."""

    label_run: str
    dataset: str
    done_before: int = 0  # finished in earlier sessions of this run
    done_now: int = 0  # rows were written, whatever their status
    failed: Counter[str] = field(default_factory=Counter)  # of done_now, by status
    finished_at_attempt: Counter[int] = field(default_factory=Counter)  # of the successful ones
    prompt_tokens: int = 0
    completion_tokens: int = 0
    seconds: float = 0.0
    interrupted: bool = False  # stopped by a signal; the rest is left for the next session

    @property
    def images(self) -> int:
        return self.done_before + self.done_now

    @property
    def images_per_s(self) -> float:
        return self.done_now / self.seconds if self.seconds > 0 else 0.0

    @property
    def asked(self) -> int:
        """Images that went to the engine: what the failed share is a share of."""
        return self.done_now - self.failed[LabelStatus.UNREADABLE]

    @property
    def failed_share(self) -> float:
        return (self.failed.total() - self.failed[LabelStatus.UNREADABLE]) / max(1, self.asked)

    def count(self, answer: ImageAnswer) -> LabelStatus | None:
        """Count one answered image; its failure kind if it failed."""
        self.done_now += 1
        self.prompt_tokens += answer.prompt_tokens
        self.completion_tokens += answer.completion_tokens
        failure = failure_of(answer)
        if failure:
            self.failed[failure] += 1
        else:
            self.finished_at_attempt[max(row.attempts for row in answer.parts)] += 1
        return failure

    def table(self) -> list[tuple[str, str]]:
        """(name, value) lines of the closing table."""
        lines = [
            ("label run", self.label_run),
            ("images", f"{self.images:,}"),
            ("done before", f"{self.done_before:,}"),
            ("done now", f"{self.done_now:,}"),
            *((f"failed: {kind}", f"{count:,}") for kind, count in sorted(self.failed.items()) if count),
            *((f"finished at attempt {n}", f"{count:,}") for n, count in sorted(self.finished_at_attempt.items())),
            ("images/s", f"{self.images_per_s:,.1f}"),
        ]
        if self.prompt_tokens or self.completion_tokens:
            lines.append(("tokens", f"{self.prompt_tokens:,} prompt, {self.completion_tokens:,} answer"))
        return [*lines, ("interrupted", "yes, the same command continues")] if self.interrupted else lines
