"""Groups of permutations, and the word problem: which element is the product of the letters so far?"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import permutations

import torch
from torch import Tensor

Permutation = tuple[int, ...]


@dataclass(frozen=True)
class Task:
    """A word problem over a group's elements, by number: the product of any two, and those that are letters."""

    name: str
    product: Tensor
    letters: Tensor

    @property
    def states(self) -> int:
        return self.product.shape[0]

    def to(self, device: str) -> Task:
        return Task(self.name, self.product.to(device), self.letters.to(device))

    def words(self, batch: int, length: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        """Random words and the states after each letter, both [batch, length]; task and generator on one device.

        The products are associative: each state is that of twice as many letters after every round.
        """
        word = torch.randint(len(self.letters), (batch, length), generator=generator, device=generator.device)
        states, done = self.letters[word], 1
        while done < length:
            states = torch.cat((states[:, :done], self.product[states[:, :-done], states[:, done:]]), 1)
            done *= 2
        return word, states


def then(first: Permutation, second: Permutation) -> Permutation:
    """The product of two permutations: ``second`` moves the places that ``first`` has filled."""
    return tuple(first[i] for i in second)


def is_even(element: Permutation) -> bool:
    inversions = sum(a > b for i, a in enumerate(element) for b in element[i + 1 :])
    return inversions % 2 == 0


def symmetric(n: int) -> list[Permutation]:
    """Every permutation of n places, the identity first."""
    return list(permutations(range(n)))


def alternating(n: int) -> list[Permutation]:
    """The even permutations of n places, the identity first."""
    return [p for p in symmetric(n) if is_even(p)]


def generated(generators: Sequence[Permutation]) -> list[Permutation]:
    """Every product of the generators, the identity first."""
    elements = [tuple(range(len(generators[0])))]
    for element in elements:  # grows while it is walked
        elements += [p for g in generators if (p := then(element, g)) not in elements]
    return elements


def word_problem(name: str, letters: Sequence[Permutation]) -> Task:
    """Words over the letters; the states are the elements of the group that they generate."""
    elements = generated(letters)
    index = {element: i for i, element in enumerate(elements)}
    product = [[index[then(a, b)] for b in elements] for a in elements]
    return Task(name, torch.tensor(product), torch.tensor([index[letter] for letter in letters]))


def swaps(n: int) -> list[Permutation]:
    """The identity and the permutations that exchange two places: they generate S_n."""
    return [p for p in symmetric(n) if sum(i != x for i, x in enumerate(p)) <= 2]


TASKS = {
    task.name: task
    for task in (
        word_problem("parity", symmetric(2)),
        word_problem("S3 by swaps", swaps(3)),
        word_problem("S3", symmetric(3)),
        word_problem("A4", alternating(4)),
        word_problem("S4", symmetric(4)),
        word_problem("A5 by cycles", [(0, 1, 2, 3, 4), (1, 2, 0, 3, 4), (1, 2, 3, 4, 0)]),
        word_problem("A5", alternating(5)),
        word_problem("S5", symmetric(5)),
    )
}
