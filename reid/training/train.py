"""One training run from its configuration to stage2/latest.pt; killed at any moment, it continues where it was."""

import json
import logging
from pathlib import Path

from reid.config import RunConfig
from reid.data.training_set import build_training_set
from reid.model.muva import build_model
from reid.protocols.protocol import parse_protocol
from reid.training.job import make_job
from reid.training.run_folder import open_run
from reid.training.stage1 import learn_prompts
from reid.training.stage2 import train_images
from reid.training.validation import hold_out
from shared.errors import ConfigError
from shared.files import write_text
from shared.labels import write_table
from shared.workspace import Workspace

log = logging.getLogger(__name__)


def train(config: RunConfig, workspace: Workspace, run_folder: Path) -> None:
    """Train both stages of `config.protocol` in `run_folder`, or continue an interrupted run there.

    On the CPU an interrupted and continued run gives the same bits as an uninterrupted one.

    Raises:
        ConfigError: the protocol, device or label run is not to be had, or the folder holds a run of another
            configuration.
        DataError: manifests or labels are missing.
        DgreidError: the loss is not finite, an image cannot be read any more, or data changed since the run began.
    """
    protocol = parse_protocol(config.protocol, workspace.data_root)
    data, held_out = build_training_set(protocol, config.data, config.model.parts, workspace), None
    if config.data.validation_share:
        data, held_out = hold_out(data, config.data.validation_share, config.seed)
    open_run(run_folder, config.model_dump(mode="json"))
    record = {**data.record(), "held_out_identities": len(held_out.data.identities) if held_out else 0}
    write_text(run_folder / "training_set.json", json.dumps(record, indent=2) + "\n")
    write_table(data.images(), run_folder / "training_images.parquet")
    log.info("%d images of %d identities from %s", len(data), len(data.identities), ", ".join(data.sources))
    if strangers := sorted(set(config.model.domain_contexts) - set(data.sources)):
        raise ConfigError(
            f"model.domain_contexts names {', '.join(strangers)}, not a source of {config.protocol}",
            fix=f"name only {', '.join(data.sources)}",
        )
    datasets = [name for name, _ in data.identities]
    model = build_model(config.model, len(datasets), seed=config.seed, datasets=datasets)
    job = make_job(config, data, workspace.data_root, run_folder, model.grid, held_out)
    model.to(job.fabric.device)
    if config.compile:
        model.image_encoder.compile()
        model.text_encoder.compile()
    train_images(model, job, learn_prompts(model, job))
