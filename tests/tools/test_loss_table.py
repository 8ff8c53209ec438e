"""The page of losses is what the docstrings say, and no public loss is forgotten."""

from __future__ import annotations

import importlib
import pkgutil

import pytest

from limbeck import losses
from limbeck.errors import LimbeckError
from tests.scripts import load_script

loss_table = load_script("tools/loss_table.py")


def documented(logits, *, mask=None, weight=None, reduction="sum", denominator=None):
    """A loss for this test.

    Formula: ``|x| over
        two lines``
    Source: nobody, 2020
    Batch-wise: no
    """


def test_committed_page_is_fresh():
    assert loss_table.main(["--check"]) == 0


def test_check_fails_on_a_stale_and_on_a_missing_page(tmp_path, capsys):
    target = tmp_path / "docs" / "losses.md"
    assert loss_table.main(["--check", "--page", str(target)]) == 1
    assert loss_table.main(["--page", str(target)]) == 0
    assert loss_table.main(["--check", "--page", str(target)]) == 0
    target.write_text(target.read_text(encoding="utf-8").replace("KL", "KLD"), encoding="utf-8")
    assert loss_table.main(["--check", "--page", str(target)]) == 1
    assert "stale" in capsys.readouterr().err


def test_reads_a_docstring():
    row = loss_table.read(documented)
    assert (row.name, row.summary, row.reduction) == ("documented", "A loss for this test", "sum")
    assert (row.formula, row.source, row.batchwise) == ("``|x| over two lines``", "nobody, 2020", "no")
    assert loss_table._cell(row.formula) == "`\\|x\\| over two lines`"
    assert loss_table._cell("as :func:`~limbeck.losses.ranking.list_net` is") == "as `list_net` is"


def test_names_the_line_that_is_missing(monkeypatch):
    monkeypatch.setattr(documented, "__doc__", documented.__doc__.replace("Source:", "From:"))
    with pytest.raises(LimbeckError, match="Source"):
        loss_table.read(documented)


def test_every_loss_of_every_module_is_public():
    """A function of the contract in a module without underscore must be in ``limbeck.losses.__all__``."""
    names = [info.name for info in pkgutil.iter_modules(losses.__path__) if not info.name.startswith("_")]
    modules = [importlib.import_module(f"limbeck.losses.{name}") for name in names if name != "reduce"]
    written = {
        name
        for module in modules
        for name, thing in vars(module).items()
        if loss_table.is_loss(thing) and thing.__module__ == module.__name__ and not name.startswith("_")
    }
    assert written <= set(losses.__all__)
    assert len(written) >= 20
    listed = [loss.__name__ for group in loss_table.public_losses().values() for loss in group]
    assert sorted(listed) == sorted(written)
    assert all(hasattr(losses, name) for name in losses.__all__)


def test_batchwise_losses_are_marked():
    marked = {
        loss_table.read(loss).name
        for group in loss_table.public_losses().values()
        for loss in group
        if loss_table.read(loss).batchwise.startswith("yes")
    }
    assert {"dist", "dist_intra", "sinkhorn_distance"} <= marked
    assert not {"dist_inter", "forward_kl", "plackett_luce", "class_transport"} & marked
