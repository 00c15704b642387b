"""One training run from its configuration to stage2/latest.pt; it can be interrupted at any moment and resumed."""

import json
import logging
from dataclasses import replace
from pathlib import Path
from typing import Any

from lightning_fabric import Fabric

from reid.config import RunConfig, parse_config
from reid.data.training_set import TrainingSet, build_training_set
from reid.inference.devices import joined
from reid.model.muva import build_model
from reid.protocols.protocol import Protocol, evaluation_splits, shared_images
from reid.protocols.splits import has_valid_query
from reid.training.job import make_job
from reid.training.mask_form import choose_mask_form
from reid.training.run_folder import check_run, open_run, write_image_ids, write_training_images
from reid.training.stage1 import learn_prompts
from reid.training.stage2 import train_images
from reid.training.trackers import check_trackers, open_trackers
from reid.training.validation import hold_out
from shared.errors import ConfigError, DataError
from shared.files import write_text
from shared.manifest import read_manifest
from shared.schemas import ManifestRow
from shared.workspace import Workspace

log = logging.getLogger(__name__)


def train(
    protocol: Protocol, config: RunConfig, workspace: Workspace, run_folder: Path, fabric: Fabric | None = None
) -> None:
    """Train both stages in `run_folder`, or resume an interrupted run there.

    On the CPU an interrupted and resumed run gives the same bits as an uninterrupted one.

    Args:
        protocol: the one that `config.protocol` is the text of.
        fabric: the devices, of all processes that train; None: those of the configuration.
    Raises:
        ConfigError: the device or label run is unavailable, the folder holds a run of another configuration, or images
            of a target would be trained on.
        DataError: manifests or labels are missing, or no target can be scored.
        DgreidError: the loss is not finite, an image can no longer be read, or data changed since the run began.
    """
    if config.protocol != protocol.name:
        raise ConfigError(
            f"the configuration is for protocol {config.protocol!r}, not {protocol.name!r}",
            fix="load_config(..., protocol=protocol.name)",
        )
    check_trackers(config.log)
    fabric = fabric or joined(config)
    data, held_out = build_training_set(protocol, config.data, config.model.parts, workspace), None
    if fabric.is_global_zero:
        check_targets(protocol, data, workspace)
    image_ids = data.image_ids
    if config.data.validation_share:
        data, held_out = hold_out(data, config.data.validation_share, config.seed)
    check_run(run_folder, config.model_dump(mode="json"), upgraded=_upgraded)
    log.info("%d images of %d identities from %s", len(data), len(data.identities), ", ".join(data.sources))
    if unknown := sorted(set(config.model.domain_contexts) - set(data.sources)):
        raise ConfigError(
            f"model.domain_contexts names {', '.join(unknown)}, not a source of {protocol.name}",
            fix=f"name only {', '.join(data.sources)}",
        )
    datasets = [name for name, _ in data.identities]
    model = build_model(config.model, len(datasets), seed=config.seed, datasets=datasets)
    job = make_job(config, data, workspace, run_folder, model.grid, held_out, fabric)
    if fabric.is_global_zero:  # nothing is written before everything that training needs is there
        open_run(run_folder, config.model_dump(mode="json"), upgraded=_upgraded)
        write_image_ids(run_folder, image_ids)
        write_training_images(run_folder, data.datasets, data.paths)
        record = {**data.record(), "held_out_identities": len(held_out.data.identities) if held_out else 0}
        write_text(run_folder / "training_set.json", json.dumps(record, indent=2) + "\n")
        job = replace(job, trackers=open_trackers(run_folder, config))
    fabric.barrier()
    model.to(fabric.device)
    if config.model.attention_mask == "auto":
        size = config.stage2.identities_per_batch * config.stage2.images_per_identity // fabric.world_size
        choose_mask_form(model.image_encoder, fabric, size, compiled=config.compile)
    if config.compile:
        mode = "reduce-overhead" if config.cuda_graphs else None
        # a batch has one size in training and one in the feature bank
        model.image_encoder.compile(dynamic=False, mode=mode)
        model.text_encoder.compile()
    try:
        train_images(model, job, learn_prompts(model, job))
    finally:
        for tracker in job.trackers:
            tracker.close()


def check_targets(protocol: Protocol, data: TrainingSet, workspace: Workspace) -> None:
    """Check before training that targets can be scored and that none of their images is trained on.

    Only a target's manifest is read; a target without one is named in the log. A target without valid queries is
    named too, and does not stop the training as long as another one may be scored.

    Raises ConfigError when images of a cross-domain target are trained on, DataError when no target can be scored.
    """
    trained_on, problems = frozenset(data.image_ids), {}
    for target in protocol.targets:
        manifest = workspace.manifest(target)
        if not manifest.is_file():
            log.warning("target %s is not checked: no manifest yet (dgreid manifest %s)", target, target)
            continue
        rows = read_manifest(manifest)
        _check_overlap(protocol, target, shared_images(trained_on, rows))
        if problem := _why_unscorable(protocol, target, rows):
            problems[target] = problem
            log.warning("target %s cannot be scored: %s", target, problem)
    if len(problems) == len(protocol.targets):
        raise DataError(
            "no target can be scored: " + "; ".join(problems.values()),
            fix="name a target with query and gallery images of the same people from two cameras",
        )


def _check_overlap(protocol: Protocol, target: str, shared: list[ManifestRow]) -> None:
    if not shared:
        return
    message = f"{len(shared):,} query and gallery images of {target} are trained on, e.g. {shared[0].path}"
    if not protocol.supervised:
        raise ConfigError(
            f"{message}: that would not be a cross-domain score",
            fix="name other sources or targets; if one data set is a copy of the other, use one of them",
        )
    log.warning("%s", message)


def _why_unscorable(protocol: Protocol, target: str, rows: list[ManifestRow]) -> str:
    """Empty if the target can be scored."""
    try:
        splits = evaluation_splits(protocol, target, rows)
    except DataError as err:
        return err.what
    if any(has_valid_query(split) for split in splits):
        return ""
    return f"no query of {target} has a gallery image of its identity from another camera"


def _upgraded(before: dict[str, Any]) -> dict[str, Any]:
    return parse_config(before, where="config.yaml of the run folder").model_dump(mode="json")
