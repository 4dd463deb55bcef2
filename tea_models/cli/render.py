"""`tea-models render`."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from tea_models.cli.frame import answering, takes_locked
from tea_models.cli.output import printable
from tea_models.errors import MissingFileError, TemplateError, UsageError

if TYPE_CHECKING:
    from datetime import datetime

    from tea_models.cli.frame import App

_OPTIONS_INSTEAD = {
    "messages": "--messages",
    "tools": "--tools",
    "add_generation_prompt": "--no-generation-prompt",
    "template": "--template",
    "now": "--now",
    "timeout": "",
}


@click.command("render", short_help="The exact prompt a chat becomes.")
@click.argument("model", required=False)
@click.option("--messages", "messages_file", required=True, metavar="FILE", help="JSON list of messages; - for stdin.")
@click.option("--tools", "tools_file", metavar="FILE", help="JSON list of tool definitions; - for stdin.")
@click.option("--template", "template_file", metavar="FILE", help="This Jinja template instead of the model's.")
@click.option("--no-generation-prompt", is_flag=True, help="Don't open the assistant's turn at the end.")
@click.option(
    "--var", "variables", multiple=True, metavar="NAME=VALUE", help="A variable for the template; JSON or text."
)
@click.option("--now", metavar="TIME", help="The clock for templates that print the date, such as 2026-01-31T12:00.")
@takes_locked
@answering
def command(
    app: App,
    *,
    model: str | None,
    messages_file: str,
    tools_file: str | None,
    template_file: str | None,
    no_generation_prompt: bool,
    variables: tuple[str, ...],
    now: str | None,
) -> None:
    """Print the prompt exactly as it goes to the tokenizer: no newline is added and nothing is escaped.

    MODEL is a file, a name of the registry or a remote reference; it may be left out with --template. On a terminal,
    control characters are shown as escapes; redirect the output to get the bytes.
    """
    from tea_models.chat.messages import read_conversation, read_tools
    from tea_models.chat.rendering import render_chat

    if messages_file == "-" == tools_file:
        raise UsageError("--messages and --tools can't both be read from stdin")
    messages, tools = read_conversation(*_read(messages_file))
    if tools_file is not None:
        tools = read_tools(*_read(tools_file))
    values = _variables(variables)
    template, facts = _template(app, model, template_file)
    prompt = render_chat(
        template,
        messages,
        tools=tools,
        bos_token=str(values.pop("bos_token", facts["bos_token"] or "")),
        eos_token=str(values.pop("eos_token", facts["eos_token"] or "")),
        add_generation_prompt=not no_generation_prompt,
        now=_time(now),
        **values,
    )
    if app.out.as_json:
        app.out.answer({"prompt": prompt, **facts}, lambda: prompt, exact=True)
        return
    _write(prompt)


def _template(app: App, model: str | None, template_file: str | None) -> tuple[str, dict[str, Any]]:
    """The template, and what is known about where it came from and who writes BOS."""
    import hashlib

    facts: dict[str, Any] = {"bos_token": None, "eos_token": None, "template_source": None, "add_bos": None}
    template = None
    if model is not None:
        from tea_models.profile.header_facts import resolve_profile

        profile = resolve_profile(model, settings=app.settings)
        tokenizer, chat = profile.tokenizer, profile.chat
        template = chat.template.value
        facts |= {"bos_token": tokenizer.bos_token.value, "eos_token": tokenizer.eos_token.value}
        facts |= {"template_source": chat.template.source}
        # The tokenizer adds what the header asks for, unless the template has written it.
        facts |= {"add_bos": tokenizer.add_bos.value and not chat.emits_bos.value}
    elif template_file is None:
        raise UsageError(
            "expected a MODEL, or --template FILE", hint="tea-models render smollm2-135m --messages chat.json"
        )
    if template_file is not None:
        data, name = _read(template_file)
        try:
            template = data.decode("utf-8")
        except UnicodeDecodeError as error:
            raise TemplateError(f"{name}: not UTF-8 text: byte {error.start}") from None
        facts |= {"template_source": f"file:{name}", "add_bos": None}
    if template is None:
        raise TemplateError(
            f"{model} has no chat template, so no chat format is known for it",
            hint="a base model completes text: use llm.call; or give a format with --template FILE",
        )
    digest = hashlib.sha256(template.encode("utf-8", "surrogatepass")).hexdigest()
    return template, {"template_sha256": digest, **facts}


def _variables(pairs: tuple[str, ...]) -> dict[str, Any]:
    values: dict[str, Any] = {}
    for pair in pairs:
        name, equals, text = pair.partition("=")
        if not equals or not name.isidentifier():
            raise UsageError(f"--var {pair!r}: expected NAME=VALUE")
        if name in _OPTIONS_INSTEAD:
            instead = _OPTIONS_INSTEAD[name]
            raise UsageError(f"--var {name}: " + (f"use {instead}" if instead else "not a variable of templates"))
        try:
            values[name] = json.loads(text)
        except (ValueError, RecursionError):
            values[name] = text
    return values


def _time(text: str | None) -> datetime | None:
    from datetime import datetime

    if text is None:
        return None
    try:
        return datetime.fromisoformat(text)
    except ValueError:
        raise UsageError(f"--now {text!r}: expected a time such as 2026-01-31T12:00") from None


def _read(name: str) -> tuple[bytes, str]:
    """The bytes of a file or of stdin, and its name for messages."""
    if name == "-":
        return sys.stdin.buffer.read(), "stdin"
    path = Path(name)
    if not path.exists():
        raise MissingFileError(f"{name}: no such file")
    if path.is_dir():
        raise UsageError(f"{name}: expected a file, found a folder")
    return path.read_bytes(), name


def _write(prompt: str) -> None:
    if sys.stdout.isatty():
        shown = printable(prompt)
        sys.stdout.write(shown if shown.endswith("\n") else shown + "\n")
        return
    # A lone surrogate has no UTF-8; its three bytes say at least which one it was.
    sys.stdout.flush()
    sys.stdout.buffer.write(prompt.encode("utf-8", "surrogatepass"))
    sys.stdout.buffer.flush()
