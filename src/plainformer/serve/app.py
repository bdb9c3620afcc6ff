"""The application: models, engine, routes and guard put together. `make_app(config)` is an ASGI app like any other."""

from __future__ import annotations

import functools
import time
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Any

from starlette.requests import Request
from starlette.routing import Match, Router
from starlette.routing import Route as Path

from plainformer.errors import did_you_mean
from plainformer.serve.api.openapi import described
from plainformer.serve.api.routes import ROUTES, Route
from plainformer.serve.api.service import Call, Service
from plainformer.serve.config import ServeConfig
from plainformer.serve.errors import Refusal, missing_route
from plainformer.serve.guard import Guard, Passed, Rules, refuse
from plainformer.serve.log import answered
from plainformer.serve.metrics import Metrics
from plainformer.serve.names import Names, Served

if TYPE_CHECKING:
    from plainformer.serve.engine import Engine


class Application:
    """The routes of a service, as an ASGI app; each handler's failure becomes an answer."""

    def __init__(self, service: Service) -> None:
        self.service = service
        service.cache["openapi"] = described(ROUTES, service.names.models)
        self.router = Router(
            [path for route in ROUTES for path in self._paths(route)], default=self._nowhere, redirect_slashes=False
        )

    def _paths(self, route: Route) -> list[Path]:
        """Return a route's paths: with /v1, and without, which is what a client's wrong base address makes of them."""
        endpoint = functools.partial(_Endpoint, self.service, route)
        bare = route.path.removeprefix("/v1").removeprefix("/v2")
        known = [
            route.path,
            *([bare] if route.path.startswith("/v1/") else [f"/v1{route.path}"] if bare == route.path else []),
        ]
        return [Path(path, _AsApp(endpoint()), methods=[route.method]) for path in known]

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        if scope["type"] == "lifespan":
            await self.router(scope, receive, send)
            return
        path = scope["path"].rstrip("/") or "/"
        scope = {**scope, "path": path, "raw_path": path.encode()}
        matches = [(route, route.matches(scope)[0]) for route in self.router.routes]
        if not any(match is Match.FULL for _, match in matches):
            allowed = sorted({method for route, match in matches if match is Match.PARTIAL for method in route.methods})  # type: ignore[attr-defined]
            if allowed:
                await refuse(send, _wrong_method(scope["method"], allowed))
                return
        await self.router(scope, receive, send)

    async def _nowhere(self, scope: Any, receive: Any, send: Any) -> None:
        if scope["type"] == "http":
            await refuse(send, _no_route(scope["path"]))


def _wrong_method(method: str, allowed: list[str]) -> Refusal:
    shown, known = method[:16], ", ".join(allowed)
    return Refusal(
        405, f"{shown} is not a method of this route\n  → {known}", code="method_not_allowed", headers={"allow": known}
    )


def _no_route(path: str) -> Refusal:
    if path.removeprefix("/v1") == "/responses":
        return missing_route(
            "this server has no /v1/responses\n  → use /v1/chat/completions, which every client of OpenAI's speaks, too"
        )
    known = [route.path for route in ROUTES]
    return missing_route(
        f"there is no route {path[:120]!r}\n  → {did_you_mean(path, known, few=False) or '/openapi.json lists them'}"
    )


class _AsApp:
    """An endpoint that Starlette takes for an ASGI app: an object, not a function."""

    def __init__(self, endpoint: _Endpoint) -> None:
        self.endpoint = endpoint

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        await self.endpoint(scope, receive, send)


class _Endpoint:
    """A route's handler within one request."""

    def __init__(self, service: Service, route: Route) -> None:
        self.service, self.route = service, route

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        passed = scope.get("state", {}).get("passed")
        if passed is not None:
            passed.route = self.route.name
        begun = False

        async def sending(message: Any) -> None:
            nonlocal begun
            begun = begun or message["type"] == "http.response.start"
            await send(message)

        call = Call(self.service, Request(scope, receive, sending), self.route.name)
        try:
            response = await self.route.handler(call)
            await response(scope, receive, sending)
        except Exception as error:
            refusal = call.refusal(error)
            if not begun:
                await refuse(send, refusal, call.id)


# ---- making one ---------------------------------------------------------------------------------------------------------


def load_models(config: ServeConfig) -> dict[str, Any]:
    """Return the tasks of a configuration, by name. Raises: what keeps one from being loaded, with its name."""
    from plainformer.errors import PlainformerError
    from plainformer.loading import load

    common = {name: getattr(config.load, name) for name in config.load.explicit}
    found = {}
    for entry in config.models:
        try:
            found[entry.name] = load(entry.ref, task=entry.task, **{**common, **entry.options})
        except PlainformerError as error:
            raise error.within(f"model {entry.name}") from error.__cause__
    return found


def make_service(config: ServeConfig, tasks: Mapping[str, Any]) -> Service:
    """Return a service of loaded tasks, whose engine has not been started."""
    from plainformer.inputs.chat.guard import bound_seconds
    from plainformer.serve.engine import Engine

    bound_seconds(config.options.template_seconds)
    engine = Engine(tasks, config.engine)
    now = int(time.time())
    models = {
        name: Served(name, task, engine.models[name], engine.models[name].tasks, now) for name, task in tasks.items()
    }
    return Service(config, engine, Names(models), Metrics(engine))


def guarded(service: Service) -> Guard:
    """Return the whole application of a service."""
    options = service.options
    rules = Rules(
        options.key(),
        options.metrics_key(),
        frozenset(host.lower() for host in options.allowed_host),
        frozenset(options.cors_origin),
        options.bytes_of("max_body"),
        options.bytes_of("max_upload"),
        options.max_header,
        options.body_timeout,
    )

    def seen(passed: Passed, model: str) -> None:
        service.metrics.answered(passed, model)
        answered(passed, model)

    return Guard(Application(service), rules, seen)


def make_app(config: ServeConfig, tasks: Mapping[str, Any] | None = None) -> Guard:
    """Return an ASGI app that serves a configuration's models; its engine starts and ends with the app's lifespan.

    Args:
        tasks: loaded already, by name; default: those of the configuration are loaded now.
    """
    service = make_service(config, load_models(config) if tasks is None else tasks)
    app = guarded(service)

    @asynccontextmanager
    async def lifespan(_: Any) -> AsyncIterator[None]:
        service.engine.start()
        try:
            yield
        finally:
            import asyncio

            await asyncio.to_thread(service.engine.close, config.options.drain_timeout)

    app.app.router.lifespan_context = lifespan  # type: ignore[attr-defined]
    return app


def engine_of(app: Guard) -> Engine:
    """Return the engine of an app."""
    return app.app.service.engine  # type: ignore[attr-defined,no-any-return]
