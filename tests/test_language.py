"""Words on the pages: hub.dashboard.language, hub.dashboard.phrases."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from pathlib import Path
from typing import get_args

import pytest

import hub.dashboard
from hub.accounts import Role
from hub.course import SPANS
from hub.dashboard import (
    alarm_facts,
    controls,
    expiries_card,
    fleet_page,
    hub_card,
    parts,
    rollouts,
    shell,
    style,
    visit,
)
from hub.dashboard.language import Language
from hub.dashboard.phrases import JAPANESE, TABLES, sentences
from hub.groups import OTHER, SHARED
from hub.rates import NORMS, TOO_MANY
from hub.watch import AGENT_STATES, WORDS
from lineside.clock import NS
from lineside.messages import Phase
from lineside.quality import FLAGS
from lineside.windows import MODALITIES

ROOM = Path(hub.dashboard.__file__).parent
MODULES = sorted(ROOM.glob("*.py"))
SAYS = {"label", "button", "icon_button", "link", "heading", "notify", "tooltip", "tag", "said", "Table", "modality"}
SHOWN_PROPS = {"aria-label", "title", "alt", "placeholder", "label"}
NAMES = {"lineside"}  # said alike in every language


def words_from_tables() -> set[str]:
    """Phrases that pages take out of tables."""
    return {
        *(word.text for word in WORDS.values()),
        *AGENT_STATES,
        "watching",
        *(look.text for look in style.EVENTS.values()),
        *style.CAUSES.values(),
        *style.KINDS,
        *style.MODALITIES,
        *MODALITIES,
        *(place.name for place in shell.PLACES),
        *visit.THEMES.values(),
        *alarm_facts.ACTS.values(),
        *parts.LABELS.values(),
        *shell.BROKER.values(),
        *shell.TROUBLES,
        shell.BLIND,
        *(fault.text for fault in controls.FAULTS),
        *(word for _, word in NORMS),
        TOO_MANY,
        *(text for text, _, _ in (*rollouts.STATES.values(), *rollouts.PROGRESS.values())),
        *rollouts.WORDS.values(),
        *get_args(Phase),
        *(text for text, _, _ in expiries_card.LEVELS.values()),
        *(phrase for _, phrase, _ in hub_card.NUMBERS),
        *(column.head for column in fleet_page.COLUMNS),
        *(span.phrase for span in SPANS.values()),
        *get_args(Role),
        *FLAGS,
    }


def calls(tree: ast.AST) -> Iterator[tuple[str, ast.Call]]:
    for node in ast.walk(tree):
        if isinstance(node, ast.Call):
            name = node.func.attr if isinstance(node.func, ast.Attribute) else getattr(node.func, "id", "")
            yield name, node


def literals(node: ast.AST) -> Iterator[str]:
    """Strings that an expression may give; those in further calls are those calls' own."""
    if isinstance(node, ast.Constant) and isinstance(node.value, str):
        yield node.value
    elif isinstance(node, ast.IfExp):
        yield from literals(node.body)
        yield from literals(node.orelse)
    elif isinstance(node, ast.JoinedStr):
        for part in node.values:
            yield from literals(part)
    elif isinstance(node, ast.BinOp | ast.BoolOp):
        for part in ast.iter_child_nodes(node):
            yield from literals(part)


def asked(module: Path) -> Iterator[str]:
    """Phrases that a module asks for by name."""
    tree = ast.parse(module.read_text())
    for name, call in calls(tree):
        if name in ("t", "_t") and call.args:
            yield from literals(call.args[0])
    for node in ast.walk(tree):  # [t(word) for word in ("Sensor", …)], where the words may have a name before
        if isinstance(node, ast.ListComp) and any(name == "t" for name, _ in calls(node.elt)):
            named = {
                target.id: each.value
                for each in ast.walk(tree)
                if isinstance(each, ast.Assign)
                for target in each.targets
                if isinstance(target, ast.Name)
            }
            over = node.generators[0].iter
            words = named.get(over.id, over) if isinstance(over, ast.Name) else over
            yield from (text for each in ast.iter_child_nodes(words) for text in literals(each))


def test_every_phrase_that_a_page_asks_for_has_japanese() -> None:
    wanted = {phrase for module in MODULES for phrase in asked(module)} | words_from_tables()
    assert len(wanted) > 100
    assert sorted(wanted - set(JAPANESE)) == []


def test_no_phrase_stands_in_two_tables() -> None:
    assert len(JAPANESE) == sum(len(table) for table in TABLES.values())


@pytest.mark.parametrize("english", [*JAPANESE, *sentences.JAPANESE])
def test_a_phrase_has_the_same_values_in_both_languages(english: str) -> None:
    japanese = {**JAPANESE, **sentences.JAPANESE}[english]
    words = re.sub(r"\{\w+\}", "", english)
    assert re.search(r"[぀-ヿ一-鿿]", japanese) or not re.search("[a-z]{3}", words), "it is not Japanese"
    assert sorted(re.findall(r"\{(\w+)\}", japanese)) == sorted(re.findall(r"\{(\w+)\}", english))


@pytest.mark.parametrize("module", MODULES, ids=lambda path: path.stem)
def test_no_visible_literal_bypasses_the_table(module: Path) -> None:
    shown: list[str] = []
    tree = ast.parse(module.read_text())
    for name, call in calls(tree):
        if name in SAYS:
            first = call.args[1:2] if name in ("modality", "said", "icon_button") else call.args[:1]
            shown += [text for argument in first for text in literals(argument)]
    for node in ast.walk(tree):
        if isinstance(node, ast.Assign):
            for target in node.targets:
                is_text = isinstance(target, ast.Attribute) and target.attr == "text"
                key = (
                    target.slice.value
                    if isinstance(target, ast.Subscript) and isinstance(target.slice, ast.Constant)
                    else ""
                )
                if is_text or key in SHOWN_PROPS:
                    shown += literals(node.value)
    assert [text for text in shown if re.search("[A-Za-z]{3}", text) and text not in NAMES] == []


def test_numbers_times_and_spans_are_in_the_visitors_form() -> None:
    english, japanese = Language("en"), Language("ja")
    noon = 1_795_435_200 * NS
    assert english.moment(noon, noon + NS) == english.clock(noon)
    assert english.moment(noon, noon + 48 * 3600 * NS).endswith(f"Nov 2026 {english.clock(noon)}")
    assert japanese.moment(noon, noon + 48 * 3600 * NS).startswith("2026年11月")
    assert [english.span(s) for s in (0, 89, 90, 5400, 86_400, 172_800)] == [
        "0 s",
        "89 s",
        "2 min",
        "2 h",
        "24 h",
        "2 d",
    ]
    assert japanese.span(5400) == "2 時間"


def test_sentences_of_devices_and_rules_are_told_in_japanese() -> None:
    ja = Language("ja")
    for told in FLAGS.values():
        assert ja.sentence(f"cam0 (camera): {told}").startswith("cam0（カメラ）："), told
        assert ja.sentence(told) != told
    for hint in (*SHARED.values(), OTHER):
        assert "原因" in ja.sentence(f"every station at once: look for a common cause ({hint})")
        assert ja.sentence(hint) != hint
    why = "mic0 is far more unlike normal than the rest, and so is its background: "
    told = ja.sentence(f"{why}9% of what is still at the picture's edge flickers")
    assert re.fullmatch(r"mic0 .*9% がちらついています", told)
    assert ja.sentence("something that nobody foresaw") == "something that nobody foresaw"
    assert Language("en").sentence("cam0 is offline") == "cam0 is offline"
