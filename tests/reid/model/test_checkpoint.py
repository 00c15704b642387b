import hashlib
import json
import pickle
from pathlib import Path

import numpy as np
import pytest
import torch

from reid.config import Stage2Config, load_config
from reid.model.checkpoint import (
    file_sha256,
    load_checkpoint,
    load_tensors,
    read_tensors,
    save_checkpoint,
    save_tensors,
)
from reid.model.muva import build_model
from reid.training.optimizer import image_optimizer
from shared.errors import DgreidError


class Trap:
    """Pickles into a call that leaves a file behind."""

    def __init__(self, mark: Path) -> None:
        self.mark = mark

    def __reduce__(self):
        return (Path.touch, (self.mark,))


def test_model_optimiser_and_generator_come_back_exactly(model_config, tmp_path):
    model = build_model(model_config(), 4, seed=0)
    optimizer = image_optimizer(model, Stage2Config())
    model.encode_images(torch.randn(2, 3, 48, 24)).features.sum().backward()
    optimizer.step()
    path = tmp_path / "new" / "latest.pt"
    meta = {"config": load_config("tiny").model_dump(mode="json"), "epoch": 3}
    state = {"model": model.state_dict(), "optimizer": optimizer.state_dict(), "generator": torch.get_rng_state()}
    save_checkpoint(path, state, meta)
    loaded, loaded_meta = load_checkpoint(path)
    assert loaded_meta == json.loads(json.dumps(meta))
    assert torch.equal(loaded["generator"], state["generator"])
    other = build_model(model_config(), 4, seed=9, load_weights=False)
    other.load_state_dict(loaded["model"])
    assert all(torch.equal(a, b) for a, b in zip(model.state_dict().values(), other.state_dict().values(), strict=True))
    restored = image_optimizer(other, Stage2Config())
    restored.load_state_dict(loaded["optimizer"])
    first, second = optimizer.state_dict()["state"], restored.state_dict()["state"]
    assert first.keys() == second.keys() and first
    assert all(torch.equal(first[index]["exp_avg"], second[index]["exp_avg"]) for index in first)
    assert [entry.name for entry in path.parent.iterdir()] == ["latest.pt"]


def test_a_failed_write_keeps_the_old_checkpoint(tmp_path, monkeypatch):
    path = tmp_path / "latest.pt"
    save_checkpoint(path, {"a": torch.zeros(3)}, {"epoch": 1})

    def half(content, place):
        Path(place).write_bytes(b"half")
        raise OSError("disk full")

    monkeypatch.setattr(torch, "save", half)
    with pytest.raises(DgreidError, match="disk full"):
        save_checkpoint(path, {"a": torch.ones(3)}, {"epoch": 2})
    assert load_checkpoint(path)[1] == {"epoch": 1}
    assert [entry.name for entry in tmp_path.iterdir()] == ["latest.pt"]


def test_every_damaged_byte_and_every_cut_is_noticed(tmp_path):
    path = tmp_path / "latest.pt"
    values = torch.randn(2000)
    save_checkpoint(path, {"a": values}, {"epoch": 1})
    whole = path.read_bytes()
    for place in range(0, len(whole), 97):
        damaged = bytearray(whole)
        damaged[place] ^= 0x41
        path.write_bytes(bytes(damaged))
        try:
            state, meta = load_checkpoint(path)
        except DgreidError:
            continue
        assert torch.equal(state["a"], values) and meta == {"epoch": 1}  # a byte that nothing reads
    for length in (0, 1, len(whole) // 2, len(whole) - 1):
        path.write_bytes(whole[:length])
        with pytest.raises(DgreidError, match="cannot read the file"):
            load_checkpoint(path)


def test_pickled_code_is_refused_and_not_run(tmp_path):
    mark = tmp_path / "ran"
    for name, write in {
        "zip.pt": lambda path: torch.save({"format": "dgreid.checkpoint.1", "state": Trap(mark)}, path),
        "bare.pt": lambda path: path.write_bytes(pickle.dumps(Trap(mark))),
    }.items():
        write(tmp_path / name)
        for read in (load_checkpoint, read_tensors):
            with pytest.raises(DgreidError, match="cannot read the file"):
                read(tmp_path / name)
    assert not mark.exists()


def test_what_could_not_be_read_back_is_not_written(tmp_path):
    path = tmp_path / "latest.pt"
    for state in ({"a": np.zeros(2)}, {"a": [{"b": Path("x")}]}, {"f": lambda: None}):
        with pytest.raises(TypeError, match=r"state\.[af]"):
            save_checkpoint(path, state, {})
    with pytest.raises(TypeError):
        save_checkpoint(path, {}, {"path": tmp_path})
    assert not path.exists()


def test_missing_and_foreign_files(tmp_path):
    with pytest.raises(DgreidError, match="No such file"):
        load_checkpoint(tmp_path / "none.pt")
    torch.save({"a": torch.zeros(1)}, tmp_path / "foreign.pt")
    with pytest.raises(DgreidError, match="not a checkpoint of dgreid"):
        load_checkpoint(tmp_path / "foreign.pt")
    torch.save([1, 2], tmp_path / "list.pt")
    with pytest.raises(DgreidError, match="no table of tensors"):
        read_tensors(tmp_path / "list.pt")


def test_named_tensors_with_metadata(tmp_path):
    path = tmp_path / "prompts.safetensors"
    contexts = torch.nn.Parameter(torch.randn(3, 4).T)  # not contiguous, with gradient
    save_tensors(path, {"contexts": contexts}, {"identities": "abc"})
    tensors, metadata = load_tensors(path)
    assert torch.equal(tensors["contexts"], contexts.detach()) and metadata == {"identities": "abc"}
    assert torch.equal(read_tensors(path)["contexts"], contexts.detach())
    path.write_bytes(path.read_bytes()[:40])
    with pytest.raises(DgreidError, match="cannot read the file"):
        load_tensors(path)
    with pytest.raises(DgreidError, match="No such file"):
        load_tensors(tmp_path / "none.safetensors")


def test_file_sha256(tmp_path):
    path = tmp_path / "file"
    path.write_bytes(b"abc" * 100_000)
    assert file_sha256(path) == hashlib.sha256(b"abc" * 100_000).hexdigest()
    with pytest.raises(DgreidError):
        file_sha256(tmp_path / "none")
