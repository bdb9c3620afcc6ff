"""Serving: models that answer many callers at once, in this process (`engine`) and over HTTP (`app`, `server`, `api`).

plainformer.serve.run(config)         what `plainformer serve` does, until a signal; returns the exit code
plainformer.serve.make_app(config)    an ASGI app, to be mounted elsewhere or tested without a socket
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

from plainformer.errors import MissingDependencyError, to_install

if TYPE_CHECKING:
    from plainformer.serve.config import ServeConfig

NEEDED = ("starlette", "uvicorn", "h11", "python_multipart", "prometheus_client")


def check_installed() -> None:
    """Raise MissingDependencyError where a package of the extra `serve` is missing."""
    from importlib.util import find_spec

    missing = [name for name in NEEDED if find_spec(name) is None]
    if missing:
        raise MissingDependencyError(f"serving needs {', '.join(missing)}: plainformer[serve]", to_install("serve"))


def make_app(config: ServeConfig, tasks: Mapping[str, Any] | None = None) -> Any:
    """Return an ASGI app; see `app.make_app`."""
    check_installed()
    from plainformer.serve.app import make_app as make

    return make(config, tasks)


def run(config: ServeConfig, say: Callable[[str], object] = lambda line: None) -> int:
    """Serve a configuration until a signal. Returns the exit code.

    Args:
        say: is told, line by line, what is served, and at the end of the start the address.
    """
    check_installed()
    from plainformer.serve.app import load_models, make_service
    from plainformer.serve.log import set_up
    from plainformer.serve.server import bind, serve
    from plainformer.serve.starting import described, make_ready

    config.options.key()  # what is wrong with it, or missing, is said before anything is loaded
    config.options.metrics_key()
    listening = bind(config.options.host, config.options.port)
    set_up(config.options.log)
    service = make_service(config, load_models(config))
    for line in described(service):
        say(line)
    service.engine.start()
    try:
        make_ready(service)
        return serve(service, listening, lambda address: say(f"ready at {address}"))
    finally:
        service.engine.close()
        listening.close()
