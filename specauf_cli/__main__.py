"""The entry point: ``specauf``, or ``python -m specauf_cli``. Whatever goes wrong is said in one line."""

import io
import os
import signal
import sys
import threading
from typing import NoReturn

import typer

from specauf_cli.cli.app import app
from specauf_cli.errors import InputError, Interrupted
from specauf_cli.reporting.escape import plain


class _Stopped(BaseException):
    """SIGINT or SIGTERM outside training, which has its own handling."""


STOPPED: list[int] = []
"""Signals that came: a library in the middle of an import may swallow the exception, but not this."""


def main() -> None:
    """Entry point: one clear line and a non-zero exit for whatever goes wrong, never a traceback.

    An error that is ours and not the user's is named as such; SPECAUF_TRACEBACK=1 shows where it happened.
    """
    STOPPED.clear()
    _quiet_environment()
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="replace")  # a terminal that knows no "±" still shows the table
    if os.environ.get("RANK", "0") != "0":  # torchrun's first rank speaks for all
        sys.stdout = sys.stderr = open(os.devnull, "w", encoding="utf-8")  # noqa: SIM115, for the whole process
    if threading.current_thread() is threading.main_thread():
        for number in (signal.SIGINT, signal.SIGTERM):
            signal.signal(number, _stop)
    try:
        code = app(standalone_mode=False)
        if STOPPED or code == 130:
            raise _Stopped
        raise SystemExit(code if isinstance(code, int) else 0)
    except (KeyboardInterrupt, typer.Abort, _Stopped):
        _fail(STOP, 128 + (STOPPED or [signal.SIGINT])[0])
    except InputError as error:
        _fail(*((STOP, 128 + STOPPED[0]) if STOPPED else (str(error), 2)))
    except Interrupted as error:
        _fail(f"{error}{_continue_with()}", error.exit_code)
    except MemoryError:
        _fail(NO_MEMORY, 1)
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # the reader has left; nothing more to say
        raise SystemExit(1) from None
    except OSError as error:
        _fail(f"{error.filename or 'system'}: {error.strerror or error}", 1)
    except Exception as error:
        if hasattr(error, "format_message"):  # a usage error: of click, or of the copy of it that newer typer carries
            _fail(" ".join(error.format_message().split()), 2)
        if "memory" in str(error) and ("alloc" in str(error) or "out of memory" in str(error)):
            _fail(NO_MEMORY, 1)
        if os.environ.get("SPECAUF_TRACEBACK"):
            raise
        reason = " ".join(str(error).split())[:300]
        _fail(
            f"internal error, {type(error).__name__}: {reason} (SPECAUF_TRACEBACK=1 shows where; please report it)", 70
        )


def _continue_with() -> str:
    """How to continue what was interrupted; nothing in a worker process, whose table says it."""
    if sys.argv[1:] == ["worker"]:
        return ""
    words = sys.argv if sys.argv[0].startswith("specauf") else ["specauf", *sys.argv[1:]]
    return f". Continue with: {' '.join(words)}"


STOP = "stopped; nothing that was saved is lost, run the same command to continue"
NO_MEMORY = "out of memory; lower trainer.micro_batch, trainer.anchors or evaluation.batch_size"


def _stop(signum: int, _frame: object) -> None:
    STOPPED.append(signum)
    raise _Stopped


def _fail(text: str, code: int) -> NoReturn:
    if threading.current_thread() is threading.main_thread():
        signal.signal(signal.SIGINT, signal.SIG_IGN)  # the last line is on its way out
    print(plain(f"specauf: {text}"), file=sys.stderr)
    raise SystemExit(code)


def _quiet_environment() -> None:
    """Settings that must stand before the heavy imports.

    Idle OpenMP threads spin briefly, then sleep: spinning for long, the default, made training many times slower on two
    cores beside another busy process; never spinning made it clearly slower alone. And no foreign progress bars among
    ours.
    """
    os.environ.setdefault("GOMP_SPINCOUNT", "10000")
    for name in ("HF_HUB_DISABLE_PROGRESS_BARS", "TRANSFORMERS_NO_ADVISORY_WARNINGS"):
        os.environ.setdefault(name, "1")
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "true")


if __name__ == "__main__":
    main()
