"""The whole configuration of a training run: frozen sections, presets in YAML, `section.key=value` overrides.

Defaults are the `paper` preset's values; a preset file states only what it changes. Unknown keys are refused; keys and
paths of earlier versions (`RENAMED`, `MOVED_WEIGHTS`) are read as their successors.
"""

from collections.abc import Mapping, Sequence
from importlib import resources
from pathlib import Path
from typing import Any, Literal

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from shared.errors import ConfigError, DataError, did_you_mean
from shared.parts import PARTS

# Earlier names of keys, still read from config.yaml of existing runs, presets and overrides.
RENAMED = {"visible_share": "patch_coverage", "crop_keeps": "min_box_visibility"}  # of section `data`
# Where shipped weights lay in earlier versions, and where they are now.
MOVED_WEIGHTS = {
    Path("shared/pocket/clip/open_clip_model.safetensors"): Path("reid/pocket/open_clip_model.safetensors")
}
# Shipped weights from before runs recorded `model.pretrained_on`, by SHA-256.
PRETRAINED_ON = {"1fa28b073ce0fdce0ac54c5a4ffe399b144ae038ea7b8f8dba286d4c51fb5f4e": ("3dpes", "caviar", "towncentre")}


def _renamed(data: dict[str, Any]) -> dict[str, Any]:
    """Section `data` with earlier names replaced. Raises ConfigError when a key is given under both names."""
    for old, new in RENAMED.items():
        if old in data and new in data:
            raise ConfigError(f"data.{old} is an earlier name of data.{new}", fix=f"give data.{new} alone")
    return {RENAMED.get(key, key): value for key, value in data.items()}


class Section(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class ModelConfig(Section):
    backbone: str = "ViT-B-16-quickgelu"  # an open_clip model name; with `architecture`, only a label
    architecture: dict[str, Any] | None = None  # open_clip model config of our own (embed_dim, vision_cfg, text_cfg)
    pretrained: str | None = "openai"  # open_clip tag of the weights; None = random initialisation
    weights_file: Path | None = None  # local file with those weights, used instead of open_clip's cache
    weights_sha256: str | None = None  # refuse a file with another digest
    pretrained_on: tuple[str, ...] = ()  # re-ID data sets (canonical names) whose people the weights were trained on
    allow_download: bool = False  # let open_clip fetch the pretrained weights; never silently
    image_size: tuple[int, int] = (256, 128)  # height, width in pixels
    stride: int = Field(16, gt=0)  # pixels between patches; 12 makes them overlap
    parts: tuple[str, ...] = PARTS  # in order; () is the baseline without part tokens
    mask_heads: int = Field(2, gt=0)  # attention heads of the mask predictors; the paper uses 8 on MSMT17
    mask_temperature: float = Field(1.0, gt=0)  # tau of p = sigmoid(logits / tau)
    gate_threshold: float = Field(0.5, ge=0, le=1)  # a patch is visible where p is strictly above
    soft_gate: float | None = Field(None, gt=0)  # m: add (2p - 1) * m to the attention logits; None = the hard gate
    # the form that the attention kernel gets; auto: boolean, and when training on a GPU the one that is faster there
    attention_mask: Literal["auto", "boolean", "additive"] = "auto"
    domain_contexts: dict[str, str] = {}  # data set -> words; the prompts of its identities end with ", <words>"
    part_agnostic_prompts: bool = False  # "A photo of a * * * *" for person and parts alike, each with its own vectors

    @model_validator(mode="before")
    @classmethod
    def _earlier_weights(cls, given: Any) -> Any:
        if not isinstance(given, dict) or not isinstance(given.get("weights_file"), str | Path):
            return given
        file = Path(given["weights_file"])
        known = PRETRAINED_ON.get(str(given.get("weights_sha256")).lower(), ())
        return {"pretrained_on": known, **given, "weights_file": MOVED_WEIGHTS.get(file, file)}


class DataConfig(Section):
    label_run: str | None = None  # None: the only label run there is
    missing_labels: Literal["require", "drop", "prior"] = "require"  # parts without a label stop the run, leave the
    # image out, or get the body prior's box (shared/body_prior.py)
    max_images_per_identity: int | None = Field(None, gt=0)  # evenly spaced over all there are; None = all of them
    patch_coverage: float = Field(0.5, gt=0, le=1)  # a part is visible in a patch whose area its box covers this far
    flip: float = Field(0.5, ge=0, le=1)  # chance of a horizontal flip, image and mask together
    crop_padding: int = Field(0, ge=0)  # pixels added around the input before it is cut out again at random; 0 = off
    min_box_visibility: float = Field(0.5, gt=0, le=1)  # a part with less of its box area left in the crop is absent
    erasing: float = Field(0.0, ge=0, le=1)  # chance that a random rectangle is painted over; the boxes stay
    colour_jitter: float = Field(0.0, ge=0, lt=1)  # j: brightness, contrast and saturation times 1 - j .. 1 + j
    leave_out_absent_parts: bool = False  # a part visible in no patch of an image is left out of its losses
    validation_share: float = Field(0.0, ge=0, lt=1)  # of each source's identities, held out for model selection
    workers: int = Field(2, ge=0)  # image loading threads, for sets that are not packed
    cache_gib: float = Field(64.0, ge=0)  # size limit of all packed images (reid/data/packing.py) together; 0 = none
    embed_batch: int = Field(256, gt=0)  # images per batch where no gradient is needed

    @property
    def cache_bytes(self) -> int:
        return int(self.cache_gib * 2**30)

    @model_validator(mode="before")
    @classmethod
    def _earlier_names(cls, given: Any) -> Any:
        return _renamed(given) if isinstance(given, dict) else given


class BatchConfig(Section):
    identities_per_batch: int = Field(16, gt=1)
    images_per_identity: int = Field(4, gt=0)
    balance_domains: bool = False  # every batch takes equally many identities from each source


class Stage1Config(BatchConfig):
    epochs: int = Field(120, gt=0)
    lr: float = Field(3.5e-4, gt=0)  # Adam, prompts only
    weight_decay: float = Field(1e-4, ge=0)  # coupled (Adam), not AdamW
    warmup_epochs: int = Field(5, ge=0)
    warmup_lr: float = Field(1e-5, ge=0)
    final_lr: float = Field(1e-6, ge=0)  # end of the cosine


class LossWeights(Section):
    identity: float = Field(1.0, ge=0)  # L_id
    memory: float = Field(1.0, ge=0)  # L_imp
    text: float = Field(1.0, ge=0)  # L_i2tce
    mask_bce: float = Field(1.0, ge=0)  # L_bce
    mask_dice: float = Field(1.0, ge=0)  # L_dice


class Stage2Config(BatchConfig):
    epochs: int = Field(60, gt=0)
    lr: float = Field(5e-6, gt=0)
    weight_decay: float = Field(1e-4, ge=0)
    mask_lr_factor: float = Field(10.0, gt=0)  # mask predictors learn faster and without weight decay
    warmup_epochs: int = Field(10, ge=0)
    warmup_factor: float = Field(0.1, gt=0, le=1)
    milestones: tuple[int, ...] = (30, 50)  # epochs at which the rate falls
    decay: float = Field(0.1, gt=0, le=1)
    label_smoothing: float = Field(0.1, ge=0, lt=1)
    memory_temperature: float = Field(0.01, gt=0)
    text_temperature: float = Field(1.0, gt=0)  # of L_i2tce; larger for features that are longer than CLIP's
    memory_momentum: float = Field(0.2, ge=0, le=1)  # weight of the old memory row in an update
    fill_neck: bool = False  # the neck's running statistics are those of the training images before the first step
    losses: LossWeights = LossWeights()
    sampled_identities: int | None = Field(None, gt=0)  # the losses over identities see those of the batch and others
    # redrawn in each step, so many in all (An et al. 2022, Partial FC); None = all, as in the paper
    gradient_clip: float | None = None  # maximum norm; None = off, as in the paper
    train_patch_projection: bool = False  # the paper freezes it; a random-initialised backbone must learn it
    accumulate: int = Field(1, gt=0)  # batches per optimiser step; their gradients are averaged
    ema_decay: float = Field(0.0, ge=0, lt=1)  # of averaged weights, which are then validated and scored; 0 = off
    checkpoint_every: int = Field(1, gt=0)  # epochs between two writes of latest.pt
    keep_every: int | None = Field(None, gt=0)  # epochs between two checkpoints that are never deleted; None = none


class EvalConfig(Section):
    splits: int = Field(10, gt=0)  # random splits of the sets that have none of their own
    max_rank: int = Field(50, gt=0)
    re_ranking: bool = False  # k-reciprocal (k1 = 20, k2 = 6, lambda = 0.3); the protocol line says so
    batch_size: int = Field(256, gt=0)


class LogConfig(Section):
    wandb: bool = False  # also to Weights & Biases (the extra `wandb`); WANDB_MODE=offline without a network
    mlflow: bool = False  # also to MLflow (the extra `mlflow`); without MLFLOW_TRACKING_URI to <runs>/mlflow
    project: str = "dgreid"  # its name there


class RunConfig(Section):
    preset: str = "paper"
    protocol: str = ""  # as written, see reid.protocols.protocol
    allow_pretrained_targets: bool = False  # test on data sets of `model.pretrained_on`; the protocol line says so
    seed: int = Field(0, ge=0)
    device: Literal["auto", "cpu", "cuda", "mps"] = "auto"
    devices: int = Field(1, gt=0)  # processes, one device each, that share every batch
    compile: bool = False  # torch.compile of both encoders; pays off after minutes, not in short runs
    cuda_graphs: bool = False  # with compile, on a GPU: kernels of the image encoder are recorded once and replayed
    precision: Literal["auto", "32-true", "bf16-mixed", "16-mixed"] = "auto"  # auto: bf16-mixed on GPUs that have it
    tf32: bool = False  # GPUs may round the factors of float32 products; faster, and no longer what a CPU computes
    model: ModelConfig = ModelConfig()
    data: DataConfig = DataConfig()
    stage1: Stage1Config = Stage1Config()
    stage2: Stage2Config = Stage2Config()
    evaluation: EvalConfig = EvalConfig()
    log: LogConfig = LogConfig()

    @model_validator(mode="after")
    def _weights_are_named(self) -> "RunConfig":
        if self.model.weights_file and not self.model.weights_sha256:
            raise ValueError("model.weights_file needs model.weights_sha256, so that a run names its weights")
        return self

    @model_validator(mode="after")
    def _graphs_are_of_compiled_code(self) -> "RunConfig":
        if self.cuda_graphs and not self.compile:
            raise ValueError("cuda_graphs needs compile")
        return self


def preset_names() -> list[str]:
    return sorted(Path(entry.name).stem for entry in _preset_folder().iterdir() if entry.name.endswith(".yaml"))


def load_config(preset: str, overrides: Sequence[str] = (), **top_level: Any) -> RunConfig:
    """Build the configuration from a preset (a shipped name or a path to a YAML file) and overrides.

    Args:
        preset: e.g. "tiny", or "my/preset.yaml".
        overrides: `section.key=value`, values in YAML, e.g. "stage2.epochs=3".
        top_level: further keys of RunConfig, e.g. protocol="a2b".
    Raises:
        ConfigError: unknown preset or key (the known ones are listed), or a value of the wrong type or range.
    """
    given = _read_preset(preset)
    given["preset"] = Path(preset).stem
    for override in overrides:
        _apply(given, override)
    given.update(top_level)
    return parse_config(given, where=f"preset {preset}" + (f" with {', '.join(overrides)}" if overrides else ""))


def parse_config(given: dict[str, Any], where: str) -> RunConfig:
    """Validate a configuration mapping; `where` names its origin in the error. Raises ConfigError."""
    try:
        return RunConfig.model_validate(given)
    except ValidationError as err:
        problems = "; ".join(_explain(problem) for problem in err.errors())
        raise ConfigError(f"{where}: {problems}", fix="correct the key or value and run the command again") from err


def flat_settings(config: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """`section.key` -> value of a configuration as plain data; an empty section is a value."""
    flat: dict[str, Any] = {}
    for key, value in config.items():
        if isinstance(value, Mapping) and value:
            flat |= flat_settings(value, f"{prefix}{key}.")
        else:
            flat[f"{prefix}{key}"] = value
    return flat


def different_settings(before: Mapping[str, Any], now: Mapping[str, Any]) -> dict[str, Any]:
    """`section.key` -> value in `now` of every setting that is another one in `before`; None where `now` has none."""
    old, new = flat_settings(before), flat_settings(now)
    return {key: new.get(key) for key in sorted(old.keys() | new.keys()) if old.get(key) != new.get(key)}


def read_config(run_folder: Path) -> RunConfig:
    """The frozen configuration of a run. Raises DataError when there is no such run, ConfigError when it is damaged."""
    path = run_folder / "config.yaml"
    if not path.is_file():
        raise DataError("there is no such run", path=path, fix="dgreid train <sources>2<target>")
    try:
        given = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, yaml.YAMLError) as err:
        raise _not_yaml(path, err) from err
    if not isinstance(given, dict):
        raise ConfigError("not a configuration", path=path, fix="restore the file, or train again with another --run")
    return parse_config(given, where=str(path))


def _not_yaml(path: Any, err: Exception) -> ConfigError:
    return ConfigError(f"not readable as YAML: {str(err).splitlines()[0]}", path=str(path), fix="correct the file")


def _preset_folder() -> Any:
    return resources.files("reid") / "presets"


def _read_preset(preset: str) -> dict[str, Any]:
    source: Any = Path(preset) if preset.endswith((".yaml", ".yml")) else _preset_folder() / f"{preset}.yaml"
    if not source.is_file():
        known = ", ".join(preset_names())
        raise ConfigError(
            f"there is no preset {preset!r}{did_you_mean(preset, preset_names())}",
            fix=f"choose one of {known}, or give a path to a .yaml file",
        )
    try:
        given = yaml.safe_load(source.read_text(encoding="utf-8")) or {}
    except (ValueError, yaml.YAMLError) as err:
        raise _not_yaml(source, err) from err
    if not isinstance(given, dict):
        raise ConfigError("a preset must be a mapping of sections", path=str(source), fix="see reid/presets/tiny.yaml")
    if isinstance(given.get("data"), dict):
        given["data"] = _renamed(given["data"])  # before overrides are applied under the present names
    return given


def _apply(given: dict[str, Any], override: str) -> None:
    key, equals, text = override.partition("=")
    if not equals or not key:
        raise ConfigError(f"override {override!r} is not key=value", fix="write it like stage2.epochs=3")
    *sections, last = key.split(".")
    for section in sections:
        given = given.setdefault(section, {})
        if not isinstance(given, dict):
            raise ConfigError(f"override {override!r}: {section} is not a section", fix="see reid/config.py")
    given[RENAMED.get(last, last) if sections == ["data"] else last] = _yaml_value(text)


def _yaml_value(text: str) -> Any:
    try:
        return float(text) if "e" in text.lower() else yaml.safe_load(text)  # YAML reads 1e-4 as a string
    except ValueError:
        return yaml.safe_load(text)


def _explain(problem: Any) -> str:
    place = ".".join(str(step) for step in problem["loc"])
    if problem["type"] != "extra_forbidden":
        return f"{place or 'configuration'}: {problem['msg']}"
    section: Any = RunConfig
    for step in problem["loc"][:-1]:
        section = section.model_fields[step].annotation
    known = section.model_fields
    return f"unknown key {place}{did_you_mean(str(problem['loc'][-1]), known)} (known here: {', '.join(known)})"
