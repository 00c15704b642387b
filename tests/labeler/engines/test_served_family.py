"""A model served under any name: its family comes from its configuration or from the server."""

import json
from pathlib import Path

import httpx
import pytest

from labeler.engines.vllm_server import family_of_served
from labeler.settings import load_settings
from shared.errors import ConfigError


def settings_for(model: str, **rest):
    return load_settings(engine="vllm_server", model=model, **rest)


def server(data: object, status: int = 200) -> httpx.MockTransport:
    return httpx.MockTransport(lambda request: httpx.Response(status, json=data))


def model_folder(folder: Path, config: object) -> str:
    folder.mkdir(exist_ok=True)
    (folder / "config.json").write_text(json.dumps(config))
    return str(folder)


def test_the_configuration_of_a_folder_is_believed_before_its_name(tmp_path: Path) -> None:
    folder = model_folder(tmp_path / "qwen2-vl-mine", {"model_type": "qwen2_5_vl"})
    assert family_of_served(settings_for(folder)).name == "qwen2.5-vl"
    folder = model_folder(tmp_path / "mine", {"architectures": ["CogVLMForCausalLM"]})
    assert family_of_served(settings_for(folder)).name == "cogvlm"


@pytest.mark.parametrize("config", [[], {"model_type": None}, {"architectures": 3}, "x"])
def test_a_damaged_configuration_leaves_the_name(tmp_path: Path, config: object) -> None:
    assert family_of_served(settings_for(model_folder(tmp_path / "qwen3-vl", config))).name == "qwen3-vl"


def test_the_server_says_what_it_was_loaded_from(tmp_path: Path) -> None:
    listed = {"data": [{"id": "other", "root": "Qwen2-VL"}, {"id": "mine", "root": "Qwen/Qwen3-VL-8B-Instruct"}]}
    assert family_of_served(settings_for("mine"), server(listed)).name == "qwen3-vl"
    folder = model_folder(tmp_path / "weights", {"model_type": "qwen2_vl"})
    assert family_of_served(settings_for("mine"), server({"data": [{"id": "mine", "root": folder}]})).name == "qwen2-vl"


@pytest.mark.parametrize(
    "data", [{"data": [{"id": "mine", "root": "llava"}]}, {"data": [{"id": "mine"}]}, [], {"data": 3}]
)
def test_when_nobody_tells_the_setting_has_to(data: object) -> None:
    with pytest.raises(ConfigError, match="LABELER_FAMILY"):
        family_of_served(settings_for("mine"), server(data))
    assert family_of_served(settings_for("mine", family="cogvlm"), server(data)).name == "cogvlm"


def test_a_server_that_is_away_leaves_it_to_the_setting() -> None:
    def away(request: httpx.Request) -> httpx.Response:
        raise httpx.ConnectError("refused", request=request)

    with pytest.raises(ConfigError, match="LABELER_FAMILY"):
        family_of_served(settings_for("mine"), httpx.MockTransport(away))
