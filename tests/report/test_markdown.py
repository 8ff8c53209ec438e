"""Markdown as HTML of the site: nothing runs, nothing is fetched, links lead somewhere."""

from __future__ import annotations

from limbeck.report.markdown import article


def test_the_first_heading_is_the_title_and_the_others_move_down() -> None:
    page = article("# A *title* of `code`\n\nText.\n\n## Use it\n\n### Deep\n\n## Use it\n", level=3, prefix="page-")
    assert page.title == "A title of code"
    assert page.headings == (("page-use-it", "Use it"), ("page-use-it-2", "Use it"))
    assert '<h3 id="page-use-it">Use it</h3>' in page.body
    assert '<h4 id="page-deep">Deep</h4>' in page.body
    assert "<h1" not in page.body
    assert article("Only text.").title == ""


def test_html_and_addresses_that_run_are_shown_as_text() -> None:
    page = article("<script>alert(1)</script>\n\nA <b>word</b>, [a link](javascript:alert(1)), `<i>`.\n")
    assert "<script" not in page.body
    assert "<b>" not in page.body
    assert "href" not in page.body
    assert "<code>&lt;i&gt;</code>" in page.body


def test_links_lead_to_the_site_or_outside_or_are_left_out() -> None:
    text = (
        "[here](#use-it) [other](../other/README.md) [file](method.py) [out](https://example.org/?a=1&b=2)\n\n## Use it"
    )
    body = article(text, prefix="page-", link={"../other/README.md": "other.html"}.get).body
    assert '<a href="#page-use-it">here</a>' in body
    assert '<a href="other.html">other</a>' in body
    assert '<a href="https://example.org/?a=1&amp;b=2">out</a>' in body
    assert " file " in body
    assert "method.py" not in body


def test_pictures_are_put_in_or_left_as_words() -> None:
    text = "![Seen](a.png) ![Not *seen*](https://example.org/b.png)"
    body = article(text, picture={"a.png": "data:image/png;base64,AA=="}.get).body
    assert '<img src="data:image/png;base64,AA==" alt="Seen"' in body
    assert "Not seen" in body
    assert "example.org" not in body


def test_code_keeps_its_lines_and_is_copied_where_it_names_a_language() -> None:
    body = article("```python\na < b\n\nc\n```\n\n    L = x\n").body
    assert '<div class="command code"><pre tabindex="0">a &lt; b\n\nc</pre></div>' in body
    assert '<div class="code"><pre tabindex="0">L = x</pre></div>' in body


def test_tables_can_be_moved_aside_on_a_telephone() -> None:
    body = article("| a | b |\n|---|---|\n| 1 | 2 |\n").body
    assert body.startswith('<div class="scroll"><table')
    assert "<td>2</td>" in body
    assert "</table></div>" in body
