"""The command `dtrain`: arguments in, messages out; the work is done by the modules it calls."""

import argparse
import sys
from collections.abc import Sequence

from dtrain import collector
from dtrain.arguments import build_parser, named_overrides
from dtrain.stop_request import StopRequest
from shard_tools.errors import UserError


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
                judge_at=arguments.judge_at,
                manifest=arguments.manifest,
                worst=arguments.worst,
                rank_by=arguments.rank_by,
                by_background=arguments.by_background,
                original_metrics=arguments.original_metrics,
                json_file=arguments.json,
                overrides=overrides,
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
        case "experiments":
            request = StopRequest()
            from dtrain.experiments import run_experiments

            only = [name for text in arguments.only for name in text.split(",")]
            run_experiments(
                arguments.configs,
                arguments.out,
                only=only,
                judge_at=arguments.judge_at,
                launch=arguments.launch,
                overrides=overrides,
                request=request,
            )
        case "summary":
            from dtrain.config import load_config
            from dtrain.summary import describe

            print(describe(load_config(arguments.config, overrides), arguments.stage))


def main(argv: Sequence[str] | None = None) -> int:
    """Entry point; the exit status is 0 when all is done or a signal was obeyed, 1 for a user's mistake."""
    parser = build_parser()
    arguments, overrides = parser.parse_known_args(argv)
    if overrides and arguments.command not in ("train", "evaluate", "summary", "experiments"):
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
