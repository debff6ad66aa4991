"""The drill of a lost state: backed up while a version serves, destroyed, restored; the line goes on from there."""

from __future__ import annotations

import os
import shutil
import signal
import sqlite3
import time
from contextlib import closing
from pathlib import Path

from pipelines.retention.backup import back_up
from pipelines.retention.restore import restore
from pipelines.settings import Settings
from serving.client import served_names
from serving.engine import group
from serving.promote import Promotion
from serving.promotion.deploy_log import DeployLog
from serving.promotion.recover import start_again
from serving.served import read_confirmed, running
from tests.serving.conftest import DOUBLE, Maker
from tests.serving.registry_double import RecordingRegistry


def test_what_served_serves_again_and_the_way_back_is_known(
    machine: Settings, registry: RecordingRegistry, make: Maker, tmp_path: Path
) -> None:
    first, second = make(1), make(2)
    for version in (first, second):
        Promotion(machine, registry, version, DOUBLE).run()
    database = machine.state / "mlflow.db"
    with closing(sqlite3.connect(database)) as metadata:
        metadata.execute("CREATE TABLE stands_for_mlflow (x)")
    back_up(machine, database, tmp_path / "backup")
    noted = DeployLog(machine.serving).read()
    for leader in running(machine):
        os.killpg(leader, signal.SIGKILL)
        while group(leader):
            time.sleep(0.02)
    shutil.rmtree(machine.home)
    restore(machine, tmp_path / "backup", database)
    assert DeployLog(machine.serving).read() == noted
    assert start_again(machine, DOUBLE) == second
    assert served_names(machine.engine_url) == ("digits", "digits-v2")
    confirmed = read_confirmed(machine)
    assert confirmed is not None
    assert (confirmed.now, confirmed.before) == (second, first)
    Promotion(machine, registry, first, DOUBLE).run()
    assert registry.aliases()["champion"] == 1
    assert served_names(machine.engine_url) == ("digits", "digits-v1")
