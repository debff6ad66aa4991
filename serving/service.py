"""What serves, as a command: `python -m serving.service status` prints it as JSON; `stop` ends it, `start` starts again
what was released last.
"""

from __future__ import annotations

import argparse
import json
import logging
import sys
from typing import Any

from pipelines.errors import DONE, VlmopsError
from pipelines.settings import Settings
from serving import front
from serving.client import healthy
from serving.promotion.deploy_log import DeployLog
from serving.promotion.lock import deploy_lock
from serving.promotion.recover import start_again
from serving.served import read_served, running
from serving.strategies.restart import stop_engine

log = logging.getLogger(__name__)


def stop_service(settings: Settings) -> None:
    """End every engine in service, orphaned processes too; requests wait from then on.

    Raises:
        PromotionFailed: A promotion is under way.
    """
    with deploy_lock(settings):
        front.hold(settings)
        for pid, engine_log in running(settings).items():
            stop_engine(settings, pid, engine_log)
            DeployLog(settings.serving).write(None, "stopped", f"{engine_log.stem}, process {pid}")


def status(settings: Settings) -> dict[str, Any]:
    """What serves now, from the processes that run and the front's switch.

    State is `serving`, `holding` (an engine runs, requests wait), `unhealthy` (requests pass, no engine answers),
    `down` (nothing can serve, requests get 503) or `stopped` (no engine, requests wait).
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
    return "serving" if running_engines and healthy(settings.engine_url) else "unhealthy"


def main(argv: list[str] | None = None) -> int:
    """Entry point; returns the exit code."""
    parser = argparse.ArgumentParser(prog="python -m serving.service", description=__doc__)
    parser.add_argument("action", choices=("status", "start", "stop"))
    args = parser.parse_args(argv)
    settings = Settings()
    try:
        if args.action == "stop":
            stop_service(settings)
        elif args.action == "start" and status(settings)["state"] != "serving":
            start_again(settings)
        sys.stdout.write(json.dumps(status(settings)) + "\n")
    except VlmopsError as error:
        log.error("%s", error)
        return error.exit_code
    return DONE


if __name__ == "__main__":
    logging.basicConfig(level=logging.INFO, format="%(levelname)s %(name)s: %(message)s")
    logging.getLogger("httpx").setLevel(logging.WARNING)
    sys.exit(main())
