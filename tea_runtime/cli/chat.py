"""`tea-runtime chat`: talk to a model, on a terminal or in one shot."""

from __future__ import annotations

import contextlib
import sys
from typing import TYPE_CHECKING, Any

import click

from tea_models.cli.frame import App, answering
from tea_models.errors import UsageError
from tea_runtime.cli.models import model_options, opened
from tea_runtime.cli.screen import Stream, plain, stdout_to_stderr

if TYPE_CHECKING:
    from tea_runtime.backend import LlmBackend, LlmCallResult

HELP = "/clear forgets the conversation, /bye or Ctrl-D ends it, Ctrl-C stops an answer"


@click.command("chat")
@click.argument("ref")
@click.option("-m", "--message", metavar="TEXT", help="Say this, print the answer, and end; - reads stdin.")
@click.option("--system", metavar="TEXT", help="What the model is told first.")
@click.option("--max-tokens", type=click.IntRange(min=1), help="Length of an answer at most.  [default: no limit]")
@click.option("--temperature", type=click.FloatRange(min=0), default=0.7, show_default=True)
@click.option("--seed", type=int, help="The same seed gives the same answers.")
@model_options
@answering
def command(
    app: App,
    *,
    ref: str,
    message: str | None,
    system: str | None,
    max_tokens: int | None,
    temperature: float,
    seed: int | None,
    **options: Any,
) -> None:
    """Talk to the model REF: a file, or a name such as smollm2-135m.

    Without a terminal, or with -m, it answers once.
    """
    interactive = message is None and sys.stdin.isatty() and not app.out.as_json
    if not interactive:
        message = sys.stdin.read() if message in (None, "-") else message
        if not message.strip():
            raise UsageError("there is nothing to answer", hint="give a message with -m, or on stdin")
    talk = _Talk(system, {"max_tokens": max_tokens, "temperature": temperature, "seed": seed})
    redirected = stdout_to_stderr() if app.out.as_json else contextlib.nullcontext()
    with redirected, opened(app, ref, **options) as backend:
        if interactive:
            _converse(app, talk, backend)
            return
        stream = Stream(sys.stdout)
        try:
            result = talk.say(backend, message or "", stream if not app.out.as_json else None)
        finally:
            stream.end_line()
    if app.out.as_json:
        app.out.answer(plain(result.to_dict()), lambda: "", exact=True)


class _Talk:
    """A conversation so far."""

    def __init__(self, system: str | None, options: dict[str, Any]) -> None:
        self._start = [{"role": "system", "content": system}] if system else []
        self._options = options
        self.messages: list[dict[str, Any]] = list(self._start)

    def clear(self) -> None:
        self.messages = list(self._start)

    def say(self, backend: LlmBackend, text: str, stream: Stream | None) -> LlmCallResult:
        messages = [*self.messages, {"role": "user", "content": text}]
        if stream is None:
            result = backend.chat(messages, **self._options)
        else:
            result = backend.stream_chat(messages, stream, **self._options)
        self.messages = [*messages, {"role": "assistant", "content": result.content}]
        return result


def _converse(app: App, talk: _Talk, backend: LlmBackend) -> None:
    with contextlib.suppress(ImportError):
        import readline  # noqa: F401 - gives input() a history and editing
    app.out.note(HELP)
    # The marks tell readline which characters take no room.
    prompt = "\x01\x1b[1m\x02> \x01\x1b[0m\x02" if app.out.color else "> "
    while True:
        try:
            text = input(prompt).strip()
        except EOFError:
            sys.stdout.write("\n")
            return
        if text in ("/bye", "/exit", "/quit"):
            return
        if text == "/clear":
            talk.clear()
            app.out.note("forgotten")
        elif text.startswith("/"):
            app.out.note(HELP)
        elif text:
            _answer(app, talk, backend, text)


def _answer(app: App, talk: _Talk, backend: LlmBackend, text: str) -> None:
    from tea_models.errors import DoesNotFitError

    stream = Stream(sys.stdout)
    try:
        talk.say(backend, text, stream)
    except KeyboardInterrupt:
        stream.end_line()
        app.out.note("stopped; the conversation goes on without this answer")
    except DoesNotFitError as error:
        stream.end_line()
        app.out.warn(f"{error.message}; /clear begins anew")
    finally:
        stream.end_line()
