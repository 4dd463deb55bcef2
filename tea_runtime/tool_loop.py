"""`llm.tools` and `llm.similarity` over whatever backend answers: a bounded loop of tool calls, a cosine."""

from __future__ import annotations

import functools
import json
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from tea_models.chat import parse_tool_calls
from tea_models.errors import UsageError
from tea_runtime.actions import chat_messages
from tea_runtime.call import cosine

Ask = Callable[[dict[str, Any]], dict[str, Any]]


def answer_with_tools(
    tools: Sequence[Any],  # in OpenAI's form, or `{name, description, parameters, action}`, the one to run
    registry: Mapping[str, Callable[..., Any]],
    state: Any,
    ask: Ask,
    params: Mapping[str, Any],
    *,
    rounds: int,
) -> dict[str, Any]:
    """Chat (by `ask`), run what the model calls from `registry`, and go on until it answers or `rounds` are over."""
    offered = [_described(tool) for tool in tools]
    names = [_name(tool) for tool in offered]
    actions: dict[str, Callable[..., Any]] = {}
    for tool in tools:
        if tool.get("action"):
            if tool["action"] not in registry:
                raise UsageError(f"tools: there is no action {tool['action']!r}")
            actions[_name(tool)] = functools.partial(registry[tool["action"]], state=state)
    messages = list(chat_messages(params))
    fixed = {key: value for key, value in params.items() if key not in ("prompt", "system")}
    choice = fixed.pop("tool_choice", None) or "auto"
    calls: list[dict[str, Any]] = []
    results: list[dict[str, Any]] = []
    used: dict[str, int] = {}
    answer: dict[str, Any] = {}
    for done in range(rounds):
        asked = {"messages": messages, "tools": offered or None, "tool_choice": choice if offered else None}
        answer = ask(fixed | asked)
        for key, value in (answer.get("usage") or {}).items():
            used[key] = used.get(key, 0) + value
        if not answer.get("tool_calls"):
            return answer | {"tool_calls": calls, "tool_results": results, "rounds": done, "usage": used}
        messages.append({"role": "assistant", "content": answer["content"], "tool_calls": answer["tool_calls"]})
        for call in answer["tool_calls"]:
            record = _read_call(call)
            calls.append(record)
            text = json.dumps(_run(record, names, actions))
            results.append({"tool_call_id": record["id"], "name": record["name"], "result": text})
            messages.append({"role": "tool", "tool_call_id": record["id"], "name": record["name"], "content": text})
        choice = choice if choice == "none" else "auto"  # a call that was demanded was made
    warning = f"stopped after {rounds} rounds of tool calls (max_tool_rounds)"
    ended = {"tool_calls": calls, "tool_results": results, "rounds": rounds, "usage": used, "warning": warning}
    return {"model": answer["model"], "backend": answer["backend"], "content": "", **ended}


def describing_tools(ask: Ask) -> Ask:
    """For models whose template has no place for tools: they are told in words, and calls are read from the text."""

    def described(asked: dict[str, Any]) -> dict[str, Any]:
        tools, choice = asked.get("tools") or [], asked.get("tool_choice")
        plain = {key: value for key, value in asked.items() if key not in ("tools", "tool_choice")}
        if not tools or choice == "none":
            return ask(plain | {"messages": _in_words(asked["messages"], [])})
        names = [_name(tool) for tool in tools]
        if choice not in (None, "auto"):
            wanted = names if choice == "required" else [_name(choice)]
            properties = {"name": {"enum": wanted}, "arguments": {"type": "object"}}
            schema: dict[str, Any] = {"type": "object", "properties": properties, "additionalProperties": False}
            schema["required"] = list(properties)
            plain["response_format"] = {"type": "json_schema", "json_schema": {"name": "call", "schema": schema}}
        answer = ask(plain | {"messages": _in_words(asked["messages"], tools)})
        content, found = parse_tool_calls(answer["content"])
        calls = [call.to_openai() for call in found if call.name in names]
        return answer | {"content": content, "tool_calls": calls, "finish_reason": "tool_calls"} if calls else answer

    return described


def _in_words(messages: Sequence[Mapping[str, Any]], tools: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Messages without calls and results of tools: these become texts."""
    told = [dict(message) for message in messages]
    if tools:
        listed = "\n".join(json.dumps(tool["function"], ensure_ascii=False) for tool in tools)
        text = (
            f"You can call these functions:\n{listed}\n"
            'To call one, answer with nothing but {"name": …, "arguments": {…}}. Otherwise answer in words.'
        )
        if told and told[0]["role"] == "system":
            told[0]["content"] = f"{told[0]['content']}\n\n{text}"
        else:
            told.insert(0, {"role": "system", "content": text})
    for message in told:
        made = message.pop("tool_calls", None)
        if made:
            calls = [{"name": one["function"]["name"], "arguments": one["function"]["arguments"]} for one in made]
            message["content"] = "\n".join(json.dumps(call, ensure_ascii=False) for call in calls)
        if message["role"] == "tool":
            message |= {"role": "user", "content": f"Result of {message.pop('name', 'it')}: {message['content']}"}
            message.pop("tool_call_id", None)
    return told


def similarity(params: Mapping[str, Any], embed: Callable[[list[str]], dict[str, Any]]) -> dict[str, Any]:
    """The cosine of two vectors, or of the vectors of two texts."""
    vectors: list[Any] = [params.get("vector_a"), params.get("vector_b")]
    more: dict[str, Any] = {}
    if None in vectors:
        texts = {key: params.get(key) for key in ("text_a", "text_b")}
        if not all(isinstance(text, str) for text in texts.values()):
            raise UsageError("llm.similarity: expected text_a and text_b, or vector_a and vector_b")
        made = embed([str(text) for text in texts.values()])
        vectors = made["embedding"]
        more = texts | {key: made[key] for key in ("model", "backend", "usage", "fallback_reason") if made.get(key)}
    try:
        score = cosine(*[[float(value) for value in vector] for vector in vectors])
    except (TypeError, ValueError):
        raise UsageError("llm.similarity: expected vectors as lists of numbers, not of different lengths") from None
    words = ((0.8, "Very similar"), (0.5, "Somewhat similar"), (0.2, "Not very similar"), (-2.0, "Unrelated"))
    interpretation = next(word for least, word in words if score > least)
    return {"cosine_similarity": score, "interpretation": interpretation, **more}


def _name(tool: Mapping[str, Any]) -> str:
    return str(tool.get("function", tool).get("name") or "")


def _described(tool: Any) -> dict[str, Any]:
    """A tool in OpenAI's form."""
    if not isinstance(tool, Mapping) or not isinstance(tool.get("function", {}), Mapping) or not _name(tool):
        raise UsageError("tools: expected tools with a name")
    if "function" in tool:
        return {"type": "function", "function": dict(tool["function"])}
    properties: dict[str, Any] = {}
    required: list[str] = []
    for name, said in (tool.get("parameters") or {}).items():
        if not isinstance(said, Mapping):
            properties[name] = {"type": str(said)}
            continue
        properties[name] = {key: value for key, value in said.items() if key != "required"}
        properties[name].setdefault("type", "string")
        if said.get("required") is True:
            required.append(name)
    schema = {"type": "object", "properties": properties, "required": required}
    function = {"name": tool["name"], "description": tool.get("description", ""), "parameters": schema}
    return {"type": "function", "function": function}


def _read_call(call: Mapping[str, Any]) -> dict[str, Any]:
    function = call.get("function") or {}
    try:
        arguments = json.loads(function.get("arguments") or "{}")
    except ValueError:
        arguments = None
    return {"id": call.get("id"), "name": function.get("name"), "arguments": arguments}


def _run(call: Mapping[str, Any], offered: list[str], actions: Mapping[str, Callable[..., Any]]) -> Any:
    """What the model is told about its call. A failed tool is something to tell, and no end."""
    if call["name"] not in offered:
        return {"error": f"there is no tool {call['name']!r}; there are: {', '.join(offered)}"}
    if not isinstance(call["arguments"], Mapping):
        return {"error": "the arguments are not a JSON object"}
    if call["name"] not in actions:
        return {"note": f"Tool '{call['name']}' called but no action mapped", "arguments": call["arguments"]}
    try:
        return json.loads(json.dumps(actions[call["name"]](**call["arguments"]), default=str))
    except Exception as error:  # noqa: BLE001 - whatever an action of the workflow raises
        return {"error": str(error) or type(error).__name__}
