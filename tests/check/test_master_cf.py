"""What is read out of the lines that ``postconf -M`` prints."""

import pytest

from mxpolicy.check.master_cf import parse_services, substitute, words

LINE = (
    "mxpolicy   unix  -       n       n       -       20      pipe flags=q"
    " user=mxpolicy null_sender= argv=/opt/mxpolicy/bin/mxpolicy pipe -f ${sender}"
    " --nexthop ${nexthop} -- ${recipient}"
)


def test_service_is_read_column_by_column() -> None:
    [service] = parse_services(LINE)
    assert (service.name, service.kind) == ("mxpolicy", "unix")
    assert (service.unprivileged, service.chroot) == ("n", "n")
    assert service.process_limit == "20"
    assert service.attributes == {"flags": "q", "user": "mxpolicy", "null_sender": ""}
    assert service.arguments is not None
    assert service.arguments[:3] == ("pipe", "-f", "${sender}")


def test_services_of_others_are_not_ours() -> None:
    text = "smtp unix - - y - - smtp\nuucp unix - n n - - pipe user=uucp argv=uux -z\n"
    [service] = parse_services(f"{text}\nhalf a line\n")
    assert service.name == "uucp"
    assert service.arguments is None


def test_overrides_and_braces_are_taken_apart() -> None:
    command = "pipe -o mxpolicy_time_limit=5m -o { x = a b } { user=u v } argv={a b} c"
    [service] = parse_services(f"m unix - n n - - {command}")
    assert service.overrides == {"mxpolicy_time_limit": "5m", "x": "a b"}
    assert service.attributes == {"user": "u v"}
    assert service.argv == ("a b", "c")


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("", []),
        ("a  b", ["a", "b"]),
        ("regexp:{ {/^5 x/ 4} }, hash:/y", ["regexp:{ {/^5 x/ 4} }", "hash:/y"]),
        ("} a b", ["}", "a", "b"]),
    ],
)
def test_words_keep_what_is_in_braces(text: str, expected: list[str]) -> None:
    assert words(text, " \t,") == expected


def test_unknown_macro_is_named() -> None:
    seen, unknown = substitute(("${sender}", "$(recipient)", "$next_hop"))
    assert seen[:2] == ("user@example.com", "user@example.com")
    assert unknown == ["next_hop"]
