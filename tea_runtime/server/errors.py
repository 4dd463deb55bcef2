"""Errors of the endpoint, and every error as OpenAI's API writes it."""

from __future__ import annotations

from typing import Any

from tea_models.errors import NotAvailableError, TeaModelsError, TemplateError, UsageError
from tea_runtime.errors import ApiError, ContextOverflowError, UnsupportedError


class NotAuthenticatedError(UsageError):
    pass


class NotServedError(UsageError):
    pass


class TooLargeError(UsageError):
    pass


# The first that fits: HTTP status, OpenAI's type and code.
_DOCUMENTS: tuple[tuple[type[TeaModelsError], int, str, str | None], ...] = (
    (ContextOverflowError, 400, "invalid_request_error", "context_length_exceeded"),
    (NotAuthenticatedError, 401, "invalid_request_error", "invalid_api_key"),
    (NotServedError, 404, "invalid_request_error", "model_not_found"),
    (TooLargeError, 413, "invalid_request_error", None),
    (UsageError, 400, "invalid_request_error", None),
    (UnsupportedError, 400, "invalid_request_error", None),
    (TemplateError, 400, "invalid_request_error", None),
    (ApiError, 502, "upstream_error", None),
    (NotAvailableError, 503, "server_error", None),
    (TeaModelsError, 500, "server_error", None),
)


def document(error: TeaModelsError) -> tuple[int, dict[str, Any]]:
    """An error's HTTP status, and its document."""
    message = error.message + (f" ({error.hint})" if error.hint else "")
    _, status, kind, code = next(row for row in _DOCUMENTS if isinstance(error, row[0]))
    return status, failure(message, kind, code)


def failure(message: str, kind: str, code: str | None = None) -> dict[str, Any]:
    return {"error": {"message": message, "type": kind, "param": None, "code": code}}
