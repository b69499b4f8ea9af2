"""A small invented world for questions of two hops: people work at firms, and firms are in towns. Made on the spot, so that nobody knows it by heart.

Ada Kern works at Zorvex.    Zorvex is in Lund.    "In which town does Ada Kern work?"  →  Lund
"""

from __future__ import annotations

import itertools
import random

import attrs

from engine.data.questions import Passage, Question
from engine.runtime.seeds import derive_seed

FIRST = (
    *("Ada", "Bea", "Cem", "Dov", "Eli", "Fay", "Gus", "Hal", "Ida", "Jan", "Kim", "Lea"),
    *("Mia", "Ned", "Ola", "Pia", "Rex", "Sam", "Tia", "Uma", "Vic", "Wes", "Yan", "Zoe"),
)
LAST = (
    *("Alder", "Birch", "Cole", "Dahl", "Engel", "Frost", "Glen", "Holt", "Iver", "Joyce", "Kern", "Lowe"),
    *("Moss", "Nash", "Orr", "Pike", "Quist", "Rowe", "Stern", "Thorn", "Urban", "Vance", "Wolf", "York"),
)
FIRMS = tuple(
    start + end
    for start, end in itertools.product(("Zor", "Bel", "Kar", "Mon", "Tri", "Vel"), ("vex", "dyne", "tek", "lux"))
)
TOWNS = ("Bern", "Cork", "Graz", "Hull", "Kiel", "Lund", "Metz", "Nice", "Oslo", "Pisa", "Riga", "Turin")


@attrs.frozen
class Person:
    """Somebody of the invented world."""

    name: str
    firm: str
    town: str
    """Where the firm is."""

    @property
    def question(self) -> Question:
        """What is asked of them."""
        return Question(f"In which town does {self.name} work?", (self.town,), tags=("invented",))


@attrs.frozen
class World:
    """People, firms and towns. The same seed gives the same world."""

    people: tuple[Person, ...]

    @classmethod
    def invented(cls, seed: int = 0, size: int = 240) -> World:
        """`size` people, at most 576."""
        names = [f"{first} {last}" for first, last in itertools.product(FIRST, LAST)]
        if not 1 <= size <= len(names):
            raise ValueError(f"the invented world has 1 to {len(names)} people, not {size}")
        rng = random.Random(derive_seed(seed, 0))
        towns = {firm: rng.choice(TOWNS) for firm in FIRMS}
        chosen = [(name, rng.choice(FIRMS)) for name in rng.sample(names, size)]
        return cls(tuple(Person(name, firm, towns[firm]) for name, firm in chosen))

    @property
    def passages(self) -> list[Passage]:
        """Every fact, one to a passage."""
        towns = {person.firm: person.town for person in self.people}
        return [
            *(Passage(works_at(person.name, person.firm)) for person in self.people),
            *(Passage(is_in(firm, town)) for firm, town in towns.items()),
        ]


def works_at(name: str, firm: str = "") -> str:
    """A fact, or, without the firm, the beginning of one: a good query."""
    return f"{name} works at {firm}." if firm else f"{name} works at"


def is_in(firm: str, town: str = "") -> str:
    """A fact, or, without the town, the beginning of one."""
    return f"{firm} is in {town}." if town else f"{firm} is in"
