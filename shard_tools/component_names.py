"""Under which name each component lies in a sample: as the user says, or by the names of a first sample. Pure."""

from collections.abc import Mapping, Sequence
from typing import NamedTuple

from shard_tools.checks import EXTENSIONS
from shard_tools.components import COMPONENTS
from shard_tools.errors import UserError
from shard_tools.index import IndexedSample


class ComponentMember(NamedTuple):
    """A component, and what stands behind the key in the names of its files: "fgbg" and "input.jpg"."""

    component: str
    member: str

    @property
    def extension(self) -> str:
        """Of EXTENSIONS, the one that the name promises."""
        return EXTENSIONS[_suffix(self.member)]


def check_given(given: Mapping[str, str]) -> None:
    """Raise UserError unless `given`, members by component, are names of images, no two the same."""
    for component, member in given.items():
        asked = f"--component {component}={member}"
        if component not in COMPONENTS:
            raise UserError(f"{asked}: no such component; a tuple has {', '.join(COMPONENTS)}")
        if member.startswith(".") or _suffix(member) not in EXTENSIONS:
            raise UserError(
                f"{asked}: expected what stands behind KEY. in the name of an image, such as {component}.png; "
                f"images end in {', '.join(sorted(EXTENSIONS))}"
            )
        if twice := [other for other, same in given.items() if same == member and other != component]:
            raise UserError(f"{asked}: the same file as {twice[0]}; each component has its own")


def recognise(sample: IndexedSample, given: Mapping[str, str], path: str) -> tuple[ComponentMember, ...]:
    """The members of all components: those `given`, and of the others NAME.SUFFIX, whatever image it is.

    `path` is that of the tar, for messages. Raises UserError where the sample, the first of its tar, lacks one, or has
    several that it could be.
    """
    there = [member.extension for member in sample.members]
    chosen: list[ComponentMember] = []
    missing: list[str] = []
    for component in COMPONENTS:
        names = [given[component]] if component in given else [name for name in there if _is_usual(component, name)]
        names = [name for name in dict.fromkeys(names) if name in there]
        if len(names) > 1:
            raise UserError(
                f"{path}: its first sample {sample.key!r} has {' and '.join(names)}; say which one is {component}: "
                f"--component {component}={names[0]}"
            )
        if names:
            chosen.append(ComponentMember(component, names[0]))
        else:
            missing.append(component)
    if missing:
        raise UserError(_lacking(sample.key, there, missing, chosen, given, path))
    return tuple(chosen)


def _lacking(
    key: str,
    there: Sequence[str],
    missing: Sequence[str],
    chosen: Sequence[ComponentMember],
    given: Mapping[str, str],
    path: str,
) -> str:
    usual = [name for name in missing if name not in given]
    expected = [given[name] for name in missing if name in given]
    if usual:
        expected.append(f"{', '.join(f'{name}.jpg' for name in usual)} or with the suffix of another image")
    taken = {item.member for item in chosen}
    free = [name for name in there if _suffix(name) in EXTENSIONS and name not in taken]
    example = f"{missing[0]}={free[0] if free else 'NAME.jpg'}"
    return (
        f"{path}: its first sample {key!r} has no {', '.join(missing)} (expected {', '.join(expected)}); it has "
        f"{', '.join(there)}. Every tuple needs {', '.join(COMPONENTS)}; say which file is which, as in "
        f"--component {example}"
    )


def _is_usual(component: str, name: str) -> bool:
    stem, _, suffix = name.rpartition(".")
    return stem == component and f".{suffix.lower()}" in EXTENSIONS


def _suffix(member: str) -> str:
    return f".{member.rpartition('.')[2].lower()}"
