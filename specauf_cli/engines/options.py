"""Options of ``specauf eval --backend``."""

from dataclasses import dataclass

from specauf_cli.engines.conventions import check_backend
from specauf_cli.errors import InputError


@dataclass(frozen=True)
class ServerOptions:
    """Which server is asked, and how. ``concurrency`` requests at once, ``timeout`` seconds for a whole answer,
    ``retries`` after the first try.

    ``served_model`` and ``served_drafter`` are the names by which the server knows them. Errors: InputError for an
    unknown backend or a concurrency out of range; address, timeout and retries are checked by ``Client``.
    """

    backend: str
    base_url: str
    concurrency: int
    timeout: float
    retries: int
    served_model: str | None = None
    served_drafter: str | None = None

    def __post_init__(self) -> None:
        check_backend(self.backend)
        if not 1 <= self.concurrency <= 1024:
            raise InputError(f"--concurrency {self.concurrency} is out of range; valid: 1..1024 requests at once")
