"""What loads are played on."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Protocol

from detinfer.check.answer import Answer
from detinfer.check.load import Load
from detinfer.check.target import Bounds


class Subject(Protocol):
    """What answers the requests: an engine in this process, or a server."""

    @property
    def source(self) -> str:
        """The model's name, or the server's address."""

    @property
    def fingerprint(self) -> str:
        """The system fingerprint."""

    @property
    def parts(self) -> Mapping[str, str]:
        """What the fingerprint is made of, by name."""

    @property
    def bounds(self) -> Bounds:
        """What a load may ask of it."""

    @property
    def tries(self) -> int:
        """How often a load is played before it is held to show no difference.

        1 where it steps the same way each time; over a network its requests meet as they happen to.
        """

    def stats(self) -> Mapping[str, int]:
        """Its engine's counts so far (``Engine.stats``)."""

    def play(self, load: Load) -> Mapping[int, Answer]:
        """Plays a load to the end of its last target.

        Returns:
            The answer of each row that is a run of a target, by the row's place in the load.

        Raises:
            DetinferError: a target got no whole answer.
        """
