"""Nothing lost, nothing silently wrong: kills, broken disks and files, foreign input, odd numbers."""

import random

import pytest
from conftest import TINY
from harness import Subjects, assert_equal, contents


@pytest.fixture(scope="module")
def subjects(tmp_path_factory):
    return Subjects(tmp_path_factory.mktemp("kill"), TINY)


# ---------------------------------------------------------------------------------------------------- kill it anywhere


@pytest.mark.parametrize(("name", "seed"), [("train", 1), ("train", 2), ("evaluate", 3), ("cache", 4), ("study", 5)])
def test_killed_anywhere_it_goes_on_to_the_same(name, seed, subjects):
    told = []
    while not told:  # a kill that came too late is none
        told = subjects.trial(name, str(seed), random.Random(seed), kills=1)
        seed += 100
    print(name, told)


def test_the_same_in_two_processes(subjects, trained):
    """Same seed, same machine, one thread: bit for bit, in this process and in another."""
    subjects.undisturbed("train")
    mine = {k: v for k, v in contents(trained[2].path).items() if not k.startswith(("results", "features_test"))}
    assert_equal(subjects.home / "train undisturbed" / "Lauf 1", mine)
