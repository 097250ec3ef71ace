"""Which members of a tar make up a sample, by their names alone. Reads nothing."""

from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field

from shard_tools.index import IndexedSample, Member
from shard_tools.tar_scan import FILE, TarMember


@dataclass
class Grouping:
    """The samples of a tar in its order.

    `left_out` counts the members that belong to none by what they are, and `examples` has the first of each.
    `returning` are the keys that come again after those of another sample, each time as a sample of its own.
    """

    samples: list[IndexedSample] = field(default_factory=list)
    left_out: Counter[str] = field(default_factory=Counter)
    examples: dict[str, str] = field(default_factory=dict)
    returning: list[str] = field(default_factory=list)


def key_and_extension(member: TarMember) -> tuple[str, str] | None:
    """The path up to the first dot of the file's name, and what follows that dot; None for what belongs to no sample.

    Folders, links, hidden files (their name begins with a dot) and files without an extension belong to none.
    """
    folder, slash, file_name = member.name.rpartition("/")
    stem, _, extension = file_name.partition(".")
    return (folder + slash + stem, extension) if member.kind == FILE and stem and extension else None


def group_members(members: Iterable[TarMember]) -> Grouping:
    """Take neighbours with the same key for one sample.

    Raises ValueError for a name with white space, which an index cannot hold.
    """
    grouping = Grouping()
    groups: list[tuple[str, list[Member]]] = []
    for member in members:
        name = member.name
        if named := key_and_extension(member):
            if name.split() != [name]:
                raise ValueError(f"the name {name!r} has white space, which an index cannot hold; rename it")
            key, extension = named
            if not groups or groups[-1][0] != key:
                groups.append((key, []))
            groups[-1][1].append(Member(extension, member.offset, member.size))
        elif member.kind != "folder":
            hidden = name.rpartition("/")[2].startswith(".")
            what = member.kind if member.kind != FILE else "hidden file" if hidden else "file without an extension"
            grouping.left_out[what] += 1
            grouping.examples.setdefault(what, name)
    grouping.samples = [IndexedSample(key, tuple(found)) for key, found in groups]
    grouping.returning = [key for key, count in Counter(key for key, _ in groups).items() if count > 1]
    return grouping
