"""Runs the coordinator: one process, one worker, uvicorn."""

import contextlib
import errno
import gc
import logging
import os
import socket
import ssl
import time
from collections.abc import Callable

import uvicorn
from fastapi import FastAPI

from omni_rl.bridge.seam import Bridge
from omni_rl.errors import ConfigError, CoordinatorRunningError, ServiceError
from omni_rl.heap import share_heaps
from omni_rl.ledger.ledger import Ledger
from omni_rl_services.coordinator.app import create_app
from omni_rl_services.coordinator.connections import connection_class
from omni_rl_services.coordinator.core import Coordinator
from omni_rl_services.coordinator.settings import CoordinatorSettings, TlsSettings

logger = logging.getLogger("omni_rl.coordinator")
GRACE_SECONDS = 10
"""Seconds that requests under way may take to end when the process is asked to."""
BACKLOG = 2048
STANDBY_SECONDS = 0.5
"""Seconds between two looks at whether the ledger is free."""


class Server(uvicorn.Server):
    """A server that ends event streams first when it is asked to stop: they would never end by themselves."""

    def __init__(self, config: uvicorn.Config, coordinator: Coordinator) -> None:
        super().__init__(config)
        self._coordinator = coordinator
        self.on_start: Callable[[str], None] = lambda address: None
        """Called with the address once the coordinator answers there."""

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await super().startup(sockets)
        path = self._coordinator.settings.address_file
        if path is not None:
            partial = path.with_name(f"{path.name}.{os.getpid()}")
            partial.write_text(self.address())
            partial.replace(path)
        self.on_start(self.address())

    def address(self) -> str:
        """Return the address at which the server listens."""
        host, port = self.servers[0].sockets[0].getsockname()[:2]
        scheme = "https" if self.config.is_ssl else "http"
        return f"{scheme}://[{host}]:{port}" if ":" in host else f"{scheme}://{host}:{port}"

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        self._coordinator.events.close()
        await super().shutdown(sockets)


def make_server(app: FastAPI) -> Server:
    """Return a server of `create_app`'s app, at the address of the app's settings."""
    coordinator: Coordinator = app.state.coordinator
    settings = coordinator.settings
    tls = settings.tls
    config = uvicorn.Config(
        app,
        http=connection_class(),
        ws="none",  # uvicorn's WebSocket library would answer in plain text
        host=settings.host,
        port=settings.port,
        workers=1,
        backlog=BACKLOG,
        timeout_graceful_shutdown=GRACE_SECONDS,
        server_header=False,
        # Uvicorn would log each request; Prometheus counts them.
        access_log=False,
        log_config=None,
        # Nobody in front of it is trusted to say who a client is, and nothing depends on it.
        proxy_headers=False,
        ssl_certfile=None if tls is None else tls.certificate,
        ssl_keyfile=None if tls is None else tls.key,
    )
    return Server(config, coordinator)


def serve(
    settings: CoordinatorSettings,
    bridge: Bridge | None = None,
    on_start: Callable[[str], None] | None = None,
    on_wait: Callable[[str], None] = logger.info,
) -> None:
    """Run a coordinator until SIGINT, after which this returns, or SIGTERM, which ends the process.

    `on_start` is called with the address once the coordinator answers there; by default it is logged. `on_wait` is
    called once, with the coordinator that one in standby waits for. A coordinator in standby does not listen before the
    ledger is its own.

    Raises:
        ServiceError: the address is taken, or is none of this machine's; nothing was opened. Or the coordinator did not
            start, for a reason that was logged.
        CoordinatorRunningError: another process is the ledger's coordinator, and this one is not in standby.
        ConfigError, LedgerError: the TLS files, the tokens or the ledger cannot be used.
    """
    if settings.tls is not None:
        _check(settings.tls)
    share_heaps()
    ledger = _taken(settings.ledger, on_wait) if settings.standby else None
    with contextlib.closing(bind(settings.host, settings.port)) as listening:
        app = create_app(settings, ledger=ledger, bridge=bridge)
        server = make_server(app)
        # What is there now is there to the end. A full collection would look through all of it, a tenth of a second in
        # which the event loop stands.
        gc.collect()
        gc.freeze()
        server.on_start = on_start or (lambda address: logger.info("coordinator at %s, %s", address, access(app)))
        # Uvicorn ends what is under way first, and then raises the signal again.
        with contextlib.suppress(KeyboardInterrupt):
            try:
                server.run(sockets=[listening])
            except SystemExit as error:  # what Uvicorn raises where the app does not start
                raise ServiceError("the coordinator did not start; the lines above say why") from error


def _taken(url: str, on_wait: Callable[[str], None]) -> Ledger:
    """Return the ledger, once no other process is its coordinator."""
    ledger, waits = Ledger.open(url), False
    try:
        while True:
            try:
                ledger.take()
                return ledger
            except CoordinatorRunningError as error:
                if not waits:
                    on_wait(f"standby: {error}")
                waits = True
            time.sleep(STANDBY_SECONDS)
    except BaseException:
        ledger.close()
        raise


def bind(host: str, port: int) -> socket.socket:
    """Return a socket that listens at the address, before anything else is opened. Raises `ServiceError` if that
    fails."""
    try:
        family, _, _, _, where = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)[0]
        listening = socket.socket(family, socket.SOCK_STREAM)
        listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            listening.bind(where)
            # A second socket may be bound here, with SO_REUSEADDR, until the first one listens.
            listening.listen(BACKLOG)
        except OSError:
            listening.close()
            raise
    except OSError as error:
        if error.errno == errno.EADDRINUSE:
            raise ServiceError(
                f"port {port} of {host} is taken: end what listens there, or choose another (0: any that is free)"
            ) from None
        raise ServiceError(f"cannot listen at port {port} of {host}: {error.strerror}") from None
    return listening


def _check(tls: TlsSettings) -> None:
    """Raise `ConfigError` where the files are not a certificate and its key."""
    try:
        ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER).load_cert_chain(tls.certificate, tls.key)
    except OSError as error:  # ssl.SSLError is one
        raise ConfigError(f"TLS: {tls.certificate} and {tls.key} are no certificate and its key: {error}") from None


def access(app: FastAPI) -> str:
    """Return who may do what, in a sentence."""
    coordinator: Coordinator = app.state.coordinator
    if coordinator.tokens:
        return "for those with a token"
    return "WITHOUT TOKENS: anyone on this machine may do anything; no other machine is let near it"
