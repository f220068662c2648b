# %preun: $1 is 0 for a removal, 1 for an upgrade. As %systemd_preun, then enforcement ends while the
# program that can end it is still there.
if [ "$1" -eq 0 ]; then
    if [ -x /usr/lib/systemd/systemd-update-helper ]; then
        /usr/lib/systemd/systemd-update-helper remove-system-units guard-agent.service || :
    elif [ -d /run/systemd/system ]; then
        systemctl --no-reload disable --now guard-agent.service || :
    elif command -v systemctl >/dev/null; then
        systemctl --no-reload disable guard-agent.service || :
    fi
    # What waits for a policy that is mended would start an agent that is gone.
    if [ -d /run/systemd/system ]; then
        systemctl stop guard-agent-retry.path || :
    fi
    # Not from a chroot (PID 1 has another root): the pins seen there are those of the host around it.
    if [ -e /sys/fs/bpf/guard-agent ] && [ / -ef /proc/1/root ]; then
        if ! guard-agent unload; then
            echo "guard-agent: enforcement could not be ended, so the package stays installed. The reason is" >&2
            echo "  above. Correct it, run 'guard-agent unload', and remove the package again." >&2
            exit 1
        fi
        echo "guard-agent: enforcement has ended: no pool on this host is protected any more, none is sealed."
    fi
fi
