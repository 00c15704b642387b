"""`bench-dg`: does each piece of the method help on data sets that training never saw? Rows x seeds, resumable."""

import json
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Annotated, Any

import typer

from pipelines.datasets import scan
from pipelines.label import embedded_settings, label_dataset
from shared.errors import DgreidError
from shared.files import write_text
from shared.workspace import Workspace

PROTOCOL = "3dpes+caviar+towncentre2viper+grid+prid+ilids"
PRIOR, GROUNDER = "bench-prior", "bench-grounder"  # label runs
NO_MASK_LOSS = ("stage2.losses.mask_bce=0", "stage2.losses.mask_dice=0")


@dataclass(frozen=True)
class Row:
    """One line of the table: what is trained differently from the method."""

    name: str
    title: str
    labels: str | None  # label run; None: trained without labels
    overrides: tuple[str, ...] = ()
    trained: bool = True  # False: the model of the row `model_of` before its training
    model_of: str = ""


ROWS = (
    Row("untrained", "untrained backbone", None, trained=False, model_of="no_parts"),
    Row("no_parts", "no parts (R = 0)", None, ("model.parts=[]",)),
    Row("prior_boxes", "parts, boxes at the usual places", PRIOR),
    Row("method", "parts, boxes of the grounder: the method", GROUNDER),
    Row("no_mask_loss", "method without the mask loss", GROUNDER, NO_MASK_LOSS),
    Row("no_text", "method without the text alignment", GROUNDER, ("stage2.losses.text=0",)),
    Row("no_memory", "method without the memory term", GROUNDER, ("stage2.losses.memory=0",)),
)  # fmt: skip
BUDGET = ("data.max_images_per_identity=6", "data.missing_labels=drop")  # for every row alike


def bench_dg(
    overrides: Annotated[list[str] | None, typer.Argument(help="section.key=value for every row alike")] = None,
    protocol: Annotated[str, typer.Option(help="<sources>2<targets>")] = PROTOCOL,
    preset: Annotated[str, typer.Option(help="of every row")] = "pocket",
    seeds: Annotated[int, typer.Option(help="each row is trained so many times", min=1)] = 3,
    engine: Annotated[str, typer.Option(help="of the grounder's boxes: local, vllm_server")] = "local",
) -> None:
    """Label the sources, train and score every row with every seed, write runs/bench/dg.json, .md and .html."""
    from reid.protocols.protocol import parse_protocol
    from reid.report.benchmark import benchmark_table, summarise, write_benchmark

    workspace = Workspace.from_environment()
    parsed = parse_protocol(protocol, workspace.data_root)
    for name in (*parsed.sources, *parsed.targets):
        scan(name, workspace)
    makers = {PRIOR: "body_prior", GROUNDER: engine}
    folder, found = workspace.runs_root / "bench", {}
    given = (*BUDGET, *(overrides or ()))
    trained = [(row, seed) for seed in range(seeds) for row in ROWS if row.trained]
    for place, (row, seed) in enumerate(trained, start=1):
        typer.echo(f"[{place}/{len(trained)}] {row.title}, seed {seed}")
        if row.labels and (maker := makers.pop(row.labels, None)):
            _label(parsed.sources, row.labels, maker, workspace)
        found[row.name, seed] = _run(row, seed, (preset, parsed.name, given), workspace, folder / "dg")
        summary = summarise([asdict(row) for row in ROWS], found, baseline="no_parts")
        summary |= {"preset": preset, "protocol_name": parsed.name, "overrides": list(given), "seeds_wanted": seeds}
        write_benchmark(summary, folder)
    typer.echo(benchmark_table(summary))
    typer.echo(f"written: {folder / 'dg.json'}, dg.md, dg.html")


def _label(sources: Sequence[str], label_run: str, engine: str, workspace: Workspace) -> None:
    """Ask for the boxes when the first row needs them; images that got none are left out of training."""
    settings = embedded_settings(engine)
    for source in sources:
        if problem := label_dataset(source, workspace, settings, label_run=label_run):
            typer.echo(f"left out of training: {problem}", err=True)


def _run(
    row: Row, seed: int, common: tuple[str, str, tuple[str, ...]], workspace: Workspace, folder: Path
) -> dict[str, Any]:
    """The scores of one training: read where it is finished, continued or begun where it is not."""
    from reid.config import load_config
    from reid.evaluation.evaluate import evaluate_run, read_config
    from reid.training.train import train

    preset, protocol, given = common
    labels = (f"data.label_run={row.labels}",) if row.labels else ()
    config = load_config(preset, [*given, *labels, *row.overrides, f"seed={seed}"], protocol=protocol)
    run = folder / f"{row.name}-seed{seed}"
    scores, clock = run / "scores.json", run / "minutes.json"
    if scores.is_file() and clock.is_file() and read_config(run) == config:
        return {**json.loads(scores.read_text(encoding="utf-8")), **json.loads(clock.read_text(encoding="utf-8"))}
    started = time.monotonic()
    train(config, workspace, run)
    found = evaluate_run(run, workspace)
    if found.failed:
        raise DgreidError(f"{', '.join(found.failed)} could not be scored", path=run, fix="the same command continues")
    took = {"minutes": (time.monotonic() - started) / 60}
    write_text(clock, json.dumps(took) + "\n")
    return asdict(found) | took
