"""Requests to an OpenAI-compatible server: bounded in time and size, and every failure one clear `ApiError`."""

from __future__ import annotations

import contextlib
import functools
import logging
import threading
import time
from collections.abc import Callable, Generator, Iterator, Mapping
from dataclasses import dataclass, field
from http import HTTPStatus
from typing import Any
from urllib.parse import parse_qsl, urlsplit

from tea_models.redact import redact_record
from tea_runtime.api.answers import error_text, nonsense, read_json
from tea_runtime.errors import ApiError, ApiUnavailableError, LlmError

logger = logging.getLogger(__name__)

# Sampling options that llama-server, vLLM and others know, but not OpenAI's own API.
EXTENSIONS = ("top_k", "min_p", "repeat_penalty", "chat_template_kwargs")
_CONNECT_TIMEOUT = 10.0
_MAX_DELAY = 30.0
_MAX_BODY = 64 * 1024 * 1024


@dataclass(slots=True)
class ApiClient:
    """A server and how it is asked, from any thread; `key` is "" where none is needed, `key_name` its variable."""

    base: str
    key: str = field(repr=False)
    key_name: str
    azure_version: str | None
    timeout: float
    max_retries: int
    _client: Any = field(default=None, repr=False)
    # What this server turned out not to take, so that it is asked the right way from the second request on.
    _changes: frozenset[str] = frozenset()
    _lock: threading.Lock = field(default_factory=threading.Lock, repr=False)

    @property
    def host(self) -> str:
        return urlsplit(self.base).netloc.rpartition("@")[2]

    def post(self, path: str, body: dict[str, Any], where: str) -> Mapping[str, Any]:
        """Send a request and return the JSON object of the answer; every failure is an `ApiError`."""

        def send(endpoint: Any, arguments: dict[str, Any]) -> bytes:
            deadline = time.monotonic() + self.timeout
            data = bytearray()
            with endpoint.with_streaming_response.create(**arguments) as response:
                for part in response.iter_bytes():
                    data += part
                    if len(data) > _MAX_BODY:
                        raise ApiError(f"{where}: the answer is longer than {_MAX_BODY // 1024**2} MiB")
                    if time.monotonic() > deadline:
                        raise ApiUnavailableError(f"{where}: no complete answer within {self.timeout:g} s")
            return bytes(data)

        with self._explained(where):
            return read_json(self._adapting(send, path, body), where)

    def events(self, path: str, body: dict[str, Any], where: str) -> Generator[Any]:
        """Send a request and yield the events of the answer as they come; raises as `post` does."""

        def send(endpoint: Any, arguments: dict[str, Any]) -> Any:
            return endpoint.create(**arguments)

        body = {**body, "stream": True, "stream_options": {"include_usage": True}}
        with self._explained(where), contextlib.closing(self._adapting(send, path, body)) as stream:
            for event in stream:
                yield event.to_dict() if hasattr(event, "to_dict") else event

    def close(self) -> None:
        """Close the connections; the next request opens new ones."""
        with self._lock:
            client, self._client = self._client, None
        if client is not None:
            client.close()

    def _adapting(self, send: Callable[[Any, dict[str, Any]], Any], path: str, body: dict[str, Any]) -> Any:
        """Send; again without what the server does not take and nobody insists on; again when it was overloaded."""
        import openai

        endpoint = functools.reduce(getattr, path.split("/"), self._open())
        failures = 0
        while True:
            current = _changed(body, self._changes)
            extra = {key: current.pop(key) for key in EXTENSIONS if key in current}
            try:
                return send(endpoint, {**current, "extra_body": extra})
            except openai.BadRequestError as error:
                change = _wanted_change(error_text(error.body) or str(error), current)
                if change is None or change in self._changes:
                    raise
                logger.info("%s does not take %s as it was sent; adapting", self.host, change)
                self._changes |= {change}
            except openai.APITimeoutError:
                raise
            except (openai.APIConnectionError, openai.RateLimitError, openai.InternalServerError) as error:
                delay = _delay(error, failures)
                if failures >= self.max_retries or delay > _MAX_DELAY:
                    raise
                failures += 1
                time.sleep(delay)

    def _open(self) -> Any:
        import openai

        with self._lock:
            if self._client is None:
                for logger_name in ("httpx", "httpx2"):  # which of them, the version of openai decides
                    logging.getLogger(logger_name).addFilter(redact_record)
                base, _, query = self.base.partition("?")
                options: dict[str, Any] = {
                    "api_key": self.key or "not-needed",
                    "timeout": openai.Timeout(self.timeout, connect=min(_CONNECT_TIMEOUT, self.timeout)),
                    "max_retries": 0,
                    "default_query": dict(parse_qsl(query)),
                }
                self._client = (
                    openai.AzureOpenAI(azure_endpoint=base, api_version=self.azure_version, **options)
                    if self.azure_version
                    else openai.OpenAI(base_url=base, **options)
                )
            return self._client

    @contextlib.contextmanager
    def _explained(self, where: str) -> Iterator[None]:
        import openai

        try:
            yield
        except LlmError:
            raise
        except openai.APITimeoutError:
            hint = "settings.llm.timeout gives it more time"
            raise ApiUnavailableError(f"{where}: no answer within {self.timeout:g} s", hint=hint) from None
        except openai.APIStatusError as error:
            raise self._refused(error, where) from None
        except openai.APIConnectionError as error:
            cause = error.__cause__ or error
            raise ApiUnavailableError(
                f"{where}: can't be reached: {self._clean(str(cause) or type(cause).__name__)}",
                hint=f"is the server at {self.base} running?",
            ) from None
        except openai.APIError as error:
            raise ApiError(f"{where}: {self._clean(error.message)}") from None
        except (ValueError, AttributeError, TypeError, RecursionError) as error:
            # The client parses events itself; one that is not JSON ends here.
            nonsense(where, "events of a completion", self._clean(str(error)))
        except Exception as error:
            if not type(error).__module__.startswith(("httpx", "httpcore", "h11", "openai")):
                raise
            broken = f"{where}: the connection broke: {self._clean(str(error) or type(error).__name__)}"
            raise ApiUnavailableError(broken, hint="try again") from None

    def _refused(self, error: Any, where: str) -> ApiError:
        status = int(error.status_code)
        phrase = HTTPStatus(status).phrase.lower() if status in list(HTTPStatus) else "refused"
        text = self._clean(error_text(error.body))
        said = error.response.headers.get("retry-after", "")
        hint = "try again later" if status >= 500 else ""
        if status in (401, 403):
            hint = f"check {self.key_name}" if self.key else f"the server wants a key: set {self.key_name}"
        elif status == 404:
            hint = f"check the model and api_base ({self.base})"
        elif status == 429:
            hint = f"wait{f' {said} s' if said.isdecimal() else ''}, or check the plan and quota of your account"
        return ApiError(f"{where}: {status} {phrase}" + (f": {text}" if text else ""), status=status, hint=hint)

    def _clean(self, text: str) -> str:
        return text.replace(self.key, "***") if self.key else text


def _delay(error: Any, failures: int) -> float:
    """Seconds to wait: what the server says, otherwise longer each time."""
    response = getattr(error, "response", None)
    said = response.headers.get("retry-after", "") if response is not None else ""
    try:
        return max(0.0, float(said))
    except ValueError:  # a date, or nothing
        return float(0.5 * 2**failures)


def _wanted_change(text: str, body: Mapping[str, Any]) -> str | None:
    """Newer models take `max_completion_tokens`, some no temperature, older servers no `stream_options`."""
    if "max_tokens" in body and "max_completion_tokens" in text:
        return "max_tokens"
    if "stream_options" in body and "stream_options" in text:
        return "stream_options"
    # 0.7 is the default of our methods: nobody insists on it.
    if body.get("temperature") == 0.7 and "temperature" in text and "support" in text:
        return "temperature"
    return None


def _changed(body: dict[str, Any], changes: frozenset[str]) -> dict[str, Any]:
    kept = {key: body[key] for key in body if key not in changes or (key == "temperature" and body[key] != 0.7)}
    if "max_tokens" in body.keys() - kept.keys():
        kept["max_completion_tokens"] = body["max_tokens"]
    return kept
