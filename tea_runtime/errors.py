"""The errors of `tea_runtime`, on the base of `tea_models` and with its exit codes.

TeaModelsError                     (see tea_models.errors, also for UsageError, EngineError, …)
├── WorkflowError               1  a node of a workflow failed: file, line, node
├── HostFeatureError            2  a workflow uses what only The Edge Agent has; also a ConfigError
├── LlmError                    1  a model could not do what was asked
│   ├── UnsupportedError        1  this model, template or backend is not able to
│   ├── GenerationError         1  the engine failed while it was running
│   ├── CancelledCallError      1  somebody else ended the call
│   ├── AnswerTimeoutError      1  there was no whole answer within the time that was given
│   ├── ApiError                1  an API answered with an error or with nonsense
│   │   └── ApiUnavailableError 4  an API can't be reached
│   ├── CassetteMissError       1  a request that a cassette does not hold
│   ├── BackendUnavailableError 4  neither a local model nor an API can be used
│   └── MissingExtraError       4  a package of an extra is not installed; also an ImportError
│       └── MissingEngineError  4  llama.cpp is not
└── DoesNotFitError             5  (of tea_models)
    └── ContextOverflowError    5  prompt and answer are longer than the context
"""

from __future__ import annotations

from tea_models.errors import INSTALL_ENGINE, ConfigError, DoesNotFitError, TeaModelsError


class WorkflowError(TeaModelsError): ...


class HostFeatureError(ConfigError): ...


class LlmError(TeaModelsError): ...


class UnsupportedError(LlmError): ...


class GenerationError(LlmError): ...


class CancelledCallError(LlmError): ...


class AnswerTimeoutError(LlmError): ...


class CassetteMissError(LlmError): ...


class ApiError(LlmError):
    """An API refused, failed or answered with nonsense; `status` is that of HTTP, where there was an answer."""

    def __init__(self, message: str, *, status: int | None = None, hint: str = "") -> None:
        super().__init__(message, hint=hint)
        self.status = status


class ApiUnavailableError(ApiError):
    exit_code = 4


class BackendUnavailableError(LlmError):
    exit_code = 4


class MissingExtraError(LlmError, ImportError):
    """`what` needs a package that comes with an extra."""

    exit_code = 4

    def __init__(self, what: str, *, package: str, extra: str, hint: str = "") -> None:
        super().__init__(
            f"{what} needs {package}, which comes with the extra {extra} and is not installed",
            hint=hint or f"pip install 'tea-models[{extra}]'",
        )


class MissingEngineError(MissingExtraError):
    def __init__(self) -> None:
        super().__init__("running a local model", package="llama-cpp-python", extra="llm-local", hint=INSTALL_ENGINE)


class ContextOverflowError(DoesNotFitError):
    """More tokens than a context holds, `reserved` of them for the answer; `at_least`: too long to be counted."""

    def __init__(
        self,
        *,
        prompt_tokens: int,
        n_ctx: int,
        reserved: int = 1,
        what: str = "prompt",
        at_least: bool = False,
        hint: str = "",
    ) -> None:
        more = "at least " if at_least else ""
        over = prompt_tokens + reserved - n_ctx
        super().__init__(
            f"the {what} has {more}{prompt_tokens:,} tokens and the context holds {n_ctx:,}"
            + (f", of which {reserved:,} must stay free for the answer" if reserved else "")
            + f": {more}{over:,} too many",
            hint=hint or f"shorten the {what}, or give the model a larger n_ctx",
        )
        self.prompt_tokens = prompt_tokens
        self.n_ctx = n_ctx
        self.over = over
