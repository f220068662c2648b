# %post: $1 is 1 for an installation, 2 for an upgrade. As %systemd_post: the host's presets decide
# whether the unit is enabled; nothing is started.
# Newer rpms have made the group from the sysusers.d file by themselves.
if command -v systemd-sysusers >/dev/null; then
    systemd-sysusers guard-agent.conf || :
fi
if [ "$1" -eq 1 ]; then
    if [ -x /usr/lib/systemd/systemd-update-helper ]; then
        /usr/lib/systemd/systemd-update-helper install-system-units guard-agent.service || :
    elif command -v systemctl >/dev/null; then
        systemctl --no-reload preset guard-agent.service || :
    fi
fi
