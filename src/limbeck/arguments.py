"""What stands behind ``limbeck`` on the command line, in friendly forms, and the errors of a wrong word."""

from __future__ import annotations

import functools
import json
import re
from argparse import SUPPRESS, RawDescriptionHelpFormatter
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NoReturn

from jsonargparse import ArgumentParser

from limbeck.errors import UserError, first_line

_TYPES = {"int": "a whole number", "float": "a number", "bool": "true or false", "str": "a text"}
#: Options that may be given again; references hold commas of their own.
SEVERAL = ("teacher",)
_GIVEN = re.compile(r"(?:Got value|Given value): (.*)")
_CHOICES = re.compile(r"Literal\[([^\]]*)\]")


class Parser(ArgumentParser):
    """jsonargparse's parser, with options written in hyphens and errors that are one line."""

    def __init__(self, *args: Any, **options: Any) -> None:
        formatter: Any = functools.partial(RawDescriptionHelpFormatter, max_help_position=28)
        super().__init__(*args, **options, allow_abbrev=False, add_help=False, formatter_class=formatter)
        self.add_argument("-h", "--help", action="help", default=SUPPRESS, help="show this help and exit")

    def format_help(self, *args: Any, **options: Any) -> str:
        whole = str(super().format_help(*args, **options))
        shown = re.sub(r"--[a-z][a-z_]*", lambda found: found[0].replace("_", "-"), whole)
        # A switch stands alone; of the two forms of a list one is enough.
        shown = re.sub(r"(--[a-z-]+) \{true,false\}", r"\1" + " " * len(" {true,false}"), shown)
        return re.sub(r"(--[a-z]+) (\S+), --[a-z]+\+ \2", lambda found: f"{found[1]} {found[2].strip('[]')}", shown)

    def error(self, message: str, ex: Exception | None = None) -> NoReturn:
        raise _clear(message) from ex


def normalised(arguments: Sequence[str], kinds: Mapping[str, str], command: str) -> list[str]:
    """The words behind a command as ``--name=value``, so that one grammar is left to read.

    ``--dry-run`` alone is true, lists are ``onnx,pt2`` or given again, mappings are ``text=body,label=stars``, and
    what stands in the file of ``--config`` counts unless an option says otherwise.

    Args:
        kinds: the annotation of every option.

    Raises:
        UserError: an option that does not exist, or one without its value.
    """
    positional: list[str] = []
    given: dict[str, str] = {}
    for name, value in _pairs(arguments, kinds, command):
        if not name:
            positional.append(value)
        elif name in given and kinds[name].startswith(("list", "dict")):
            given[name] += f",{value}"
        elif name in given and name in SEVERAL:
            before = given[name]
            given[name] = json.dumps([*(json.loads(before) if before.startswith("[") else [before]), value])
        else:
            given[name] = value
    filed = _of_file(given.pop("config"), kinds, command) if "config" in given else {}
    return [
        *positional,
        *(f"--{name}={_listed(value, kinds[name], name)}" for name, value in {**filed, **given}.items()),
    ]


def _pairs(arguments: Sequence[str], kinds: Mapping[str, str], command: str) -> Iterator[tuple[str, str]]:
    """Options with their values; words that belong to none have an empty name."""
    words = list(arguments)
    while words:
        word = words.pop(0)
        if not word.startswith("--"):
            yield "", word
            continue
        name, equals, value = word[2:].partition("=")
        name = _known(name, kinds, f"option of limbeck {command}")
        if equals:
            yield name, value
        elif kinds[name].startswith("bool"):
            yield name, words.pop(0) if words and words[0] in ("true", "false", "null") else "true"
        elif words and not words[0].startswith("--"):
            yield name, words.pop(0)
        else:
            raise UserError(name, "", "a value behind it", f"see limbeck {command} --help")


def _of_file(path: str, kinds: Mapping[str, str], command: str) -> dict[str, str]:
    """The settings of a YAML file as words. YAML is read as data: a tag that would make an object is refused."""
    import yaml

    try:
        found = yaml.safe_load(Path(path).expanduser().read_text(encoding="utf-8"))
    except OSError as error:
        raise UserError("config", path, "a YAML file of settings", str(error.strerror)) from None
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        where = getattr(error, "problem_mark", None)
        line = f" in line {where.line + 1}" if where else ""
        reason = getattr(error, "problem", None) or first_line(error)
        raise UserError("config", path, "a YAML file of plain settings", f"{reason}{line}") from None
    if not isinstance(found, dict):
        kind = "nothing" if found is None else f"a {type(found).__name__}"
        raise UserError("config", path, "lines of KEY: VALUE", f"the file holds {kind}")
    if "allow_py" in found or "allow-py" in found:
        raise UserError(f"config {path}", "allow_py", "--allow-py on the command line: no file may let code run")
    settings = {key: kind for key, kind in kinds.items() if key not in ("config", "allow_py")}
    names = {_known(str(key), settings, f"config {path}"): value for key, value in found.items()}
    return {name: _word(value, kinds[name]) for name, value in names.items()}


def _word(value: Any, kind: str) -> str:
    if isinstance(value, bool) and not kind.startswith("bool"):
        # YAML reads "off" as false.
        return "on" if value else "off"
    return value if isinstance(value, str) else json.dumps(value, default=str)


def _known(name: str, kinds: Mapping[str, str], where: str) -> str:
    plain = name.replace("-", "_")
    if plain not in kinds:
        raise UserError(where, name.replace("_", "-"), [kind.replace("_", "-") for kind in kinds])
    return plain


def _listed(value: str, kind: str, name: str) -> str:
    """A list or a mapping as JSON; other values as they are."""
    parts = [part.strip() for part in value.split(",") if part.strip()]
    if value.startswith(("[", "{")) or value == "null":
        return value
    if kind.startswith("list[int]"):
        return f"[{value}]"
    if kind.startswith("list"):
        return json.dumps(parts)
    if not kind.startswith("dict"):
        return value
    wrong = next((part for part in parts if "=" not in part), None)
    if wrong is not None:
        raise UserError(name, wrong, "NAME=VALUE, with commas between several")
    return json.dumps(dict(part.split("=", 1) for part in parts))


def _clear(message: str) -> UserError:
    """One of jsonargparse's or argparse's messages in our own form: key, given, allowed."""
    key = re.search(r'Parser key "([^"]+)"', message)
    if key:
        given, choices = _GIVEN.search(message), _CHOICES.search(message)
        wanted = re.findall(r"Expected a <class '(\w+)'>", message)
        allowed = choices[1].replace("'", "") if choices else "; or ".join(_TYPES.get(word, "") for word in wanted[:1])
        return UserError(key[1], given[1] if given else "", allowed or first_line(ValueError(message)))
    missing = re.search(r"arguments are required: (.*)", message)
    if missing:
        command, _, name = missing[1].split(", ")[0].partition(".")
        return UserError(name, "", "a value", f"see limbeck {command} --help")
    choice = re.search(r"argument (\w+): invalid choice: '?([^' ]*)'? \(choose from (.*)\)", message)
    if choice:
        return UserError(choice[1], choice[2], choice[3].replace("'", ""))
    stray = re.search(r"unrecognized arguments: (.*)", message, re.IGNORECASE)
    return UserError(
        "command line", stray[1] if stray else first_line(ValueError(message)), "options as --help lists them"
    )
