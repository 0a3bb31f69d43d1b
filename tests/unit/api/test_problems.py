"""Every code of the error tree means something to HTTP and to a SignalR connection."""

import msgspec
import pytest

from events import errors
from service import problems


def test_every_code_has_a_policy_and_no_policy_is_left_over():
    assert set(problems.POLICIES) == set(errors.every_error())


@pytest.mark.parametrize("code", sorted(errors.every_error()))
def test_a_policy_is_an_error_status_and_agrees_with_the_tree(code):
    policy, error = problems.POLICIES[code], errors.every_error()[code]
    assert 400 <= policy.status < 600
    # The machine reconnects what is retryable unless told otherwise; both must say the same of one code.
    if policy.connection != "answer":
        assert (policy.connection == "reconnect") == error.retryable
    if issubclass(error, errors.Unavailable) and error is not errors.Conflict:
        assert policy.status == 503


@pytest.mark.parametrize("code", sorted(errors.every_error()))
def test_a_problem_document_says_everything(code):
    error = errors.every_error()[code]("it happened", reached="k7qd.0-12")
    document = msgspec.json.decode(problems.encode(problems.problem(error, "/v1/hubs/chat")))
    assert document == {
        "type": f"urn:hublog:problem:{code}",
        "title": code.replace("_", " ").capitalize(),
        "status": problems.POLICIES[code].status,
        "detail": "it happened",
        "code": code,
        "hint": errors.every_error()[code].hint,
        "retryable": errors.every_error()[code].retryable,
        "instance": "/v1/hubs/chat",
        "details": {"reached": "k7qd.0-12"},
    }


def test_a_subclass_without_a_code_of_its_own_keeps_its_parents_policy():
    class Closer(errors.NotFound):
        hint = "Closer."

    document = problems.problem(Closer("gone"), "/")
    assert (document.status, document.code, document.hint) == (404, "not_found", "Closer.")


def test_details_that_json_cannot_say_are_said_as_text():
    document = problems.problem(errors.Internal("x", cause=object), "/")
    assert b"<class 'object'>" in problems.encode(document)


@pytest.mark.parametrize(
    ("error", "said"),
    [
        (errors.TokenMissing("x"), 'Bearer realm="hublog"'),
        (
            errors.TokenExpired("it has"),
            'Bearer realm="hublog", error="invalid_token", error_description="token_expired: it has"',
        ),
        (
            errors.ScopeMissing("no", scope="a:b"),
            'Bearer realm="hublog", error="insufficient_scope", scope="a:b", error_description="scope_missing: no"',
        ),
        (
            errors.HubForbidden('a"b\\c\r\nX: é'),
            'Bearer realm="hublog", error="insufficient_scope", error_description="hub_forbidden: a?b?c??X: ?"',
        ),
        (errors.OriginRefused("x"), None),
        (errors.NotFound("x"), None),
    ],
)
def test_a_challenge_says_what_is_wrong_with_a_token_and_nothing_else(error: errors.HublogError, said: str | None):
    assert problems.challenge(error).get("WWW-Authenticate") == said
