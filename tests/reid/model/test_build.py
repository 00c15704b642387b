import hashlib
import math

import open_clip
import pytest
import torch
from safetensors.torch import save_file
from torch.nn import functional as F

from reid.config import ModelConfig, load_config
from reid.model.muva import build_model, part_slices
from shared.errors import ConfigError, DgreidError


@pytest.fixture
def no_downloads(monkeypatch, tmp_path):
    """An empty home, empty caches, and a failure where open_clip would reach for the network."""

    def refuse(*args, **kwargs):
        raise AssertionError("a download was started")

    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setattr("huggingface_hub.try_to_load_from_cache", lambda *args: None)
    monkeypatch.setattr("open_clip.download_pretrained", refuse)
    return tmp_path


def test_the_seed_decides_and_the_global_generator_is_left_alone(model_config):
    before = torch.get_rng_state()
    first, again, other = (build_model(model_config(), 6, seed=seed).state_dict() for seed in (1, 1, 2))
    assert torch.equal(torch.get_rng_state(), before)
    assert all(torch.equal(first[name], again[name]) for name in first)
    assert not torch.equal(first["classifier.weight"], other["classifier.weight"])


def test_public_figures_neck_and_classifier(model_config):
    model = build_model(model_config(), 200, seed=0)
    assert (model.num_parts, model.feature_dim, model.num_identities, model.grid.count) == (3, 48, 200, 18)
    assert model.classifier.bias is None and abs(model.classifier.weight.std().item() - 0.001) < 1e-4
    assert not model.bnneck.bias.requires_grad and not model.bnneck.bias.any()
    features = torch.randn(32, 48) * 3 + 2
    normalised = model.train().neck(features)
    torch.testing.assert_close(normalised.mean(0), torch.zeros(48), atol=1e-5, rtol=0)
    assert model.classify(normalised).shape == (32, 200)


def test_one_pass_moves_the_necks_statistics_like_two_of_the_reference(model_config):
    model = build_model(model_config(), 3, seed=0).train()
    features = torch.randn(32, 48) * 3 + 2
    mean, variance = torch.zeros(48), torch.ones(48)
    for _ in range(2):
        mean = 0.9 * mean + 0.1 * features.mean(0)
        variance = 0.9 * variance + 0.1 * features.var(0, unbiased=True)
    model.neck(features)
    torch.testing.assert_close(model.bnneck.running_mean, mean)
    torch.testing.assert_close(model.bnneck.running_var, variance)


@torch.no_grad()
def test_retrieval_features_come_after_the_neck_and_have_length_one(model_config):
    model = build_model(model_config(), 3, seed=0).eval()
    model.bnneck.running_mean.normal_()
    model.bnneck.running_var.uniform_(0.5, 2)
    images = torch.randn(5, 3, 48, 24)
    features = model.encode_images(images).features
    neck = (features - model.bnneck.running_mean) / torch.sqrt(model.bnneck.running_var + 1e-5)
    expected = neck / neck.norm(dim=1, keepdim=True)
    torch.testing.assert_close(model.retrieval_features(images), expected, rtol=1e-4, atol=1e-5)
    assert torch.equal(model(images).features, features)


@torch.no_grad()
def test_the_untrained_tiny_preset_tells_images_apart():
    config = load_config("tiny").model
    model = build_model(config, 3, seed=0).eval()
    coarse = torch.rand(8, 3, 8, 4, generator=torch.Generator().manual_seed(0)) * 2 - 1
    images = F.interpolate(coarse, size=config.image_size, mode="bilinear")
    features = model.encode_images(images).features.view(8, 4, -1)
    spread = (features - features.mean(0)).norm(dim=-1) / features.norm(dim=-1)  # (8, granularities)
    assert spread.min() > 0.05
    assert torch.isfinite(features).all()
    assert torch.equal(model.encode_images(images).features.view(8, 4, -1), features)


def test_absent_weights_say_what_to_fetch_and_where_to_name_it(no_downloads):
    with pytest.raises(ConfigError) as caught:
        build_model(ModelConfig(), 3, seed=0)
    message = str(caught.value)
    digest = "5806e77cd80f8b59890b7e101eabd078d9fb84e6937f9e85e4ecb61988df416f"
    for piece in ("ViT-B-16-quickgelu", "openai", f"model.weights_sha256={digest}", "model.weights_file="):
        assert piece in message
    assert f"https://openaipublic.azureedge.net/clip/models/{digest}/ViT-B-16.pt" in message
    assert "model.allow_download=true" in message


@pytest.mark.parametrize("suffix", [".pt", ".safetensors"])
def test_weights_from_a_local_file_with_its_digest(model_config, tmp_path, suffix):
    torch.manual_seed(5)
    clip = open_clip.CLIP(**model_config().architecture)
    path = tmp_path / f"clip{suffix}"
    if suffix == ".pt":
        torch.save({"state_dict": {f"module.{name}": tensor for name, tensor in clip.state_dict().items()}}, path)
    else:
        save_file(clip.state_dict(), path)
    digest = hashlib.sha256(path.read_bytes()).hexdigest()
    model = build_model(model_config(weights_file=path, weights_sha256=digest), 3, seed=0)
    assert torch.equal(model.image_encoder.proj, clip.visual.proj)
    assert torch.equal(model.text_encoder.text_projection, clip.text_projection)
    random = build_model(model_config(weights_file=path, weights_sha256=digest), 3, seed=0, load_weights=False)
    assert not torch.equal(random.image_encoder.proj, clip.visual.proj)
    with pytest.raises(ConfigError, match=digest):
        build_model(model_config(weights_file=path, weights_sha256="0" * 64), 3, seed=0)
    path.write_bytes(b"not weights")
    digest = hashlib.sha256(b"not weights").hexdigest()
    with pytest.raises(DgreidError, match="cannot read the file"):
        build_model(model_config(weights_file=path, weights_sha256=digest), 3, seed=0)


@pytest.mark.filterwarnings("ignore:.*torch.jit")
def test_weights_from_openais_torchscript_archive_in_half_precision(model_config, tmp_path):
    class Archive(torch.nn.Module):
        def __init__(self, clip):
            super().__init__()
            self.visual, self.transformer, self.token_embedding = clip.visual, clip.transformer, clip.token_embedding
            self.ln_final, self.positional_embedding = clip.ln_final, clip.positional_embedding
            self.text_projection, self.logit_scale = clip.text_projection, clip.logit_scale
            self.register_buffer("input_resolution", torch.tensor(48))

        def forward(self, images):
            return images + 0

    torch.manual_seed(5)
    clip = open_clip.CLIP(**model_config().architecture).half().eval()
    path = tmp_path / "ViT.pt"
    torch.jit.trace(Archive(clip), torch.zeros(1)).save(str(path))
    digest = hashlib.sha256(path.read_bytes()).hexdigest()
    model = build_model(model_config(weights_file=path, weights_sha256=digest), 3, seed=0)
    assert model.image_encoder.proj.dtype == torch.float32
    assert torch.equal(model.image_encoder.proj, clip.visual.proj.float())


def test_weights_that_open_clip_has_cached_are_used_without_a_download(no_downloads, monkeypatch):
    found = no_downloads / "cached.safetensors"
    found.write_bytes(b"")
    asked = []

    def lookup(*place):
        asked.append(place)
        return str(found)

    monkeypatch.setattr("huggingface_hub.try_to_load_from_cache", lookup)
    with pytest.raises(DgreidError, match=r"cached\.safetensors"):  # it was opened
        build_model(ModelConfig(), 3, seed=0)
    assert asked == [("timm/vit_base_patch16_clip_224.openai", "open_clip_model.safetensors")]


def test_a_failed_download_is_one_sentence(no_downloads, monkeypatch):
    def fail(source):
        raise OSError("no route to host")

    monkeypatch.setattr("open_clip.download_pretrained", fail)
    with pytest.raises(ConfigError, match="no route to host"):
        build_model(ModelConfig(allow_download=True), 3, seed=0)


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        ({"backbone": "ViT-B-17", "architecture": None}, "ViT-B-17"),
        ({"backbone": "hf-hub:someone/model", "architecture": None}, "hf-hub"),
        ({"backbone": "RN50", "architecture": None}, "vision transformer"),
        ({"backbone": "ViT-B-16-SigLIP", "architecture": None}, "ViT-B-16-SigLIP"),
        ({"backbone": "coca_ViT-B-32", "architecture": None}, "coca_ViT-B-32"),
        ({"backbone": "ViT-B-16-quickgelu", "pretrained": "nonsense"}, "nonsense"),
        ({"mask_heads": 3}, "mask_heads"),
        ({"image_size": (4, 24)}, "image_size"),
    ],
)
def test_unusable_settings_are_named(model_config, no_downloads, changes, named):
    with pytest.raises(ConfigError, match=named):
        build_model(model_config(**changes), 3, seed=0)


def test_weights_of_another_architecture_are_refused(model_config, tmp_path):
    path = tmp_path / "other.pt"
    torch.save({"visual.proj": torch.zeros(2, 2)}, path)
    digest = hashlib.sha256(path.read_bytes()).hexdigest()
    with pytest.raises(ConfigError, match="do not fit"):
        build_model(model_config(weights_file=path, weights_sha256=digest), 3, seed=0)


def test_quick_gelu_follows_the_configuration(model_config):
    architecture = {**model_config().architecture, "quick_gelu": False}
    values = torch.linspace(-3, 3, 7)
    for config, expected in (
        (model_config(), values * torch.sigmoid(1.702 * values)),
        (model_config(architecture=architecture), values * 0.5 * (1 + torch.erf(values / math.sqrt(2)))),
    ):
        model = build_model(config, 3, seed=0)
        for tower in (model.image_encoder, model.text_encoder):
            torch.testing.assert_close(tower.blocks[0].mlp.gelu(values), expected)


def test_part_slices_mark_the_slices_of_present_parts():
    present = torch.tensor([[True, False], [False, False]])
    assert part_slices(present, 6).tolist() == [[1, 1, 1, 1, 0, 0], [1, 1, 0, 0, 0, 0]]
    assert part_slices(torch.ones(2, 0, dtype=torch.bool), 3).tolist() == [[1, 1, 1]] * 2
