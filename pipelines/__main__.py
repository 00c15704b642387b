"""The command `dgreid` (also `python -m pipelines`). A command's module is imported when it is the one called."""

import importlib
import logging
import os
import sys
from typing import Annotated, Any

import typer
from typer.core import TyperCommand, TyperGroup

from pipelines.terminal import as_called, say
from shared.errors import DgreidError
from shared.terminal import printable

# name -> where its function is, and the first line of the function's docstring
COMMANDS: dict[str, tuple[str, str]] = {
    "demo": (
        "pipelines.demo:demo",
        "Generate crops, label their parts, train on three places, test on a fourth, write the report.",
    ),
    "datasets": ("pipelines.datasets:datasets", "What is under DATA_ROOT, what is missing and where to put it."),
    "manifest": (
        "pipelines.datasets:manifest",
        "Scan a data set's files: hash, decode, read identity and camera from the names.",
    ),
    "label": (
        "pipelines.label:label",
        "Label the parts of all images that have no labels yet. Resumable: run the same command again.",
    ),
    "import-masks": (
        "pipelines.exchange:import_masks",
        "Read published part masks (without running what a pickle may hold) into a label run.",
    ),
    "export-labels": (
        "pipelines.exchange:export_labels",
        "Write the boxes of one label run for a tool in which people can look at and correct them.",
    ),
    "import-labels": (
        "pipelines.exchange:import_labels",
        "Read corrected boxes into a new label run that holds everything of the old one and takes its place.",
    ),
    "compact": (
        "pipelines.compact:compact",
        "Rewrite the small shards of a data set's labels into few large ones. No row is lost or changed.",
    ),
    "verify-labels": (
        "pipelines.verify_labels:verify_labels",
        "Check a label run: every image has its rows, once, in undamaged shards, with boxes inside it. Only reads.",
    ),
    "sql": ("pipelines.sql:sql", "Ask the labels of a data set with SQL; without a query, list the canned ones."),
    "review": (
        "pipelines.review:review",
        "Open the page on which labels are looked at and corrected, and a trained model's failures.",
    ),
    "protocols": (
        "pipelines.protocols:protocols",
        "List the protocols of the published tables, the paper's scores and which data sets are missing.",
    ),
    "train": (
        "pipelines.train:train",
        "Train on the sources of a protocol: prompts first, then the image encoder.",
    ),
    "eval": (
        "pipelines.evaluate:evaluate",
        "Score a trained run: embed its targets with the trained and the untrained model and rank them.",
    ),
    "report": ("pipelines.report:report", "Write report.json, report.md and report.html into the run folder."),
    "compare": (
        "pipelines.compare:compare",
        "Mean and standard deviation of the scores over runs that differ in the seed alone, in percent.",
    ),
    "cache": ("pipelines.cache:cache", "List the packed images under RUNS_ROOT/cache, or delete them with --clear."),
    "embed": (
        "pipelines.embed:embed",
        "Features of all images of a folder, data set or video. Resumable: images that are there already are not read.",
    ),
    "index": (
        "pipelines.search:index",
        "Add, replace and remove images of a gallery, and build the index for galleries beyond a million images.",
    ),
    "search": (
        "pipelines.search:search",
        "Find the person of a crop in a gallery: the nearest images, with probabilities where the run is calibrated.",
    ),
    "calibrate": (
        "pipelines.calibrate:calibrate",
        "Fit and store the probability that two images show one person, and thresholds for false accept rates.",
    ),
    "duplicates": (
        "pipelines.links:duplicates",
        "List identities that are probably one person, and images that probably show somebody else than labelled.",
    ),
    "link": (
        "pipelines.links:link",
        "Join the tracklets of several cameras to people with global ids.",
    ),
    "export": (
        "pipelines.export:export",
        "Write a run's model for other programs, checked against the model: ONNX, torch.export or the hub's form.",
    ),
    "serve": (
        "pipelines.serve:serve",
        "Run a service on this machine until SIGINT or SIGTERM: the labeler's, or with --run that of a trained model.",
    ),
    "vllm": (
        "pipelines.vllm:vllm",
        "Run vLLM servers on this machine, one per GPU, and start those again that die. Ctrl-C takes all of them down.",
    ),
    "doctor": ("pipelines.doctor:doctor", "Check Python, packages, device, disk, data sets and labels."),
    "train-clip": (
        "pipelines.train_clip:train_clip",
        "Train the pocket CLIP and write the files of reid/pocket. Interrupted, the same command resumes.",
    ),
    "train-grounder": (
        "pipelines.train_grounder:train_grounder",
        "Train the pocket grounder. Interrupted, the same command resumes; --minutes 0 ends with the current weights.",
    ),
    "bench-dg": (
        "pipelines.bench_dg:bench_dg",
        "Label the sources, train and score every row with every seed, write runs/bench/dg.json, .md and .html.",
    ),
}
NAME = "dgreid"


class _Commands(TyperGroup):
    """Lists commands without importing them."""

    def __init__(self, **options: Any) -> None:
        super().__init__(**options)
        self.commands = {name: TyperCommand(name, help=text) for name, (_, text) in COMMANDS.items()}

    def resolve_command(self, ctx: Any, args: list[str]) -> Any:
        name, command, rest = super().resolve_command(ctx, args)
        return name, command and _load(command.name or ""), rest


def _load(name: str) -> Any:
    module, function = COMMANDS[name][0].split(":")
    app = typer.Typer(add_completion=False, rich_markup_mode=None)
    app.command(name)(getattr(importlib.import_module(module), function))
    return typer.main.get_command(app)


def _version(wanted: bool) -> None:
    if wanted:
        from importlib import metadata

        try:
            typer.echo(f"{NAME} {metadata.version(NAME)}")
        except metadata.PackageNotFoundError:
            typer.echo(f"{NAME}, not installed as a package")
        raise typer.Exit


def build_app() -> Any:
    app = typer.Typer(
        cls=_Commands,
        rich_markup_mode=None,
        help="Domain-generalised person re-identification.",
        context_settings={"max_content_width": 120},
    )

    @app.callback()
    def _(
        version: Annotated[bool, typer.Option("--version", callback=_version, is_eager=True, help="print it")] = False,
    ) -> None: ...

    return typer.main.get_command(app)


def main(arguments: list[str] | None = None) -> None:
    """Run one command; exits with 0 done, 1 failed, 2 asked for something impossible, 130 interrupted."""
    logging.basicConfig(level=logging.WARNING)
    for handler in logging.getLogger().handlers:
        handler.setFormatter(_Lines("%(levelname)s: %(message)s"))
    for package in ("shared", "labeler", "reid", "pipelines"):
        logging.getLogger(package).setLevel(logging.INFO)
    sys.exit(run(arguments))


class _Lines(logging.Formatter):
    def format(self, record: logging.LogRecord) -> str:
        return printable(as_called(super().format(record)), keep="\n")


_INTERRUPTED = "interrupted; the same command continues where it stopped"


def run(arguments: list[str] | None = None) -> int:
    """The exit code of one command; every failure is one sentence on stderr."""
    given = sys.argv[1:] if arguments is None else arguments
    try:
        code = int(build_app()(given or ["--help"], prog_name=NAME, standalone_mode=False) or 0)
        return _fail(_INTERRUPTED, code) if code == 130 else code  # Typer turns Ctrl-C into this code, without a word
    except DgreidError as err:
        return _fail(str(err), err.exit_code)
    except typer.TyperException as err:
        context = getattr(err, "ctx", None)
        return _fail(f"{err.format_message()}\n  fix: {context.command_path if context else NAME} --help", 2)
    except (KeyboardInterrupt, typer.Abort):
        return _fail(_INTERRUPTED, 130)
    except OSError as err:
        return _fail(f"{err.strerror or err} [{err.filename}]\n  fix: check that the place exists and may be used", 1)
    except ModuleNotFoundError as err:
        return _fail(f"the package {err.name} is not installed\n  fix: pip install '{NAME}[all]'", 1)
    except Exception as err:
        if os.environ.get("DGREID_DEBUG"):
            raise
        return _fail(f"{type(err).__name__}: {err}\n  fix: this is a bug; DGREID_DEBUG=1 shows where it happened", 1)


def _fail(text: str, code: int) -> int:
    say(f"error: {text}", err=True)
    return code


if __name__ == "__main__":
    main()
