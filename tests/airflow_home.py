"""An Airflow home for the tests. Airflow reads its environment when it is first imported: import this before."""

from __future__ import annotations

import os
import sys
import tempfile
from pathlib import Path

from pipelines.settings import ROOT

HOME = Path(tempfile.mkdtemp(prefix="vlmops-airflow-"))

if "airflow" in sys.modules:
    raise RuntimeError("airflow was imported before its home was chosen; import airflow_home first")

os.environ |= {
    "AIRFLOW_HOME": str(HOME),
    "AIRFLOW__CORE__DAGS_FOLDER": str(ROOT / "dags"),
    "AIRFLOW__CORE__LOAD_EXAMPLES": "False",
    "AIRFLOW__CORE__SIMPLE_AUTH_MANAGER_USERS": "admin:admin,reviewer:op",
    "AIRFLOW__DATABASE__SQL_ALCHEMY_CONN": f"sqlite:///{HOME}/airflow.db",
}
