"""Systems that are made up, as many as Limbeck is going to hold, some of them with a recorded experiment."""

from __future__ import annotations

import copy
import json
from pathlib import Path
from typing import Any

from limbeck.systems.registry import FAMILIES
from tests.report.samples import CARD, entry

COUNT = 92
TASKS = ("image classification", "text classification", "retrieval", "image generation", "control")
PIXEL = (
    "data:image/png;base64,iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAAAAAA6fptVAAAACklEQVR4nGNgAAAAAgABSK+kcQAAAABJRU5ErkJggg=="
)
README = """# {name}: a *method* & its <b>page</b>

What it is for, [beside another](../../{other}), in [a file](method.py), [outside](https://example.org/?a=1&b=2).

    L = a < b

## How to use it

```python
from limbeck import losses  # a long line that a telephone cannot show whole: losses.plackett_luce(student, teacher)
```

| part | from where |
|---|---|
| a | `b` |

See [above](#how-to-use-it). ![A picture](shown.png) ![One that is elsewhere](https://example.org/x.png)

## Limits

### Deeper

None.
"""


def slug_of(number: int) -> str:
    """The name of a system."""
    return f"method-{number:02d}"


def family_of(number: int) -> str:
    """The family of a system: all families in turn."""
    return FAMILIES[number % len(FAMILIES)]


def place_of(number: int) -> str:
    """Its folder, under the root."""
    return f"{family_of(number)}/{slug_of(number).replace('-', '_')}"


def write_systems(root: Path, count: int = COUNT) -> Path:
    """``count`` folders with a card, the first three with a page."""
    for number in range(count):
        folder = root / place_of(number)
        folder.mkdir(parents=True)
        card: dict[str, Any] = {
            "slug": slug_of(number),
            "title": f"Method {number}: A Title That Is As Long As Those of Papers & Has <Signs> in It",
            "year": 2015 + number % 11,
            "family": family_of(number),
            "task": TASKS[number % len(TASKS)],
            "idea": f"The student learns ranking number {number}.",
            "parts": ["teacher logits", "a queue" if number % 2 else "a projector"],
            "limits": ["Not shown for more than ten classes."],
            "faithful": "from paper",
        }
        if number == 0:
            card |= {key: CARD[key] for key in ("venue", "formula", "paper", "official_code")}
            card["released_versus_paper"] = list(CARD["released_versus_paper"])
        lines = [f"{key} = {json.dumps(value)}" for key, value in card.items()]
        if number == 0:
            lines += [
                "[findings]",
                *(f"{json.dumps(key)} = {json.dumps(text)}" for key, text in CARD["findings"].items()),
            ]
        (folder / "card.toml").write_text("\n".join(lines) + "\n", encoding="utf-8")
        if number < 3:
            page = README.format(name=slug_of(number), other=f"{place_of(number + 1)}/README.md")
            (folder / "README.md").write_text(page, encoding="utf-8")
    return root


def write_ledger(root: Path) -> Path:
    """The first system has two experiments, one with pictures; the gate of the second system's stayed closed."""
    whole, closed = entry(), copy.deepcopy(entry())
    for arm in ("none", "ours"):
        whole["arms"][arm]["outcomes"]["0"]["pictures"] = {"Samples": PIXEL}
    closed["gate"] = {"passed": False, "checks": []}
    closed["claims"] = closed["claims"][-1:]
    recorded = {0: {"few_labels": whole, "plain": entry() | {"title": "Plain"}}, 1: {"few_labels": closed}}
    for number, entries in recorded.items():
        file = root / family_of(number) / f"{slug_of(number)}.json"
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(json.dumps({"schema": 1, "slug": slug_of(number), "entries": entries}), encoding="utf-8")
    return root
