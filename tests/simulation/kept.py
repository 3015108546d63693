"""Worlds in which the law was broken once, each by the kind of fault that its name says."""

from __future__ import annotations

from tests.simulation.world import (
    DOMAIN,
    Act,
    Domain,
    Host,
    Kill,
    Message,
    Place,
    Step,
    Storage,
    World,
)

__all__ = ["KEPT"]

ONE = (Message("Q0", ("a0@example.com",), 0.0),)
TWO = (Message("Q0", ("a0@example.com", "b0@example.com"), 0.0),)
THREE = (
    *ONE,
    Message("Q1", ("a1@example.com",), 0.0),
    Message("Q2", ("a2@example.com",), 30.0),
)


def host(number: int, preference: int, *steps: Step, tls: bool = False) -> Host:
    """Make a host with one address."""
    name = f"mx{number}.example.com"
    return Host(name, preference, (f"192.0.2.{10 * number + 1}",), steps, tls)


def world(
    *hosts: Host,
    messages: tuple[Message, ...] = ONE,
    storage: Storage = Storage.WELL,
) -> World:
    """Make a world."""
    return World(0, (Domain(DOMAIN, hosts),), messages, storage)


def dual(number: int, preference: int, *steps: Step) -> Host:
    """Make a host with two addresses, of which *steps* may name one."""
    addresses = tuple(f"192.0.2.{10 * number + one}" for one in (1, 2))
    return Host(f"mx{number}.example.com", preference, addresses, steps, False)


def says(place: Place, reply: str, delay: float = 0.0) -> Step:
    """*reply* at *place*; an empty one is the good one."""
    return Step(place, Act.REPLY, delay, reply)


DROPPED = Step(Place.CONNECT, Act.DROP)
DMARC = "550 5.7.1 client.example.net fails DMARC"
NO_USER = "550 5.1.1 no such user"

KEPT = {
    "best_host_puts_off_by_421_and_the_next_is_well": world(
        host(0, 10, says(Place.DATA, "421 4.7.0 too many")), host(1, 20)
    ),
    "best_host_never_wants_it_at_the_dot_and_the_next_does": world(
        host(0, 10, says(Place.DOT, "451 4.7.1 not from you, not now", 100.0)),
        host(1, 20),
        messages=TWO,
    ),
    "one_of_two_addresses_cuts_every_dot": world(
        dual(0, 10, Step(Place.DOT, Act.CLOSE, address="192.0.2.1"))
    ),
    "dot_answered_too_late_each_time_and_the_next_is_well": world(
        host(0, 10, says(Place.DOT, "", 1500.0)), host(1, 20)
    ),
    "host_in_doubt_wins_while_another_is_slow_at_ehlo": world(
        host(0, 10, Step(Place.DOT, Act.TAKE_AND_CLOSE, until=5000.0)),
        host(1, 20, says(Place.EHLO, "", 191.0), tls=True),
        messages=THREE,
    ),
    "host_in_doubt_wins_while_tls_of_another_is_silent": world(
        host(0, 20, Step(Place.DOT, Act.TAKE_AND_CLOSE)),
        host(1, 20, Step(Place.TLS, Act.SILENT), tls=True),
        host(2, 30, Step(Place.DOT, Act.SILENT, until=500.0)),
        messages=TWO,
    ),
    "dmarc_refusal_names_our_helo": world(
        host(0, 10, DROPPED), host(1, 30, says(Place.DOT, DMARC, 100.0)), messages=TWO
    ),
    "best_host_slow_at_rcpt_and_a_stale_backup_refuses": world(
        host(0, 10, says(Place.RCPT, "", 217.0)), host(1, 20, says(Place.RCPT, NO_USER))
    ),
    "best_host_slow_at_mail_and_the_backup_calls_it_spam": world(
        host(0, 10, says(Place.MAIL, "", 66.0)),
        host(1, 20, says(Place.DOT, "554 5.7.1 spam")),
    ),
    "best_host_slow_at_data_and_its_backup_puts_off": world(
        host(0, 20, says(Place.DATA, "554 5.5.0 no valid recipients", 100.0)),
        host(1, 30, says(Place.DOT, "421 4.3.2 shutting down", 100.0)),
    ),
    "all_hosts_slow_at_different_places": world(
        host(0, 20, says(Place.MAIL, "", 221.0)),
        host(1, 30, says(Place.EHLO, "", 278.0), tls=True),
    ),
    "best_host_slow_at_ehlo_and_again_under_tls_and_another_in_doubt": world(
        host(0, 20, says(Place.EHLO, "", 266.7), tls=True),
        host(1, 30, Step(Place.DOT, Act.TAKE_IN_SILENCE)),
    ),
    "slow_at_ehlo_and_starttls_offered": world(
        host(0, 10, says(Place.EHLO, "", 254.0), tls=True), messages=TWO
    ),
    "dot_cut_each_time_and_a_refusal_not_final_for_want_of_dns": world(
        host(0, 20, Step(Place.LOOKUP, Act.FAIL, until=5000.0)),
        host(1, 20, Step(Place.DOT, Act.TAKE_AND_CLOSE)),
        host(2, 30, says(Place.RCPT, NO_USER)),
    ),
    "250_behind_each_354": world(host(0, 20, Step(Place.DATA, Act.STRAY))),
    "250_when_it_has_the_body_and_554_to_the_dot": world(
        host(0, 30, Step(Place.BODY, Act.EARLY), says(Place.DOT, "554 5.7.1 spam")),
        messages=TWO,
    ),
    "best_host_never_answers_the_dot_and_nothing_can_be_kept": world(
        host(0, 10, Step(Place.DOT, Act.SILENT)), host(1, 20), storage=Storage.GONE
    ),
    "one_of_two_addresses_never_answers_the_dot_and_nothing_can_be_kept": world(
        dual(0, 10, Step(Place.DOT, Act.SILENT, address="192.0.2.1")),
        storage=Storage.GONE,
    ),
    "host_slow_at_rcpt_is_asked_again_before_one_in_doubt": world(
        host(0, 20, says(Place.RCPT, "", 139.5)),
        host(1, 30, Step(Place.DOT, Act.TAKE_AND_CLOSE, until=5000.0)),
        host(2, 30, says(Place.RCPT, "421 4.3.2 shutting down")),
    ),
    "process_dies_after_the_dot_and_the_next_host_refuses_what_it_has_sent": world(
        host(
            0,
            10,
            Step(Place.RCPT, Act.REPLY, 0.0, "450 4.2.0 again", since=250.0),
            says(Place.DOT, "", 100.0),
        ),
        host(1, 20, says(Place.RCPT, "550 5.7.1 relaying denied")),
    )._replace(kills=(Kill("Q0", 0, 25),)),
    "mail_server_is_restarted_while_the_dot_is_being_answered": world(
        host(0, 10, says(Place.DOT, "", 100.0))
    )._replace(restarts=(10.0,)),
    "daemon_dies_while_it_listens_and_the_next_host_refuses": world(
        host(
            0,
            10,
            Step(Place.RCPT, Act.REPLY, 0.0, "450 4.2.0 again", since=250.0),
            says(Place.DOT, "", 1500.0),
        ),
        host(1, 20, says(Place.RCPT, "550 5.7.1 relaying denied")),
    )._replace(is_one_engine=True, crashes=(1000.0,)),
    "two_processes_die_while_the_dot_is_being_answered_and_the_next_host_refuses": world(
        host(0, 10, says(Place.DOT, "", 100.0)),
        host(1, 20, says(Place.RCPT, "550 5.7.1 relaying denied")),
    )._replace(is_one_engine=True, crashes=(50.0, 450.0)),
}
