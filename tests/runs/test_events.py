from gradscope.runs import events


def test_every_event_has_a_name_of_its_own():
    names = [value for key, value in vars(events).items() if key.isupper()]
    assert len(names) == len(set(names)) > 0
    assert all(name.startswith("event:") for name in names)
