"""A laboratory: a real Postfix behind a real firewall, and an Internet with faults.

Everything lives in namespaces that the kernel removes when the run ends, however it
ends. Nothing on the machine is installed, removed or reconfigured: the servers are
Debian packages unpacked under `.lab` and laid over the machine's own files in a mount
namespace, where also the users they need exist.

    mta                      fw                        net
    192.0.2.25               192.0.2.1   203.0.113.1   203.0.113.2
    Postfix, unbound   ====  nftables           ====   203.0.113.53 nsd, signed zones
    mxpolicy                 forward chain             198.18.0.0/15 the SMTP hosts

(IPv6 beside it: 2001:db8:2::/64, 2001:db8:3::/64, hosts in 2001:db8:18::/48.)

From the outside in:

`lab`        the handle that tests get: send, look at the log, look at the hosts
`cases`      the cases, tables; `case` says what one is, `judge` how one came out
`transports` further ways to call mxpolicy that some cases need
`domains`    domains by the hundred, generated; `routes` asks everybody about them
`postfix`    the mail server: its configuration, its log, a client to give it mail
`exim`       the other mail server, beside it, where it is asked for
`smtp_host`  the SMTP hosts with faults, one process; `hosts` asks it what it saw
`names`      zones, signatures, nsd, unbound
`firewall`   the nftables rules
`world`      the namespaces; `inside` is their process 1
`packages`   fetches and unpacks; `python -m tests.lab.setup` does only that

By hand, as root: `python -m tests.lab run dropped`, `python -m tests.lab shell`.
"""
