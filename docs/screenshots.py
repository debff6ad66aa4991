"""Takes the pictures of Airflow and MLflow in this folder, in a headless Chromium, from the stack of a finished demo.

usage: python docs/screenshots.py HOME      such as .vlmops/demo; nothing may run there
"""

from __future__ import annotations

import argparse
import os
import re
import shutil
from pathlib import Path

from playwright.sync_api import Page, sync_playwright

from pipelines.config_file import load_config
from pipelines.embedded import components
from pipelines.embedded.components import ADMIN
from pipelines.embedded.stack import Stack
from pipelines.settings import Settings

FOLDER = Path(__file__).parent
SIZE = {"width": 1440, "height": 900}


def take(stack: Stack) -> None:
    """Every picture."""
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=shutil.which("chromium"), args=["--no-sandbox"])
        page = browser.new_page(viewport=SIZE, color_scheme="light", reduced_motion="reduce")
        _airflow(page, stack)
        _mlflow(page, stack)
        browser.close()


def _airflow(page: Page, stack: Stack) -> None:
    page.goto(stack.airflow_url)
    page.locator("input[name=username]").fill(ADMIN)
    page.locator("input[type=password]").fill(components.password(stack.settings, ADMIN))
    page.get_by_role("button", name=re.compile("sign in|login", re.IGNORECASE)).click()
    page.wait_for_url(re.compile(r"^(?!.*/auth/login)"))
    page.goto(f"{stack.airflow_url}/dags/retrain")
    page.get_by_text("Failed Task").first.wait_for()
    page.get_by_text("Asset Event").first.wait_for()
    page.wait_for_load_state("networkidle")
    page.screenshot(path=FOLDER / "airflow.png")


def _mlflow(page: Page, stack: Stack) -> None:
    page.goto(f"{stack.mlflow_url}/#/models/{load_config(stack.settings.config).registry.model}")
    page.get_by_text("champion").first.wait_for()  # it polls: the network is never idle
    page.get_by_role("button", name=re.compile("close", re.IGNORECASE)).first.click()  # its assistant
    page.get_by_text("How do I get started").wait_for(state="hidden")
    page.screenshot(path=FOLDER / "mlflow.png")


def main() -> None:
    """Start the stack and take the pictures."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("home", type=Path)
    os.environ["VLMOPS_HOME"] = str(parser.parse_args().home.resolve())
    with Stack(Settings()) as stack:
        take(stack)


if __name__ == "__main__":
    main()
