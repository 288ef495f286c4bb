"""Whatever a name holds, it stays text."""

from __future__ import annotations

import json
from html.parser import HTMLParser

from hypothesis import given
from hypothesis import strategies as st

from secateur.reports.markup import Markup, element, escaped, joined, json_script

LEAVES = st.none() | st.booleans() | st.integers(-(2**53), 2**53) | st.text()
TREES = st.recursive(LEAVES, lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner), max_leaves=8)


class Reader(HTMLParser):
    """Collects what a browser would see."""

    def __init__(self, text: str):
        super().__init__(convert_charrefs=True)
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.ends: list[str] = []
        self.text = ""
        self.feed(text)
        self.close()

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))

    def handle_endtag(self, tag):
        self.ends.append(tag)

    def handle_data(self, data):
        self.text += data


@given(st.text(), st.text())
def test_text_stays_text_and_attributes_stay_attributes(content, attribute):
    read = Reader(element("p", content, title=attribute, data_x=True))
    assert [tag for tag, _ in read.tags] == ["p"]
    assert read.ends == ["p"]
    assert read.tags[0][1].keys() == {"title", "data-x"}
    if content.isprintable() and attribute.isprintable():
        assert read.text == content
        assert read.tags[0][1]["title"] == attribute
    element("p", content).encode("utf-8")  # a lone surrogate is no text of any page


@given(TREES)
def test_json_in_a_page_is_whole_and_ends_where_it_should(tree):
    text = json_script({"</script><!--": tree}, "data")
    read = Reader(f"{text}<p>after</p>")
    assert [tag for tag, _ in read.tags] == ["script", "p"]
    inside = text[text.index(">") + 1 : text.rindex("<")]
    assert json.loads(inside) == {"</script><!--": tree}
    assert not set("<>&") & set(inside)


def test_markup_is_not_escaped_twice_and_none_is_left_out():
    inner = element("b", "<&>")
    assert element("p", inner, None, "\"'") == "<p><b>&lt;&amp;&gt;</b>&quot;&#x27;</p>"
    assert joined((None, inner)) == inner
    assert escaped(Markup("<i>")) == "<i>"
    assert element("rect", x=1.0 / 3, width=2.0, tabindex=None, hidden=False) == '<rect x="0.33" width="2"/>'
    assert element("p", "a\u202eb\x00") == "<p>a\\u202eb\\x00</p>"
