"""The one place that catches: whatever happens becomes an exit code and one message."""

from __future__ import annotations

import errno
import os
import signal
import sys
from collections.abc import Callable

from tea_models.cli.output import Output
from tea_models.errors import DiskFullError, StoreError, TeaModelsError


class Interrupted(TeaModelsError):  # noqa: N818 - its name is the type that is reported
    exit_code = 130


def guarded(command: Callable[[], object], out: Output) -> int:
    """Run a command; its exit code is its answer where that is a number, else 0, or that of the error."""
    # A `kill` should leave by the same door as Ctrl-C, so that locks and children are cleaned up.
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        result = command()
        sys.stdout.flush()
    except TeaModelsError as error:
        return out.error(error)
    except (KeyboardInterrupt, EOFError):
        return out.error(Interrupted("interrupted", hint="run the command again to go on"))
    except BrokenPipeError:
        # The reader went away (`| head`) before all was said; Python must not complain again when it closes stdout.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    except MemoryError:
        return out.error(TeaModelsError("out of memory"))
    except OSError as error:
        name = f"{error.filename}: " if error.filename else ""
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            return out.error(DiskFullError(f"{name}no space left on the device"))
        return out.error(StoreError(f"{name}{error.strerror or error}"))
    except Exception as error:
        if os.environ.get("TEA_DEBUG"):
            raise
        if isinstance(error, ModuleNotFoundError) and error.name in ("fcntl", "resource"):  # of POSIX
            what = "tea-models runs on Linux and macOS: it needs file locks and limits that this system does not have"
            return out.error(TeaModelsError(what, hint="on Windows, run it in WSL"))
        # A bug of ours: still one message and, with --json, one document.
        what = f"internal error: {type(error).__name__}: {error}"
        return out.error(TeaModelsError(what, hint="please report it; TEA_DEBUG=1 shows where it happened"))
    return result if isinstance(result, int) else 0
