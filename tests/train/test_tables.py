"""The one table printer: of reports, and of every command."""

from wavelet_train.tables import table


def test_columns_of_numbers_are_aligned_right_and_others_left():
    rows = [("width", 1234, "-0.5", "of 7"), ("kinds", 5, "", "a"), ("rate", "", "1,210.25", "")]
    assert table(rows, ("field", "count", "score", "note")) == (
        "field  count     score  note\nwidth  1,234      -0.5  of 7\nkinds      5            a\nrate          1,210.25"
    )


def test_a_table_without_rows_or_header_is_what_is_left():
    assert table([], ("field", "count")) == "field  count"
    assert table([("a", "b")]) == "a  b"
    assert table([]) == ""
