"""When two texts are one task."""

from rewards.phrases import as_worded, distinct, plain


def test_tasks_are_told_apart_by_their_words():
    assert plain("  Open the\tdrawer. ") == plain("open the drawer!") == "open the drawer"
    assert plain("open the drawers") != plain("open the drawer")
    assert plain("Is it 0.5?") == "is it 0.5"
    assert as_worded("OPEN IT", ["close it", "Open it."]) == "Open it."
    assert as_worded("lift it", ["close it"]) == "lift it"
    assert distinct(["b", "A.", "a", "B "]) == ["b", "A."]
