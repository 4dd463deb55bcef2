"""The messages that a template is probed with. Each text is a word of its own, so that it can be found again."""

from __future__ import annotations

import json
from typing import Any

NOON = [2026, 6, 15, 12, 0, 0]
EARLY, LATE = [2001, 2, 3, 4, 5, 6], [2037, 11, 28, 19, 48, 57]
SYSTEM, USER, REPLY = "ProbeSystemText", "ProbeUserText", "ProbeReplyText"
USER2, REPLY2 = "ProbeSecondUserText", "ProbeSecondReplyText"
TOOL, KEY = "probe_tool", "probe_key"

TOOLS = [
    {
        "type": "function",
        "function": {
            "name": TOOL,
            "description": "A probe.",
            "parameters": {
                "type": "object",
                "properties": {KEY: {"type": "string", "description": "A probe."}},
                "required": [KEY],
            },
        },
    }
]


def user(text: str = USER) -> dict[str, Any]:
    return {"role": "user", "content": text}


def reply(text: str = REPLY) -> dict[str, Any]:
    return {"role": "assistant", "content": text}


SYSTEM_MESSAGE = {"role": "system", "content": SYSTEM}

Spec = tuple[list[dict[str, Any]], dict[str, Any]]


def probes() -> dict[str, Spec]:
    # name → messages and what differs from the defaults
    talk = [user(), reply(), user(USER2), reply(REPLY2)]
    return {
        "user": ([user()], {}),
        "system": ([SYSTEM_MESSAGE, user()], {}),
        "talk": (talk, {"add_generation_prompt": False}),
        "talk-next": ([*talk[:3]], {}),
        "tools": ([user()], {"tools": TOOLS}),
        "tools-system": ([SYSTEM_MESSAGE, user()], {"tools": TOOLS}),
        "tools-in-message": ([SYSTEM_MESSAGE | {"tools": json.dumps(TOOLS)}, user()], {}),
        "two-users": ([user(), user(USER2)], {}),
        "parts": ([{"role": "user", "content": [{"type": "text", "text": USER}]}], {}),
        "clock": ([user()], {"now": "format"}),
        "early": ([SYSTEM_MESSAGE, user()], {"now": EARLY, "tools": TOOLS}),
        "late": ([SYSTEM_MESSAGE, user()], {"now": LATE, "tools": TOOLS}),
        "early-user": ([user()], {"now": EARLY}),
        "late-user": ([user()], {"now": LATE}),
    }
