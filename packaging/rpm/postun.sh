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
    if [ -d /run/systemd/system ]; then
        systemctl daemon-reload || :
    fi
fi
