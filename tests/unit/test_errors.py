from embodied.errors import SHOWN, nearest


def test_few_choices_are_listed_with_the_nearest():
    assert (
        nearest("dekk-drawer", ["desk-drawer", "cartpole"])
        == "Choose from cartpole, desk-drawer; did you mean desk-drawer?"
    )


def test_nothing_near_asks_nothing():
    assert nearest("zzz", ["clip", "true"]) == "Choose from clip, true."


def test_many_choices_show_only_the_near_ones():
    names = [f"world-{i:03d}" for i in range(SHOWN + 50)]
    text = nearest("world-0042", names)
    assert text.startswith("Did you mean world-042")
    assert "world-069" not in text


def test_a_part_of_a_name_finds_it():
    assert "metaworld/drawer-open-v3" in nearest("open", [*map(str, range(SHOWN)), "metaworld/drawer-open-v3"])


def test_no_choices():
    assert nearest("a", []) == "There is nothing to choose from."


def test_the_command_that_lists_them_is_named():
    told = nearest("clib", ["clip", "true"], listed="rewards")
    assert told == "Choose from clip, true; did you mean clip? embodied list what=rewards says what each is."
