"""Errors of the endpoint, and every error as OpenAI's API writes it."""

from __future__ import annotations

from typing import Any

from tea_models.errors import NotAvailableError, TeaModelsError, UsageError
from tea_runtime.errors import ApiError, ContextOverflowError, UnsupportedError


class NotAuthenticatedError(UsageError):
    pass


class NotServedError(UsageError):
    """A model is asked for that is not served."""


class TooLargeError(UsageError):
    pass


class ClientGoneError(UsageError):
    pass


class ServerEndingError(NotAvailableError):
    pass


class BusyError(NotAvailableError):
    pass


def document(error: TeaModelsError) -> tuple[int, dict[str, Any]]:
    """An error's HTTP status, and its document."""
    status, kind, code = 500, "server_error", None
    if isinstance(error, ContextOverflowError):
        status, kind, code = 400, "invalid_request_error", "context_length_exceeded"
    elif isinstance(error, NotAuthenticatedError):
        status, kind, code = 401, "invalid_request_error", "invalid_api_key"
    elif isinstance(error, NotServedError):
        status, kind, code = 404, "invalid_request_error", "model_not_found"
    elif isinstance(error, TooLargeError):
        status, kind = 413, "invalid_request_error"
    elif isinstance(error, UsageError | UnsupportedError) or error.type == "Template":
        status, kind = 400, "invalid_request_error"
    elif isinstance(error, ApiError):
        status, kind = 502, "upstream_error"
    elif isinstance(error, NotAvailableError):
        status = 503
    message = error.message + (f" ({error.hint})" if error.hint else "")
    return status, failure(message, kind, code)


def failure(message: str, kind: str, code: str | None = None) -> dict[str, Any]:
    """A document for a failure."""
    return {"error": {"message": message, "type": kind, "param": None, "code": code}}
