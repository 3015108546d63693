# What bash completes behind mxpolicy. Made by python -m tests.reference.
# Its place: /usr/share/bash-completion/completions/mxpolicy

_mxpolicy() {
    local word=${COMP_WORDS[COMP_CWORD]} before=${COMP_WORDS[COMP_CWORD-1]} words=
    if [ "$COMP_CWORD" = 1 ]; then
        COMPREPLY=($(compgen -W 'pipe policy serve route ask hosts setup check demo --help --version' -- "$word"))
        return
    fi
    case $before in --config | --socket | -c) COMPREPLY=($(compgen -f -- "$word")); return ;; esac
    case ${COMP_WORDS[1]} in
    pipe) words='--help -f --exim --nexthop --queue-id --deadline --socket --config' ;;
    policy) words='--help --config' ;;
    serve) words='--help --config' ;;
    route) words='--help --json --config --sender --recipient' ;;
    ask) words='--help --json --config --socket protocol_state= sender= recipient= client_address= sasl_username= queue_id= policy_context=' ;;
    hosts) words='--help --json --config --by-destination show clear' ;;
    setup) words='--help --one-domain --fallback --all-mail --policy --lmtp --undo --apply -c --config postfix exim' ;;
    check) words='--help --json --config' ;;
    demo) words='--help --list healthy dropped silent closed mixed greylist nullmx unknown refused twelve' ;;
    esac
    COMPREPLY=($(compgen -W "$words" -- "$word"))
}
complete -F _mxpolicy mxpolicy
