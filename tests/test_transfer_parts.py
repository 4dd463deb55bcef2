"""The pieces that a download is made of, each alone."""

from __future__ import annotations

import os
import random
from contextlib import closing
from email.utils import formatdate

import pytest

from tea_models.errors import DiskFullError, StoreError
from tea_models.net.answers import Answer, Version
from tea_models.net.client import is_loopback, origin
from tea_models.net.partial import PartialFile, State
from tea_models.net.ranges import ENDLESS, MIB, Board, Part, Ranges
from tea_models.net.retry import RetryPolicy, parse_retry_after

# -- ranges ------------------------------------------------------------------------------------------------------------


def test_ranges_agree_with_a_set_of_numbers():
    generator = random.Random(7)
    for _ in range(200):
        ranges, numbers = Ranges(), set()
        for _ in range(generator.randrange(1, 20)):
            start = generator.randrange(60)
            end = start + generator.randrange(12)
            new = set(range(start, end)) - numbers
            assert ranges.add(start, end) == len(new)
            numbers |= new
        limit = generator.randrange(1, 80)
        assert {n for a, b in ranges for n in range(a, b)} == numbers
        assert ranges.total == len(numbers)
        assert {n for a, b in ranges.missing(limit) for n in range(a, b)} == set(range(limit)) - numbers
        assert {n for a, b in ranges.clipped(limit) for n in range(a, b)} == {n for n in numbers if n < limit}
        assert ranges.frontier() == next(n for n in range(100) if n not in numbers)
        assert all(b < c for (_, b), (c, _) in zip(list(ranges), list(ranges)[1:], strict=False))


# -- who fetches what --------------------------------------------------------------------------------------------------


def take(board, **options):
    return board.take(silent_seconds=3, **options)


def test_parts_cover_the_file_once_and_in_order():
    board = Board(Ranges(), 100 * MIB, 4)
    parts = [take(board) for _ in range(13)]
    assert [part.position for part in parts] == [number * 8 * MIB for number in range(13)]
    assert parts[-1].end == 100 * MIB
    assert sum(part.left for part in parts) == 100 * MIB


def test_only_what_is_missing_is_handed_out():
    board = Board(Ranges([(0, 3), (10, 20)]), 30, 1)
    parts = [take(board), take(board)]
    assert [(part.position, part.end) for part in parts] == [(3, 10), (20, 30)]


def test_what_a_connection_gave_up_comes_first_again():
    board = Board(Ranges(), 40 * MIB, 2)
    first, second = take(board), take(board)
    first.position += 100
    board.give_back(first)
    again = take(board)
    assert (again.position, again.end) == (100, second.position)


def test_an_endless_part_is_cut_when_the_size_is_known():
    board = Board(Ranges(), None, 4)
    part = take(board)
    assert part.end == ENDLESS
    part.position = MIB
    board.learn_total(100 * MIB)
    assert part.end == 9 * MIB
    assert take(board).position == 9 * MIB


def test_a_part_whose_server_knows_no_ranges_is_the_only_one():
    board = Board(Ranges(), 100 * MIB, 4)
    part = take(board)
    board.only(part)
    assert part.end == 100 * MIB
    assert board.take(silent_seconds=3) is None


def going(board, part, *, seconds, got, silent=0.0):
    """As if the connection of a part had brought so much in so long."""
    part.began -= seconds
    part.heard -= silent
    part.got = got
    part.position += got
    board.done.add(part.position - got, part.position)


def test_a_slow_connection_is_helped_so_that_both_end_together():
    board = Board(Ranges(), 8 * MIB, 4)
    slow = take(board)
    going(board, slow, seconds=10, got=MIB)
    half = take(board)
    assert half.position == pytest.approx(MIB + 3.5 * MIB, rel=0.01)
    assert (slow.end, half.end) == (half.position, 8 * MIB)
    fast = take(board, rate=1e9)
    assert fast.end - fast.position > 3 * MIB


def test_a_connection_that_will_be_done_soon_is_left_alone():
    board = Board(Ranges(), 8 * MIB, 4)
    going(board, take(board), seconds=1, got=6 * MIB)
    assert take(board) is None


def test_a_silent_connection_loses_its_part_and_the_next_one_is_given_more_time():
    board = Board(Ranges(), 8 * MIB, 4)
    silent = take(board)
    going(board, silent, seconds=4, got=0, silent=4)
    taken = take(board)
    assert silent.left == 0
    assert (taken.position, taken.end) == (0, 8 * MIB)
    taken.heard -= 4
    assert take(board) is None
    taken.heard -= 4
    assert take(board) is not None


def test_a_part_knows_how_long_it_will_take():
    part = Part(0, 100)
    assert part.seconds_left(part.began + 1) == float("inf")
    part.position = part.got = 50
    assert part.seconds_left(part.began + 10) == pytest.approx(10)


# -- trying again ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("value", "seconds"),
    [
        ("0", 0),
        ("120", 120),
        (" 5 ", 5),
        ("1.5", 1.5),
        ("9" * 40, 999_999_999_999),
        ("-1", None),
        ("nan", None),
        ("inf", None),
        ("soon", None),
        ("", None),
        (None, None),
        ("\u0665", None),
        (formatdate(1030, usegmt=True), 30),
        (formatdate(10, usegmt=True), 0),
        ("Fri, 31 Feb 2026 00:00:00 GMT", None),
    ],
)
def test_retry_after_is_a_number_a_date_or_nonsense(value, seconds):
    assert parse_retry_after(value, now=1000) == seconds


def test_waits_grow_are_bounded_and_differ():
    policy = RetryPolicy(base_seconds=1, longest_seconds=10)
    waits = [policy.wait(failures) for failures in (1, 2, 3, 10, 10_000)]
    assert 0.75 <= waits[0] <= 1.25
    assert 1.5 <= waits[1] <= 2.5
    assert all(wait <= 12.5 for wait in waits)
    assert len({policy.wait(3) for _ in range(20)}) > 1


def test_a_server_may_ask_for_a_longer_wait_but_not_for_any():
    policy = RetryPolicy(base_seconds=1, longest_retry_after=60)
    assert policy.wait(1, 30) == 30
    assert policy.wait(1, 0) >= 0.75
    assert policy.wait(1, 1e9) <= 1.25


# -- versions ----------------------------------------------------------------------------------------------------------


def answer(etag="", modified=""):
    return Answer(0, 1, 1, False, True, etag, modified, False)


@pytest.mark.parametrize(
    ("before", "after", "same"),
    [
        (("", ""), ('"a"', "Monday"), True),
        (('"a"', ""), ('"a"', ""), True),
        (('"a"', ""), ('"b"', ""), False),
        (('"a"', "Monday"), ('"a"', "Tuesday"), True),
        (('"a"', "Monday"), ("", "Tuesday"), False),
        (("", "Monday"), ("", "Tuesday"), False),
        (('"a"', "Monday"), ("", ""), True),
    ],
)
def test_versions_differ_by_tag_or_else_by_date(before, after, same):
    assert Version(*before).accept(answer(*after)) is same


@pytest.mark.parametrize(
    ("version", "condition"),
    [
        (Version('"a"', "Monday"), '"a"'),
        (Version('W/"a"', "Monday"), ""),
        (Version("", "Monday"), "Monday"),
        (Version(), ""),
    ],
)
def test_only_a_strong_tag_or_a_date_can_be_a_condition(version, condition):
    assert version.validator == condition


# -- addresses ---------------------------------------------------------------------------------------------------------


def test_origins_are_told_apart_by_scheme_host_and_port():
    assert origin("https://Host/x") == origin("https://host:443/y")
    assert origin("https://host/") != origin("http://host/")
    assert origin("https://host/") != origin("https://host:444/")
    assert origin("https://host/") != origin("https://host.example/")


@pytest.mark.parametrize(
    ("host", "expected"),
    [("localhost", True), ("127.0.0.1", True), ("127.9.9.9", True), ("::1", True), ("127.0.0.1.example.org", False),
     ("10.0.0.1", False), ("localhost.example.org", False), ("", False)],
)  # fmt: skip
def test_loopback_is_this_machine_only(host, expected):
    assert is_loopback(host) is expected


# -- the partial -------------------------------------------------------------------------------------------------------


@pytest.fixture
def partial(tmp_path):
    with closing(PartialFile(tmp_path / "x.part")) as made:
        yield made


def test_a_state_comes_back_as_it_was_saved(partial):
    partial.write(b"x" * 100, 0)
    state = State("f" * 32, "a" * 64, 200, '"e"', "Monday", ((0, 50), (60, 100)), (50, "d" * 64))
    partial.save(state)
    assert partial.load() == state
    assert sorted(path.name for path in partial.path.parent.iterdir()) == ["x.part", "x.part.state"]
    partial.truncate(70)
    assert partial.load().ranges == ((0, 50), (60, 70))
    partial.truncate(40)
    assert partial.load().checked == (0, "")
    partial.forget()
    assert partial.load() is None
    assert not partial.state_path.exists()


def test_a_folder_in_the_way_is_an_error_that_says_so(tmp_path):
    (tmp_path / "x.part").mkdir()
    with pytest.raises(StoreError, match="folder"):
        PartialFile(tmp_path / "x.part")


def test_a_full_device_is_a_disk_full_error(tmp_path):
    """/dev/full answers every write with ENOSPC."""
    with closing(PartialFile(tmp_path / "x.part")) as made:
        descriptor = os.open("/dev/full", os.O_WRONLY)
        os.dup2(descriptor, made.descriptor)
        os.close(descriptor)
        with pytest.raises(DiskFullError):
            made.write(b"x", 0)
