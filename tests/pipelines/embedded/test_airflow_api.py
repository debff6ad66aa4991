"""The client of Airflow's REST API, against answers in Airflow's words and without a network."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import httpx
import pytest

from pipelines.embedded import airflow_api
from pipelines.embedded.airflow_api import Airflow, AirflowRefused, wait_for
from pipelines.errors import Unreachable

Reply = Callable[[httpx.Request], httpx.Response]


def airflow(reply: Reply) -> Airflow:
    def route(request: httpx.Request) -> httpx.Response:
        if request.url.path == "/auth/token":
            return httpx.Response(201, json={"access_token": "t"})
        return reply(request)

    return Airflow("http://airflow", "reviewer", "secret", httpx.MockTransport(route))


def test_it_logs_in_once_and_sends_the_token() -> None:
    seen: list[str] = []

    def reply(request: httpx.Request) -> httpx.Response:
        seen.append(request.headers["Authorization"])
        return httpx.Response(200, json={"dags": [{"dag_id": "retrain"}]})

    with airflow(reply) as client:
        assert client.dags() == client.dags() == {"retrain"}
    assert seen == ["Bearer t", "Bearer t"]


def test_a_refusal_holds_airflows_words_and_no_password() -> None:
    with (
        airflow(lambda _: httpx.Response(403, text="not a respondent for the task")) as client,
        pytest.raises(AirflowRefused, match="GET /api/v2/pools as reviewer: 403 not a respondent") as refusal,
    ):
        client.ensure_pool("gpu", 1, "")
    assert "secret" not in str(refusal.value)


def test_an_airflow_that_is_away_is_named() -> None:
    def away(request: httpx.Request) -> httpx.Response:
        raise httpx.ConnectError("refused", request=request)

    with pytest.raises(Unreachable, match="Airflow at http://airflow cannot be reached"):
        airflow(away).health()


def test_a_question_is_asked_again_when_the_connection_breaks_and_a_request_is_not() -> None:
    asked: list[str] = []

    def broken(request: httpx.Request) -> httpx.Response:
        asked.append(request.method)
        if len(asked) == 1 or request.method == "POST":
            raise httpx.ReadError("reset", request=request)
        return httpx.Response(200, json={"state": "running"})

    with airflow(broken) as client:
        assert client.run_state("retrain", "r") == "running"
        with pytest.raises(Unreachable):
            client.trigger("retrain", {})
    assert asked == ["GET", "GET", "POST"]


def test_a_pool_is_made_once() -> None:
    pools: list[dict[str, Any]] = []

    def reply(request: httpx.Request) -> httpx.Response:
        if request.method == "POST":
            pools.append(json.loads(request.content))
        return httpx.Response(200, json={"pools": pools})

    with airflow(reply) as client:
        for _ in range(2):
            client.ensure_pool("gpu", 1, "one card")
    assert [(pool["name"], pool["slots"]) for pool in pools] == [("gpu", 1)]


class Review:
    """A review whose first answer may be lost, as Airflow's race loses it."""

    def __init__(self, *, lost: int) -> None:
        self.lost, self.answers, self.state, self.looks = lost, [], "running", 0

    def __call__(self, request: httpx.Request) -> httpx.Response:
        task = {
            "dag_id": "review", "dag_run_id": "r", "task_id": "person", "map_index": -1, "state": self.state,
            "duration": 1.0, "start_date": None, "try_number": 1 + min(len(self.answers), self.lost),
        }  # fmt: skip
        if request.method == "PATCH":
            assert self.state == "awaiting_input"
            self.answers.append(json.loads(request.content))
            self.state = "up_for_retry" if len(self.answers) <= self.lost else "success"
            return httpx.Response(200, json={})
        if request.url.path.endswith("hitlDetails"):
            self.looks += 1
            self.state = "awaiting_input" if self.looks % 2 == 0 else self.state
            return httpx.Response(200, json={"hitl_details": [{"task_instance": task, "subject": "s", "body": None}]})
        return httpx.Response(200, json={"task_instances": [task]})


@pytest.mark.parametrize("lost", [0, 1])
def test_an_answer_waits_until_it_is_asked_for_and_is_repeated_if_it_is_lost(
    monkeypatch: pytest.MonkeyPatch, lost: int
) -> None:
    monkeypatch.setattr(airflow_api, "SETTLE_SECONDS", 0.0)
    review = Review(lost=lost)
    with airflow(review) as client:
        assert client.answer_when_settled("review", "r", "Approve", "fine", seconds=5).task_id == "person"
    assert review.answers == [{"chosen_options": ["Approve"], "params_input": {"reason": "fine"}}] * (lost + 1)


def test_waiting_has_an_end_and_says_for_what() -> None:
    with pytest.raises(AirflowRefused, match="waited 0 s for a bus"):
        wait_for(lambda: None, 0, "a bus", interval=0)
