"""A load in which an answer differs is shrunk to what the difference needs, and that is named."""

from __future__ import annotations

import dataclasses

import leaks
import pytest
from fake_runner import fake_engine

from detinfer.check import Check, Divergence, EngineSubject, Load, Target
from detinfer.check.shrink import MOST_PLAYS, Shrinker
from detinfer.params import SamplingParams

LONG = tuple(7 + i % 60 for i in range(150))
TARGETS = [Target("ABC", SamplingParams(max_tokens=8)), Target(LONG, SamplingParams(max_tokens=8))]


def shrunk(runner, targets=TARGETS, seed=5):
    subject = EngineSubject(fake_engine(runner=runner))
    check = Check(subject, targets, runs=60, seed=seed)
    check.run()
    return check.shrunk(check.result()).shrunk


@pytest.mark.parametrize(
    ("leak", "families", "requests"),
    [
        (leaks.BatchSize, {"batch size"}, 16),
        (leaks.Token, {"batch size"}, 2),
        (leaks.Slot, {"batch size", "slot"}, 4),
        (leaks.Pages, {"page placement"}, 1),
        (leaks.Chunk, {"chunk size"}, 1),
    ],
)
def test_what_is_left_names_the_cause(leak, families, requests):
    # A pool in which the largest loads fit at once: or sharing pages is what makes them meet.
    found = shrunk(leak(num_pages=200))
    assert set(found.families) == families
    assert len(found.load.rows) == requests
    assert found.got != found.expected
    assert found.plays <= MOST_PLAYS


def test_what_is_left_differs_when_it_is_played_again():
    runner = leaks.Slot()
    found = shrunk(runner)
    again = EngineSubject(fake_engine(runner=leaks.Slot())).play(found.load)[found.row]
    assert again == found.got != found.expected


def test_a_difference_that_does_not_come_again_is_of_what_was_before():
    subject = EngineSubject(fake_engine())
    load = Load.alone(0, TARGETS[0])
    expected = subject.play(load)[0]
    got = dataclasses.replace(expected, digest="0" * 64)
    told = Divergence("deterministic", 0, 0, load, 0, None, expected, got)
    found = Shrinker(subject, told, load).run()
    assert found.families == ("what was served before",)
    assert (found.load, found.got, found.plays) == (load, got, 1)


def test_a_load_that_meets_by_chance_is_played_again():
    """Over a network a load may miss what it showed: one play of it says little."""

    class Missing(EngineSubject):
        tries = 3

        def play(self, load):
            self.plays = getattr(self, "plays", 0) + 1
            answers = super().play(load)
            crowd = len(load.rows) > 1 and self.plays % 3 == 0
            return {
                row: dataclasses.replace(answer, digest="0" * 64) if crowd else answer
                for row, answer in answers.items()
            }

    def found(kind):
        subject = kind(fake_engine())
        target = TARGETS[0]
        alone = Load.alone(0, target)
        [row] = alone.rows
        load = dataclasses.replace(alone, number=1, rows=(row, dataclasses.replace(row, target=1)))
        expected = subject.play(alone)[0]
        got = dataclasses.replace(expected, digest="0" * 64)
        told = Divergence("deterministic", 0, 0, load, 0, None, expected, got)
        return Shrinker(subject, told, alone).run()

    assert found(Missing).families == ("batch size",)
    once = type("Once", (Missing,), {"tries": 1})
    assert found(once).families == ("what was served before",)


def test_a_model_that_differs_alone_is_said_to():
    class Drifting(leaks.FakeRunner):
        def forward(self, batch):
            self.step = getattr(self, "step", 0) + 1
            return super().forward(batch) + self.step % 7

    found = shrunk(Drifting())
    assert len(found.load.rows) == 1
    assert "repeating it alone" in found.families
