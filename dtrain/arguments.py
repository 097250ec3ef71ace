"""What the command `dtrain` can be given: its subcommands and their options. Does nothing itself."""

import argparse
from pathlib import Path
from typing import TypeAlias

TRAIN_EXAMPLE = (
    "example: accelerate launch --config_file accelerate_config.yaml -m dtrain train configs/demo.yaml "
    "--stages.1.epochs 4"
)
EXPORT_FORMATS = ("onnx", "torch", "safetensors")

Commands: TypeAlias = "argparse._SubParsersAction[argparse.ArgumentParser]"


def build_parser() -> argparse.ArgumentParser:
    """The whole command line, except for the configuration keys that some commands take as options."""
    parser = argparse.ArgumentParser(
        prog="dtrain",
        description="Train a depth and mask network on packed shards, with exact resume; evaluate, predict, report.",
        epilog=TRAIN_EXAMPLE,
        allow_abbrev=False,
    )
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    for add_command in (_train, _evaluate, _audit, _predict, _export, _report, _experiments, _summary):
        add_command(commands)
    return parser


def named_overrides(arguments: argparse.Namespace) -> list[str]:
    """The options of `train` that stand for keys of the configuration."""
    named = {"--data.cache_dir": arguments.cache_dir, "--data.cache_size": arguments.cache_size}
    chosen = [text for key, value in named.items() if value is not None for text in (key, value)]
    return [*chosen, "--log.audit", "true"] if arguments.audit else chosen


def _add(commands: Commands, name: str, summary: str, description: str, example: str) -> argparse.ArgumentParser:
    return commands.add_parser(name, help=summary, description=description, epilog=example, allow_abbrev=False)


def _checkpoint_option(command: argparse.ArgumentParser) -> None:
    command.add_argument("--checkpoint", metavar="NAME", help="such as step-00000120, or best (default: the newest)")


def _train(commands: Commands) -> None:
    train = _add(
        commands,
        "train",
        "begin a run, or go on with it",
        "Begin the run that CONFIG describes, or go on with it from its newest whole checkpoint. Started by a launcher "
        "it runs as DDP on all processes. Every key of the configuration is an option: --data.workers 4, "
        "--stages.1.batch 64, --run runs/other.",
        TRAIN_EXAMPLE,
    )
    train.add_argument("config", type=Path, metavar="CONFIG", help="YAML file, such as configs/demo.yaml")
    train.add_argument("--fresh", action="store_true", help="forget what is in the run folder and begin anew")
    train.add_argument("--overwrite", action="store_true", help="with --fresh: even if that run is finished")
    train.add_argument(
        "--from-stage",
        type=int,
        metavar="N",
        help="go back to the end of stage N-1, counted from 0, and train on; stages from N on may have changed",
    )
    train.add_argument(
        "--accept-change",
        action="append",
        default=[],
        metavar="KEY[,KEY]",
        help="go on although this key of the configuration has changed, such as optimizer.learning_rate",
    )
    train.add_argument("--profile", action="store_true", help="write where the time of some steps goes: RUN/profile")
    train.add_argument("--audit", action="store_true", help="write down which samples each step consumed (log.audit)")
    train.add_argument("--cache-dir", metavar="DIR", help="for shards behind a URL: local copies (data.cache_dir)")
    train.add_argument("--cache-size", metavar="SIZE", help="the same, at most so much: 200GB (data.cache_size)")


def _evaluate(commands: Commands) -> None:
    evaluate = _add(
        commands,
        "evaluate",
        "figures of a run on the test split",
        "Evaluate a checkpoint on every sample of a split, beside predictors that look at nothing; writes "
        "RUN/evaluation.json, and pictures of the first, the worst and the best samples beside it. Keys of data and "
        "evaluate are options: --data.workers 2, --data.on_bad_sample replace, --evaluate.batch 16.",
        "example: dtrain evaluate runs/demo",
    )
    evaluate.add_argument("run", type=Path, metavar="RUN", help="run folder")
    _checkpoint_option(evaluate)
    evaluate.add_argument("--split", metavar="NAME", help="split of the shards (default: the run's test split)")
    evaluate.add_argument("--size", type=int, metavar="S", help="side of the images (default: as it was trained last)")
    evaluate.add_argument(
        "--judge-at",
        type=int,
        metavar="S",
        help="side of the truth, to which predictions are brought (default: --size)",
    )
    evaluate.add_argument("--manifest", metavar="PLACE", help="other shards than the run was trained on")
    evaluate.add_argument(
        "--worst", type=int, default=8, metavar="K", help="list and draw K of the worst and of the best"
    )
    evaluate.add_argument("--rank-by", metavar="METRIC", help="such as mask_iou (default: checkpoint.best_metric)")
    evaluate.add_argument("--by-background", action="store_true", help="print figures by background, the worst first")
    evaluate.add_argument("--original-metrics", action="store_true", help="also as the original write-up logged them")
    evaluate.add_argument("--json", type=Path, metavar="FILE", help="write there, with pictures by the same name")


def _audit(commands: Commands) -> None:
    audit = _add(
        commands,
        "audit",
        "prove which samples a run has seen",
        "Prove, from what a training with --audit wrote down, that every step had the samples that the order asks for, "
        "and every epoch each sample once, across all kills and resumes; or name what broke.",
        "example: dtrain audit runs/demo",
    )
    audit.add_argument("run", type=Path, metavar="RUN", help="run folder")


def _predict(commands: Commands) -> None:
    predict = _add(
        commands,
        "predict",
        "depth and mask of pairs of images",
        "Predict depth (16-bit PNG) and mask (8-bit PNG) of pairs of images, at the size of the images, and a panel to "
        "look at. Two files, two folders with images of equal names, one background for a folder, or shards. The same "
        "command goes on where it was stopped.",
        "example: dtrain predict runs/demo --bg room.jpg --fgbg room_with_chair.jpg --out predictions",
    )
    predict.add_argument("run", type=Path, metavar="RUN", help="run folder")
    predict.add_argument("--bg", type=Path, metavar="PATH", help="the background alone: a file, or a folder of them")
    predict.add_argument("--fgbg", type=Path, metavar="PATH", help="the same with the object on it: a file or a folder")
    predict.add_argument("--shards", metavar="PLACE", help="instead of --bg and --fgbg: path or URL of shards")
    predict.add_argument("--split", metavar="NAME", help="of the shards (default: the run's test split)")
    predict.add_argument("--limit", type=int, metavar="N", help="the first N samples of the split")
    predict.add_argument("--out", type=Path, required=True, metavar="DIR", help="folder for the results")
    _checkpoint_option(predict)
    predict.add_argument(
        "--size",
        metavar="S",
        help="shorter side at which the network sees an image (default: the last stage's), or WIDTHxHEIGHT, or native",
    )
    predict.add_argument("--overwrite", action="store_true", help="also what is there already")
    predict.add_argument("--skip-unmatched", action="store_true", help="leave out images without a partner")


def _export(commands: Commands) -> None:
    export = _add(
        commands,
        "export",
        "the network as one file for other programs",
        "Write the network as ONNX, as a program of torch.export, or as bare weights (safetensors). "
        "It is compared with the network of the run before the file gets its name.",
        "example: dtrain export runs/demo --format onnx --out network.onnx",
    )
    export.add_argument("run", type=Path, metavar="RUN", help="run folder")
    export.add_argument("--format", choices=EXPORT_FORMATS, default="onnx", help="default: %(default)s")
    export.add_argument("--out", type=Path, required=True, metavar="FILE", help="such as network.onnx")
    _checkpoint_option(export)


def _report(commands: Commands) -> None:
    report = _add(
        commands,
        "report",
        "one HTML file that shows a run, or compares several",
        "Write RUN/report.html: what was run, figures, curves, panels over time, what was resumed and when. Of several "
        "runs, write comparison.html: where they differ, figures, curves and panels side by side. It opens without a "
        "network.",
        "examples: dtrain report runs/demo; dtrain report runs/a runs/b --out comparison.html",
    )
    report.add_argument("runs", type=Path, nargs="+", metavar="RUN", help="run folders")
    report.add_argument("--out", type=Path, metavar="FILE", help="default: RUN/report.html, or comparison.html here")


def _experiments(commands: Commands) -> None:
    experiments = _add(
        commands,
        "experiments",
        "train several configurations and compare them",
        "Train and evaluate each configuration, one after the other, in DIR/NAME, and write DIR/comparison.html and "
        "DIR/comparison.md. The same command goes on where it was stopped, and leaves out what is finished. Keys of "
        "the configuration, after all else, are for all of them.",
        "example: dtrain experiments configs/experiments --out runs/experiments",
    )
    experiments.add_argument(
        "configs",
        type=Path,
        nargs="+",
        metavar="CONFIG",
        help="YAML file, or folder of them, without the one that all others extend",
    )
    experiments.add_argument("--out", type=Path, required=True, metavar="DIR", help="folder for the runs")
    experiments.add_argument(
        "--only", action="append", default=[], metavar="NAME[,NAME]", help="run these; finished ones are all compared"
    )
    experiments.add_argument(
        "--judge-at",
        type=int,
        metavar="S",
        help="side of the truth that all are judged by (default: the largest that any of them is trained at)",
    )
    experiments.add_argument(
        "--launch", metavar="COMMAND", help="start trainings by it: 'accelerate launch --num_processes 4 -m'"
    )


def _summary(commands: Commands) -> None:
    summary = _add(
        commands,
        "summary",
        "the network of a configuration, and what a tuple costs in it",
        "Show the network that CONFIG describes, layer by layer, and FLOPs and memory of a tuple in each stage. It "
        "needs neither data nor weights. Every key of the configuration is an option, as in train.",
        "example: dtrain summary configs/curriculum.yaml --stage 0 --model.width 0.5",
    )
    summary.add_argument("config", type=Path, metavar="CONFIG", help="YAML file, such as configs/demo.yaml")
    summary.add_argument("--stage", type=int, metavar="N", help="whose size the layers are shown at, counted from 0")
