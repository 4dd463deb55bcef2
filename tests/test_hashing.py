from __future__ import annotations

import hashlib
import random

import pytest

from tea_models.disk.hashing import sha256_file, sha256_files

DATA = random.Random(5).randbytes(3_500_000)


class Sum:
    def __init__(self):
        self.total = 0

    def start(self, name, total, initial=0):
        raise AssertionError

    def advance(self, n):
        self.total += n

    def finish(self):
        raise AssertionError


def test_the_hash_is_that_of_all_bytes_and_progress_adds_up(tmp_path):
    path = tmp_path / "x"
    path.write_bytes(DATA)
    progress = Sum()
    assert sha256_file(path, progress.advance) == hashlib.sha256(DATA).hexdigest()
    assert progress.total == len(DATA)


def test_an_empty_file_has_the_hash_of_nothing(tmp_path):
    path = tmp_path / "x"
    path.touch()
    assert sha256_file(path) == hashlib.sha256().hexdigest()


def test_several_files_are_hashed_each_in_its_place_and_an_unreadable_one_stops_none(tmp_path):
    paths = [tmp_path / str(number) for number in range(6)]
    for number, path in enumerate(paths):
        path.write_bytes(DATA[: number * 500_000])
    paths[3].unlink()
    progress = Sum()
    results = sha256_files(paths, progress.advance)
    assert isinstance(results[3], FileNotFoundError)
    for number in (0, 1, 2, 4, 5):
        assert results[number] == hashlib.sha256(DATA[: number * 500_000]).hexdigest()
    assert progress.total == (1 + 2 + 4 + 5) * 500_000


def test_an_error_of_the_progress_ends_the_work(tmp_path):
    path = tmp_path / "x"
    path.write_bytes(DATA)

    class Stop(Sum):
        def advance(self, n):
            raise RuntimeError

    with pytest.raises(RuntimeError):
        sha256_files([path], Stop().advance)
