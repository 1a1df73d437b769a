"""Pointer chasing: every question of every map, followed by hand, and maps that are held out whole."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

from lab.data.tasks import pointers
from lab.data.tasks.data import load_task


def test_every_answer_follows_from_its_map() -> None:
    rows, held_out = list(pointers.rows()), set()
    assert len({prompt for prompt, *_ in rows}) == len(rows) == 720 * 6 * 4
    for prompt, answer, domain, held in rows:
        map_, question = prompt.split(" ")
        at = question[0]
        for _ in range(int(question[1:])):
            at = map_["abcdef".index(at)]
        assert (at, f"{question[1:]} hops") == (answer, domain)
        if held:
            held_out.add(map_)
    assert not held_out & {prompt.split(" ")[0] for prompt, _, _, held in rows if not held}
    assert 50 < len(held_out) < 95
    assert Counter(map_[0] for map_ in held_out).keys() == {*"abcdef"}


def test_it_is_a_task_as_any_other(tmp_path: Path) -> None:
    task = load_task("task:pointers", context=16, num_workers=2, cache=tmp_path)
    assert task.domains == ("1 hops", "2 hops", "3 hops", "4 hops")
    ids, targets = task.validation(4, 8)[0]
    assert ids.shape == (4, 16)
    assert (targets >= 0).sum(1).tolist() == [2] * 4  # the letter, and the end
