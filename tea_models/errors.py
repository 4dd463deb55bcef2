"""The errors of `tea_models`, each with the exit code that the command line gives it.

TeaModelsError                1  failed
├── UsageError                2  an argument or reference that can't be understood
│   └── ConfigError           2  registry.yaml, models.lock, a workflow: file, line, key
├── IntegrityError            3  bytes are not what they should be
│   ├── ChecksumMismatchError    the SHA-256 differs from the pin
│   ├── SizeMismatchError        the size differs from the pin
│   └── MalformedGGUFError       not a GGUF file, or a broken one: byte offset and what was expected
├── NotAvailableError         4  not found, or not reachable from here
│   ├── UnknownModelError        no such name in the registry
│   ├── MissingFileError         no such file
│   ├── OfflineError             absent, and `--offline` forbids to fetch it
│   ├── SourceUnavailableError   every source failed
│   └── AccessDeniedError        a token or an accepted licence is needed
├── DoesNotFitError           5  not enough memory, or not enough disk
│   ├── MemoryDoesNotFitError
│   └── DiskFullError
├── StoreError                1  the store can't be written or is in an impossible state
├── LockError                 1  models.lock does not say what the project asks for
├── TemplateError             1  a chat template that does not parse, raises, or breaks a limit
└── EngineError               1  llama.cpp is missing, too old, or failed
"""

from __future__ import annotations

from tea_models.redact import redact

#: What anybody is told to do who needs llama.cpp and has none.
INSTALL_ENGINE = "tea-models engine install"


class TeaModelsError(Exception):
    """Base of every error this package raises on purpose; no address in it keeps a secret.

    Args:
        message: What went wrong, where, what was expected and what was there.
        hint: What to do next; empty where there is nothing useful to say.
    """

    exit_code = 1

    def __init__(self, message: str, *, hint: str = "") -> None:
        self.message = redact(message)
        self.hint = redact(hint)
        super().__init__(self.message)

    def __str__(self) -> str:
        # A log line or an uncaught error should say what to do too.
        return f"{self.message} ({self.hint})" if self.hint else self.message

    @property
    def type(self) -> str:
        """The name under which the error is reported with `--json`."""
        return type(self).__name__.removesuffix("Error") or "Error"


class UsageError(TeaModelsError):
    exit_code = 2


class ConfigError(UsageError):
    """A file that a person wrote is wrong: its path as given, the one-based line and the dotted path of the key."""

    def __init__(self, message: str, *, file: str = "", line: int | None = None, key: str = "", hint: str = "") -> None:
        place = file + (f":{line}" if line is not None else "")
        super().__init__(": ".join(part for part in (place, key, message) if part), hint=hint)
        self.file, self.line, self.key = file, line, key


class IntegrityError(TeaModelsError):
    exit_code = 3


class ChecksumMismatchError(IntegrityError):
    def __init__(self, what: str, *, expected: str, actual: str, hint: str = "") -> None:
        super().__init__(f"{what}: sha256 is {actual}, expected {expected}", hint=hint)
        self.expected, self.actual = expected, actual


class SizeMismatchError(IntegrityError):
    def __init__(self, what: str, *, expected: int, actual: int, hint: str = "") -> None:
        super().__init__(f"{what}: size is {actual:,} bytes, expected {expected:,}", hint=hint)
        self.expected, self.actual = expected, actual


class MalformedGGUFError(IntegrityError):
    """A file that is not GGUF, or breaks the specification: what was expected at a byte offset and what was found."""

    def __init__(self, what: str, *, offset: int, problem: str, hint: str = "") -> None:
        super().__init__(f"{what}: byte {offset:,}: {problem}", hint=hint)
        self.offset, self.problem = offset, problem


class NotAvailableError(TeaModelsError):
    exit_code = 4


class UnknownModelError(NotAvailableError): ...


class MissingFileError(NotAvailableError): ...


class OfflineError(NotAvailableError): ...


class SourceUnavailableError(NotAvailableError): ...


class AccessDeniedError(NotAvailableError): ...


class DoesNotFitError(TeaModelsError):
    exit_code = 5


class MemoryDoesNotFitError(DoesNotFitError): ...


class DiskFullError(DoesNotFitError): ...


class StoreError(TeaModelsError): ...


class LockError(TeaModelsError): ...


class TemplateError(TeaModelsError):
    """A chat template can't be parsed, refuses the messages, or goes beyond its limits."""


class EngineError(TeaModelsError): ...
