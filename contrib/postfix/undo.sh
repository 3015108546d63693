#!/bin/sh
# Takes out of Postfix what the fragments here put in, and nothing else; run as root.
# Tried with Postfix 3.7. Not undone: relayhost, which all-mail/main.cf empties, and your
# own /etc/postfix/transport; take the lines with "mxpolicy:" out of it and run postmap.
set -eu

# These may have been there before, so only with our value.
drop() {
    if [ "$(postconf -h "$1")" = "$2" ]; then postconf -X "$1"; fi
}

# First the lists that ask: smtpd(8) does not start with one that names what is gone.
check='check_policy_service { $mxpolicy_policy, policy_context='
ours='permit_mynetworks, permit_sasl_authenticated'
drop smtpd_relay_restrictions \
    "permit_auth_destination, ${check}recipient }, $ours, reject_unauth_destination"
drop smtpd_sender_restrictions "$ours, ${check}sender }"
if { postconf -n; postconf -P; } | grep -F '$mxpolicy_policy'; then
    echo "take it out of these lists of yours, then run this again; nothing else is undone" >&2
    exit 1
fi
postconf -X mxpolicy_policy mxpolicy-policy_time_limit
postconf -MX mxpolicy-policy/unix

postconf -X mxpolicy_destination_recipient_limit mxpolicy_time_limit

drop default_transport mxpolicy:
drop default_transport mxlmtp:
drop default_transport mxlmtp:unix:/run/mxpolicy/lmtp
postconf -X mxlmtp_destination_concurrency_failed_cohort_limit \
    mxlmtp_destination_concurrency_negative_feedback \
    mxlmtp_destination_concurrency_limit mxlmtp_initial_destination_concurrency
drop smtp_fallback_relay '[127.0.0.1]:10026'
drop pipe_delivery_status_filter \
    'regexp:{ {/^5(\.3\.[0-5] (Command (died|time limit exceeded).*))/ 4$$1} }'

postconf -MX mxpolicy/unix mxlmtp/unix
if postconf -M 127.0.0.1:10026/inet | grep -q content_filter=mxpolicy:; then
    postconf -MX 127.0.0.1:10026/inet
fi
postfix reload

# Mail that waits for mxpolicy finds its way anew, also past a content_filter.
postsuper -r ALL
