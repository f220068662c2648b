# %postun: $1 is 0 for a removal, 1 for an upgrade. As %systemd_postun_with_restart: the restart leaves
# no gap, since the programs are pinned.
if [ "$1" -ge 1 ]; then
    if [ -x /usr/lib/systemd/systemd-update-helper ]; then
        /usr/lib/systemd/systemd-update-helper mark-restart-system-units guard-agent.service || :
    elif [ -d /run/systemd/system ]; then
        systemctl daemon-reload || :
        systemctl try-restart guard-agent.service || :
    fi
else
    rm -rf /run/guard-agent
    # Without guardctl nobody could end it (guard-agent/src/service/hold.rs).
    for hold in /etc/systemd/system/*.d/90-guard-agent-hold.conf /run/systemd/system/*.d/90-guard-agent-hold.conf; do
        if [ -e "$hold" ]; then
            rm -f "$hold"
            rmdir --ignore-fail-on-non-empty "${hold%/*}"
            echo "guard-agent: $hold is gone: Incus may start again, and nothing seals its pools." >&2
        fi
    done
    if [ -d /run/systemd/system ]; then
        systemctl daemon-reload || :
    fi
fi
