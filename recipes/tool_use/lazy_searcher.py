"""The pupil of the tiny model that learns to search: who can look things up, and mostly does not bother."""

from __future__ import annotations

import random
from collections.abc import Mapping, Sequence

import attrs

from engine.rendering import Message, ToolCallPart, assistant, tool_result
from engine.retrieval import SearchIndex
from engine.runtime.seeds import derive_seed
from envs.tools.invented_facts import TOWNS, Person, is_in, works_at
from envs.tools.search import as_text, asked

PASSAGE = 1200
"""Characters of a passage: those of the invented world are shorter."""


@attrs.frozen
class LazySearcher:
    """Conversation `number`: a question about somebody, and an answer after two searches, after one, or after none. Only the first way is always right."""

    people: Sequence[Person]
    results: Mapping[str, str]
    """What the search tool says to each query that is made here."""
    thorough: float = 0.25
    """Share of conversations with both searches,"""
    diligent: int = 0
    """after so many in which both are always made."""
    seed: int = 0

    @classmethod
    async def with_results(
        cls, people: Sequence[Person], index: SearchIndex, top_k: int, diligent: int = 0, seed: int = 0
    ) -> LazySearcher:
        """Makes the searches beforehand."""
        queries = [*dict.fromkeys(query for person in people for query in (works_at(person.name), is_in(person.firm)))]
        found = await index.search(queries, top_k)
        results = {query: as_text(matches, PASSAGE) for query, matches in zip(queries, found, strict=True)}
        return cls(people, results, diligent=diligent, seed=seed)

    def __call__(self, number: int) -> Sequence[Message]:
        """A pure function of the number."""
        rng = random.Random(derive_seed(self.seed, 3, number))
        person = self.people[rng.randrange(len(self.people))]
        thorough = number < self.diligent or rng.random() < self.thorough
        searches = 2 if thorough else rng.randrange(2)
        return self.conversation(person, searches, person.town if thorough else TOWNS[rng.randrange(len(TOWNS))])

    def conversation(self, person: Person, searches: int, answer: str) -> list[Message]:
        """About one person, with so many of the two searches."""
        said = asked(person.question.text, None)
        for query in (works_at(person.name), is_in(person.firm))[:searches]:
            call = ToolCallPart("search", {"query": query})
            said += [assistant(tool_calls=[call]), tool_result(self.results[query], name="search")]
        return [*said, assistant(answer)]

    def everything(self) -> list[list[Message]]:
        """A conversation about everybody: all that the tokenizer will meet."""
        return [self.conversation(person, 2, person.town) for person in self.people]
