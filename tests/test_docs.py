"""What the pages say can be done: commands parse, targets and files exist, links lead somewhere."""

import re
import shlex
from pathlib import Path

import pytest

import dtrain.arguments
import shard_tools.cli
from dtrain.config import load_config
from dtrain.experiment_set import find_experiments

ROOT = Path(__file__).parents[1]
DEMO = ROOT / "configs/demo.yaml"
THE_READERS_OWN = Path("configs/my.yaml")
PAGES = [*ROOT.glob("*.md"), *(ROOT / "docs").glob("*.md")]


def commands() -> list[tuple[str, str]]:
    """(page, command line) of every line in a code block that begins with a program of ours."""
    found = []
    for page in PAGES:
        for block in re.findall(r"```[a-z]*\n(.*?)```", page.read_text(), flags=re.DOTALL):
            for line in block.replace("\\\n", " ").splitlines():
                bare = line.strip().removeprefix("$ ")
                if bare.startswith(("shard-tools ", "dtrain ", "accelerate launch ", "make ")):
                    found.append((page.name, bare))
    return found


@pytest.mark.parametrize(("page", "command"), commands())
def test_a_command_in_the_docs_is_accepted(page: str, command: str) -> None:
    words = shlex.split(command, comments=True)
    match words[0]:
        case "make":
            targets = re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), flags=re.MULTILINE)
            assert set(words[1:]) <= set(targets)
        case "shard-tools":
            shard_tools.cli.build_parser().parse_args(words[1:])
        case "dtrain":
            accept(words[1:])
        case "accelerate":
            config = words[words.index("--config_file") + 1]
            assert (ROOT / config).exists()
            assert words[words.index("dtrain") + 1] == "train"
            accept(words[words.index("dtrain") + 1 :])


def accept(words: list[str]) -> None:
    """Parse what follows `dtrain`; where keys of a configuration may follow, with the one that is named."""
    arguments, overrides = dtrain.arguments.build_parser().parse_known_args(words)
    match arguments.command:
        case "train" | "summary":
            load_config(DEMO if arguments.config == THE_READERS_OWN else ROOT / arguments.config, overrides)
        case "experiments":
            assert find_experiments([ROOT / place for place in arguments.configs], arguments.out, overrides)
        case _:
            assert not overrides


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links_lead_to_files_and_headings(page: Path) -> None:
    for target in re.findall(r"\]\(([^)]+)\)", page.read_text()):
        file, _, heading = target.partition("#")
        if file.startswith("http"):
            continue
        linked = (page.parent / file) if file else page
        assert linked.exists(), f"{page.name}: {target}"
        if heading:
            headings = re.findall(r"^#+ (.+)$", linked.read_text(), flags=re.MULTILINE)
            slugs = [re.sub(r"[^a-z0-9 -]", "", line.lower()).replace(" ", "-") for line in headings]
            assert heading in slugs, f"{page.name}: {target}"


@pytest.mark.parametrize("name", ["launch/accelerate/cpu.yaml", "launch/slurm/train.sbatch", "configs/photos.yaml"])
def test_files_that_the_readme_names_exist(name: str) -> None:
    assert (ROOT / name).exists()
