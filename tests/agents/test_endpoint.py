"""Agents behind an endpoint, against a server on this machine: what is sent, what is counted, and each failure as one line without the key."""

from __future__ import annotations

import builtins
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from lab.ground.errors import LabError, RecipeError
from lab.systems.agents.agent import Call, Ledger, Query
from lab.systems.agents.endpoint import Client, Endpoint
from lab.systems.agents.plans import play
from lab.systems.agents.rivals import Rival
from tests.support.chat_server import ChatServer, chat_server

pytest.importorskip("openai")

KEY = "sk-secret-of-the-test"
Q = Query(0, "what is {answers} of 2?", "")


@pytest.fixture(scope="module")
def server() -> Iterator[ChatServer]:
    with chat_server() as found:
        yield found


@pytest.fixture(autouse=True)
def surroundings(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("A_KEY", KEY)
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    monkeypatch.setenv("no_proxy", "127.0.0.1")


def client(server: ChatServer, model: str = "good", **options: Any) -> Client:
    options = {"key": "A_KEY", "retries": 0, "questions": "task:arithmetic", "draft": "{question}"} | options
    return Client(Endpoint(options.pop("base_url", server.url), model, **options))


def test_what_is_sent_and_counted(server: ChatServer) -> None:
    ledger = Ledger(client(server, refine="{question} After\n{answers}", temperature=0.3, max_tokens=7))
    server.asked.clear()
    texts = ledger.answer([Call(Q, 0), Call(Q, 3, ("a {question}", "b"))])
    assert texts == ["after 0 I say 1,00.5", "after 2 I say 1,02.5"]
    assert {KEY} == {k.removeprefix("Bearer ") for k in server.keys}
    by_text = {a["messages"][0]["content"]: a for a in server.asked}
    assert by_text.keys() == {Q.text, f"{Q.text} After\nAnswer 1: a {{question}}\n\nAnswer 2: b"}
    assert {(a["model"], a["temperature"], a["max_tokens"]) for a in server.asked} == {("good", 0.3, 7)}
    words = [len(text.split()) for text in by_text]
    assert (ledger.calls, ledger.tokens_in, ledger.tokens_out) == (2, sum(words), 10)


@pytest.mark.parametrize(
    ("model", "options", "says"),
    [
        ("slow", {"timeout_seconds": 0.2}, "did not answer within 0.2 s, 1 times: raise timeout_seconds"),
        ("good", {"base_url": "http://127.0.0.1:9/v1"}, "cannot be reached: is base_url right"),
        ("401", {}, "refuses the key in A_KEY: "),
        ("403", {}, "forbids it to the key in A_KEY: "),
        ("404", {}, "is not there: is base_url right, and model"),
        ("429", {}, "asks to slow down: set at_once lower or retries higher: "),
        ("500", {}, "failed by itself, 1 times: "),
        ("400", {}, "does not take the request: "),
        ("garbage", {}, "sent what is no answer: "),
        ("empty", {}, "sent what is no answer: a choice with a message, and usage"),
        ("uncounted", {}, "usage with prompt_tokens and completion_tokens are needed, for the ledger"),
    ],
)
def test_every_failure_is_one_line(server: ChatServer, model: str, options: dict[str, Any], says: str) -> None:
    with pytest.raises(LabError) as caught:
        client(server, model, **options).answer([Call(Q, n) for n in range(3)])
    line = str(caught.value)
    assert says in line
    assert "\n" not in line
    assert KEY not in line


def test_a_failure_that_passes_is_tried_again(server: ChatServer) -> None:
    (answer,) = client(server, "flaky", retries=1).answer([Call(Query(1, "again?", ""), 0)])
    assert answer.text == "after 0 I say 1,00.5"
    assert server.times["again?"] == 2


def test_an_agent_that_says_nothing_is_heard_as_nothing(server: ChatServer) -> None:
    (answer,) = client(server, "silent").answer([Call(Q, 0)])
    assert (answer.text, answer.tokens_out) == ("", 5)


def test_no_more_calls_than_allowed(server: ChatServer) -> None:
    """What would be more is not begun."""
    few = client(server, max_calls=3)
    few.answer([Call(Q, 0), Call(Q, 1)])
    before = len(server.asked)
    with pytest.raises(LabError, match=r"2 calls were made and 2 more are due, which is above max_calls = 3"):
        few.answer([Call(Q, 0), Call(Q, 1)])
    assert len(server.asked) == before
    assert len(few.answer([Call(Q, 0)])) == 1


def test_after_a_failure_nothing_more_is_begun(server: ChatServer) -> None:
    before = len(server.asked)
    with pytest.raises(LabError):
        client(server, "400", at_once=1).answer([Call(Q, n) for n in range(20)])
    assert len(server.asked) == before + 1


def test_without_key_or_package(server: ChatServer, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(RecipeError, match="the environment variable NO_SUCH_KEY is not set"):
        client(server, key="NO_SUCH_KEY")
    real = builtins.__import__

    def without(name: str, *rest: Any) -> Any:
        if name == "openai":
            raise ImportError
        return real(name, *rest)

    monkeypatch.setattr(builtins, "__import__", without)
    with pytest.raises(LabError, match=r"not installed: pip install 'isthmus\[agents\]'"):
        client(server)


def test_what_is_no_endpoint_is_refused() -> None:
    with pytest.raises(RecipeError, match="it begins with http:// or https://"):
        Endpoint("127.0.0.1:80", "m", "task:arithmetic")
    with pytest.raises(RecipeError, match=r"draft and refine have {question} in them, and refine has {answers}"):
        Endpoint("http://127.0.0.1", "m", "task:arithmetic", refine="{question}")


def test_questions_of_a_file_together(server: ChatServer, tmp_path: Path) -> None:
    """A whole question: two agents draft, one hears the other, and the last number of the answer is compared."""
    rows = [{"question": f"q{k}", "answer": "101.5" if k % 2 else "7"} for k in range(10)]
    (tmp_path / "q.jsonl").write_text("\n".join(map(json.dumps, rows)))
    options = {"key": "A_KEY", "questions": str(tmp_path / "q.jsonl")}
    setting = Endpoint(server.url, "good", **options).setting()
    queries = setting.questions.queries(0, 2, held_out=True)
    came = play(setting, Rival("full"), queries, 2)
    assert came.calls == 6
    # two identical answers are a tie: 0 is the first, and 1 hears it
    assert came.finals_right.tolist() == [[False, q.target == "101.5"] for q in queries]
    assert {q.target for q in queries} == {"7", "101.5"}
