"""Mistakes in Postfix's configuration, and what ``mxpolicy check`` says of them.

Each begins with what contrib/postfix installs. The lab makes it in a real Postfix;
elsewhere that Postfix's answers are replayed (`tests.check.recorded`).
"""

from __future__ import annotations

from typing import NamedTuple

NAME = "mxpolicy/unix"
COMMAND = (
    "pipe flags=q user=mxpolicy null_sender= argv=/opt/mxpolicy/bin/mxpolicy pipe"
    " -f ${sender} --nexthop ${nexthop} --queue-id ${queue_id} --deadline 2900s"
    " -- ${recipient}"
)


class Mistake(NamedTuple):
    """One configuration.

    Attributes:
        edits: Each the words after ``postconf`` that make one change.
        level: Of what is said.
        said: A part of it.
    """

    edits: tuple[tuple[str, ...], ...]
    level: str
    said: str


def command(old: str, new: str) -> tuple[str, ...]:
    """Return the edit of master.cf that puts *new* in place of *old* in our entry."""
    assert old in COMMAND
    return ("-F", f"{NAME}/command={COMMAND.replace(old, new)}")


def one(edit: tuple[str, ...], level: str, said: str) -> Mistake:
    return Mistake((edit,), level, said)


# contrib/postfix/fallback, as far as it matters.
FALLBACK = (
    ("-e", "smtp_fallback_relay=[127.0.0.1]:10026"),
    (
        "-M",
        "127.0.0.1:10026/inet=127.0.0.1:10026 inet n - n - - smtpd"
        " -o content_filter=mxpolicy:",
    ),
)

WITH_A_MEND = {
    "daemon_that_shall_speak_tls": Mistake(
        (
            ("-M", "mxlmtp/unix=mxlmtp unix - - n - 200 lmtp"),
            ("-e", "lmtp_tls_security_level=encrypt"),
        ),
        "fail",
        "mxlmtp: lmtp_tls_security_level is encrypt, and the daemon speaks no TLS",
    ),
    "fallback_of_another_client": Mistake(
        FALLBACK,
        "warn",
        "smtp_fallback_relay holds for relay/unix, too: when the host there",
    ),
    "fallback_of_a_filter": Mistake(
        (
            *FALLBACK,
            ("-M", "amavis/unix=amavis unix - - n - 2 smtp"),
            ("-e", "content_filter=amavis:[127.0.0.1]:10024"),
        ),
        "fail",
        "holds for content_filter = amavis:[127.0.0.1]:10024, too",
    ),
    "recipient_limit_missing": one(
        ("-X", "mxpolicy_destination_recipient_limit"),
        "warn",
        "recipient_limit is 50, not 1",
    ),
    "time_limit_below_the_deadline": one(
        ("-X", "mxpolicy_time_limit"),
        "fail",
        "mxpolicy_time_limit is 1000 s, --deadline 2900 s, and",
    ),
    "time_limit_lowered_in_master_cf": one(
        ("-P", f"{NAME}/mxpolicy_time_limit=5m"),
        "fail",
        "mxpolicy_time_limit is 300 s, --deadline 2900 s, and",
    ),
    "filter_missing": one(
        ("-X", "pipe_delivery_status_filter"),
        "fail",
        "does not soften 'Command died with status 1",
    ),
    "filter_for_something_else": one(
        ("-e", "pipe_delivery_status_filter=regexp:{ {/^5(.7.1 .*)/ 4$$1} }"),
        "fail",
        "does not soften 'Command died with status 1",
    ),
    "null_sender_missing": one(
        command("null_sender= ", ""), "warn", "lacks null_sender="
    ),
    "null_sender_that_is_an_address": one(
        command("null_sender=", "null_sender=bounces@lab.test"),
        "fail",
        "bounces leave with that sender",
    ),
    "flags_that_change_the_message": one(
        command("flags=q", "flags=FqR"),
        "fail",
        "the flags F, which change the message",
    ),
    "flag_q_missing": one(command("flags=q ", ""), "warn", "lacks the flag q"),
    "user_postfix": one(
        command("user=mxpolicy", "user=postfix"),
        "fail",
        "user=postfix, which pipe(8) refuses",
    ),
    "chroot": one(("-F", f"{NAME}/chroot=y"), "fail", "runs in a chroot"),
    "unprivileged": one(
        ("-F", f"{NAME}/unprivileged=y"), "fail", "cannot become another user"
    ),
    "any_number_of_processes": one(
        ("-F", f"{NAME}/process_limit=0"), "warn", "any number of processes"
    ),
    "watchdog_before_the_limit": one(
        ("-e", "daemon_timeout=3000s"), "fail", "Postfix gives up on mxpolicy before"
    ),
    "soft_bounce": one(("-e", "soft_bounce=yes"), "warn", "nothing bounces"),
    "queue_lifetime_of_nothing": one(
        ("-e", "maximal_queue_lifetime=0"), "warn", "maximal_queue_lifetime is 0"
    ),
    "probes_that_ask_nobody": one(
        (
            "-e",
            "default_transport=mxpolicy:",
            "smtpd_recipient_restrictions=reject_unverified_recipient",
        ),
        "warn",
        "reject_unverified_recipient asks by mxpolicy, where Postfix asks no host",
    ),
    "relay_that_wants_a_login": one(
        (
            "-e",
            "default_transport=mxpolicy:",
            "relayhost=[relay.lab.test]:587",
            "smtp_sasl_auth_enable=yes",
        ),
        "fail",
        "mxpolicy does not log in: where [relay.lab.test]:587 wants that",
    ),
    "relayhost_in_the_way": one(
        ("-e", "default_transport=mxpolicy:", "relayhost=[relay.lab.test]"),
        "warn",
        "all of it is aimed at [relay.lab.test]",
    ),
}

WITHOUT_ONE_RIGHT_LINE = {
    "option_and_value_in_one_word": one(
        command("-f ${sender}", "-f${sender}"),
        "fail",
        "all mail is deferred: unknown argument",
    ),
    "no_double_dash": one(
        command(" -- ", " "), "fail", "unknown argument 'user@example.com'"
    ),
    "no_command": one(
        command("mxpolicy pipe", "mxpolicy"), "fail", "'pipe' is not its first word"
    ),
    "unknown_macro": one(
        command("${nexthop}", "${next_hop}"),
        "fail",
        "pipe(8) does not know ${next_hop}",
    ),
    "program_missing": one(
        command("bin/mxpolicy", "sbin/mxpolicy"), "fail", "cannot run its program"
    ),
    "recipient_missing": one(
        command("${recipient}", "user@lab.test"), "fail", "does not pass ${recipient}"
    ),
    "configuration_missing": one(
        command("--deadline", "--config /etc/nowhere.yaml --deadline"),
        "fail",
        "/etc/nowhere.yaml: cannot be read",
    ),
}

# What the lab has no test for beside its recording.
ONLY_RECORDED = {
    "settings_of_the_client": Mistake(
        (
            ("-e", "smtp_generic_maps=hash:/g", "smtp_helo_name=out.lab.test"),
            ("-P", "smtp/unix/smtp_bind_address=192.0.2.26"),
        ),
        "warn",
        "smtp_bind_address is 192.0.2.26: mail that goes by mxpolicy leaves from",
    ),
    "fallback_of_a_filter_by_smtp": Mistake(
        (*FALLBACK, ("-e", "content_filter=smtp:[127.0.0.1]:10024")),
        "fail",
        "holds for content_filter = smtp:[127.0.0.1]:10024, too",
    ),
    "no_service_of_ours": one(
        ("-MX", NAME),
        "warn",
        "Postfix 3.7.11 is here; no pipe(8) service of it runs mxpolicy",
    ),
    "chroot_by_an_old_default": Mistake(
        (("-F", f"{NAME}/chroot=-"), ("-e", "compatibility_level=0")),
        "fail",
        "runs in a chroot",
    ),
    "more_processes_than_memory": one(
        ("-F", f"{NAME}/process_limit=9999"), "warn", "up to 9999 processes of 30 MB"
    ),
    "user_missing": one(command("user=mxpolicy ", ""), "fail", "has no user=: pipe(8)"),
    "user_unknown": one(
        command("user=mxpolicy", "user=stranger"),
        "fail",
        "user=stranger, which is not known here",
    ),
    "program_without_a_path": one(
        command("/opt/mxpolicy/bin/", ""), "warn", "runs mxpolicy without a path"
    ),
    "flag_u": one(
        command("flags=q", "flags=qu"), "warn", "has the flag u: local parts"
    ),
    "flags_for_mailboxes": one(
        command("flags=q", "flags=DROq"), "warn", "has the flags DOR, which add header"
    ),
    "recipient_limit_in_master_cf": one(
        ("-P", f"{NAME}/mxpolicy_destination_recipient_limit=1"),
        "warn",
        "-o mxpolicy_destination_recipient_limit in master.cf has no effect",
    ),
    "nexthop_missing": one(
        command("--nexthop ${nexthop} ", ""), "warn", "does not pass --nexthop"
    ),
    "queue_id_missing": one(
        command("--queue-id ${queue_id} ", ""), "warn", "does not pass --queue-id"
    ),
    "configuration_that_may_not_be_read": one(
        command("--deadline", "--config /srv/secret.yaml --deadline"),
        "fail",
        "(4.3.5): /srv/secret.yaml: mxpolicy has no permission",
    ),
    "configuration_of_its_own": one(
        command("--deadline", "--config /srv/own.yaml --deadline"),
        "warn",
        "mxpolicy reads /srv/own.yaml, not /srv/looked-at.yaml",
    ),
    "time_limit_that_is_none": one(
        ("-e", "mxpolicy_time_limit=soon"),
        "warn",
        "mxpolicy_time_limit cannot be understood: soon",
    ),
    "nothing_said_about_time": Mistake(
        (command(" --deadline 2900s", ""), ("-X", "mxpolicy_time_limit")),
        "ok",
        "without --deadline a message must have left after 370 s",
    ),
    "deadline_too_short": one(
        command("2900s", "300s"), "fail", "--deadline is 300 s: under 900 s there is"
    ),
    "filter_that_cannot_be_asked": one(
        ("-e", "pipe_delivery_status_filter=hash:/etc/nowhere"),
        "warn",
        "pipe_delivery_status_filter could not be asked: postmap: fatal: open",
    ),
    "filter_for_everything": one(
        ("-e", "pipe_delivery_status_filter=regexp:{ {/^5(.*)/ 4$$1} }"),
        "warn",
        "softens 5.1.1",
    ),
    "three_processes": one(
        ("-F", f"{NAME}/process_limit=3"), "warn", "limits.processes is 3, as in master"
    ),
    "more_processes": one(
        ("-F", f"{NAME}/process_limit=100"),
        "warn",
        "master.cf allows 100: mail for a destination that does not answer is put off",
    ),
    "fewer_processes": one(
        ("-F", f"{NAME}/process_limit=20"),
        "warn",
        "master.cf allows 20: a destination that does not answer can take all",
    ),
    "processes_not_counted": one(
        ("-F", f"{NAME}/process_limit=60"), "warn", "limits.processes is 0: a"
    ),
    "another_name": one(
        ("-e", "myhostname=Other.lab.test"),
        "warn",
        "Postfix is called other.lab.test, mxpolicy mail.lab.test",
    ),
    "proxy": one(
        ("-e", "proxy_interfaces=198.51.100.7, 198.51.100.8"),
        "warn",
        "has proxy_interfaces 198.51.100.8, mxpolicy does not know of it",
    ),
    "relay_by_sender": one(
        ("-e", "default_transport=mxpolicy", "sender_dependent_relayhost_maps=hash:/x"),
        "warn",
        "senders in hash:/x have a relay of their own",
    ),
    "tls_demanded": one(
        ("-e", "smtp_tls_security_level=encrypt", "smtp_tls_policy_maps=hash:/y"),
        "warn",
        "smtp_tls_security_level is encrypt and smtp_tls_policy_maps is hash:/y: mail",
    ),
    "bounce_lifetime_of_an_hour": one(
        ("-e", "bounce_queue_lifetime=1h"), "warn", "bounce_queue_lifetime is 1h: a"
    ),
    "lifetimes_that_are_none": Mistake(
        (("-e", "maximal_queue_lifetime=long", "bounce_queue_lifetime=longer"),),
        "ok",
        "at most 60 processes at once",
    ),
    "another_instance": one(
        ("-e", "multi_instance_directories=/etc/postfix-out"),
        "ok",
        "the Postfix of /etc/postfix is judged here, not those of /etc/postfix-out",
    ),
    "instance_of_its_own": one(
        ("-e", "multi_instance_name=postfix-out"),
        "ok",
        "the Postfix of /etc/postfix is judged here, one of several",
    ),
    "backoff_of_two_days": one(
        ("-e", "maximal_backoff_time=2d"), "warn", "backoff_time is more than a day"
    ),
}

CONTRIB = Mistake((), "ok", "deferred after 3500 s at the latest, killed by Postfix")

MISTAKES = {
    "contrib": CONTRIB,
    **WITH_A_MEND,
    **WITHOUT_ONE_RIGHT_LINE,
    **ONLY_RECORDED,
}
