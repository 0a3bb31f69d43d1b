"""The tree of errors: codes are unique and listed, hints say what to do, the wire form can be taken apart."""

import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from events import errors
from events.errors import HublogError, Internal, every_error

CODES = sorted(every_error().items())


def classes(root: type[HublogError] = HublogError) -> list[type[HublogError]]:
    found = [root]
    for sub in root.__subclasses__():
        found += [each for each in classes(sub) if each not in found]
    return [each for each in found if each.__module__ == "events.errors"]


def test_every_code_is_of_one_class():
    own = [cls.code for cls in classes() if "code" in vars(cls) and cls is not HublogError]
    assert len(own) == len(set(own))
    assert set(own) == set(every_error())


def test_a_class_that_may_be_raised_has_a_code_of_its_own():
    leaves = [cls for cls in classes() if not cls.__subclasses__()]
    assert all("code" in vars(cls) for cls in leaves)


@pytest.mark.parametrize(("code", "cls"), CODES)
def test_codes_and_hints(code, cls):
    assert re.fullmatch(r"[a-z][a-z_]*[a-z]", code)
    assert cls.hint.strip() == cls.hint
    assert cls.hint.endswith(".")
    assert "\n" not in cls.hint
    assert cls("x").code == code


def test_what_is_away_may_be_tried_again():
    for cls in classes(errors.Unavailable):
        assert cls.retryable
    assert not errors.InvalidName.retryable
    assert errors.OutcomeUnknown.retryable


def tree() -> list[tuple[int, str, str | None, bool]]:
    """(depth, class, code, retryable) of each line of the docstring."""
    rows = []
    for line in (errors.__doc__ or "").splitlines():
        found = re.match(r"    ((?:│   |    )*(?:[├└]── )?)([A-Z]\w+)(?:\s+([a-z_]+)(?=\s|$))?(.*)", line)
        if found and (found[1] or found[2] == "HublogError"):
            rows.append((len(found[1]) // 4, found[2], found[3], "(retryable)" in found[4]))
    return rows


def test_the_docstring_draws_the_whole_tree():
    drawn = {name: (depth, code) for depth, name, code, _ in tree()}
    assert set(drawn) == {cls.__name__ for cls in classes()}
    for cls in classes():
        depth, code = drawn[cls.__name__]
        assert depth == len(cls.__mro__) - len(HublogError.__mro__), cls
        if "code" in vars(cls) and cls is not HublogError:
            assert code == cls.code, cls


def test_the_docstring_says_what_is_retryable():
    by_name = {cls.__name__: cls for cls in classes()}
    for _, name, _, marked in tree():
        if marked:
            assert by_name[name].retryable, name
    marked_names = {name for _, name, _, marked in tree() if marked}
    for cls in classes():
        if cls.retryable and not issubclass(cls, errors.Unavailable | errors.OutcomeUnknown):
            assert cls.__name__ in marked_names, cls


@pytest.mark.parametrize(("code", "cls"), CODES)
def test_the_wire_form_splits_at_the_first_colon(code, cls):
    wire = cls("there: is 'a: b', and more.").wire()
    said, _, rest = wire.partition(": ")
    assert said == code
    assert rest == f"there: is 'a: b', and more. {cls.hint}"


@given(st.text(max_size=60))
def test_the_wire_form_is_code_what_happened_and_hint(message):
    wire = Internal(message).wire()
    assert wire.partition(": ")[0] == "internal"
    assert wire.endswith(f". {Internal.hint}")


def test_details_are_kept_for_the_problem_document():
    error = errors.PositionNotReached("behind", reached="k7qd.0-1")
    assert error.details == {"reached": "k7qd.0-1"}
    assert str(error) == error.message == "behind"
