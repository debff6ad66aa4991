"""Looks after what serves until stopped: `python -m serving.watch`. It acts only while no promotion does."""

from __future__ import annotations

import logging
import sys
import time

from pipelines.config_file import load_config
from pipelines.errors import BadInput, VlmopsError
from pipelines.registry import Registry
from pipelines.settings import Settings
from pipelines.system.processes import end_cleanly_on_sigterm
from serving.promotion.recover import Recovery

LOOK_SECONDS = 2.0

log = logging.getLogger(__name__)


def main() -> int:
    """Look, again and again; ends by a signal. MLflow need not answer: what needs it is tried again.

    Returns:
        The exit code where nothing can be looked after: a wrong config, or no address of MLflow.
    """
    logging.basicConfig(level=logging.INFO, format="%(levelname)s %(name)s: %(message)s")
    logging.getLogger("httpx").setLevel(logging.WARNING)
    end_cleanly_on_sigterm()
    settings = Settings()
    try:
        recovery = Recovery(settings, Registry(settings, load_config(settings.config).registry.model))
    except BadInput as error:
        log.error("%s", error)
        return error.exit_code
    while True:
        try:
            done = recovery.look()
        except VlmopsError as error:
            log.error("%s", error)
        else:
            if done is not None:
                log.warning("%s", done)
        time.sleep(LOOK_SECONDS)


if __name__ == "__main__":
    sys.exit(main())
