"""Sites that die, hang, send wrong replies, return or join late: the run goes on with the valid replies."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from ssfl.core.payloads import DenseValues, MaskBits, MaskedValues, Payload
from ssfl.deploy.federation.roster import Member
from ssfl.deploy.protocol import message_bytes, messages
from ssfl.deploy.server.exchange import QuorumError
from ssfl.deploy.server.site_registry import SiteRegistry
from ssfl.deploy.settings import DeploySettings
from ssfl.deploy.transport.port import Answer, Failure, Message
from ssfl.engine.accounting.ledger import Meter
from ssfl.wire.message import decode
from tests.contract.table import ROUNDS, SIZES, new_rig
from tests.deploy.fake_fleet import RUN, Bench, FakeSite, honest, listed_log, make_bench, trainer_of
from tests.deploy.faulty import LAYOUT, deployed, in_work, simulated, with_payload


def edited(answer: Message, **fields: Any) -> Message:
    """The answer with other fields in its head: what an honest `pack` would refuse to write."""
    head = json.loads(answer.head)
    for key, value in fields.items():
        if key in ("examples", "train_loss"):
            head["report"][key] = value
        else:
            head[key] = value
    return Message(json.dumps(head).encode(), answer.body)


def nan_values(answer: Message, reply: messages.Done) -> Message:
    payload = decode(reply.payload, LAYOUT)
    part = payload.parts["w"]
    assert isinstance(part, MaskedValues)
    values = part.values.clone()
    values[3] = torch.nan
    return with_payload(reply, Payload({"w": MaskedValues(values, part.support)}, payload.sender))


def other_mask(answer: Message, reply: messages.Done) -> Message:
    payload = decode(reply.payload, LAYOUT)
    part = payload.parts["w"]
    assert isinstance(part, MaskedValues)
    return with_payload(reply, Payload({"w": MaskedValues(part.values, bytes(8))}, payload.sender))


def other_length(answer: Message, reply: messages.Done) -> Message:
    payload = decode(reply.payload, LAYOUT)
    return with_payload(reply, Payload({"w": DenseValues(torch.zeros(17))}, payload.sender))


def fewer(answer: Message, reply: messages.Done) -> Message:
    payload = decode(reply.payload, LAYOUT)
    part = payload.parts["w"]
    assert isinstance(part, MaskedValues)
    return with_payload(reply, Payload({"w": MaskedValues(part.values[1:], part.support)}, payload.sender))


def mask_for_values(answer: Message, reply: messages.Done) -> Message:
    return with_payload(reply, Payload({"w": MaskBits(torch.ones(9, dtype=torch.bool))}, 0))


def other_sender(answer: Message, reply: messages.Done) -> Message:
    payload = decode(reply.payload, LAYOUT)
    return with_payload(reply, Payload(payload.parts, 4))


FAULTS: Mapping[str, tuple[Callable[[Message, messages.Done], Any], str]] = {
    "examples_negative": (lambda a, r: edited(a, examples=-5), "examples must be a whole number"),
    "examples_absurd": (lambda a, r: edited(a, examples=1 << 50), "examples must be a whole number"),
    "examples_changed": (lambda a, r: edited(a, examples=12), "reports 12 examples, joined with 11"),
    "client_id": (lambda a, r: edited(a, client=3), "answers as client 3"),
    "run": (lambda a, r: edited(a, run="another"), "of run another"),
    "nan": (nan_values, "not finite"),
    "mask": (other_mask, "values on mask 0000000000000000"),
    "no_mask": (other_length, "dense values, expected values on mask"),
    "fewer_values": (fewer, "values, expected"),
    "no_weights": (lambda a, r: with_payload(r, Payload({}, 0)), "part w is missing"),
    "mask_for_values": (mask_for_values, "a mask instead of values"),
    "sender": (other_sender, "comes from client 4"),
    "garbage": (lambda a, r: Message(b"\xff\x00garbage", b"x" * 100), "not JSON"),
    "damaged": (lambda a, r: Message(a.head, a.body[:-9] + b"!" + a.body[-8:]), "checksum"),
    "truncated": (lambda a, r: Message(a.head, a.body[:-5]), "announced"),
    "huge": (lambda a, r: Message(a.head, bytes(20_000_000)), "more than 10000000 bytes"),
    "another_kind": (lambda a, r: message_bytes.pack(messages.Pong("")), "a Pong in answer to a work"),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_a_wrong_reply_is_refused_with_its_reason_and_the_round_goes_on(fault: str) -> None:
    change, reason = FAULTS[fault]
    bench = make_bench("ssfl")
    plan_clients = cohort(bench, 2)
    assert 0 in plan_clients, "the table's seed puts client 0 into round 2"
    bench.site(0).fault = in_work("train", 2, change)
    weights = deployed(bench)
    assert reason in bench.logged("answer_refused")[0]["text"]
    assert bench.logged("answer_refused")[0]["client"] == 0
    assert weights.equal(simulated("ssfl", {("train", 2): [0]}))
    assert [e["clients"] for e in bench.events if e["event"] == "round"][1] == len(plan_clients) - 1


def cohort(bench: Bench, round_: int) -> list[int]:
    """Who trains in a round: sampled by the seed, equal in every runtime."""
    rig = new_rig("ssfl", "group")
    rig.loop.run(rig.loop.start(rig.theta, ROUNDS))
    plans = [plan for plan, _ in rig.recorder.passed if plan.clock.round == round_ and plan.timed]
    return [i.client for i in plans[0].instructions]


def test_a_site_with_three_refused_answers_is_excluded() -> None:
    bench = make_bench("fedavg", sizes=(9, 9, 9))
    bench.site(1).fault = lambda message, answer: (
        edited(answer, examples=99)
        if isinstance(answer, Message) and isinstance(message_bytes.unpack(answer), messages.Done)
        else answer
    )
    bench.run(6)
    assert len(bench.logged("answer_refused")) == 3
    works = [m for n, m in bench.fleet.sent if n == 101 and isinstance(m, messages.Work)]
    assert len(works) == 3


def test_a_site_that_never_answers_costs_a_deadline_and_is_asked_again_only_after_its_pong() -> None:
    bench = make_bench("ssfl")
    assert 0 in cohort(bench, 2)
    bench.site(0).fault = in_work("train", 2, lambda answer, reply: None)
    weights = deployed(bench)
    rounds = {e["round"]: e for e in bench.events if e["event"] == "round"}
    assert rounds[2]["clients"] == len(cohort(bench, 2)) - 1
    assert 30 <= bench.fleet.time < 40
    assert weights.equal(simulated("ssfl", {("train", 2): [0]}))
    assert "no answer before the deadline" in bench.logged("missing_replies")[0]["text"]


def test_a_slow_site_gets_no_stale_work_queued() -> None:
    bench = make_bench("fedavg", sizes=(9, 9, 9, 9))
    slow = bench.site(2)
    bench.join_all()
    slow.seconds = 100.0
    bench.run(4)
    works = [m for n, m in bench.fleet.sent if n == 102 and isinstance(m, messages.Work)]
    assert len(works) == 1, "work was sent to a site that still owed an answer"


def test_a_dead_site_does_not_hold_the_others_up() -> None:
    bench = make_bench("ssfl")
    trained = set(cohort(bench, 1))
    bench.join_all()
    start = bench.fleet.time

    def die(message: Message, answer: Message | str) -> Message | str | Failure:
        if isinstance(work := message_bytes.unpack(message), messages.Work) and work.phase == "train":
            site.online = False
            return Failure("", "offline", "Node Unavailable")
        return answer

    site = bench.site(min(trained))
    site.fault = die
    weights = deployed(bench)
    assert bench.fleet.time - start < 20
    gone = {("train", r): [min(trained)] for r in range(1, ROUNDS + 1)}
    assert weights.equal(simulated("ssfl", gone))


def test_a_resumed_server_waits_for_sites_that_are_busy() -> None:
    """They finish their epoch before they answer its first ping; until then it does not know their state."""
    settings = DeploySettings(deadline_seconds=200, patience_seconds=300, quorum=0.5)
    bench = make_bench("ssfl", settings=settings)
    for client in (3, 4):
        bench.site(client).seconds = 20.0
    bench.run(1)
    assert bench.events[0]["clients"] == 5, "all are asked to score"


def test_a_resumed_server_waits_a_little_for_sites_that_are_still_connecting() -> None:
    settings = DeploySettings(deadline_seconds=200, patience_seconds=300, quorum=0.5, return_seconds=10)
    bench = make_bench("ssfl", settings=settings)
    later, lost = bench.site(3), bench.site(4)
    later.online = lost.online = False

    def connect(message: Message, answer: Message | str) -> Message | str:
        later.online = True
        return answer

    bench.site(2).fault, bench.site(2).seconds = connect, 2.5
    seen: list[tuple[object, float]] = []
    bench.loop.emit = lambda event: seen.append((event.get("clients"), bench.fleet.time))
    bench.run(1)
    clients, seconds = next(pair for pair in seen if pair[0] is not None)
    assert clients == 4
    assert 10 <= seconds < 15


def test_a_restarted_site_without_memory_gets_its_mask_with_the_next_message() -> None:
    bench = make_bench("ssfl")

    def restart(answer: Message, reply: messages.Done) -> Failure:
        node = 100
        fresh = FakeSite(trainer_of("ssfl", "group", bench.data, 0), "key-0", session="2")
        bench.fleet.sites_by_node[node] = fresh
        return Failure("", "offline", "restarting")

    bench.site(0).fault = in_work("train", 2, restart)
    weights = deployed(bench)
    works = [
        m for n, m in bench.fleet.sent if n == 100 and isinstance(m, messages.Work) and m.phase == "train"
    ]
    assert any(w.missed for w in works), "the mask was not sent again"
    assert weights.equal(simulated("ssfl", {}))  # it came back in time: nothing is missing


def test_a_restarted_site_with_its_memory_on_disk_needs_no_mask(tmp_path: Path) -> None:
    bench = make_bench("ssfl", folder=tmp_path)

    def restart(answer: Message, reply: messages.Done) -> Failure:
        trainer = trainer_of("ssfl", "group", bench.data, 0, tmp_path / "0")
        bench.fleet.sites_by_node[100] = FakeSite(trainer, "key-0", session="2")
        return Failure("", "offline", "restarting")

    bench.site(0).fault = in_work("train", 2, restart)
    weights = deployed(bench)
    assert not any(m.missed for _, m in bench.fleet.sent if isinstance(m, messages.Work))
    assert weights.equal(simulated("ssfl", {}))


@pytest.mark.parametrize("name", ["dispfl_full", "random_clientwise"])
def test_personal_state_survives_a_restart(name: str, tmp_path: Path) -> None:
    plain, bench = make_bench(name, folder=tmp_path / "a"), make_bench(name, folder=tmp_path / "b")
    plain.run(ROUNDS)

    def restart(message: Message, answer: Message | str) -> Any:
        if isinstance(work := message_bytes.unpack(message), messages.Work) and work.round == 3:
            trainer = trainer_of(name, "group", bench.data, 2, tmp_path / "b" / "2")
            bench.fleet.sites_by_node[102] = FakeSite(trainer, "key-2", session="2")
            return Failure("", "offline", "restarting")
        return answer

    bench.site(2).fault = restart
    bench.run(ROUNDS)
    ours, theirs = (
        b.site(2).trainer.session.states.before(1 << 40).state  # type: ignore[union-attr]
        for b in (bench, plain)
    )
    assert ours.keys() == theirs.keys()
    assert all(ours[key].equal(theirs[key]) for key in ours)


def test_a_site_that_lost_its_mask_though_the_server_thinks_it_has_it() -> None:
    bench = make_bench("ssfl")
    lost: list[int] = []

    def forget(message: Message, answer: Message | str) -> Message | str:
        if (
            isinstance(work := message_bytes.unpack(message), messages.Work)
            and work.phase == "train"
            and not lost
        ):
            lost.append(1)
            trainer = bench.site(0).trainer
            assert trainer.session is not None
            trainer.session.states.forget()
            return trainer.handle(message)
        return answer

    bench.site(0).fault = forget
    weights = deployed(bench)
    assert bench.logged("broadcast_again")
    assert weights.equal(simulated("ssfl", {}))


def test_too_few_for_too_long_stops_the_run() -> None:
    settings = DeploySettings(deadline_seconds=10, patience_seconds=50, quorum=1.0)
    bench = make_bench("fedavg", settings=settings)
    bench.join_all()
    for client in (1, 2, 3):
        bench.site(client).online = False
    with pytest.raises(QuorumError, match=r"quorum=1\b"):
        bench.run(2)
    assert bench.logged("below_quorum")


def test_scoring_goes_on_with_a_quorum_and_says_so() -> None:
    bench = make_bench("ssfl")
    bench.site(3).fault = in_work("score", 1, lambda answer, reply: "cannot score")
    weights = deployed(bench)
    (line,) = [line for line in bench.logged("missing_replies") if line["phase"] == "score"]
    assert "renormalised" in line["text"]
    assert "4 of 5" in line["text"]
    assert weights.equal(simulated("ssfl", {("score", 1): [3]}))


def test_scoring_of_all_waits_for_the_last_one() -> None:
    settings = DeploySettings(deadline_seconds=10, patience_seconds=500, scoring="all")
    bench = make_bench("ssfl", settings=settings)
    bench.site(3).fault = in_work("score", 1, lambda answer, reply: None)
    assert deployed(bench).equal(simulated("ssfl", {}))
    assert bench.fleet.time > 10


def test_a_key_that_is_not_on_the_roster_gets_nothing() -> None:
    bench = make_bench("ssfl")
    stranger = trainer_of("ssfl", "group", bench.data, 0)
    bench.fleet.sites_by_node[200] = FakeSite(stranger, "unknown-key")
    deployed(bench)
    assert bench.logged("site_refused")[0]["key"] == "unknown-key"
    assert not [m for node, m in bench.fleet.sent if node == 200]


def test_a_site_under_a_new_node_takes_its_clients_place() -> None:
    """A key that was lost is replaced on the roster: the same client, another node."""
    bench = make_bench("ssfl")
    bench.join_all()
    old = bench.fleet.sites_by_node.pop(102)
    bench.fleet.sites_by_node[300] = FakeSite(trainer_of("ssfl", "group", bench.data, 2), old.key)
    assert deployed(bench).equal(simulated("ssfl", {}))


def test_without_a_roster_a_late_answer_of_a_process_that_was_replaced_is_not_awaited() -> None:
    """A site without a key was restarted as another node, while its old process still counts as online."""
    bench = make_bench("fedavg", sizes=(9, 9, 9))
    fleet = bench.fleet
    registry = SiteRegistry(fleet, (), RUN, listed_log([]), fleet.now, fleet.sleep)
    registry.join_of, registry.max_body_bytes = bench.joins.__getitem__, 10_000_000
    bench.registry = registry
    bench.join_all()
    bench.site(0).seconds = 60.0
    registry.send_work([messages.Work(RUN, 0, 1, "train", 1, 3, ())], 1000.0)
    fleet.sites_by_node[300] = FakeSite(trainer_of("fedavg", "group", bench.data, 0), "new-key")
    outcomes = []
    for _ in range(200):
        outcomes += registry.poll()
        fleet.sleep(0.5)
    assert [(o.client, o.done, o.gone) for o in outcomes] == [(0, None, True)]
    assert registry.clients[0].node == 300


def test_a_key_that_is_replaced_during_a_run_is_refused_and_the_new_one_accepted() -> None:
    """Also in the middle of an exchange, whose work the new process does."""
    bench = make_bench("ssfl")
    members = [Member(c, f"site-{c}", f"key-{c}") for c in range(len(SIZES))]
    bench.registry.membership.read = lambda: members
    fresh = FakeSite(trainer_of("ssfl", "group", bench.data, 0), "new-key")

    def replace_key(answer: Message, reply: messages.Done) -> None:
        members[0] = Member(0, "site-0", "new-key")
        bench.fleet.sites_by_node[300] = fresh

    bench.site(0).fault = in_work("train", 2, replace_key)
    weights = deployed(bench)
    assert weights.equal(simulated("ssfl", {})), "no reply is missing"
    assert {m.exchange for m in fresh.served if isinstance(m, messages.Work)}
    assert bench.logged("roster_changed")
    assert [line["key"] for line in bench.logged("site_refused")] == ["key-0"]
    last = max(n for n, (node, _) in enumerate(bench.fleet.sent) if node == 300)
    first = min(n for n, (node, _) in enumerate(bench.fleet.sent) if node == 300)
    assert 100 not in {node for node, _ in bench.fleet.sent[first:last]}, "the old key gets nothing more"


def test_a_changed_roster_is_logged_in_the_order_of_clients() -> None:
    bench = make_bench("fedavg", sizes=(9, 9, 9))
    members = [Member(c, f"site-{c}", f"key-{c}") for c in range(12)]
    bench.registry.membership.read = lambda: members[::-1]
    bench.registry.poll()
    (line,) = bench.logged("roster_changed")
    assert line["text"] == "the sites are now " + ", ".join(f"site-{c} (client {c})" for c in range(12))


def test_how_long_a_client_has_been_away() -> None:
    bench = make_bench("fedavg", sizes=(9, 9, 9))
    assert bench.registry.away_seconds(1) == 0.0, "not seen yet"
    bench.join_all()
    assert bench.registry.away_seconds(1) is None
    bench.site(1).online = False
    bench.fleet.sleep(2.0)
    bench.registry.poll()
    lost_at = bench.fleet.time
    assert bench.registry.away(1)
    bench.fleet.sleep(3.0)
    assert bench.registry.away_seconds(1) == pytest.approx(bench.fleet.time - lost_at, abs=0.01)


def test_a_key_that_is_revoked_is_refused_from_then_on() -> None:
    bench = make_bench("fedavg", sizes=(9, 9, 9))
    members = [Member(c, f"site-{c}", f"key-{c}") for c in range(3)]
    bench.registry.membership.read = lambda: members
    bench.join_all()
    members.clear()
    bench.join_all()
    assert bench.registry.clients == {}, "an empty roster is not an open one"
    assert len(bench.logged("site_refused")) == 3


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (lambda j: replace(j, layout="00" * 8), "layout 00000000"),
        (lambda j: replace(j, client=4), "joins as client 4"),
        (lambda j: replace(j, protocol=99), "uses protocol 99"),
    ],
)
def test_a_site_that_does_not_fit_is_refused_when_it_joins(change: Any, reason: str) -> None:
    bench = make_bench("fedavg")
    bench.site(2).fault = lambda message, answer: (
        message_bytes.pack(change(joined))
        if isinstance(answer, Message) and isinstance(joined := message_bytes.unpack(answer), messages.Joined)
        else answer
    )
    for _ in range(400):
        bench.registry.poll()
        bench.fleet.sleep(0.5)
    assert reason in bench.logged("answer_refused")[0]["text"]
    assert sorted(bench.registry.clients) == [0, 1, 3, 4]
    bench.run(1)


def misfit(message: Message, answer: Message | str) -> Message | str:
    """A site whose network has another layout."""
    if isinstance(answer, Message) and isinstance(joined := message_bytes.unpack(answer), messages.Joined):
        return message_bytes.pack(replace(joined, layout="00" * 8))
    return answer


@pytest.mark.parametrize(("session", "seconds"), [("2", 3.0), ("1", 61.0)])
def test_a_site_refused_at_its_join_comes_back_after_its_correction(session: str, seconds: float) -> None:
    """At once if it is restarted; else when it is asked again, at most a minute later."""
    bench = make_bench("fedavg")
    bench.site(2).fault = misfit
    for _ in range(600):
        bench.registry.poll()
        bench.fleet.sleep(0.5)
    assert 5 <= len(bench.logged("answer_refused")) <= 12, "asked again and again, less and less often"
    assert sorted(bench.registry.clients) == [0, 1, 3, 4]
    bench.site(2).fault, bench.site(2).session = honest, session
    end = bench.fleet.time + seconds
    while bench.fleet.time < end:
        bench.registry.poll()
        bench.fleet.sleep(0.5)
    assert sorted(bench.registry.clients) == [0, 1, 2, 3, 4]


def test_a_site_excluded_for_its_answers_comes_back_when_it_is_restarted() -> None:
    bench = make_bench("fedavg", sizes=(9, 9, 9))
    site = bench.site(1)
    site.fault = lambda message, answer: (
        edited(answer, examples=99)
        if isinstance(answer, Message) and isinstance(message_bytes.unpack(answer), messages.Done)
        else answer
    )
    bench.run(4)
    assert bench.registry.away(1)
    site.fault, site.session = honest, "2"
    bench.join_all()
    assert not bench.registry.away(1)
    assert bench.registry.ready(1)


def test_an_exchange_does_not_wait_for_a_site_that_comes_back_and_is_refused() -> None:
    bench = make_bench("fedavg", sizes=(9, 9, 9))
    bench.join_all()
    start, site = bench.fleet.time, bench.site(1)

    def restart(answer: Message, reply: messages.Done) -> Failure:
        site.fault, site.session = misfit, "2"
        assert site.trainer.session is not None
        site.trainer.session = None
        return Failure("", "offline", "restarting")

    site.fault = in_work("train", 1, restart)
    bench.run(1)
    assert [e["clients"] for e in bench.events] == [2]
    assert bench.fleet.time - start < 20, "it waited for the deadline"
    (line,) = bench.logged("missing_replies")
    assert "without client 1 (its network has layout" in line["text"]


def test_a_stale_answer_is_dropped() -> None:
    bench = make_bench("fedavg", sizes=(9, 9))
    first: list[Message] = []

    def replay(message: Message, answer: Message | str) -> Message | str:
        if isinstance(answer, Message) and isinstance(done := message_bytes.unpack(answer), messages.Done):
            first.append(answer)
            return first[0] if done.exchange == 2 else answer
        return answer

    bench.site(1).fault = replay
    bench.run(3)
    (line,) = bench.logged("stale_answer")
    assert line["exchange"] == 1
    assert [e["clients"] for e in bench.events] == [2, 1, 2]


@pytest.mark.parametrize("together", [True, False])
def test_a_second_answer_to_one_message_is_dropped(together: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """In one batch, or at the next poll; a second one may have other values."""
    bench = make_bench("ssfl")
    receive, late = bench.fleet.receive, list[Answer | Failure]()

    def other(answer: Answer | Failure) -> Answer | Failure:
        if isinstance(answer, Failure):
            return answer
        return Answer(
            answer.ticket, edited(answer.message, examples=1) if answer.message.body else answer.message
        )

    def twice(tickets: Any, max_body_bytes: int) -> tuple[Answer | Failure, ...]:
        found = (*late, *receive(tickets, max_body_bytes))
        late[:] = [] if together else [other(a) for a in found[len(late) :]]
        return (*found, *map(other, found)) if together else found

    monkeypatch.setattr(bench.fleet, "receive", twice)
    assert deployed(bench).equal(simulated("ssfl", {}))
    assert not bench.logged("answer_refused")
    assert bool(bench.logged("stale_answer")) == together, (
        "the second is not asked for once the first is here"
    )
    plain = make_bench("ssfl")
    deployed(plain)
    assert [e.get("uplink_bytes") for e in bench.events] == [e.get("uplink_bytes") for e in plain.events]


def test_the_server_resumes_and_the_sites_do_an_exchange_again(tmp_path: Path) -> None:
    """A server that dies after an exchange whose checkpoint was not written asks for it again: the same bits."""
    bench = make_bench("dispfl_full", folder=tmp_path)
    kept: list[Any] = []

    def keep(progress: object) -> float:
        if not kept:
            bench.exchange.saved()
        kept.append((progress, bench.exchange.number, dict(bench.exchange.published.versions)))
        return 0.0

    bench.loop.save = keep
    bench.run(ROUNDS)
    whole = [b.trainer.session.states.before(1 << 40).state for b in bench.fleet.sites_by_node.values()]  # type: ignore[union-attr]
    progress, number, versions = kept[0]
    bench.exchange.published.restore(versions)
    bench.exchange.number = number
    bench.loop.save = lambda progress: 0.0
    bench.loop.run(progress)
    again = [b.trainer.session.states.before(1 << 40).state for b in bench.fleet.sites_by_node.values()]  # type: ignore[union-attr]
    for ours, theirs in zip(again, whole, strict=True):
        assert all(ours[key].equal(theirs[key]) for key in theirs)


def test_events_of_an_exchange_name_the_run_the_round_and_the_phase() -> None:
    """`answer_refused`, `no_answer`, `site_away`, `stale_answer` and the rest: an operator searches by round."""
    bench = make_bench("ssfl")
    bench.join_all()

    def stale(answer: Message, reply: messages.Done) -> Message:
        bench.site(4).online = False  # it has answered
        return edited(answer, exchange=99)

    bench.site(0).fault = in_work("score", 1, lambda answer, reply: edited(answer, examples=-1))
    bench.site(1).fault, bench.site(1).seconds = in_work("score", 1, stale), 3.0
    bench.site(2).fault = in_work("score", 1, lambda answer, reply: "cannot score")
    before = len(bench.log_lines)
    bench.loop.save = lambda progress: bench.log_lines.append({"event": "end"}) or 0.0  # type: ignore[func-returns-value]
    bench.run(1)
    names = [line["event"] for line in bench.log_lines]
    lines = bench.log_lines[before : names.index("end")]
    events = {"answer_refused", "no_answer", "site_away", "stale_answer", "missing_replies"}
    assert events <= {line["event"] for line in lines}
    assert {(line["run"], line["round"], line["phase"]) for line in lines} == {("run-1", 1, "score")}


def test_live_sites_are_counted_while_an_exchange_waits() -> None:
    bench = make_bench("fedavg", settings=DeploySettings(deadline_seconds=20, patience_seconds=50, quorum=1))
    bench.join_all()
    seen: list[int] = []
    bench.registry.on_update = seen.append
    for client in (1, 2, 3, 4):
        bench.site(client).online = False
    with pytest.raises(QuorumError):
        bench.run(1)
    assert seen[-1] == 1
    assert len(seen) > 20, "about once a second"


def test_replies_come_in_the_order_of_clients_however_they_arrive() -> None:
    bench = make_bench("fedavg", sizes=(9, 9, 9))
    bench.join_all()
    for client, seconds in ((0, 5.0), (1, 3.0), (2, 0.5)):
        bench.site(client).seconds = seconds
    progress = bench.loop.start(bench.theta, 1)
    plan = bench.algorithm.configure_round(progress.state, progress.clock, bench.loop.context)
    assert plan is not None
    assert [reply.client for reply in bench.exchange(plan, Meter())] == [0, 1, 2]


def test_seeds_of_the_table_have_what_the_tests_need() -> None:
    assert len(SIZES) == 5
    assert 0 in cohort(make_bench("ssfl"), 2)
