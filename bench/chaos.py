"""Trains under a killer until the run is done, as often as it takes, and compares it with one that was let alone.

Each launch suffers one kill, drawn from the seed: at a random moment of its life, or just when a checkpoint is written;
SIGKILL, SIGTERM, or one after the other; to one process, the launcher, or all. The same command is launched again until
the run is done, and another run begins until there were enough kills. Exit status 1 if there was a difference.

    make chaos
    python -m bench.chaos --kills 50 --processes 4 --processes-change --json chaos.json
"""

import argparse
import json
import shutil
import signal
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path

from bench.chaos_check import problems_of_launch, problems_of_run
from bench.chaos_plan import RunLength, draw_kill, draw_processes
from bench.chaos_run import Launch, Run, launch_under
from bench.tiny import BATCH, FIRST_EPOCHS, STEPS, make_shards, write_config
from bench.training import Training

MOST_FAILURES = 3
"""So many launches in a row that come to nothing although they were let alone are enough."""


class Chaos:
    """Launch after launch, run after run, until there were enough kills."""

    def __init__(self, folder: Path, *, seed: int, processes: int, change: bool, kills: int, steps: int) -> None:
        """`folder` gets the data, the runs, and what is printed; `change`: launches have from 1 to `processes`."""
        self._folder = folder
        self._seed = seed
        self._processes = processes
        self._change = change
        self._wanted = kills
        self._second_epochs = max(round(steps / STEPS) - FIRST_EPOCHS, 1)
        self._began = self._killing_since = time.monotonic()
        self._launches: list[Launch] = []
        self._runs = 0
        self.differences: list[str] = []

    def go(self) -> None:
        """Kill as often as is wanted, and let the last run come to its end."""
        shards = make_shards(self._folder)
        undisturbed = self._run("undisturbed", shards)
        alone = launch_under(None, undisturbed, 0, self._processes, self._folder / "undisturbed.log")
        if problems := problems_of_launch(alone):
            self._differ("undisturbed run", problems)
            return
        length = RunLength(undisturbed.training.last_step(), alone.seconds)
        self._killing_since = time.monotonic()
        print(f"undisturbed: {length.steps} steps, {self._processes} process(es), {length.seconds:.1f} s", flush=True)
        while self._kills < self._wanted:
            self._runs += 1
            run = self._run(f"run-{self._runs}", shards)
            if not self._train(run, length):
                self._differ(f"run {self._runs}", [f"not done after {MOST_FAILURES} launches that were let alone"])
                return
            problems = problems_of_run(run.training, undisturbed.training, same_processes=not self._change)
            self._differ(f"run {self._runs}", problems)
            print(f"run {self._runs}: done", flush=True)

    def _run(self, name: str, shards: Path) -> Run:
        folder = self._folder / name
        config = folder.with_suffix(".yaml")
        write_config(config, run=folder, shards=shards, second_epochs=self._second_epochs)
        return Run(Training(folder), config)

    def _train(self, run: Run, length: RunLength) -> bool:
        """Launch until the run is done; False if it does not come to that even when it is let alone."""
        failures = 0
        while failures < MOST_FAILURES:
            number = len(self._launches) + 1
            kill = draw_kill(self._seed, number, length) if self._kills < self._wanted else None
            processes = draw_processes(self._seed, number, self._processes) if self._change else self._processes
            launch = launch_under(kill, run, number, processes, self._folder / f"launch-{number:03}.log")
            self._launches.append(launch)
            self._say(launch)
            self._differ(f"run {self._runs}, launch {number}, {launch}", problems_of_launch(launch))
            if run.training.status().get("state") == "done":
                return True
            failures = 0 if launch.struck else failures + 1
        return False

    def _say(self, launch: Launch) -> None:
        left = (time.monotonic() - self._killing_since) / max(self._kills, 1) * (self._wanted - self._kills)
        came = (
            f"from {launch.begun_from}, {launch.repeated_steps} steps again" if launch.begun_from else "did not begin"
        )
        print(
            f"{self._kills:3}/{self._wanted} run {self._runs}, launch {launch.number}, {launch.processes} process(es): "
            f"{came}; {launch}; {launch.seconds:.1f} s later "
            f"{launch.status.get('state', 'as before')} ({left / 60:.0f} min left)",
            flush=True,
        )

    def _differ(self, where: str, problems: list[str]) -> None:
        for problem in problems:
            self.differences.append(f"seed {self._seed}, {where}: {problem}")
            print(f"DIFFERENCE: {self.differences[-1]}", flush=True)

    @property
    def _struck(self) -> list[Launch]:
        return [launch for launch in self._launches if launch.struck]

    @property
    def _kills(self) -> int:
        return len(self._struck)

    def print_summary(self) -> None:
        """Kills by victim and signals, the longest time from a kill to the end of the last process, and the sums."""
        count = Counter((launch.victim, launch.blow) for launch in self._struck)
        blows = sorted({blow for _, blow in count})
        print("".join([f"\n{'':10}", *(f"{blow:>18}" for blow in blows), f"{'slowest to leave':>20}"]))
        for victim in sorted({victim for victim, _ in count}):
            slowest = max(launch.seconds for launch in self._struck if launch.victim == victim)
            print("".join([f"{victim:10}", *(f"{count[victim, blow]:18}" for blow in blows), f"{slowest:18.1f} s"]))
        sums = self.sums()
        print(
            f"\n{sums['kills']} kills, {sums['runs']} run(s), {sums['launches']} launches, {sums['repeated_steps']} "
            f"steps done again, {sums['seconds']:.0f} s: differences: {sums['differences']}",
            flush=True,
        )

    def sums(self) -> dict[str, object]:
        """What it came to, for JSON."""
        return {
            "kills": self._kills,
            "differences": len(self.differences),
            "details": self.differences,
            "seed": self._seed,
            "processes": self._processes,
            "processes_change": self._change,
            "runs": self._runs,
            "launches": len(self._launches),
            "repeated_steps": sum(launch.repeated_steps for launch in self._launches),
            "slowest_to_leave_seconds": max((launch.seconds for launch in self._struck), default=0.0),
            "kills_by_kind": Counter(f"{launch.blow} to {launch.victim}" for launch in self._struck),
            "seconds": time.monotonic() - self._began,
        }


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kills", type=_positive, default=50, metavar="N")
    parser.add_argument("--seed", type=int, default=0, metavar="N", help="of the moments, victims and signals")
    parser.add_argument("--processes", type=_positive, default=2, metavar="N", help=f"at most {BATCH}")
    parser.add_argument("--processes-change", action="store_true", help="each launch has from 1 to that many")
    parser.add_argument("--steps", type=_positive, default=220, metavar="N", help="of a run, about")
    parser.add_argument("--run", type=Path, metavar="DIR", help="empty folder that keeps the runs and what they print")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write what it came to here")
    arguments = parser.parse_args()
    if arguments.processes > BATCH:
        parser.error(f"--processes {arguments.processes}: a batch of {BATCH} can't be cut for so many")
    if arguments.run and arguments.run.exists() and any(arguments.run.iterdir()):
        parser.error(f"--run {arguments.run}: is not empty; choose another folder")
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # leave no training behind
    folder = arguments.run or Path(tempfile.mkdtemp(prefix="chaos-"))
    folder.mkdir(parents=True, exist_ok=True)
    chaos = Chaos(
        folder.resolve(),
        seed=arguments.seed,
        processes=arguments.processes,
        change=arguments.processes_change,
        kills=arguments.kills,
        steps=arguments.steps,
    )
    try:
        chaos.go()
    except KeyboardInterrupt:
        print("chaos: interrupted", file=sys.stderr)
        return 130
    finally:
        chaos.print_summary()
        if arguments.json:
            arguments.json.write_text(json.dumps(chaos.sums(), indent=1) + "\n")
        if chaos.differences:
            print(f"the runs and what they printed: {folder}")
        elif not arguments.run:
            shutil.rmtree(folder, ignore_errors=True)
    return 1 if chaos.differences else 0


def _positive(text: str) -> int:
    number = int(text)
    if number < 1:
        raise argparse.ArgumentTypeError(f"{number}: expected a number from 1 up")
    return number


if __name__ == "__main__":
    raise SystemExit(main())
