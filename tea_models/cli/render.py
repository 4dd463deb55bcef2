"""`tea-models render`."""

from __future__ import annotations

import json
import sys
from datetime import datetime
from pathlib import Path
from typing import Any

import click

from tea_models.chat.messages import read_conversation, read_tools
from tea_models.chat.rendering import render_chat
from tea_models.cli.frame import App, answering, takes_locked
from tea_models.cli.output import printable
from tea_models.disk.hashing import sha256_text
from tea_models.errors import MissingFileError, TemplateError, UsageError
from tea_models.profile.header_facts import resolve_profile

_NO_VARIABLES = {"messages", "tools", "add_generation_prompt", "template", "now", "timeout"}


@click.command("render")
@click.argument("model", required=False)
@click.option("--messages", "messages_file", required=True, metavar="FILE", help="JSON list of messages; - for stdin.")
@click.option("--tools", "tools_file", metavar="FILE", help="JSON list of tool definitions; - for stdin.")
@click.option("--template", "template_file", metavar="FILE", help="This Jinja template instead of the model's.")
@click.option("--no-generation-prompt", is_flag=True, help="Don't open the assistant's turn at the end.")
@click.option("--var", "pairs", multiple=True, metavar="NAME=VALUE", help="A variable for the template; JSON or text.")
@click.option("--now", type=datetime.fromisoformat, metavar="TIME", help="The clock, such as 2026-01-31T12:00.")
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
    pairs: tuple[str, ...],
    now: datetime | None,
) -> None:
    """Print the prompt exactly as it goes to the tokenizer: no newline is added and nothing is escaped.

    MODEL is a file, a name of the registry or a remote reference; it may be left out with --template. On a terminal,
    control characters are shown as escapes; redirect the output to get the bytes.
    """
    if messages_file == "-" == tools_file:
        raise UsageError("--messages and --tools can't both be read from stdin")
    messages, tools = read_conversation(*_read(messages_file))
    if tools_file is not None:
        tools = read_tools(*_read(tools_file))
    values = dict(map(_variable, pairs))
    template, facts = _template(app, model, template_file)
    prompt = render_chat(
        template,
        messages,
        tools=tools,
        bos_token=str(values.pop("bos_token", facts["bos_token"] or "")),
        eos_token=str(values.pop("eos_token", facts["eos_token"] or "")),
        add_generation_prompt=not no_generation_prompt,
        now=now,
        **values,
    )
    if app.out.as_json or sys.stdout.isatty():
        app.out.answer({"prompt": prompt, **facts}, lambda: printable(prompt), exact=True)
        return
    # A lone surrogate has no UTF-8; its three bytes say at least which one it was.
    sys.stdout.flush()
    sys.stdout.buffer.write(prompt.encode("utf-8", "surrogatepass"))
    sys.stdout.buffer.flush()


def _template(app: App, model: str | None, template_file: str | None) -> tuple[str, dict[str, Any]]:
    """The template, and what is known about where it came from and who writes BOS."""
    facts: dict[str, Any] = {"bos_token": None, "eos_token": None, "template_source": None, "add_bos": None}
    template = None
    if model is not None:
        profile = resolve_profile(model, settings=app.settings)
        tokenizer, chat = profile.tokenizer, profile.chat
        template = chat.template.value
        facts = {
            "bos_token": tokenizer.bos_token.value,
            "eos_token": tokenizer.eos_token.value,
            "template_source": chat.template.source,
            # The tokenizer adds what the header asks for, unless the template has written it.
            "add_bos": tokenizer.add_bos.value and not chat.emits_bos.value,
        }
    elif template_file is None:
        hint = "tea-models render smollm2-135m --messages chat.json"
        raise UsageError("expected a MODEL, or --template FILE", hint=hint)
    if template_file is not None:
        data, name = _read(template_file)
        try:
            template = data.decode("utf-8")
        except UnicodeDecodeError as error:
            raise TemplateError(f"{name}: not UTF-8 text: byte {error.start}") from None
        facts |= {"template_source": f"file:{name}", "add_bos": None}
    if template is None:
        hint = "a base model completes text: use llm.call; or give a format with --template FILE"
        raise TemplateError(f"{model} has no chat template, so no chat format is known for it", hint=hint)
    return template, {"template_sha256": sha256_text(template), **facts}


def _variable(pair: str) -> tuple[str, Any]:
    name, equals, text = pair.partition("=")
    if not equals or not name.isidentifier():
        raise UsageError(f"--var {pair!r}: expected NAME=VALUE")
    if name in _NO_VARIABLES:
        raise UsageError(f"--var {name}: not a variable; see --help for its option")
    try:
        return name, json.loads(text)
    except (ValueError, RecursionError):
        return name, text


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
