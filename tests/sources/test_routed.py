from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from limbeck.cache import write_cache
from limbeck.engine import Distiller
from limbeck.errors import UserError
from limbeck.language import SequenceDistiller, answer_logits
from limbeck.objectives import KL
from limbeck.signals import SparseLogits, run_network
from limbeck.sources import EMA, Cached, Live, Routed, Table
from limbeck.systems.language.multi_granularity.identities import network, texts
from tests.sources.contract import check_source
from tests.sources.helpers import NEEDS, Network, batch

ROUTES = ["chat", "code", "chat", "chat", "code", "code", "chat", "code", "code", "chat", "chat", "chat"]


def live(seed: int, **options: Any) -> Live:
    return Live(Network(seed, **options), taps={"middle": "middle"})


def routed(**others: Any) -> Routed:
    return Routed({"code": live(0), "chat": live(1), **others}, "domain")


def named(routes: list[str] | torch.Tensor = ROUTES) -> dict[str, Any]:
    return {**batch(), "domain": routes}


def test_the_contract_of_every_source() -> None:
    check_source(routed(), named(), NEEDS)


def test_what_one_teacher_says_nothing_about_does_not_count() -> None:
    silent = Table(batch()["id"], {"logits": torch.zeros(12, 5), "told": torch.zeros(12, dtype=torch.bool)})
    found = Routed({"code": silent, "chat": live(1)}, "domain")(named(), ["logits"])
    assert found["told"].tolist() == [route == "chat" for route in ROUTES]  # type: ignore[union-attr]


def test_every_sample_is_answered_by_its_own_teacher() -> None:
    found = routed(other=live(2))(named(), ["logits"])["logits"]
    code, chat = (source(batch(), ["logits"])["logits"] for source in (live(0), live(1)))
    wanted = torch.where(torch.tensor([route == "code" for route in ROUTES])[:, None], code, chat)
    torch.testing.assert_close(found, wanted, rtol=1e-6, atol=1e-6)
    numbers = Routed({0: live(1), 7: live(0)}, "domain")
    by_number = numbers(named(torch.tensor([7 if route == "code" else 0 for route in ROUTES])), ["logits"])["logits"]
    assert torch.equal(by_number, found)


def test_a_teacher_is_not_asked_about_the_samples_of_another(tmp_path: Path) -> None:
    code = torch.tensor([route == "code" for route in ROUTES])
    folder = tmp_path / "code"
    only = {name: value[code] for name, value in batch().items()}
    write_cache(live(0), [only], folder, ("logits",), "float32")
    source = Routed({"code": Cached(folder), "chat": live(1)}, "domain")
    assert torch.equal(source(named(), ["logits"])["logits"], routed()(named(), ["logits"])["logits"])
    assert source.fingerprint() == Routed({"code": Cached(folder), "chat": live(1)}, "domain").fingerprint()


def test_the_routes_of_a_cache_are_kept_in_it(tmp_path: Path) -> None:
    write_cache(routed(), [named()], tmp_path / "all", ("logits",), "float32")
    found = Cached(tmp_path / "all", expect={"teacher": routed().fingerprint()})(batch(), ["logits"])["logits"]
    assert torch.equal(found, routed()(named(), ["logits"])["logits"])


def sparse(seed: int, k: int, classes: int = 5) -> Live:
    def forward(model: Any, given: Any) -> dict[str, Any]:
        return {"logits": SparseLogits.from_dense(run_network(model, given)["logits"], k)}

    return Live(Network(seed, classes=classes), forward=forward)


def test_sparse_logits_of_different_lengths_are_cut_to_the_shortest() -> None:
    found = Routed({"code": sparse(0, 2), "chat": sparse(1, 4)}, "domain")(named(), ["logits"])["logits"]
    assert isinstance(found, SparseLogits)
    assert found.values.shape == (12, 2)
    torch.testing.assert_close(found.values.exp().sum(-1) + found.rest.exp(), torch.ones(12))
    whole = live(1)(batch(), ["logits"])["logits"]
    assert torch.equal(found.indices[0], SparseLogits.from_dense(whole, 2).indices[0])  # type: ignore[arg-type]


def test_refuses() -> None:
    with pytest.raises(UserError, match="sources: given none"):
        Routed({}, "domain")
    with pytest.raises(UserError, match="domain of a sample: given maths; allowed: code, chat"):
        routed()(named(["maths", *ROUTES[1:]]), ["logits"])
    with pytest.raises(UserError, match="a batch with domain, which names the teacher"):
        routed()(batch(), ["logits"])
    with pytest.raises(UserError, match="domain: given 2 routes; allowed: 12"):
        routed()(named(["code", "chat"]), ["logits"])
    with pytest.raises(UserError, match="one shape for all routes"):
        routed(code=live(0, classes=4))(named(), ["logits"])
    with pytest.raises(UserError, match="top-k of 5 and whole"):
        routed(code=sparse(0, 2))(named(), ["logits"])
    with pytest.raises(UserError, match="top-k of 4 and top-k of 5"):
        Routed({"code": sparse(0, 2, 4), "chat": sparse(1, 2)}, "domain")(named(), ["logits"])


def test_fingerprint_and_state_cover_all_teachers() -> None:
    prints = {
        routed().fingerprint(),
        routed(code=live(2)).fingerprint(),
        Routed({"code": live(0), "chat": live(1)}, "other").fingerprint(),
        Routed({"code": live(1), "chat": live(0)}, "domain").fingerprint(),
    }
    assert len(prints) == 4
    student = Network(3)
    changing = routed(own=EMA(student, 0.5))
    assert set(changing.state_dict()) == {"own"}
    changing.load_state_dict(changing.state_dict())
    changing.after_step(student, 1)
    assert len(changing.modules()) == 3


def test_a_distiller_trains_on_routes() -> None:
    Distiller(Network(5), KL(), routed()).build(named())
    teachers = {name: Live(network(seed), forward=answer_logits) for seed, name in enumerate(("chat", "code"))}
    distiller = SequenceDistiller(network(3), KL(), Routed(teachers, "domain"))
    given = {"input": texts().columns(), "id": torch.arange(6), "domain": ROUTES[:6]}
    found = distiller.teacher_signals(distiller.plain(given))["logits"]
    only = SequenceDistiller(network(3), KL(), teachers["code"])
    second = only.teacher_signals(only.plain(given))["logits"]
    mask = texts().answer_mask
    torch.testing.assert_close(found[1][mask[1]], second[1][mask[1]], rtol=1e-5, atol=1e-5)  # type: ignore[index]
    assert not torch.allclose(found[0][mask[0]], second[0][mask[0]])  # type: ignore[index]
