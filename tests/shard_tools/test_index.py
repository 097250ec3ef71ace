"""Index files survive a round trip, and a damaged one is refused with its line."""

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from shard_tools.errors import UserError
from shard_tools.index import IndexedSample, Member, format_index, parse_index

PATH = Path("train-000000.idx")
NAMES = st.from_regex(r"[a-z0-9_]{1,12}", fullmatch=True)
MEMBERS = st.builds(
    Member,
    extension=st.sampled_from(["bg.jpg", "fgbg.jpg", "depth.png", "json"]),
    offset=st.integers(0, 2**40),
    size=st.integers(0, 2**33),
)
SAMPLES = st.builds(IndexedSample, key=NAMES, members=st.lists(MEMBERS, min_size=1, max_size=5).map(tuple))


@given(st.lists(SAMPLES, max_size=10))
def test_round_trip(samples: list[IndexedSample]) -> None:
    assert parse_index(format_index(samples), PATH) == samples


def test_text_is_that_of_wds2idx() -> None:
    samples = [
        IndexedSample("a", (Member("bg.jpg", 512, 10), Member("json", 1536, 2))),
        IndexedSample("b", (Member("bg.jpg", 2560, 7), Member("json", 3584, 2))),
    ]
    assert format_index(samples) == (
        "v1.2 2\nbg.jpg 512 10 a.bg.jpg json 1536 2 a.json\nbg.jpg 2560 7 b.bg.jpg json 3584 2 b.json\n"
    )


def test_version_without_names_is_read() -> None:
    samples = parse_index("v1.1 1\njpg 512 10 json 1536 2\n", PATH)
    assert samples == [IndexedSample("train-000000-000000", (Member("jpg", 512, 10), Member("json", 1536, 2)))]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "first line should be"),
        ("v9 1\njpg 1 2 a.jpg\n", "first line should be"),
        ("v1.2 2\njpg 512 2 a.jpg\n", "says 2 samples but lists 1"),
        ("v1.2 1\njpg 512 a.jpg\n", "line 2 is not"),
        ("v1.2 1\njpg x 2 a.jpg\n", "line 2 is not"),
    ],
)
def test_damage_is_named(text: str, message: str) -> None:
    with pytest.raises(UserError, match=message):
        parse_index(text, PATH)
