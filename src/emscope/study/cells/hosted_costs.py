"""What the cells of a study cost at its host, without contacting it: their requests are counted as its meter will count them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from emscope.answers.sample_hosted import charge_for_answers
from emscope.core.plain import Result
from emscope.models.remote.host_spec import Prices
from emscope.models.remote.hosted import Spent
from emscope.models.remote.metering import charge_for_training, dollars_for
from emscope.store.rows import Rows
from emscope.study.cells.at_host import parts_to_spread, spent_on
from emscope.study.cells.doing import Shared, subjects
from emscope.study.cells.planning import BASE, Cell, readings_ahead
from emscope.study.reading.hosted import charge_for
from emscope.study.reading.measuring import Reading, lacking
from emscope.study.training.plan import Run
from emscope.train.batches import Example, encode
from emscope.train.hosted import order_of


@dataclass(frozen=True, slots=True)
class KindAtHost(Result):
    """The cells left of one kind: the base, or the runs that differ only in their seeds.

    Attributes:
        kind: `base`, or the name of the runs without their seeds. cells: how many.
        tokens: of all of them: trained on, read (prompts and fixed answers), and at most sampled.
        dollars: the most that they cost; None without prices.
    """

    kind: str
    cells: int
    tokens: Spent
    dollars: float | None


@dataclass(frozen=True, slots=True)
class AtHost(Result):
    """What the cells left of a study cost at its host at most, if no request has to be repeated.

    Attributes:
        name: of the host. kinds: the cells left by kind.
        dollars: the most that all of them cost; None without prices. spent: dollars so far; None without prices.
        max_cost: the host's limit for the whole study [dollars]; None for none.
    """

    name: str
    kinds: tuple[KindAtHost, ...]
    dollars: float | None
    spent: float | None
    max_cost: float | None

    @property
    def tokens(self) -> Spent:
        """Of all cells left."""
        return sum((kind.tokens for kind in self.kinds), Spent())

    @property
    def total(self) -> float | None:
        """The most that the whole study costs [dollars]; None without prices."""
        return None if self.dollars is None or self.spent is None else self.spent + self.dollars


def costs_at_host(shared: Shared, root: Path, left: Sequence[Cell]) -> AtHost | None:
    """Return what cells will cost at the study's host; None for a study on this machine.

    A cell that was begun counts in full.

    Args:
        root: the study's folder, whether or not it exists. left: the cells that are not done.
    """
    host = shared.planned.spec.host
    if host is None:
        return None
    counting, of = _Counting(shared), dict[str, list[Spent]]()
    for cell in left:
        of.setdefault(cell.run.way if cell.run else BASE, []).append(counting.charge_for(cell.run))
    kinds = [_kind(name, costs, host.prices) for name, costs in of.items()]
    dollars = dollars_for(host.prices, sum((k.tokens for k in kinds), Spent())) if host.prices else None
    spent = dollars_for(host.prices, spent_on(root, shared.planned)) if host.prices else None
    return AtHost(host.name, tuple(kinds), dollars, spent, host.max_cost)


def _kind(name: str, cells: Sequence[Spent], prices: Prices | None) -> KindAtHost:
    tokens = sum(cells, Spent())
    return KindAtHost(name, len(cells), tokens, dollars_for(prices, tokens) if prices else None)


class _Counting:
    """What cells are charged; what is equal in many of them is counted once."""

    def __init__(self, shared: Shared) -> None:
        self._shared = shared
        self._examples: dict[str, list[Example]] = {}
        self._trained: dict[tuple[str, int, int, int], Spent] = {}
        self._read: dict[str, Spent] = {}
        self._answers: Spent | None = None

    def charge_for(self, one: Run | None) -> Spent:
        """Return what one cell is charged at most."""
        wanted = readings_ahead(self._shared.planned, one)
        trained = self._training(one) if one else Spent()
        return sum((self._reading(r) for r in wanted), trained) + self._asking(wanted)

    def _training(self, one: Run) -> Spent:
        planned, loaded, spec = self._shared.planned, self._shared.loaded, one.train
        recipe, alike = planned.recipes[one.arm], (one.arm, one.seed, spec.steps, spec.batch)
        if one.arm not in self._examples:
            self._examples[one.arm] = encode(loaded.chat, [r.conversation for r in recipe], loaded.context)
        if alike not in self._trained:
            order = order_of(self._examples[one.arm], spec, one.seed, parts_to_spread(recipe, one))
            self._trained[alike] = charge_for_training(e.ids for e in order)
        return self._trained[alike]

    def _reading(self, reading: Reading) -> Spent:
        planned, loaded = self._shared.planned, self._shared.loaded
        kind = repr((sorted(reading.wanted.items()), reading.questions))
        if kind not in self._read:
            todo = lacking(Rows(Path("/nonexistent")), loaded, [reading], planned.asked)
            self._read[kind] = charge_for(loaded, todo, planned.asked)
        return self._read[kind]

    def _asking(self, wanted: Sequence[Reading]) -> Spent:
        """Return what answers for judges are charged at most; all subjects are asked the same."""
        asking, asked = self._shared.asking, subjects(self._shared, wanted)
        if asking is None or not asked:
            return Spent()
        if self._answers is None:
            self._answers = charge_for_answers(self._shared.loaded, asking.spec, asking.prompts, asked[0])
        return self._answers * len(asked)
