"""`bench-dg`: what each piece of the method adds on data sets that training never saw. Rows x seeds, resumable."""

from typing import Annotated

import typer

from pipelines.datasets import scan
from pipelines.label import embedded_settings, label_dataset
from pipelines.terminal import say
from shared.workspace import Workspace

PROTOCOL = "3dpes+caviar+towncentre2viper+grid+prid+ilids"


def bench_dg(
    overrides: Annotated[list[str] | None, typer.Argument(help="section.key=value for every row")] = None,
    protocol: Annotated[str, typer.Option(help="<sources>2<targets>")] = PROTOCOL,
    preset: Annotated[str, typer.Option(help="of every row")] = "pocket",
    seeds: Annotated[int, typer.Option(help="trainings per row", min=1)] = 3,
    engine: Annotated[str, typer.Option(help="of the grounder's boxes: local, vllm_server")] = "local",
) -> None:
    """Label the sources, train and score every row with every seed, write runs/bench/dg.json, .md and .html."""
    from pipelines.recipes.benchmark import BUDGET, GROUNDER_LABELS, PRIOR_LABELS, benchmark_table, run_benchmark
    from reid.config import load_config
    from reid.protocols.protocol import parse_protocol

    workspace = Workspace.from_environment()
    given = (*BUDGET, *(overrides or ()))
    config = load_config(preset, given)
    parsed = parse_protocol(
        protocol,
        workspace.data_root,
        pretrained_on=config.model.pretrained_on,
        allow_pretrained_targets=config.allow_pretrained_targets,
    )
    for name in (*parsed.sources, *parsed.targets):
        scan(name, workspace)
    for label_run, maker in ((PRIOR_LABELS, "body_prior"), (GROUNDER_LABELS, engine)):
        settings = embedded_settings(maker)
        for source in parsed.sources:
            if problem := label_dataset(source, workspace, settings, label_run=label_run).problem:
                say(f"left out of training: {problem}", err=True)
    folder = workspace.on_disk / "bench"
    summary = run_benchmark(preset, parsed, overrides or (), seeds, workspace, folder)
    say(benchmark_table(summary))
    say(f"written: {folder / 'dg.json'}, dg.md, dg.html")
