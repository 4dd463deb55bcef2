"""What a project asks for: the models in its `models.yaml`, and those that the nodes of its workflows use.

# models.yaml
models:
- smollm2-135m
- hf:owner/repo:Q4_K_M
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

from tea_models.errors import NotAvailableError
from tea_models.refs import NameRef, parse_reference
from tea_models.registry.entries import Registry
from tea_models.yamlfile import Document, read_yaml

MODELS_FILE = "models.yaml"
_SCHEMA = "tea.models/1"
# What names a model in `settings.llm` and in a node, the first that is there.
_NAMES = ("profile", "model_path", "model")
_LLM_ACTIONS = ("llm.", "actions.llm_")


class NodeModel(NamedTuple):
    """A node that asks a model of this machine, and the settings that hold for it."""

    node: str
    reference: str
    settings: Mapping[str, Any]


def read_requirements(path: Path, registry: Registry) -> list[str]:
    """The references that a `models.yaml` or a workflow asks for, in its order; a `ConfigError` where it is neither."""
    document = read_yaml(path)
    data = document.data
    if isinstance(data, list):
        lines = {("models", *key): at for key, at in document.lines.items()}
        document = Document(document.file, {"models": data}, lines)
    elif _is_workflow(data):
        return _of_workflow(document, registry)
    elif data is None:
        return []
    data = document.keys((), document.data, ("models",), ("schema",))
    if data.get("schema", _SCHEMA) != _SCHEMA:
        document.refuse_newer(_SCHEMA)
        raise document.wrong(f"expected {_SCHEMA}", ("schema",), data["schema"])
    texts = document.list_of(("models",), data["models"])
    for index, text in enumerate(texts):
        document.parsed(("models", index), parse_reference, document.text(("models", index), text))
        if text in texts[:index]:
            raise document.error(f"{text!r} is there twice", ("models", index))
    return texts


def combined(lists: Iterable[Iterable[str]]) -> list[str]:
    """The references of several places, each once, in order."""
    return list(dict.fromkeys(text for texts in lists for text in texts))


def node_models(path: Path, registry: Registry) -> list[NodeModel]:
    """The models that the nodes of a workflow use, in the order of its nodes; those of an API are left out."""
    document = read_yaml(path)
    if not _is_workflow(document.data):
        raise document.error("expected a workflow: keys such as name and nodes", hint="docs/yaml.md shows one")
    found = []
    for node in _nodes(document, registry):
        reference = next((node.settings[key] for key in _NAMES if node.settings.get(key)), None)
        if isinstance(reference, str):
            beside = path.parent / reference
            is_file = reference != node.settings.get("model") and beside.is_file()
            found.append(node._replace(reference=str(beside) if is_file else reference))
    return found


def _is_workflow(data: Any) -> bool:
    return isinstance(data, dict) and ("nodes" in data or "settings" in data) and "models" not in data


def _block(document: Document) -> dict[str, Any]:
    settings = document.data.get("settings")
    block = settings.get("llm") if isinstance(settings, dict) else None
    return block if isinstance(block, dict) else {}


def _nodes(document: Document, registry: Registry) -> Iterator[NodeModel]:
    """The nodes that ask a model here, without what is a template; a name that no registry knows is an API's."""
    block, nodes = _block(document), document.data.get("nodes")
    for index, node in enumerate(nodes if isinstance(nodes, list) else ()):
        if not isinstance(node, dict) or not str(node.get("action") or node.get("uses")).startswith(_LLM_ACTIONS):
            continue
        given = "params" if node.get("params") else "with"
        own = node[given] if isinstance(node.get(given), dict) else {}
        own = {key: value for key, value in own.items() if value is not None}
        named = own.get("model")
        if named is not None and not _is_template(named):
            place = ("nodes", index, given, "model")
            _check(named, document, place)
            if not _is_known(named, registry):
                del own["model"]
        base = {key: value for key, value in block.items() if key not in _NAMES or not set(_NAMES) & set(own)}
        settings = base | own
        if settings.get("backend") != "api" and not any(_is_template(settings.get(key)) for key in _NAMES):
            settings = {key: value for key, value in settings.items() if not _is_template(value)}
            yield NodeModel(str(node.get("name")), str(own.get("model", "")), settings)


def _is_template(value: Any) -> bool:
    return isinstance(value, str) and "{{" in value


def _is_known(text: str, registry: Registry) -> bool:
    reference = parse_reference(text)
    try:
        return not isinstance(reference, NameRef) or bool(registry.find(reference))
    except NotAvailableError:
        return False


def _of_workflow(document: Document, registry: Registry) -> list[str]:
    block = _block(document)
    found = []
    model = None if block.get("backend") == "api" else block.get("model")
    place = ("settings", "llm", "model")
    if model is not None:
        if _is_template(model):
            problem = f"{model!r} is only known when the workflow runs"
            raise document.error(problem, place, hint="list it in models.yaml")
        _check(model, document, place)
        found.append(model)
    return combined([found, (node.reference for node in _nodes(document, registry) if node.reference)])


def _check(text: Any, document: Document, place: tuple[str | int, ...]) -> None:
    if not isinstance(text, str):
        raise document.error(f"expected a reference to a model, got {text!r}", place)
    document.parsed(place, parse_reference, text)
