from __future__ import annotations

import logging
import threading
import time

import pytest

from limbeck.errors import UserError
from limbeck.servers import Connection, ServerGone, ServerRefused
from tests.servers.imitation import Fault, Server, drop, fail, serving, slow, torn

BODY = {"prompt": [5, 6, 7], "prompt_logprobs": 2}


def connection(server: Server, **options: float) -> Connection:
    return Connection(server.url, **{"timeout": 5, "patience": 5, **options})  # type: ignore[arg-type]


@pytest.mark.parametrize(
    "fault", [drop, fail(500), fail(503), fail(429), torn], ids=["drop", "500", "503", "429", "torn"]
)
def test_what_goes_wrong_once_is_tried_again(fault: Fault, caplog: pytest.LogCaptureFixture) -> None:
    with serving("vllm") as server, caplog.at_level(logging.WARNING):
        server.faults = [fault]
        assert connection(server).post("/v1/completions", BODY)["choices"]
        assert len(server.asked) == 2
    assert [record.message.split(" at ")[0] for record in caplog.records] == ["the server", "the server"]
    assert "does not answer" in caplog.records[0].message
    assert "answers again after" in caplog.records[1].message


def test_silence_is_a_lost_request() -> None:
    with serving("vllm") as server:
        server.faults = [slow(0.5)]
        assert connection(server, timeout=0.2).post("/v1/completions", BODY)["choices"]
        assert len(server.asked) == 2


def test_patience_ends_with_the_address_and_the_last_reason() -> None:
    with serving("vllm") as server:
        server.faults = [fail(503)] * 50
        with pytest.raises(
            ServerGone, match=rf"{server.url} gave no answer \(tried \d+ times in 1 s\).*HTTP 503: out of luck"
        ):
            connection(server, patience=0.6).post("/v1/completions", BODY)
        server.faults = [fail(500)] * 50
        started = time.monotonic()
        with pytest.raises(ServerGone, match="tried 4 times.*HTTP 500: out of luck"):
            connection(server, patience=60).post("/v1/completions", BODY)
        assert time.monotonic() - started < 10
    with pytest.raises(ServerGone, match="refused"):
        connection(server, patience=0).post("/v1/completions", BODY)


def test_a_refusal_is_not_tried_again() -> None:
    with serving("vllm") as server:
        with pytest.raises(ServerRefused, match="HTTP 400: Requested prompt logprobs of 30, max is 20"):
            connection(server).post("/v1/completions", {**BODY, "prompt_logprobs": 30})
        assert len(server.asked) == 1


def test_answers_come_in_the_order_of_the_questions_and_no_more_at_a_time_than_agreed() -> None:
    with serving("vllm") as server:
        running, most, lock = [0], [0], threading.Lock()

        def counted(handler: object) -> bool:
            with lock:
                running[0] += 1
                most[0] = max(most[0], running[0])
            time.sleep(0.05)
            with lock:
                running[0] -= 1
            return False

        server.faults = [counted] * 12
        bodies = [{"prompt": list(range(3, 5 + number)), "prompt_logprobs": 2} for number in range(12)]
        answers = Connection(server.url, concurrency=3).post_all("/v1/completions", bodies)
        assert [len(one["choices"][0]["prompt_logprobs"]) for one in answers] == list(range(2, 14))
        assert most[0] == 3


def test_the_first_error_ends_all() -> None:
    with serving("vllm") as server:
        server.faults = [fail(400), *[fail(503)] * 100]
        started = time.monotonic()
        with pytest.raises(ServerRefused):
            Connection(server.url, patience=60, concurrency=2).post_all("/v1/completions", [BODY] * 8)
        assert time.monotonic() - started < 30, "no waiting for the others"


def test_a_server_that_comes_back_is_met_again() -> None:
    with serving("vllm") as server:
        port, asked = server.server_port, connection(server, patience=20)
    threading.Timer(0.6, lambda: again.append(Server("vllm", port))).start()
    again: list[Server] = []
    assert asked.post("/v1/completions", BODY)["choices"]
    again[0].stop()


def test_the_key_is_sent_and_refuses() -> None:
    with serving("vllm") as server:
        seen: list[str | None] = []

        def look(handler: object) -> bool:
            seen.append(handler.headers["Authorization"])  # type: ignore[attr-defined]
            return False

        server.faults = [look]
        Connection(server.url + "/v1/", key="secret").post("/v1/completions", BODY)
        assert seen == ["Bearer secret"]
    for wrong in ({"url": "localhost:80"}, {"url": "ftp://a"}, {"timeout": 0}, {"patience": -1}, {"concurrency": 0}):
        with pytest.raises(UserError):
            Connection(**{"url": "http://a", **wrong})  # type: ignore[arg-type]
