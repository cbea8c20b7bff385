"""Figures and the page that holds them. What needs matplotlib is skipped without the extra `plot`."""

import re
import sys
from html.parser import HTMLParser
from itertools import product

import pytest
from hypothesis import given
from hypothesis import strategies as st

from wavelet_core.config import ConfigurationError
from wavelet_train.figures import COLORS, check_picture, figure, inline_svg, save_figure
from wavelet_train.page import STYLE_SHEET, Page


@pytest.fixture
def drawn():
    pytest.importorskip("matplotlib", reason="figures need the extra wavelet-train[plot]")
    with figure() as made:
        made.subplots().plot([1, 2, 3], [2.5, 2.0, 1.5], label="loss")
    return made


def test_without_matplotlib_the_extra_is_named(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    with pytest.raises(ConfigurationError, match=r"pip install 'wavelet-train\[plot\]'"):
        check_picture(tmp_path / "loss.png")
    with pytest.raises(ConfigurationError, match=r"pip install 'wavelet-train\[plot\]'"), figure():
        pass


def test_a_picture_is_saved_in_the_format_of_its_name(drawn, tmp_path):
    for name, start in (("a.png", b"\x89PNG"), ("b.SVG", b"<?xml")):
        check_picture(tmp_path / name)
        save_figure(drawn, tmp_path / name)
        assert (tmp_path / name).read_bytes().startswith(start)
    assert len(list(tmp_path.iterdir())) == 2
    with pytest.raises(ConfigurationError, match=r"must end in \.svg or \.png"):
        check_picture(tmp_path / "c.gif")


def test_a_figure_changes_no_setting_of_other_figures(drawn):
    from matplotlib import rcParams

    assert rcParams["svg.fonttype"] == "path" and rcParams["axes.spines.top"]


def test_figures_of_one_page_share_no_names_and_refer_to_their_own(drawn):
    first, second = (inline_svg(drawn, name) for name in ("a", "b"))
    names = [set(re.findall(r'\bid="([^"]+)"', svg)) for svg in (first, second)]
    assert names[0] and not names[0] & names[1]
    assert set(re.findall(r'(?:url\(#|href="#)([^")]+)', second)) <= names[1]


def luminance(color: str) -> float:
    channels = [int(color[start : start + 2], 16) / 255 for start in (1, 3, 5)]
    linear = [each / 12.92 if each <= 0.04045 else ((each + 0.055) / 1.055) ** 2.4 for each in channels]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]


def contrast(one: str, other: str) -> float:
    dark, light = sorted((luminance(one), luminance(other)))
    return (light + 0.05) / (dark + 0.05)


def test_colours_contrast_with_light_and_dark_paper():
    """WCAG 2.2: 3 for graphics (1.4.11), 4.5 for text (1.4.3)."""
    papers, inks, quiet = (re.findall(rf"--{name}: (#\w+)", STYLE_SHEET) for name in ("paper", "ink", "quiet"))
    assert len(papers) == len(inks) == len(quiet) == 2
    assert all(contrast(color, paper) >= 3 for color, paper in product(COLORS, papers))
    assert all(contrast(text, paper) >= 4.5 for text, paper in zip(inks + quiet, papers * 2, strict=True))


class Reader(HTMLParser):
    """The tags and the text of a page; fails for tags that are not closed in turn."""

    VOID = ("meta",)

    def __init__(self, html: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.text = ""
        self._open: list[str] = []
        self.feed(html)
        self.close()
        assert not self._open

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))
        if tag not in self.VOID:
            self._open.append(tag)

    def handle_startendtag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))

    def handle_endtag(self, tag):
        assert self._open.pop() == tag

    def handle_data(self, data):
        self.text += data


def test_a_page_needs_nothing_else_and_says_what_its_figures_show(drawn, tmp_path):
    page = Page("Run <demo>")
    page.add_heading("Training")
    page.add_text("A & B")
    page.add_table([("loss", 1.5, 12345), ("a <b>", "", 7)], ("name", "value", "steps"), caption="Numbers")
    page.add_figure(drawn, 'Loss "x"', "against tokens")
    page.add_figure(drawn, "Again", wide=True)
    page.write(tmp_path / "page.html")
    html = (tmp_path / "page.html").read_text("utf-8")
    read = Reader(html)
    assert not re.search(r"""(?:src|href)=["'](?!#)|@import|url\((?!#)|<script""", html)
    for text in ("Run <demo>", "A & B", "a <b>", "12,345", "Numbers", 'Loss "x"', "against tokens"):
        assert text in read.text
    labels = [attributes["aria-label"] for tag, attributes in read.tags if tag == "svg"]
    assert labels == ['Loss "x". against tokens', "Again."]
    assert [attributes.get("class") for tag, attributes in read.tags if tag == "td"] == [None, "number", "number"] * 2


@given(st.lists(st.text(), min_size=4, max_size=4))
def test_any_text_is_shown_as_it_is(texts):
    page = Page(texts[0])
    page.add_text(texts[1])
    page.add_table([[texts[2]]], [texts[3]])
    read = Reader(page.html())
    shown = "".join(read.text.split())
    assert "".join("".join(text.split()) for text in (texts[0], texts[1], texts[3], texts[2])) in shown
