"""Loads a vision-language model with transformers and generates its answers in batches."""

import logging
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

import torch
import transformers
from PIL import Image
from torch import Tensor

from labeler.grounding.coordinates import ModelFamily, family_of, image_tokens
from labeler.grounding.engine import EngineError, EngineUnfitError
from labeler.grounding.retry import Attempt
from labeler.pocket import CHECKPOINT as POCKET_GROUNDER
from labeler.pocket import NAME as POCKET_MODEL
from labeler.settings import Settings
from shared.errors import ConfigError

log = logging.getLogger(__name__)

# A checkpoint's generation_config may set top_k = 1, with which no temperature changes the answer.
_FREE: dict[str, Any] = {"top_p": 1.0, "top_k": 0}
_GREEDY: dict[str, Any] = {"top_p": None, "top_k": None, "temperature": None}


@dataclass(frozen=True)
class LocalQuestion:
    """One resized image, the question, the token limit of the answer, and the sampling."""

    image: Image.Image
    text: str
    max_tokens: int
    attempt: Attempt


@dataclass(frozen=True)
class LocalReply:
    """Text, finish reason and token log-probabilities in the form of the OpenAI API, and token counts."""

    text: str
    finish_reason: str
    logprobs: dict[str, Any] | None
    prompt_tokens: int
    completion_tokens: int


class LocalModel:
    """A loaded model with its processor.

    Args:
        name: its name in label rows.
        family: its image sizes and coordinate space.
        logprobs: whether replies contain token log-probabilities.
    """

    def __init__(self, name: str, family: ModelFamily, model: Any, processor: Any, *, logprobs: bool) -> None:
        self.name, self.family, self._model, self._processor = name, family, model, processor
        self._tokenizer = processor.tokenizer
        self._tokenizer.padding_side = "left"  # generation appends at the right
        self._logprobs = logprobs
        ends = model.generation_config.eos_token_id
        self._ends = {*(ends if isinstance(ends, list) else [ends]), self._tokenizer.eos_token_id} - {None}

    @classmethod
    def load(cls, settings: Settings) -> Self:
        """The model that LABELER_MODEL names: the pocket grounder, a folder, or a hub name in the local cache.

        Weights are read from safetensors only, and code in a checkpoint is never run.
        Raises ConfigError when it cannot be found, is of no known family, or the device is unavailable.
        """
        folder = POCKET_GROUNDER if settings.model == POCKET_MODEL else Path(settings.model).expanduser()
        where = str(folder) if folder.is_dir() else settings.model
        options: dict[str, Any] = {"local_files_only": not settings.allow_download, "trust_remote_code": False}
        device = _device(settings.device)
        try:
            config = transformers.AutoConfig.from_pretrained(where, **options)
            family = _family(settings, config)
            processor = transformers.AutoProcessor.from_pretrained(where, **options)
            model = transformers.AutoModelForImageTextToText.from_pretrained(
                where, config=config, dtype=_dtype(settings.dtype, device), use_safetensors=True, **options
            )
        except (OSError, ValueError, KeyError, ImportError) as err:
            raise _not_loaded(settings, err) from err
        log.info("loaded %s on %s as %s", settings.model, device, model.dtype)
        return cls(settings.model, family, model.to(device).eval(), processor, logprobs=settings.logprobs)

    def answer(self, questions: Sequence[LocalQuestion]) -> list[LocalReply]:
        """Replies to questions of the same attempt, in order.

        A batch that does not fit into memory is split in halves. Raises EngineUnfitError when the processor resizes
        the images, EngineError when a single question does not fit into memory.
        """
        try:
            return self._generate(questions)
        except torch.OutOfMemoryError as err:
            if len(questions) == 1:
                fix = "use a smaller model, LABELER_DTYPE=bfloat16, or LABELER_DEVICE=cpu"
                raise EngineError("not enough memory for one question", fix=fix) from err
        middle = len(questions) // 2
        return self.answer(questions[:middle]) + self.answer(questions[middle:])

    @torch.inference_mode()
    def _generate(self, questions: Sequence[LocalQuestion]) -> list[LocalReply]:
        inputs = self._processor(
            text=[self._chat(question.text) for question in questions],
            images=[question.image for question in questions],
            padding=True,
            return_tensors="pt",
        )
        self._check_images_unchanged(inputs["image_grid_thw"], questions)
        recorder = _ChosenLogprobs()
        attempt = questions[0].attempt
        if sampled := attempt.temperature > 0:
            torch.manual_seed(attempt.number)
        output = self._model.generate(
            **inputs.to(self._model.device),
            max_new_tokens=max(question.max_tokens for question in questions),
            do_sample=sampled,
            **({**_FREE, "temperature": attempt.temperature} if sampled else _GREEDY),
            repetition_penalty=1.0,  # boxes legitimately repeat digits
            logits_processor=transformers.LogitsProcessorList([recorder] if self._logprobs else []),
            pad_token_id=self._tokenizer.pad_token_id,
        )
        asked = inputs["input_ids"].shape[1]
        prompts = inputs["attention_mask"].sum(dim=1).tolist()
        chosen = recorder.chosen(output)
        return [
            self._reply(output[row, asked:].tolist(), prompts[row], chosen[row] if self._logprobs else None, question)
            for row, question in enumerate(questions)
        ]

    def _chat(self, text: str) -> str:
        content = [{"type": "image"}, {"type": "text", "text": text}]
        message = [{"role": "user", "content": content}]
        return str(self._processor.apply_chat_template(message, tokenize=False, add_generation_prompt=True))

    def _reply(
        self, ids: list[int], prompt_tokens: int, logprobs: list[float] | None, question: LocalQuestion
    ) -> LocalReply:
        ended = next((place for place, token in enumerate(ids) if token in self._ends), None)
        length = min(question.max_tokens, len(ids) if ended is None else ended)
        said = ids[:length]
        tokens = [
            {"token": self._tokenizer.decode([token]), "logprob": logprob}
            for token, logprob in zip(
                said, logprobs or [], strict=False
            )  # all rows are as long as the batch's longest answer
        ]
        return LocalReply(
            text=str(self._tokenizer.decode(said, skip_special_tokens=True)),
            finish_reason="stop" if ended is not None and ended <= question.max_tokens else "length",
            logprobs={"content": tokens} if logprobs is not None else None,
            prompt_tokens=prompt_tokens,
            completion_tokens=length,
        )

    def _check_images_unchanged(self, grids: Tensor, questions: Sequence[LocalQuestion]) -> None:
        """grids [B, 3]: numbers of patches in time, height and width, before merging (usually 2 x 2) into tokens."""
        merged = self._processor.image_processor.merge_size**2
        for grid, question in zip(grids.tolist(), questions, strict=True):
            seen, expected = grid[0] * grid[1] * grid[2] // merged, image_tokens(*question.image.size, self.family)
            if seen != expected:
                raise EngineUnfitError(
                    f"the model's processor makes {seen} image tokens of {question.image.size} pixels, not {expected}: "
                    "it resizes the images, and every box would lie in the wrong place",
                    fix="use the model's own preprocessor_config.json, and check LABELER_FAMILY",
                )


class _ChosenLogprobs(transformers.LogitsProcessor):  # type: ignore[misc]  # untyped base
    """Records the log-probability of each chosen token, one step later, so that it keeps one step's logits [B, V]."""

    def __init__(self) -> None:
        self._before: Tensor | None = None
        self._columns: list[Tensor] = []

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        self._record(input_ids[:, -1])
        self._before = scores.float().log_softmax(dim=-1)
        return scores

    def chosen(self, output: Tensor) -> list[list[float]]:
        """Log-probabilities of the generated tokens, by row. output [B, N]: token ids that `generate` returned."""
        self._record(output[:, -1])
        return torch.stack(self._columns, dim=1).tolist() if self._columns else [[] for _ in output]

    def _record(self, tokens: Tensor) -> None:
        if self._before is not None:
            self._columns.append(self._before.gather(1, tokens[:, None])[:, 0])


def _device(wanted: str) -> torch.device:
    """Raises ConfigError for an unavailable device."""
    if wanted == "auto":
        found = torch.accelerator.current_accelerator() if torch.accelerator.is_available() else None
        return found or torch.device("cpu")
    try:
        device = torch.device(wanted)
        torch.empty(1, device=device)
    except (RuntimeError, AssertionError, NotImplementedError) as err:
        fault = str(err).splitlines()[0][:200]
        raise ConfigError(f"device {wanted!r} cannot be used: {fault}", fix="set LABELER_DEVICE=auto or cpu") from err
    return device


def _dtype(wanted: str, device: torch.device) -> str:
    """The given one; for `auto` that of the checkpoint, on a CPU float32, which is the fastest there."""
    return "float32" if wanted == "auto" and device.type == "cpu" else wanted


def _family(settings: Settings, config: Any) -> ModelFamily:
    """LABELER_FAMILY, else from the checkpoint's configuration, else from the name."""
    if settings.family:
        return family_of(settings.model, settings.family)
    try:
        return family_of(" ".join([str(config.model_type), *(config.architectures or ())]))
    except ConfigError:
        return family_of(settings.model)


def _not_loaded(settings: Settings, err: Exception) -> ConfigError:
    fault = str(err).strip().splitlines()[0][:200] if str(err).strip() else type(err).__name__
    if isinstance(err, OSError) and not settings.allow_download and not Path(settings.model).expanduser().exists():
        fault = "it is not a folder, and not in the Hugging Face cache of this machine"
    return ConfigError(
        f"the model {settings.model!r} cannot be loaded: {fault}",
        fix="set LABELER_MODEL to a folder with config.json, the tokenizer's and processor's files and *.safetensors, "
        f"or put it into the cache with `hf download {settings.model}`, or allow the download with "
        "LABELER_ALLOW_DOWNLOAD=true; checkpoints that need their own code are not loaded here: serve them with vLLM",
    )
