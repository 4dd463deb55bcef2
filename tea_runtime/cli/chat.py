"""`tea-runtime chat`: talk to a model, on a terminal or in one shot."""

from __future__ import annotations

import contextlib
import json
import sys
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from tea_models.cli.frame import App, answering
from tea_models.disk.atomic import write_document
from tea_models.errors import MissingFileError, TeaModelsError, UsageError
from tea_runtime.backend import LlmBackend, LlmCallParams, LlmCallResult, check_messages
from tea_runtime.cli.models import model_options, opened
from tea_runtime.cli.screen import Stream, plain

if TYPE_CHECKING:
    from prompt_toolkit import PromptSession


_HELP = """\
/help            this list
/system [TEXT]   what the model is told first; without TEXT, forget it
/save FILE       write the conversation as JSON; `tea-models render --messages` reads it too
/load FILE       go on with one
/stats           tokens and speed so far
/retry           ask the last question again
/model REF       go on with another model
/clear           forget what was said
/bye             end; so does Ctrl-D
Ctrl-C clears the line, and during an answer stops the answer. Alt-Enter begins a new line."""


@click.command("chat")
@click.argument("ref")
@click.argument("question", nargs=-1, metavar="[QUESTION]")
@click.option("-m", "--message", metavar="TEXT", help="As QUESTION, and stdin is left alone; - reads it.")
@click.option("--system", default="", metavar="TEXT", help="What the model is told first.")
@click.option("--max-tokens", type=click.IntRange(min=1), help="Length of an answer at most.  [default: no limit]")
@click.option("--temperature", type=click.FloatRange(min=0), default=0.7, show_default=True)
@click.option("--seed", type=int, help="The same seed gives the same answers.")
@model_options
@answering
def command(
    app: App,
    *,
    ref: str,
    question: tuple[str, ...],
    message: str | None,
    system: str,
    max_tokens: int | None,
    temperature: float,
    seed: int | None,
    **options: Any,
) -> None:
    """Talk to the model REF: a file, or a name such as smollm2-135m.

    With a QUESTION, or without a terminal, it answers once; what comes on stdin stands before the question.
    """
    talk = _Chat(LlmCallParams("", max_tokens=max_tokens, temperature=temperature, seed=seed), system)
    if not question and message is None and sys.stdin.isatty() and not app.out.as_json:
        with contextlib.ExitStack() as stack:
            _Terminal(app, talk, stack, options).run(ref)
        return
    if question == ("-",):
        question, message = (), "-"
    if message == "-" or (message is None and not sys.stdin.isatty()):
        message = sys.stdin.read()
    asked = "\n\n".join(part.strip() for part in (message or "", " ".join(question)) if part.strip())
    if not asked:
        raise UsageError("there is nothing to answer", hint="give a question, or something on stdin")
    with opened(app, ref, **options) as backend:
        result = talk.say(backend, asked, streamed=not app.out.as_json)
    if app.out.as_json:
        app.out.answer(plain(result.to_dict()), lambda: "", exact=True)


class _Chat:
    """What was said so far, after what the model is told first."""

    def __init__(self, params: LlmCallParams, system: str) -> None:
        self._params = params
        self.system = system
        self.messages: list[dict[str, Any]] = []
        self._answers, self._tokens, self._seconds = 0, 0, 0.0

    @property
    def _start(self) -> list[dict[str, Any]]:
        return [{"role": "system", "content": self.system}] if self.system else []

    def say(self, backend: LlmBackend, text: str, *, streamed: bool = True) -> LlmCallResult:
        """Send a message and keep it with its answer; neither is kept where there is no answer."""
        began = time.monotonic()
        asked = [*self.messages, {"role": "user", "content": text}]
        stream = Stream(sys.stdout)
        try:
            result = backend.generate(self._params, [*self._start, *asked], stream if streamed else None)
        finally:
            stream.end_line()
        self.messages = [*asked, {"role": "assistant", "content": result.content}]
        self._answers += 1
        self._tokens += (result.usage or {}).get("completion_tokens", 0)
        self._seconds += time.monotonic() - began
        return result

    def save(self, path: Path) -> None:
        """Write the messages as JSON, with what the model is told first."""
        write_document(path, json.dumps([*self._start, *self.messages], indent=2, ensure_ascii=False) + "\n")

    def load(self, path: Path) -> None:
        try:
            messages = check_messages(json.loads(path.read_text("utf-8-sig")))
        except OSError as error:
            raise MissingFileError(f"{path}: {(error.strerror or 'can not be read').lower()}") from None
        except ValueError:
            raise UsageError(f"{path}: not a JSON list of messages") from None
        told_first = messages[0]["role"] == "system"
        self.system = str(messages[0]["content"]) if told_first else ""
        self.messages = [dict(message) for message in messages[told_first:]]

    def stats(self) -> str:
        rate = f", {self._tokens / self._seconds:.0f} tokens/s" if self._seconds else ""
        return f"answers: {self._answers}, {self._tokens:,} tokens in {self._seconds:.1f} s{rate}"


class _Terminal:
    """A chat on a terminal; `stack` closes the model at the end, `options` say how models are loaded."""

    def __init__(self, app: App, talk: _Chat, stack: contextlib.ExitStack, options: Mapping[str, Any]) -> None:
        self._app, self._talk, self._stack, self._options = app, talk, stack, options
        self._backend: LlmBackend
        self._commands: dict[str, Callable[[str], object]] = {
            "/help": lambda _: app.out.note(_HELP),
            "/system": self._system,
            "/save": lambda name: self._file(talk.save, name),
            "/load": lambda name: self._file(talk.load, name),
            "/stats": lambda _: app.out.note(talk.stats()),
            "/retry": self._retry,
            "/model": self._open,
            "/clear": self._clear,
        }

    def run(self, ref: str) -> None:
        self._open(ref)
        session = _session(self._app)
        self._app.out.note("/help lists the commands, Ctrl-D ends it")
        while True:
            try:
                text = session.prompt("> ").strip()
            except KeyboardInterrupt:
                continue
            except EOFError:
                return
            if text in ("/bye", "/exit", "/quit"):
                return
            try:
                self._take(text)
            except TeaModelsError as error:
                self._app.out.warn(error.message + (f"; {error.hint}" if error.hint else ""))

    def _take(self, text: str) -> None:
        name, _, argument = text.partition(" ")
        if name in self._commands:
            self._commands[name](argument.strip())
        elif name.startswith("/") and name[1:].isalpha():
            self._app.out.note(f"there is no command {name}\n{_HELP}")
        elif text:
            self._answer(text)

    def _open(self, ref: str) -> None:
        if not ref:
            raise UsageError("/model: expected the name or path of a model")
        opening = contextlib.ExitStack()
        self._backend = opening.enter_context(opened(self._app, ref, **self._options))
        self._stack.close()  # the model before
        self._stack.push(opening.pop_all())

    def _file(self, do: Callable[[Path], object], name: str) -> None:
        if not name:
            raise UsageError("expected the name of a file")
        do(Path(name).expanduser())
        self._app.out.note(f"{len(self._talk.messages)} messages: {name}")

    def _clear(self, _argument: str) -> None:
        self._talk.messages = []
        self._app.out.note("forgotten")

    def _system(self, text: str) -> None:
        self._talk.system = text
        self._app.out.note("the model is told this first" if text else "forgotten")

    def _retry(self, _argument: str) -> None:
        if not self._talk.messages:
            raise UsageError("there is no question to ask again")
        *self._talk.messages, question, _answer = self._talk.messages
        self._answer(question["content"])

    def _answer(self, text: str) -> None:
        try:
            self._talk.say(self._backend, text)
        except KeyboardInterrupt:
            self._app.out.note("stopped; the conversation goes on without this answer")


def _session(app: App) -> PromptSession[str]:
    """Line editing with a history; a multi-line paste is one message."""
    from platformdirs import user_state_path
    from prompt_toolkit import PromptSession
    from prompt_toolkit.history import FileHistory, InMemoryHistory
    from prompt_toolkit.key_binding import KeyBindings

    keys = KeyBindings()

    @keys.add("escape", "enter")
    def _(event: Any) -> None:
        event.current_buffer.insert_text("\n")

    path = user_state_path("tea") / "chat_history"
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch(mode=0o600)  # only its owner reads what was asked
    except OSError as error:
        app.out.note(f"{path}: {error.strerror}; the history is not kept")
        return PromptSession(history=InMemoryHistory(), key_bindings=keys)
    return PromptSession(history=FileHistory(str(path)), key_bindings=keys)
