"""Agents behind any endpoint that speaks OpenAI's protocol (chat completions), which the user names. The package is ``openai``: ``isthmus[agents]``.

Nothing is sent anywhere unless an address is given. Whatever goes wrong on the way ends in one line, which never has the key in it.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import Field

from lab.ground.config import Count, Positive, config
from lab.ground.errors import LabError, RecipeError
from lab.models.files import in_one_line
from lab.systems.agents.agent import Answer, Call, Setting
from lab.systems.agents.encoders import encoder
from lab.systems.agents.questions import of_file, of_task

TASK = "task:"
QUESTION, ANSWERS = "{question}", "{answers}"  # where they stand in a prompt


@config
class Endpoint:
    """Copies of one model behind an address, and questions of a file or of a task of the lab.

    The paper gives neither its prompts nor how texts are read ([inferred]); agents at a temperature of ½ are those of one of its ablations.

    base_url, model
        as the server names them, such as ``http://127.0.0.1:8000/v1``.
    key
        the environment variable that holds the key; a server that asks for none takes any.
    questions, reading
        a file of lines ``{"question": …, "answer": …}``, or ``task:NAME``; what an answer comes to: its ``text``, or the last ``number`` in it.
    encoder
        ``ngrams``, or ``sentences:NAME``.
    draft, refine
        prompts, with ``{question}``, and for the second ``{answers}``, in their places.
    timeout_seconds, retries, at_once
        of a request; how often it is tried again (by the package, after a pause that grows); how many go on at a time.
    max_calls
        of this process, drafts included: what would be more is not begun.
    """

    base_url: str
    model: str
    questions: str
    key: str = "OPENAI_API_KEY"
    reading: Literal["text", "number"] = "number"
    encoder: str = "ngrams"
    draft: str = "{question}\n\nThink step by step, then write the final answer in the last line."
    refine: str = "{question}\n\nOthers have answered:\n\n{answers}\n\nThey may be wrong. Think step by step, then write the final answer in the last line."
    temperature: Annotated[float, Field(ge=0)] = 0.5
    max_tokens: Count = 512
    timeout_seconds: Positive = 60.0
    retries: Annotated[int, Field(ge=0, le=100)] = 2
    at_once: Annotated[int, Field(ge=1, le=256)] = 8
    max_calls: Count = 1000
    seed: int = 0

    def __post_init__(self) -> None:
        if not self.base_url.startswith(("http://", "https://")):
            raise RecipeError(f"base_url = {self.base_url!r}: it begins with http:// or https://")
        if QUESTION not in self.draft or QUESTION not in self.refine or ANSWERS not in self.refine:
            raise RecipeError(f"draft and refine have {QUESTION} in them, and refine has {ANSWERS}: where they stand")

    def setting(self) -> Setting:
        """Raises RecipeError where the key or the questions are not there, and LabError where the package is not."""
        name = self.questions.removeprefix(TASK)
        questions = (
            of_task(name, None, self.reading, self.seed)
            if self.questions.startswith(TASK)
            else of_file(Path(self.questions), self.reading, self.seed)
        )
        return Setting(questions, Client(self), encoder(self.encoder))


class Client:
    """`lab.systems.agents.agent.Agents`: what they answer is up to the server, and may differ each time."""

    def __init__(self, of: Endpoint):
        self.of, self.made = of, 0
        try:
            import openai
        except ImportError:
            raise LabError(
                "agents behind an endpoint need a package that is not installed: pip install 'isthmus[agents]'"
            ) from None
        self._key = os.environ.get(of.key, "")
        if not self._key:
            raise RecipeError(
                f"the environment variable {of.key} is not set: it holds the key of {of.base_url} (key names another variable; a server "
                "that asks for none takes any word)"
            )
        self._openai: Any = openai
        self._client = openai.OpenAI(
            api_key=self._key, base_url=of.base_url, timeout=of.timeout_seconds, max_retries=of.retries
        )

    def answer(self, calls: Sequence[Call]) -> list[Answer]:
        """See `lab.systems.agents.agent.Agents`. A request that is tried again is one call; after the first failure nothing more is begun.

        Raises LabError.
        """
        if self.made + len(calls) > self.of.max_calls:
            raise LabError(
                f"{self.made:,} calls were made and {len(calls):,} more are due, which is above max_calls = {self.of.max_calls:,}: "
                "raise it, or ask fewer questions; what is done is kept"
            )
        self.made += len(calls)
        failed = threading.Event()
        with ThreadPoolExecutor(min(self.of.at_once, max(1, len(calls)))) as pool:
            waiting = [pool.submit(self._unless, failed, call) for call in calls]
            return [answer for future in waiting if (answer := future.result()) is not None]

    def _unless(self, failed: threading.Event, call: Call) -> Answer | None:
        """One answer; nothing once another call has failed, whose error is raised then."""
        if failed.is_set():
            return None
        try:
            return self._one(call)
        except BaseException:
            failed.set()
            raise

    def _one(self, call: Call) -> Answer:
        of = self.of
        text = of.refine if call.heard else of.draft
        told = "\n\n".join(f"Answer {k}: {heard}" for k, heard in enumerate(call.heard, 1))
        # both at once: a question or an answer may have braces of its own
        text = told.join(part.replace(QUESTION, call.query.text) for part in text.split(ANSWERS))
        try:
            found = self._client.chat.completions.create(
                model=of.model,
                messages=[{"role": "user", "content": text}],
                temperature=of.temperature,
                max_tokens=of.max_tokens,
            )
        except self._openai.OpenAIError as error:
            raise LabError(self._said(error)) from None
        except Exception as error:  # what a server sends may be anything, and the package may stumble over it
            raise LabError(f"{of.base_url} sent what is no answer: {self._safe(error)}") from None
        return self._read(found)

    def _read(self, found: Any) -> Answer:
        try:
            text, usage = found.choices[0].message.content, found.usage
            tokens = int(usage.prompt_tokens), int(usage.completion_tokens)
        except (AttributeError, IndexError, TypeError, ValueError):
            raise LabError(
                f"{self.of.base_url} sent what is no answer: a choice with a message, and usage with prompt_tokens and completion_tokens "
                "are needed, for the ledger"
            ) from None
        return Answer(text if isinstance(text, str) else "", *tokens)

    def _said(self, error: Exception) -> str:
        """What went wrong and what to do, for the classes of the package, the narrower first."""
        o, where = self._openai, f"{self.of.base_url} (model {self.of.model})"
        lines: list[tuple[type, Callable[[], str]]] = [
            (
                o.APITimeoutError,
                lambda: (
                    f"{where} did not answer within {self.of.timeout_seconds:g} s, {1 + self.of.retries} times: raise timeout_seconds, or set at_once lower"
                ),
            ),
            (o.APIConnectionError, lambda: f"{where} cannot be reached: is base_url right, and does the server run?"),
            (o.AuthenticationError, lambda: f"{where} refuses the key in {self.of.key}: {self._safe(error)}"),
            (o.PermissionDeniedError, lambda: f"{where} forbids it to the key in {self.of.key}: {self._safe(error)}"),
            (o.NotFoundError, lambda: f"{where} is not there: is base_url right, and model? {self._safe(error)}"),
            (
                o.RateLimitError,
                lambda: f"{where} asks to slow down: set at_once lower or retries higher: {self._safe(error)}",
            ),
            (
                o.InternalServerError,
                lambda: f"{where} failed by itself, {1 + self.of.retries} times: {self._safe(error)}",
            ),
            (o.APIStatusError, lambda: f"{where} does not take the request: {self._safe(error)}"),
        ]
        return next((say() for kind, say in lines if isinstance(error, kind)), f"{where}: {self._safe(error)}")

    def _safe(self, error: Exception) -> str:
        return in_one_line(error).replace(self._key, "…")
