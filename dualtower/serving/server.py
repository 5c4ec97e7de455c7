"""Start the service, and stop it without a request left unanswered."""

from __future__ import annotations

import logging
import signal
import socket
import warnings
from dataclasses import dataclass
from pathlib import Path

from dualtower.errors import ConfigError, MissingExtra
from dualtower.search.milvus.address import shown_address

__all__ = ["ServerConfig", "serve"]

log = logging.getLogger(__name__)
LOOPBACK = ("127.0.0.1", "::1", "localhost")


@dataclass(frozen=True)
class ServerConfig:
    """How to serve.

    Attributes:
        catalog: Folder, or milvus://host:port/name.
        host: Address to listen on.
        port: Port to listen on; 0 takes a free one.
        token_file: File with the token of writers; None lets nobody write.
        model: Where the model lies; default where it lay when the catalog was made.
        queue: Requests that may wait; further ones are refused.
        device: Where requests are embedded, see `dualtower.device.find_device`.
        rerank: Rows of each request that are put in order again, see `dualtower.search.engine.open_engine`.
    """

    catalog: str
    host: str = "127.0.0.1"
    port: int = 8000
    token_file: Path | None = None
    model: str | None = None
    queue: int = 256
    device: str = "auto"
    rerank: int | None = None

    def __post_init__(self) -> None:
        if self.queue < 1:
            raise ConfigError(f"queue is {self.queue}; it must be at least 1")


def serve(config: ServerConfig) -> None:
    """Serve until SIGINT or SIGTERM; what was asked before is still answered. SIGHUP opens the catalog anew.

    Raises:
        MissingExtra: The extra ``serve`` is not installed.
        ConfigError: The token file is missing or too short, the address cannot be listened on, or the model has no
            re-ranker where one is asked for.
        CatalogError: There is no catalog, or its model is another one.
    """
    try:
        import uvicorn

        from dualtower.serving.app import create_app
        from dualtower.serving.connections import TimeLimitedProtocol, raise_file_limit
    except ImportError as error:
        if error.name and error.name.startswith("dualtower"):
            raise
        raise MissingExtra(error.name or "fastapi", "serve") from None
    from dualtower.device import computing_line
    from dualtower.search.engine import open_engine

    token = _read_token(config.token_file)
    with _bound(config) as listener:  # before the model is loaded, which takes a while
        app = create_app(
            lambda: open_engine(config.catalog, config.model, device=config.device, rerank=config.rerank),
            token=token,
            waiting=config.queue,
            loopback_only=config.host in LOOPBACK,
        )
        settings = uvicorn.Config(
            app,
            log_level="error",  # warnings are about strangers' requests, and could fill the log
            access_log=False,
            server_header=False,
            timeout_keep_alive=30,
            timeout_graceful_shutdown=30,
            http=TimeLimitedProtocol,
            ws="none",
        )
        raise_file_limit()
        warnings.filterwarnings("ignore", module=r"PIL\.")  # about images of strangers, who could fill the log with it
        settings.load()
        signal.signal(signal.SIGHUP, lambda *_: app.shop.reload_in_background())
        try:
            listener.listen(settings.backlog)  # who reads the next line may ask at once
        except OSError as error:  # another process bound the same port, and listens first
            raise _no_listening(config, error) from error
        host, port = listener.getsockname()[:2]
        log.warning("%s", computing_line(app.shop.engine.model.computes))
        where = shown_address(config.catalog)
        log.warning("serving %s on http://%s:%d", where, f"[{host}]" if ":" in host else host, port)
        uvicorn.Server(settings).run(sockets=[listener])


def _bound(config: ServerConfig) -> socket.socket:
    family = socket.AF_INET6 if ":" in config.host else socket.AF_INET
    listener = socket.socket(family)
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        listener.bind((config.host, config.port))
    except (OSError, OverflowError) as error:
        listener.close()
        raise _no_listening(config, error) from error
    return listener


def _no_listening(config: ServerConfig, error: Exception) -> ConfigError:
    return ConfigError(f"cannot listen on {config.host}, port {config.port} ({error}); choose another --port")


def _read_token(path: Path | None) -> str | None:
    if path is None:
        return None
    try:
        token = path.read_text(encoding="utf-8").strip()
    except OSError as error:
        raise ConfigError(f"cannot read the token file {path}: {error.strerror}") from error
    if len(token) < 16:
        raise ConfigError(f"the token in {path} has {len(token)} characters; write at least 16 that nobody can guess")
    return token
