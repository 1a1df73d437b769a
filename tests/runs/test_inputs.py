"""What a run reads besides its recipe: it is recorded, and a run says when it is not what it was."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from click.testing import CliRunner

import lab
from lab.cli import main
from lab.events import Checkpointed, Event, Started, Warned
from lab.ground.errors import LabError
from lab.recipes.recipe import Recipe
from lab.runs.export import trained
from lab.runs.finished import check_finished
from lab.runs.folder import RunFolder
from lab.runs.inputs import Input, recorded, same_everywhere
from lab.runs.trainer import Trainer, train
from tests.support.recipes import TINY, recipe
from tests.support.stories import story
from tests.support.texts import fails, make_tokenizer


@pytest.fixture(autouse=True)
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path


def write(words: str, names: str = "abc") -> None:
    Path("text").mkdir(exist_ok=True)
    for name in names:
        Path(f"text/{name}.txt").write_text(f"{words} in {name} " * 60, encoding="utf-8")


def of_text(**changes: Any) -> Recipe:
    write("some words")
    return recipe("diloco", corpus="text:text", steps=6, checkpoint_every=2, **changes)


class Cut(Exception):
    pass


def cut_at(step: int, r: Recipe, folder: str = "run") -> None:
    """A run that is killed right after a checkpoint."""

    def each(event: Event) -> None:
        if isinstance(event, Checkpointed) and event.step == step:
            raise Cut

    with pytest.raises(Cut):
        train(r, folder, each=each)


def content(folder: str = "run") -> dict[str, bytes]:
    return {str(p): p.read_bytes() for p in Path(folder).rglob("*") if p.is_file()}


# --- text -------------------------------------------------------------------------------------------------------------


def test_a_cut_run_does_not_go_on_with_other_text() -> None:
    r = of_text()
    cut_at(4, r)
    write("other words", "b")
    write("more words", "d")
    Path("text/c.txt").unlink()
    before = content()
    with fails(
        "run was trained on other text until here .*b.txt' has changed.*d.txt' is new.*c.txt' is gone.*--accept-new-text"
    ):
        train(r, "run")
    assert content() == before
    write("some words")
    Path("text/d.txt").unlink()
    whole = train(r)
    back = train(r, "run")  # the same text again
    assert back.loss_W == whole.loss_W
    assert not any("text" in w.message for w in back.warnings)


def test_new_text_is_accepted_as_an_event() -> None:
    r = of_text()
    cut_at(4, r)
    whole = train(r)
    write("other words", "b")
    columns = train(r, "run", accept_new_text=True)
    (note,) = (w for w in columns.warnings if "as accepted" in w.message)
    assert note.step == 4
    assert "b.txt' has changed" in note.message
    assert columns.loss_W[:4] == whole.loss_W[:4]
    assert columns.loss_W[4:] != whole.loss_W[4:]
    assert columns.step == whole.step
    assert len(recorded(Path("run"))) == 2
    again = train(r, "run")  # it is finished, and the last text that it read is what is there
    assert again.loss_W == columns.loss_W
    cut_at(2, replace(r, seed=1), "other")
    write("third words", "b")
    Path("other/inputs.json").unlink()  # which files is not known then
    with fails("other text until here \\(its content has changed\\)"):
        train(replace(r, seed=1), "other")


def test_a_finished_run_is_not_shown_for_other_text() -> None:
    r = of_text()
    first = train(r, "run")
    os.utime("text/a.txt", (1, 1))
    assert train(r, "run").loss_W == first.loss_W  # touched: the same text
    shutil.copytree("text", "copy")
    write("other words", "b")
    with fails("run is finished, with other text .*b.txt' has changed.*--again.*lab replay"):
        train(r, "run")
    assert train(r, "run", accept_new_text=True).loss_W == first.loss_W  # as it was
    (note,) = check_finished(Path("run"), r, accept_new_text=True)
    assert "of that time" in note
    shutil.rmtree("text")
    (note,) = check_finished(Path("run"), r)
    assert "cannot be looked at" in note
    assert train(r, "run").loss_W == first.loss_W  # there is no other text
    shutil.move("copy", "text")
    assert train(r, "run").loss_W == first.loss_W


def test_a_file_that_is_left_out_is_no_other_text() -> None:
    r = of_text()
    train(r, "run")
    Path("text/picture.png").write_bytes(b"\0\1\2")
    assert not check_finished(Path("run"), r)
    columns = train(replace(r, seed=1), "second")
    (note,) = (w for w in columns.warnings if "left out" in w.message)
    assert note.step == 0
    assert "1 of 4 files are left out" in note.message


def test_a_tokenizer_that_changed() -> None:
    make_tokenizer(Path("t.json"), "<|endoftext|>")
    first = Path("t.json").read_bytes()
    r = of_text(tokenizer="t.json")
    cut_at(2, r)
    make_tokenizer(Path("t.json"), "<|endoftext|>", 300)
    with fails("trained on other text until here .*t.json' has changed"):
        train(r, "run")
    with fails("its model cannot go on with it"):
        train(r, "run", accept_new_text=True)
    Path("t.json").write_bytes(first)
    train(r, "run")
    make_tokenizer(Path("t.json"), None)
    with fails("is finished, with other text"):
        train(r, "run")


def test_tasks_of_the_standard_library_have_a_digest(monkeypatch: pytest.MonkeyPatch) -> None:
    from lab.data.tasks import TASKS
    from lab.data.tasks.examples import Task

    def task(word: str) -> Task:
        def rows() -> Iterator[tuple[str, str, str, bool]]:
            for i in range(40):
                yield f"{word} {i}", "abcd"[i % 4], "abcd"[i % 4], i > 30

        return Task("toy", False, lambda: [word], rows)

    monkeypatch.setitem(TASKS, "toy", task("one"))
    r = recipe("diloco", corpus="task:toy", steps=4, context=16, checkpoint_every=2, num_workers=2)
    train(r, "run")
    cut_at(2, r, "cut")
    assert not check_finished(Path("run"), r)
    monkeypatch.setitem(TASKS, "toy", task("two"))
    with fails("is finished, with other text"):
        train(r, "run")
    with fails("other text until here"):
        train(r, "cut")


def test_runs_of_earlier_versions_go_on_and_are_shown() -> None:
    """They have no digests: nothing is known, so nothing is refused, and from now on it is recorded."""
    r = of_text()
    whole = train(r)
    for cut in (True, False):
        folder = f"old{cut}"
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr("lab.runs.build.of_run", lambda *a: {})
            patch.setattr(RunFolder, "record_inputs", lambda *a: None)
            cut_at(4, r, folder) if cut else train(r, folder)
        lines = [json.loads(line) for line in Path(folder, "events.jsonl").read_text(encoding="utf-8").splitlines()]
        assert lines[0].pop("inputs") == {}
        events = list(RunFolder(folder).events())
        assert isinstance(events[0], Started)
        assert train(r, folder).loss_W == whole.loss_W
    assert recorded(Path("oldTrue"))
    write("other words")
    train(r, "oldFalse")
    with fails("is finished, with other text"):
        train(r, "oldTrue")


def test_the_id_and_the_story_do_not_depend_on_the_folder() -> None:
    r = of_text()
    stored = story(Trainer(r).events(RunFolder("run")))
    assert [e for e in stored if not isinstance(e, Checkpointed)] == story(Trainer(r).events())
    write("other words")
    assert of_text().id == r.id


def test_background_runs_say_it_too(nothing_left_behind: None) -> None:
    r = of_text()
    run = lab.start(r, folder="run")
    first = run.wait(60)
    write("other words", "a")
    with pytest.raises(LabError, match="is finished, with other text"):
        lab.start(r, folder="run").wait(60)
    assert lab.start(r, folder="run", accept_new_text=True).wait(60).loss_W == first.loss_W
    assert lab.start(r, folder="run", again=True).wait(60).loss_W != first.loss_W


def test_the_command_line() -> None:
    of_text()
    changes = (
        "model.dim=8 model.num_layers=1 model.num_heads=2 steps=4 context=8 batch_size=2 num_workers=2 schedule={}"
    )
    overrides = [x for c in changes.split() for x in ("-o", c)]
    call = ["run", "diloco", "-o", "corpus=text:text", "-o", "eval_windows=2", "-o", "checkpoint_every=2", *overrides]
    shell = CliRunner()
    assert shell.invoke(main, call).exit_code == 0
    write("other words", "c")
    refused = shell.invoke(main, call)
    assert refused.exit_code == 2
    assert "c.txt' has changed" in refused.output
    assert "already finished" not in refused.output
    shown = shell.invoke(main, [*call, "--accept-new-text"])
    assert shown.exit_code == 0
    assert "of the text of that time" in shown.output
    (folder,) = Path("runs").iterdir()
    shutil.rmtree(folder / "checkpoints")
    assert shell.invoke(main, ["replay", str(folder), "--speed", "inf"]).exit_code == 0  # as it was
    assert shell.invoke(main, [*call, "--again"]).exit_code == 0
    later = shell.invoke(main, call)  # the later run is of the text that is there
    assert later.exit_code == 0
    assert f"already finished: {folder}-2" in later.output
    write("some words", "c")
    assert f"already finished: {folder} (" in shell.invoke(main, call).output


# --- other files ------------------------------------------------------------------------------------------------------


def test_starting_values_that_changed() -> None:
    from safetensors.torch import save_file

    def values(seed: int) -> None:
        module = TINY.build(256, 8, seed)
        save_file({name: p.detach().clone() for name, p in module.named_parameters()}, "start.safetensors")

    values(1)
    r = of_text(start="start.safetensors")
    train(r, "run")
    cut_at(2, r, "cut")
    values(1)
    assert not check_finished(Path("run"), r)
    values(2)
    with fails("is finished, with another starting values .*start.safetensors' has changed"):
        train(r, "run")
    with fails("was begun with another starting values"):
        train(r, "cut", accept_new_text=True)
    with fails("was begun with another starting values"):
        trained(RunFolder("run"))
    values(1)
    train(r, "cut")


def test_a_model_of_hugging_face_that_changed() -> None:
    transformers = pytest.importorskip("transformers")
    config = transformers.LlamaConfig(
        vocab_size=256,
        hidden_size=8,
        intermediate_size=8,
        num_hidden_layers=1,
        num_attention_heads=2,
        max_position_embeddings=16,
    )

    def write_model(seed: int) -> None:
        with torch.random.fork_rng():
            torch.manual_seed(seed)
            transformers.LlamaForCausalLM(config).save_pretrained("model")

    write_model(0)
    r = replace(of_text(), model=lab.Recipe.of({"model": "hf:./model"}).model, dtype="float32")
    train(r, "run")
    write_model(1)
    with fails("is finished, with another model .*model.safetensors' has changed"):
        train(r, "run")
    write_model(0)
    assert not check_finished(Path("run"), r)


def test_processes_read_the_same() -> None:
    same_everywhere([{"text": "a", "model": "b"}] * 3)
    with pytest.raises(LabError, match="process 1 reads another text than process 0"):
        same_everywhere([{"text": "a"}, {"text": "b"}])


@pytest.mark.parametrize("damaged", [b"", b"{", b"[1]", b"[]", b"null", b'{"read": [{"text": 3}]}', b"\xff", None])
def test_a_damaged_record(damaged: bytes | None) -> None:
    """What a checkpoint and the first event vouch for is enough to notice other text."""
    r = of_text()
    cut_at(2, r)
    whole = Path("run/inputs.json").read_bytes()
    digest = json.loads(whole)["read"][0]["text"]["digest"].encode()
    damaged = whole.replace(digest, digest[::-1]) if damaged is None else damaged
    Path("run/inputs.json").write_bytes(damaged)
    assert recorded(Path("run")) == []
    write("other words")
    with fails("other text until here"):
        train(r, "run")
    write("some words")
    train(r, "run")
    assert isinstance(recorded(Path("run"))[-1]["text"], Input)
    assert not [w for w in train(r, "run").warnings if isinstance(w, Warned) and "text" in w.message]
    Path("run/inputs.json").write_bytes(damaged)
    assert not check_finished(Path("run"), r)
    write("other words")
    with fails("is finished, with other text \\(its content has changed\\)"):
        train(r, "run")
