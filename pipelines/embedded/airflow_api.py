"""A small client of Airflow's REST API, as one user: start a Dag, look at its tasks, answer a review."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from types import TracebackType
from typing import Any, Self, TypeVar

import httpx

from pipelines.errors import Unreachable, VlmopsError

T = TypeVar("T")

FINAL = frozenset({"success", "failed"})
"""States that a Dag run does not leave."""

SETTLE_SECONDS = 2.0
"""After a request for review appears. Airflow does not show whether its scheduler has noticed that the task is parked,
and an answer before that fails the task ("finished with state success, but ... is queued"). People are slower."""


class AirflowRefused(VlmopsError):
    """Airflow answered, but not with what was asked for."""


@dataclass(frozen=True)
class TaskState:
    """One task of one Dag run."""

    task_id: str
    state: str | None
    seconds: float | None
    """Of its last attempt, so far while it runs; None before it starts."""

    try_number: int


@dataclass(frozen=True)
class Review:
    """A request that waits for a person."""

    dag_id: str
    run_id: str
    task_id: str
    map_index: int
    try_number: int
    state: str
    subject: str
    body: str

    @property
    def path(self) -> str:
        """Where it is answered."""
        return f"/dags/{self.dag_id}/dagRuns/{self.run_id}/taskInstances/{self.task_id}/{self.map_index}/hitlDetails"


class Airflow:
    """Airflow as one user sees it.

    Args:
        transport: How requests travel; tests hand in one without a network.

    Raises:
        Unreachable: It does not answer.
        AirflowRefused: It answers with an error; the message holds its words.
    """

    def __init__(self, url: str, user: str, password: str, transport: httpx.BaseTransport | None = None) -> None:
        self.url = url
        self._user, self._password = user, password
        self._http = httpx.Client(base_url=url, timeout=30, transport=transport)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, where: TracebackType | None
    ) -> None:
        self._http.close()

    def health(self) -> dict[str, str | None]:
        """Components and their state; needs no login."""
        reply = self._call("GET", "/api/v2/monitor/health", login=False)
        return {name: (facts or {}).get("status") for name, facts in reply.items()}

    def dags(self) -> set[str]:
        """The Dags that are loaded."""
        return {dag["dag_id"] for dag in self._call("GET", "/api/v2/dags")["dags"]}

    def import_errors(self) -> list[str]:
        """Why Dag files could not be loaded."""
        return [e["stack_trace"] for e in self._call("GET", "/api/v2/importErrors")["import_errors"]]

    def ensure_pool(self, name: str, slots: int, description: str) -> None:
        """Make a pool if it is not there; tasks of a missing pool would wait for ever."""
        if name not in {pool["name"] for pool in self._call("GET", "/api/v2/pools")["pools"]}:
            body = {"name": name, "slots": slots, "description": description, "include_deferred": False}
            self._call("POST", "/api/v2/pools", body)

    def trigger(self, dag_id: str, conf: Mapping[str, object]) -> str:
        """Start a Dag and return the run's id."""
        body = {"logical_date": None, "conf": dict(conf)}
        return str(self._call("POST", f"/api/v2/dags/{dag_id}/dagRuns", body)["dag_run_id"])

    def run_state(self, dag_id: str, run_id: str) -> str:
        """State of a Dag run."""
        return str(self._call("GET", f"/api/v2/dags/{dag_id}/dagRuns/{run_id}")["state"])

    def runs(self, dag_id: str, since: datetime) -> list[str]:
        """Ids of the runs after a moment, the oldest first."""
        query = {"run_after_gte": since.isoformat(), "order_by": "run_after"}
        return [
            run["dag_run_id"] for run in self._call("GET", f"/api/v2/dags/{dag_id}/dagRuns", params=query)["dag_runs"]
        ]

    def tasks(self, dag_id: str, run_id: str) -> list[TaskState]:
        """The tasks of a Dag run."""
        reply = self._call("GET", f"/api/v2/dags/{dag_id}/dagRuns/{run_id}/taskInstances", params={"limit": "100"})
        return [_task_state(task) for task in reply["task_instances"]]

    def upstream_events(self, dag_id: str, run_id: str) -> list[dict[str, Any]]:
        """The Asset events that started a Dag run.

        Not by /assets/events: that answers 500 while any run that an event has started is still queued (3.3.2).
        """
        path = f"/api/v2/dags/{dag_id}/dagRuns/{run_id}/upstreamAssetEvents"
        events: list[dict[str, Any]] = self._call("GET", path)["asset_events"]
        return events

    def pending_reviews(self) -> list[Review]:
        """Requests that nobody has answered, of all Dags."""
        query = {"response_received": "false"}
        reply = self._call("GET", "/api/v2/dags/~/dagRuns/~/hitlDetails", params=query)
        return [_review(detail) for detail in reply["hitl_details"]]

    def answer(self, review: Review, option: str, reason: str) -> None:
        """Answer a request that waits for input."""
        body = {"chosen_options": [option], "params_input": {"reason": reason}}
        self._call("PATCH", f"/api/v2{review.path}", body)

    def answer_when_settled(self, dag_id: str, run_id: str, option: str, reason: str, seconds: float = 120) -> Review:
        """Wait for a Dag run's request, answer it, and answer again if Airflow lost the answer and asks anew.

        Returns:
            The request that was answered.

        Raises:
            AirflowRefused: No request came, or the task did not take the answer, before the deadline.
        """
        deadline = time.monotonic() + seconds
        while True:
            left = deadline - time.monotonic()
            review = wait_for(lambda: self.waiting_review(dag_id, run_id), left, f"a request for review of {run_id}")
            time.sleep(SETTLE_SECONDS)
            self.answer(review, option, reason)
            if self._wait_taken(review, left) == "success":
                return review

    def waiting_review(self, dag_id: str, run_id: str) -> Review | None:
        """The request of a Dag run that waits for its answer now."""
        waiting = (r for r in self.pending_reviews() if (r.dag_id, r.run_id) == (dag_id, run_id))
        return next((r for r in waiting if r.state == "awaiting_input"), None)

    def _wait_taken(self, review: Review, seconds: float) -> str:
        return wait_for(lambda: self._taken(review), seconds, f"the answer of {review.run_id} to be taken")

    def _taken(self, review: Review) -> str | None:
        """`success`, or `lost` where the task has to ask again; None while that is open."""
        task = next(t for t in self.tasks(review.dag_id, review.run_id) if t.task_id == review.task_id)
        if task.state == "failed":
            raise AirflowRefused(f"{review.task_id} of {review.run_id} failed on its answer; its log says why")
        if task.state == "up_for_retry" or task.try_number > review.try_number:
            return "lost"
        return "success" if task.state == "success" else None

    def _call(
        self,
        method: str,
        path: str,
        body: Mapping[str, object] | None = None,
        *,
        params: Mapping[str, str] | None = None,
        login: bool = True,
    ) -> Any:
        if login and "Authorization" not in self._http.headers:
            who = {"username": self._user, "password": self._password}
            token = self._call("POST", "/auth/token", who, login=False)["access_token"]
            self._http.headers["Authorization"] = f"Bearer {token}"
        reply = self._send(method, path, body, params)
        if reply.is_error:
            raise AirflowRefused(f"{method} {path} as {self._user}: {reply.status_code} {reply.text[:300]}")
        return reply.json()

    def _send(
        self, method: str, path: str, body: Mapping[str, object] | None, params: Mapping[str, str] | None
    ) -> httpx.Response:
        """Send a request; a question is asked again over a new connection if the server closed the old one under it."""
        tries = 2 if method == "GET" else 1
        while True:
            tries -= 1
            try:
                return self._http.request(method, path, json=body, params=params)
            except httpx.TransportError as error:
                if tries == 0:
                    raise Unreachable("Airflow", self.url, error) from error


def wait_for(look: Callable[[], T | None], seconds: float, what: str, interval: float = 0.3) -> T:
    """Look until something is there, and return it.

    Raises:
        AirflowRefused: It was not there before the deadline.
    """
    deadline = time.monotonic() + seconds
    while (found := look()) is None:
        if time.monotonic() > deadline:
            raise AirflowRefused(f"waited {seconds:.0f} s for {what}")
        time.sleep(interval)
    return found


def _task_state(task: Mapping[str, Any]) -> TaskState:
    seconds = task["duration"]
    if task["state"] == "running" and task["start_date"]:
        seconds = (datetime.now(UTC) - datetime.fromisoformat(task["start_date"])).total_seconds()
    return TaskState(task["task_id"], task["state"], seconds, task["try_number"])


def _review(detail: Mapping[str, Any]) -> Review:
    task = detail["task_instance"]
    return Review(
        dag_id=task["dag_id"],
        run_id=task["dag_run_id"],
        task_id=task["task_id"],
        map_index=task["map_index"],
        try_number=task["try_number"],
        state=task["state"],
        subject=detail["subject"],
        body=detail["body"] or "",
    )
