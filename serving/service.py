"""What serves, as a command: `python -m serving.service status` prints it as JSON; `stop` ends it, `start` starts again
what was released last.
"""

from __future__ import annotations

import argparse
import json
import logging
import sys
from contextlib import ExitStack
from typing import Any

from pipelines.config_file import load_config
from pipelines.errors import DONE, BadInput, EngineFailed, VlmopsError
from pipelines.registry import Registry
from pipelines.settings import Settings
from serving import front
from serving.client import healthy
from serving.promotion.deploy_log import DeployLog
from serving.promotion.drain import Left, hold_and_drain
from serving.promotion.held import Held
from serving.promotion.lock import deploy_lock
from serving.promotion.recover import COMMAND_SECONDS, PATIENCE_SECONDS, Names, name_serving, start_again
from serving.served import read_served, running
from serving.strategies.restart import stop_engine

log = logging.getLogger(__name__)


def stop_service(settings: Settings, registry: Names | None = None) -> None:
    """Let requests under way end, then end every engine in service, orphaned processes too; new requests wait.

    Nobody but a person starts one from then on: what a crash ended a moment ago stays ended as well.

    Raises:
        PromotionFailed: A promotion is under way.
    """
    with deploy_lock(settings, COMMAND_SECONDS):
        left = _drain(settings)
        front.stop(settings)
        engines = running(settings)
        for pid, engine_log in engines.items():
            stop_engine(settings, pid, engine_log)
        ended = [f"{engine_log.stem}, process {pid}" for pid, engine_log in engines.items()] or ["no engine ran"]
        cut = [] if left.nothing else [f"cut: {left}"]
        DeployLog(settings.serving).write(None, "stopped", "; ".join([*ended, *cut]))
        name_serving(registry, None)


def _drain(settings: Settings) -> Left:
    """Whoever gives up meanwhile leaves requests as they were; an engine that hangs is not waited for."""
    deploy_log, released = DeployLog(settings.serving), read_served(settings)
    held, version = Held(settings), None if released is None else released.version
    hopeful = released is not None and healthy(settings.engine_url, PATIENCE_SECONDS)
    seconds = released.serving.drain_seconds if released is not None and hopeful else 0.0
    with ExitStack() as given_up:
        if not front.holding(settings):
            given_up.callback(held.end)
        left = hold_and_drain(
            settings, held, lambda state, detail: deploy_log.write(version, state, detail, held.seconds), seconds
        )
        given_up.pop_all()
    return left


def status(settings: Settings) -> dict[str, Any]:
    """What serves now, from the processes that run and the front's switch.

    State is `serving`, `holding` (an engine runs, requests wait), `unhealthy` (requests pass, no engine answers),
    `unreachable` (an engine answers, and there is no front to reach it through), `down` (nothing can serve, requests
    get 503) or `stopped` (no engine, requests wait).
    """
    engines = running(settings)
    released = read_served(settings)
    serves = released is not None and released.log(settings) in engines.values()
    return {
        "state": _state(settings, running_engines=bool(engines)),
        "version": released.version if released is not None and serves else None,
        "pid": next(iter(engines), None),
        "endpoint": settings.front_url,
        "holding": front.holding(settings),
    }


def _state(settings: Settings, *, running_engines: bool) -> str:
    if front.refusing(settings):
        return "down"
    if front.holding(settings):
        return "holding" if running_engines else "stopped"
    if not running_engines or not healthy(settings.engine_url):
        return "unhealthy"
    return "serving" if _front_answers(settings) else "unreachable"


def _front_answers(settings: Settings) -> bool:
    try:
        return front.in_flight(settings) is not None
    except EngineFailed:
        return False


def _registry(settings: Settings) -> Registry | None:
    """Where the alias `serving` is moved; neither a config nor an address that is wrong keeps anybody from stopping."""
    try:
        return Registry(settings, load_config(settings.config).registry.model)
    except BadInput as error:
        log.warning("the alias `serving` stays as it is: %s", error)
        return None


def main(argv: list[str] | None = None) -> int:
    """Entry point; returns the exit code."""
    parser = argparse.ArgumentParser(prog="python -m serving.service", description=__doc__)
    parser.add_argument("action", choices=("status", "start", "stop"))
    args = parser.parse_args(argv)
    settings = Settings()
    try:
        if args.action == "stop":
            stop_service(settings, _registry(settings))
        elif args.action == "start" and status(settings)["state"] not in {"serving", "unreachable"}:
            start_again(settings, registry=_registry(settings))
        sys.stdout.write(json.dumps(status(settings)) + "\n")
    except VlmopsError as error:
        log.error("%s", error)
        return error.exit_code
    return DONE


if __name__ == "__main__":
    logging.basicConfig(level=logging.INFO, format="%(levelname)s %(name)s: %(message)s")
    logging.getLogger("httpx").setLevel(logging.WARNING)
    sys.exit(main())
