"""Text of plans and exports in files that people open: it is never a formula and never markup."""

from __future__ import annotations

from pathlib import Path

import pandas as pd
import pytest
from hypothesis import given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st
from markdown_it import MarkdownIt

from animl_pipeline.core.untrusted_text import escape_formula, escape_markdown, write_csv

FORMULAS = ["=cmd|'/C calc'!A0", "+1+2", "-2+3", "@SUM(A1)", "\t=1", "\r=1", "\n=1", " =1", "＝1", "fox;=1", "fox\t@x", "fox\n-x", "=HYPERLINK(1)"]
HOSTILE = [
    *("[x](javascript:alert(1))", "![x](http://x/y)", "<script>alert(1)</script>", "<http://x.org>", "[a]: http://x", "\\[x](y)", "[x]\\(y)"),
    *("# x", "- x", "1. x", "2) x", "> x", "---", "===", "+ x", "```x", "    x", "a | b", "*a* _b_ **c** `d` ~~e~~", "$x$", "a\n\n# b"),
    *("&lt;b&gt;", "&#60;b>"),
]


@pytest.mark.parametrize("text", FORMULAS)
def test_a_formula_gets_an_apostrophe(text: str) -> None:
    escaped = escape_formula(text)
    assert escaped.replace("'", "") == text.replace("'", "")
    assert not any(
        part.lstrip()[:1] in set("=+-@＝＋－＠") for part in escaped.replace("\t", ";").replace("\n", ";").replace("\r", ";").split(";") if part
    )


@pytest.mark.parametrize("value", ["-1.5", "+7", "-1e-5", "fox", "a-b", "red fox (Vulpes)", "x=1", 3, -0.5, None, ""])
def test_everything_else_stays(value: object) -> None:
    assert escape_formula(value) == value


def test_a_table_keeps_its_numbers_and_its_names_are_escaped(tmp_path: Path) -> None:
    table = pd.DataFrame({"=id": ["=cmd|x", "fox"], "score": [-0.5, float("nan")], "n": [-1, 2], "empty": [None, ""], "yes": [True, False]})
    write_csv(tmp_path / "t.csv", table)
    assert (tmp_path / "t.csv").read_text() == "'=id,score,n,empty,yes\n'=cmd|x,-0.5000,-1,,True\nfox,,2,,False\n"


def rendered(markdown: str) -> list[str]:
    """The kinds of all tokens that CommonMark with tables finds."""
    found = MarkdownIt("commonmark", {"html": True}).enable(["table", "strikethrough"]).parse(markdown)
    return [kind for token in found for kind in [token.type, *(child.type for child in token.children or ())]]


@pytest.mark.parametrize("text", HOSTILE)
def test_text_is_no_markup(text: str) -> None:
    plain = ["paragraph_open", "inline", "text", "paragraph_close"]
    found = rendered(escape_markdown(text))
    assert set(found) <= {*plain, "text_special"}
    table = rendered(f"| a | b |\n|---|---|\n| {escape_markdown(text)} | c |\n")
    assert (table.count("td_open"), {"link_open", "html_inline", "image", "code_inline", "em_open"} & set(table)) == (2, set())


@given(st.text(alphabet="ab1 \\`*_{}[]()#+-.!|<>&;:/~$=\n\"'", max_size=30))
@hypothesis_settings(max_examples=150)
def test_text_is_shown_as_it_is(text: str) -> None:
    (paragraph,) = [t for t in MarkdownIt("commonmark").parse(f"x {escape_markdown(text)}") if t.type == "inline"]
    assert "".join(child.content for child in paragraph.children or ()) == " ".join(["x", *text.split()])
    assert {"paragraph_open", "inline", "text", "text_special", "paragraph_close"} >= set(rendered(escape_markdown(text)))
