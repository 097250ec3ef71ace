"""The command `dtrain`: arguments in, messages out; the work is done by the modules it calls."""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from dtrain import collector
from dtrain.stop_request import StopRequest
from shard_tools.errors import UserError

TRAIN_EXAMPLE = (
    "example: accelerate launch --config_file accelerate_config.yaml -m dtrain train configs/demo.yaml "
    "--stages.1.epochs 4"
)
EVALUATE_EXAMPLE = "example: dtrain evaluate runs/demo"
PREDICT_EXAMPLE = "example: dtrain predict runs/demo --bg room.jpg --fgbg room_with_chair.jpg --out predictions"
EXPORT_EXAMPLE = "example: dtrain export runs/demo --format onnx --out network.onnx"
EXPORT_FORMATS = ("onnx", "torch", "safetensors")
AUDIT_EXAMPLE = "example: dtrain audit runs/demo"
REPORT_EXAMPLE = "examples: dtrain report runs/demo; dtrain report runs/a runs/b --out comparison.html"
SUMMARY_EXAMPLE = "example: dtrain summary configs/curriculum.yaml --stage 0 --model.width 0.5"


def build_parser() -> argparse.ArgumentParser:
    """The whole command line, except for the configuration keys that `train` takes as options."""
    parser = argparse.ArgumentParser(
        prog="dtrain",
        description="Train a depth and mask network on packed shards, with exact resume; evaluate, predict, report.",
        epilog=TRAIN_EXAMPLE,
        allow_abbrev=False,
    )
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")

    def add(name: str, summary: str, description: str, example: str) -> argparse.ArgumentParser:
        return commands.add_parser(name, help=summary, description=description, epilog=example, allow_abbrev=False)

    train = add(
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
        help="go back to the end of stage N-1, counted from 0, and train on from there; stages from N on may have changed",
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

    evaluate = add(
        "evaluate",
        "figures of a run on the test split",
        "Evaluate a checkpoint on every sample of a split, beside predictors that look at nothing; writes "
        "RUN/evaluation.json, and pictures of the first, the worst and the best samples beside it.",
        EVALUATE_EXAMPLE,
    )
    evaluate.add_argument("run", type=Path, metavar="RUN", help="run folder")
    evaluate.add_argument("--checkpoint", metavar="NAME", help="such as step-00000120, or best (default: the newest)")
    evaluate.add_argument("--split", metavar="NAME", help="split of the shards (default: the run's test split)")
    evaluate.add_argument("--size", type=int, metavar="S", help="side in pixels (default: the last stage's)")
    evaluate.add_argument("--manifest", metavar="PLACE", help="other shards than the run was trained on")
    evaluate.add_argument(
        "--worst", type=int, default=8, metavar="K", help="list and draw K of the worst and of the best"
    )
    evaluate.add_argument("--rank-by", metavar="METRIC", help="such as mask_iou (default: checkpoint.best_metric)")
    evaluate.add_argument("--by-background", action="store_true", help="print figures by background, the worst first")
    evaluate.add_argument("--original-metrics", action="store_true", help="also as the original write-up logged them")
    evaluate.add_argument("--json", type=Path, metavar="FILE", help="write there, with pictures by the same name")

    audit = add(
        "audit",
        "prove which samples a run has seen",
        "Prove, from what a training with --audit wrote down, that every step had the samples that the order asks for, "
        "and every epoch each sample once, across all kills and resumes; or name what broke.",
        AUDIT_EXAMPLE,
    )
    audit.add_argument("run", type=Path, metavar="RUN", help="run folder")

    predict = add(
        "predict",
        "depth and mask of pairs of images",
        "Predict depth (16-bit PNG) and mask (8-bit PNG) of pairs of images, at the size of the images, and a panel to "
        "look at. Two files, two folders with images of equal names, one background for a folder, or shards. The same "
        "command goes on where it was stopped.",
        PREDICT_EXAMPLE,
    )
    predict.add_argument("run", type=Path, metavar="RUN", help="run folder")
    predict.add_argument("--bg", type=Path, metavar="PATH", help="the background alone: a file, or a folder of them")
    predict.add_argument("--fgbg", type=Path, metavar="PATH", help="the same with the object on it: a file or a folder")
    predict.add_argument("--shards", metavar="PLACE", help="instead of --bg and --fgbg: path or URL of shards")
    predict.add_argument("--split", metavar="NAME", help="of the shards (default: the run's test split)")
    predict.add_argument("--limit", type=int, metavar="N", help="the first N samples of the split")
    predict.add_argument("--out", type=Path, required=True, metavar="DIR", help="folder for the results")
    predict.add_argument("--checkpoint", metavar="NAME", help="such as step-00000120, or best (default: the newest)")
    predict.add_argument(
        "--size",
        metavar="S",
        help="shorter side at which the network sees an image (default: the last stage's), or WIDTHxHEIGHT, or native",
    )
    predict.add_argument("--overwrite", action="store_true", help="also what is there already")
    predict.add_argument("--skip-unmatched", action="store_true", help="leave out images without a partner")

    export = add(
        "export",
        "the network as one file for other programs",
        "Write the network as ONNX, as a program of torch.export, or as bare weights (safetensors). "
        "It is compared with the network of the run before the file gets its name.",
        EXPORT_EXAMPLE,
    )
    export.add_argument("run", type=Path, metavar="RUN", help="run folder")
    export.add_argument("--format", choices=EXPORT_FORMATS, default="onnx", help="default: %(default)s")
    export.add_argument("--out", type=Path, required=True, metavar="FILE", help="such as network.onnx")
    export.add_argument("--checkpoint", metavar="NAME", help="such as step-00000120, or best (default: the newest)")

    report = add(
        "report",
        "one HTML file that shows a run, or compares several",
        "Write RUN/report.html: what was run, figures, curves, panels over time, what was resumed and when. Of several "
        "runs, write comparison.html: where they differ, figures, curves and panels side by side. It opens without a "
        "network.",
        REPORT_EXAMPLE,
    )
    report.add_argument("runs", type=Path, nargs="+", metavar="RUN", help="run folders")
    report.add_argument("--out", type=Path, metavar="FILE", help="default: RUN/report.html, or comparison.html here")

    summary = add(
        "summary",
        "the network of a configuration, and what a tuple costs in it",
        "Show the network that CONFIG describes, layer by layer, and the FLOPs and the memory of a tuple in each stage. "
        "It needs neither data nor weights. Every key of the configuration is an option, as in train.",
        SUMMARY_EXAMPLE,
    )
    summary.add_argument("config", type=Path, metavar="CONFIG", help="YAML file, such as configs/demo.yaml")
    summary.add_argument("--stage", type=int, metavar="N", help="whose size the layers are shown at, counted from 0")
    return parser


def run(arguments: argparse.Namespace, overrides: Sequence[str]) -> None:
    """Do what the arguments say. Imports late, so that --help does not wait for torch."""
    collector.rest()
    match arguments.command:
        case "train":
            from dtrain.config import load_config

            config = load_config(arguments.config, [*overrides, *named_overrides(arguments)])
            request = StopRequest()
            from dtrain.loop import train

            accept = [key for text in arguments.accept_change for key in text.split(",")]
            train(
                config,
                request,
                fresh=arguments.fresh,
                overwrite=arguments.overwrite,
                from_stage=arguments.from_stage,
                accept=accept,
                profile=arguments.profile,
            )
        case "evaluate":
            from dtrain.evaluate import evaluate_run

            collector.work()
            evaluate_run(
                arguments.run,
                checkpoint=arguments.checkpoint,
                split=arguments.split,
                size=arguments.size,
                manifest=arguments.manifest,
                worst=arguments.worst,
                rank_by=arguments.rank_by,
                by_background=arguments.by_background,
                original_metrics=arguments.original_metrics,
                json_file=arguments.json,
            )
        case "audit":
            from dtrain.audit import audit_run

            collector.work()
            print(audit_run(arguments.run))
        case "predict":
            from dtrain.pairs import find_pairs
            from dtrain.predict import predict

            collector.work()
            source = find_pairs(
                arguments.run,
                bg=arguments.bg,
                fgbg=arguments.fgbg,
                shards=arguments.shards,
                split=arguments.split,
                limit=arguments.limit,
                skip_unmatched=arguments.skip_unmatched,
            )
            predict(
                arguments.run,
                source,
                arguments.out,
                checkpoint=arguments.checkpoint,
                size=arguments.size,
                overwrite=arguments.overwrite,
            )
        case "export":
            from dtrain.export import export

            collector.work()
            export(arguments.run, arguments.format, arguments.out, checkpoint=arguments.checkpoint)
        case "report":
            from dtrain.report import goodput_line, write_report

            collector.work()
            print(write_report(arguments.runs, arguments.out))
            for path in arguments.runs:
                print(f"{path}: {goodput_line(path)}", file=sys.stderr)
        case "summary":
            from dtrain.config import load_config
            from dtrain.summary import describe

            print(describe(load_config(arguments.config, overrides), arguments.stage))


def named_overrides(arguments: argparse.Namespace) -> list[str]:
    """The options of `train` that stand for keys of the configuration."""
    named = {"--data.cache_dir": arguments.cache_dir, "--data.cache_size": arguments.cache_size}
    chosen = [text for key, value in named.items() if value is not None for text in (key, value)]
    return [*chosen, "--log.audit", "true"] if arguments.audit else chosen


def main(argv: Sequence[str] | None = None) -> int:
    """Entry point; the exit status is 0 when all is done or a signal was obeyed, 1 for a user's mistake."""
    parser = build_parser()
    arguments, overrides = parser.parse_known_args(argv)
    if overrides and arguments.command not in ("train", "summary"):
        parser.error(f"unknown arguments: {' '.join(overrides)}")
    try:
        run(arguments, overrides)
    except UserError as error:
        from dtrain.devices import report_user_error

        report_user_error(error, "dtrain")
        return 1
    except KeyboardInterrupt:
        print("dtrain: interrupted", file=sys.stderr)
        return 130
    return 0
