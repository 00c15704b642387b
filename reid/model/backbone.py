"""CLIP from open_clip: by name and tag, from a local file with its digest, or of our own architecture.

Nothing is downloaded unless the configuration allows it; absent weights are an error that says where to put them.
"""

import zipfile
from importlib import resources
from pathlib import Path
from typing import Any

import huggingface_hub
import open_clip
import torch
from open_clip.constants import HF_SAFE_WEIGHTS_NAME, HF_WEIGHTS_NAME
from open_clip.transformer import ResidualAttentionBlock, VisionTransformer

from reid.config import ModelConfig
from reid.model.checkpoint import file_sha256, read_tensors
from shared.errors import ConfigError, DgreidError

_OPENAI_EXTRAS = ("input_resolution", "context_length", "vocab_size")  # sizes stored as if they were weights


def load_clip(config: ModelConfig, *, load_weights: bool = True) -> Any:
    """Build open_clip's CLIP on the CPU in float32; random parts come from torch's global generator.

    Raises:
        ConfigError: no such backbone or one without a plain ViT and a causal text transformer, unknown tag, weights
            that are not on this machine, have another digest, or do not fit the architecture.
    """
    architecture = _architecture(config)
    path = _weights_path(config) if load_weights else None  # before the towers: missing weights are reported at once
    clip = _build(config, architecture)
    if path is not None:
        state = {key: value for key, value in _read_weights(path).items() if key not in _OPENAI_EXTRAS}
        try:
            clip.load_state_dict(state)
        except RuntimeError as err:
            raise ConfigError(
                f"the weights do not fit backbone {config.backbone}: {' '.join(str(err).split())[:300]}",
                path=path,
                fix="name the backbone that these weights were trained with in model.backbone",
            ) from err
    return clip


def _architecture(config: ModelConfig) -> dict[str, Any]:
    if config.architecture is not None:
        return config.architecture
    known = open_clip.list_models()
    if config.backbone not in known:
        alike = [name for name in known if name.startswith(config.backbone[:5])] or known
        raise ConfigError(
            f"open_clip has no model {config.backbone!r}",
            fix=f"set model.backbone to one of {', '.join(alike[:12])}, ... (all: open_clip.list_models())",
        )
    architecture: dict[str, Any] = open_clip.get_model_config(config.backbone)
    return architecture


def _build(config: ModelConfig, architecture: dict[str, Any]) -> Any:
    try:
        clip = open_clip.CLIP(**architecture)
    except (TypeError, AssertionError) as err:  # unknown keys, another text tower, widths that do not divide
        raise _unsuitable(config, str(err)) from err
    if reason := _why_unsuitable(clip):
        raise _unsuitable(config, reason)
    return clip


def _why_unsuitable(clip: Any) -> str:
    visual = clip.visual
    if not isinstance(visual, VisionTransformer) or visual.conv1.kernel_size[0] != visual.conv1.kernel_size[1]:
        return "its image encoder is not a vision transformer with square patches"
    if visual.attn_pool is not None or visual.pool_type != "tok" or visual.final_ln_after_pool:
        return "its image feature is not the class token"
    if not isinstance(visual.patch_dropout, torch.nn.Identity):
        return "it drops patches"
    if not isinstance(clip.text_projection, torch.nn.Parameter) or clip.text_pool_type != "argmax":
        return "its text feature is not the projected end-of-text token"
    if clip.attn_mask is None:
        return "its text transformer is not causal"
    blocks = [*visual.transformer.resblocks, *clip.transformer.resblocks]
    if not all(isinstance(block, ResidualAttentionBlock) for block in blocks):
        return "its blocks are not plain pre-norm attention blocks"
    if clip.vocab_size != 49408:
        return f"its vocabulary has {clip.vocab_size} words, the CLIP tokenizer 49408"
    return ""


def _unsuitable(config: ModelConfig, reason: str) -> ConfigError:
    return ConfigError(
        f"backbone {config.backbone} cannot be used: {reason}",
        fix="choose a CLIP with a plain ViT, e.g. model.backbone=ViT-B-16-quickgelu, or correct model.architecture",
    )


def _weights_path(config: ModelConfig) -> Path | None:
    """The file to load, or None for random weights."""
    if config.weights_file is not None:
        return _checked_file(_located(config.weights_file), config.weights_sha256)
    if config.pretrained is None:
        return None
    source = open_clip.get_pretrained_cfg(config.backbone, config.pretrained)
    if not source:
        tags = ", ".join(open_clip.list_pretrained_tags_by_model(config.backbone)) or "none"
        raise ConfigError(
            f"open_clip has no weights {config.pretrained!r} for {config.backbone}",
            fix=f"set model.pretrained to one of its tags ({tags}), or model.pretrained=null for random weights",
        )
    if cached := _cached_file(source):
        return cached
    if not config.allow_download:
        raise _missing_weights(config, source)
    return _download(config, source)


def _located(path: Path) -> Path:
    """A relative path means the working folder, or else the place of these packages: a preset names shipped weights."""
    shipped = Path(str(resources.files("reid"))).parent / path
    return shipped if shipped.is_file() and not path.exists() else path


def _checked_file(path: Path, sha256: str | None) -> Path:
    if not path.is_file():
        raise ConfigError("no such weights file", path=path, fix="put the file there, or correct model.weights_file")
    if sha256 and (found := file_sha256(path)) != sha256.lower():
        raise ConfigError(
            f"the weights file has SHA-256 {found}, the configuration asks for {sha256}",
            path=path,
            fix="fetch the file again, or correct model.weights_sha256",
        )
    return path


def _cached_file(source: dict[str, Any]) -> Path | None:
    """Where open_clip would have put an earlier download: the Hugging Face cache, or its own folder."""
    if hub := source.get("hf_hub"):
        repository, _, name = hub.rpartition("/")
        for file in (name,) if name else (HF_SAFE_WEIGHTS_NAME, HF_WEIGHTS_NAME):
            found = huggingface_hub.try_to_load_from_cache(repository, file)
            if isinstance(found, str):  # otherwise None, or a mark that the hub has no such file
                return Path(found)
    if url := source.get("url"):
        candidate = _own_cache(url)
        # OpenAI's links carry the digest as a folder; without one the name is all there is to go by
        if candidate.is_file():
            return _checked_file(candidate, _digest_in(url))
    return None


def _own_cache(url: str) -> Path:
    return Path.home() / ".cache" / "clip" / url.rpartition("/")[2]


def _digest_in(url: str) -> str | None:
    folder = url.split("/")[-2]
    return folder if len(folder) == 64 else None


def _missing_weights(config: ModelConfig, source: dict[str, Any]) -> ConfigError:
    url, repository = source.get("url", ""), source.get("hf_hub", "").rpartition("/")[0]
    origin = url or f"https://huggingface.co/{repository}"
    digest = (url and _digest_in(url)) or "<its SHA-256>"
    return ConfigError(
        f"the weights {config.pretrained!r} of {config.backbone} are not on this machine",
        path=_own_cache(url) if url else None,
        fix=f"fetch them from {origin}, put the file anywhere and set model.weights_file=<file> "
        f"model.weights_sha256={digest}; or set model.allow_download=true; "
        "or model.pretrained=null for a randomly initialised backbone",
    )


def _download(config: ModelConfig, source: dict[str, Any]) -> Path:
    try:
        return Path(open_clip.download_pretrained(source))
    except (OSError, RuntimeError) as err:  # network failures are OSErrors; a wrong digest is a RuntimeError
        raise ConfigError(
            f"the weights {config.pretrained!r} of {config.backbone} could not be downloaded: {err}",
            fix="check the network, or fetch the file by hand and set model.weights_file and model.weights_sha256",
        ) from err


def _read_weights(path: Path) -> dict[str, Any]:
    """Tensors by open_clip's names from safetensors, a torch file or OpenAI's TorchScript archive."""
    if path.suffix != ".safetensors" and _is_torchscript(path):
        try:
            archive: Any = torch.jit.load(str(path), map_location="cpu")  # type: ignore[no-untyped-call]
            return dict(archive.state_dict())
        except RuntimeError as err:
            raise DgreidError(f"not readable as TorchScript: {err}", path=path, fix="fetch the file again") from err
    return read_tensors(path)


def _is_torchscript(path: Path) -> bool:
    if not zipfile.is_zipfile(path):
        return False
    with zipfile.ZipFile(path) as archive:
        return any("/code/" in name for name in archive.namelist())
