import re
from pathlib import Path

import pytest
import yaml

import reid
from reid.config import PRETRAINED_ON, RunConfig, load_config, preset_names, read_config
from shared.errors import ConfigError, DataError


def test_every_shipped_preset_loads_and_says_its_name() -> None:
    assert {"tiny", "paper"} <= set(preset_names())
    for name in preset_names():
        assert load_config(name).preset == name


def test_the_paper_preset_has_the_papers_numbers() -> None:
    config = load_config("paper")
    assert (config.stage1.epochs, config.stage1.lr, config.stage1.weight_decay) == (120, 3.5e-4, 1e-4)
    assert (config.stage2.epochs, config.stage2.lr, config.stage2.milestones) == (60, 5e-6, (30, 50))
    assert (config.stage2.memory_temperature, config.stage2.memory_momentum) == (0.01, 0.2)
    assert config.model.image_size == (256, 128)
    assert config.precision == "16-mixed"


OFF = {  # what the paper does not use -> the value that leaves it out
    "model.soft_gate": None,
    "model.attention_mask": "auto",
    "model.domain_contexts": {},
    "model.part_agnostic_prompts": False,
    "data.leave_out_absent_parts": False,
    "data.max_images_per_identity": None,
    "data.crop_padding": 0,
    "data.erasing": 0,
    "data.colour_jitter": 0,
    "data.validation_share": 0,
    "stage1.balance_domains": False,
    "stage2.balance_domains": False,
    "stage2.ema_decay": 0,
    "stage2.text_temperature": 1,
    "stage2.fill_neck": False,
    "stage2.accumulate": 1,
    "stage2.gradient_clip": None,
    "stage2.keep_every": None,
    "stage2.sampled_identities": None,
    "compile": False,
    "devices": 1,
    "tf32": False,
    "cuda_graphs": False,
    "log.wandb": False,
    "log.mlflow": False,
}


def test_options_beyond_the_paper_are_off_in_it_and_documented() -> None:
    paper = load_config("paper").model_dump()
    for name, value in OFF.items():
        section, _, key = name.rpartition(".")
        assert (paper[section] if section else paper)[key] == value, name
    text = (Path(__file__).parents[2] / "reid" / "README.md").read_text()
    table = text.split("## Options that the paper does not use")[1].split("\n\n")[2]
    documented = {name for line in table.splitlines() for name in re.findall(r"`([a-z0-9_.]+)=", line.split("|")[1])}
    assert documented == OFF.keys()


def test_overrides_reach_their_place_with_their_type() -> None:
    config = load_config(
        "tiny", ["stage2.epochs=3", "stage2.lr=1e-4", "model.parts=[]", "stage2.losses.text=0"], protocol="a2b"
    )
    assert (config.stage2.epochs, config.stage2.lr, config.model.parts) == (3, 1e-4, ())
    assert (config.stage2.losses.text, config.stage2.losses.memory) == (0, 1)
    assert config.protocol == "a2b"


@pytest.mark.parametrize(
    ("overrides", "words"),
    [
        (["stage2.epoch=3"], ["unknown key stage2.epoch", "epochs"]),
        (["nonsense=1"], ["unknown key nonsense", "stage1"]),
        (["stage2.losses.dice=1"], ["unknown key stage2.losses.dice", "mask_dice"]),
        (["stage2.lr=-1"], ["stage2.lr", "greater than 0"]),
        (["stage2"], ["not key=value"]),
        (["seed.deeper=1"], ["seed"]),
        (["model.weights_file=w.pt"], ["weights_sha256"]),
        (["cuda_graphs=true"], ["cuda_graphs needs compile"]),
    ],
)
def test_what_cannot_be_is_refused_in_words(overrides: list[str], words: list[str]) -> None:
    with pytest.raises(ConfigError) as caught:
        load_config("tiny", overrides)
    assert all(word in str(caught.value) for word in words), str(caught.value)


def test_a_preset_file_of_ones_own(tmp_path: Path) -> None:
    mine = tmp_path / "mine.yaml"
    mine.write_text("seed: 7\n")
    assert load_config(str(mine)).seed == 7
    mine.write_text("seed: [\n")
    with pytest.raises(ConfigError, match="not readable as YAML"):
        load_config(str(mine))
    mine.write_text("- a list\n")
    with pytest.raises(ConfigError, match="mapping"):
        load_config(str(mine))
    with pytest.raises(ConfigError, match="there is no preset 'huge'"):
        load_config("huge")


def test_a_configuration_survives_its_own_dump() -> None:
    config = load_config("tiny", ["stage2.gradient_clip=1.0"])
    assert RunConfig.model_validate(config.model_dump(mode="json")) == config


@pytest.mark.parametrize(("old", "new"), [("visible_share", "patch_coverage"), ("crop_keeps", "min_box_visibility")])
def test_earlier_names_of_keys_are_read(old: str, new: str, tmp_path: Path) -> None:
    assert getattr(load_config("tiny", [f"data.{old}=0.25"]).data, new) == 0.25
    mine = tmp_path / "mine.yaml"
    mine.write_text(f"data:\n  {old}: 0.25\n")
    assert getattr(load_config(str(mine)).data, new) == 0.25
    assert getattr(load_config(str(mine), [f"data.{new}=0.75"]).data, new) == 0.75
    (tmp_path / "config.yaml").write_text(yaml.safe_dump({"data": {old: 0.25}}))
    assert getattr(read_config(tmp_path).data, new) == 0.25
    mine.write_text(f"data:\n  {old}: 0.25\n  {new}: 0.5\n")
    with pytest.raises(ConfigError, match=f"data.{old} is an earlier name of data.{new}"):
        load_config(str(mine))


def test_a_run_from_before_the_weights_moved_finds_them_and_what_they_were_trained_on(tmp_path: Path) -> None:
    shipped = load_config("pocket").model
    given = {
        **shipped.model_dump(mode="json", exclude={"pretrained_on"}),
        "weights_file": "shared/pocket/clip/open_clip_model.safetensors",
        "weights_sha256": next(iter(PRETRAINED_ON)),
    }
    (tmp_path / "config.yaml").write_text(yaml.safe_dump({"model": given}))
    found = read_config(tmp_path).model
    assert found.weights_file == shipped.weights_file and shipped.weights_file
    assert found.pretrained_on == ("3dpes", "caviar", "towncentre")
    assert (Path(reid.__file__).parent.parent / found.weights_file).is_file()


def test_a_folder_without_a_readable_configuration_is_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="no such run"):
        read_config(tmp_path)
    for content in (b"preset: [", b"\xff\xfe", b"- a list", b"nonsense: 1"):
        (tmp_path / "config.yaml").write_bytes(content)
        with pytest.raises(ConfigError, match=r"config\.yaml"):
            read_config(tmp_path)
