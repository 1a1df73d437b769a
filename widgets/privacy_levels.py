"""What does each degree of privacy cost? Runs on one data set whose clients are everybody, people, rooms or single sensors."""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field

from lab.data.splits import parse_split
from lab.events import Clipped, Ended, Evaluated, Event, GroupsScored, Started
from lab.recipes.recipe import Recipe
from widgets.pictures import Bars, Lines, Note, Picture, Series
from widgets.view import View

TITLE = "What does each level of privacy cost?"
WHOLE = "centralised"
OVER_TIME = "{name}, step {x}: {y}\nmean over seeds"
Looks = dict[int, float]  # by local step


@dataclass(eq=False, repr=False)
class PrivacyLevels(View):
    """A score by level of privacy, the mean over seeds with its range, and how far it is below one model on all data, pair by pair.

    Feed it the runs one after another (``view.replay(run.events, name)``), or let `train_all` do so. A run named ``mutual #3`` is a seed of the row
    ``mutual``; one without such a name belongs to the level that its recipe says. Of runs with models of groups there are further
    rows, and ε where a run spends it.

    score
        a score of the task that is better the higher it is.
    """

    title = TITLE
    reads = (Started, Evaluated, GroupsScored, Clipped, Ended)

    score: str = "accuracy"
    looks: dict[str, dict[int, Looks]] = field(default_factory=dict, init=False)  # by row and seed
    spent: dict[str, float] = field(default_factory=dict, init=False)  # ε by level
    now: tuple[str, int] = field(
        default=(WHOLE, 0), init=False
    )  # level and seed of the present run, and of each by its name
    known: dict[str, tuple[str, int]] = field(default_factory=dict, init=False)

    def fold(self, event: Event) -> None:
        match event:
            case Started():
                recipe = Recipe.recorded(event.recipe)
                named, has_name, _ = self._run.rpartition(" #")
                level = named if has_name else level_of(recipe)
                self.known[self._run] = level, recipe.seed
                for row in [r for r in self.looks if r == level or r.startswith(f"{level}: ")]:
                    self.looks[row].pop(recipe.seed, None)
            case Evaluated():
                self._look("", event.step, event.scores)
            case GroupsScored():
                if "ensemble" in event.full:
                    self._look(": F and all G together", event.step, event.full["ensemble"])
                native = event.mean_native(self.score)
                for model, says in (("general", "F"), ("group", "G")):
                    if model in native:
                        self._look(f": {says}, own sensor alone", event.step, {self.score: native[model]})
            case Clipped():
                if event.epsilon is not None:
                    self.spent[self._at[0]] = max(event.epsilon, self.spent.get(self._at[0], 0.0))

    @property
    def _at(self) -> tuple[str, int]:
        return self.known.get(self._run, (WHOLE, 0))

    def _look(self, what: str, step: int, scores: Mapping[str, float]) -> None:
        level, seed = self._at
        if self.score in scores:
            self.looks.setdefault(level + what, {}).setdefault(seed, {})[step] = scores[self.score]

    def answer(self) -> str:
        of = {row: [x[max(x)] for x in seeds.values()] for row, seeds in self.looks.items() if seeds and ":" not in row}
        means = {row: _mean(values) for row, values in of.items() if values}
        if not means:
            return f"No run has been scored yet (or has no {self.score})."
        best, worst = max(means, key=means.__getitem__), min(means, key=means.__getitem__)
        if len(means) == 1:
            return f"{self.score.capitalize()} is {means[best]:.3f} for {best}; there is no other level to compare it with yet."
        return (
            f"Of {len(means)} levels {best} has the best {self.score} ({means[best]:.3f}) and {worst} the worst ({means[worst]:.3f}): "
            f"{100 * (means[best] - means[worst]):.1f} points between them."
        )

    def pictures(self) -> list[Picture]:
        rows = {row: {seed: x[max(x)] for seed, x in of.items()} for row, of in self.looks.items() if of}
        if not rows:
            return [Note(TITLE, f"No run has been scored yet (or has no {self.score}).")]
        return [Note("In numbers", self._words(rows)), self._bars(rows), self._over_time()]

    def _words(self, rows: Mapping[str, Mapping[int, float]]) -> str:
        seeds = sorted({len(of) for of in rows.values()})
        many = f"{seeds[0]}" if len(seeds) == 1 else f"{seeds[0]} to {seeds[-1]}"
        of_rows = "; ".join(f"{row} {self._says(row, rows)}" for row in rows)
        plural = "seed" if seeds == [1] else "seeds"
        return f"{self.score.capitalize()} at the last evaluation, {many} {plural} (mean, and from the least to the most): {of_rows}."

    def _says(self, row: str, rows: Mapping[str, Mapping[int, float]]) -> str:
        """The mean over seeds, their range, how far that is from the centralised run of the same seed, and what was spent."""
        of = rows[row]
        says = f"{_mean(of.values()):.3f}" + (
            f" ({min(of.values()):.3f} to {max(of.values()):.3f})" if len(of) > 1 else ""
        )
        drops = [x - rows[WHOLE][seed] for seed, x in of.items() if row != WHOLE and seed in rows.get(WHOLE, {})]
        if drops:
            says += f", {100 * _mean(drops):+.1f} points"
            says += f" ({100 * min(drops):+.1f} to {100 * max(drops):+.1f})" if len(drops) > 1 else ""
        spent = self.spent.get(row.partition(":")[0])
        return says + (f", ε = {spent:.3g}" if spent is not None else "")

    def _bars(self, rows: Mapping[str, Mapping[int, float]]) -> Bars:
        names = list(rows)
        levels = list(dict.fromkeys(name.partition(":")[0] for name in names))
        values = [_mean(rows[name].values()) for name in names]
        labels = [re.sub(r" \([^)]*\)", "", self._says(name, rows)) for name in names]  # ranges stand in the words
        colours = [levels.index(name.partition(":")[0]) for name in names]
        return Bars(f"{self.score.capitalize()} by level", self.score, names, values, labels, colours)

    def _over_time(self) -> Lines:
        series = [Series(row, *_means(of)) for row, of in self.looks.items() if of and ":" not in row]
        return Lines(f"{self.score.capitalize()} over time", "local step", self.score, series, hover=OVER_TIME)


def level_of(recipe: Recipe) -> str:
    """Who a client is: everybody's data in one place, or what has the same person, room, sensor."""
    if recipe.num_clients == 1:
        return WHOLE
    columns = parse_split(recipe.split).columns
    return " × ".join(columns) if columns else f"{recipe.num_clients} clients, {recipe.split}"


def _mean(values: Collection[float]) -> float:

    return float(sum(values) / len(values))


def _means(of: Mapping[int, Looks]) -> tuple[list[int], list[float]]:
    """The mean over seeds at each step that all of them have."""
    common = sorted(set.intersection(*(set(looks) for looks in of.values())))
    return common, [_mean([looks[step] for looks in of.values()]) for step in common]
