//! The thread that makes marks and seals, as the agent orders.

use std::fs;
use std::os::unix::net::UnixStream;
use std::sync::atomic::Ordering;
use std::sync::mpsc::Receiver;
use std::sync::{Arc, Mutex};

use super::marks;
use super::mount_watcher;
use super::order::{MountOutcome, Order, Reply, Wanted};
use super::shared::{Marked, Shared, send};
use crate::model::mounts::Snapshot;

/// Carries out each order until the agent's last one.
pub(super) fn apply_orders(shared: &Shared, orders: &Receiver<Order>, replies: &Mutex<UnixStream>) {
    while let Ok(mut order) = orders.recv() {
        // Only the newest counts.
        while let Ok(newer) = orders.try_recv() {
            order = newer;
        }
        let serial = order.serial;
        let mounts = apply_order(shared, order);
        send(replies, &Reply::Done { serial, mounts });
    }
}

fn apply_order(shared: &Shared, order: Order) -> Vec<MountOutcome> {
    let unwanted: Vec<Marked> = {
        let mounts = shared.mounts();
        let wanted =
            |id: &u32| order.mounts.iter().any(|mount| mount.mount_id == *id && mount.marked);
        mounts.iter().filter(|(id, _)| !wanted(id)).map(|(_, marked)| marked.clone()).collect()
    };
    for marked in unwanted {
        let Wanted { mount_id, ref path, .. } = *marked.wanted;
        // The mark of a mount that is gone went with it.
        if let Ok(Some(mount)) = marks::open_mount(&path.0, mount_id) {
            let _ = marks::unmark(&shared.group, &mount);
        }
        shared.mounts().remove(&mount_id);
    }
    shared
        .deletion_monitor
        .want(order.mounts.iter().filter(|mount| mount.is_pool).cloned().collect());
    // One that cannot be read says nothing: then everything is set.
    let table = Snapshot::parse(&fs::read(mount_watcher::TABLE).unwrap_or_default());
    let outcomes =
        order.mounts.into_iter().map(|wanted| one_mount(shared, wanted, &table)).collect();
    shared.orders.fetch_add(1, Ordering::SeqCst);
    outcomes
}

fn one_mount(shared: &Shared, wanted: Wanted, table: &Snapshot) -> MountOutcome {
    let mut outcome = MountOutcome { mount_id: wanted.mount_id, ..MountOutcome::default() };
    let mount = match marks::open_mount(&wanted.path.0, wanted.mount_id) {
        Ok(Some(mount)) => mount,
        Ok(None) => return MountOutcome { gone: true, ..outcome },
        Err(error) => return MountOutcome { unmarked: Some(error.to_string()), ..outcome },
    };
    let id = wanted.mount_id;
    if wanted.marked {
        // The answering thread knows the mount before the first question about it.
        let known = shared.mounts().get(&id).is_some_and(|marked| marked.wanted.dev == wanted.dev);
        let read_only = known && shared.mounts().get(&id).is_some_and(|marked| marked.read_only);
        shared.mounts().insert(id, Marked { wanted: Arc::new(wanted.clone()), read_only });
        // Also one that is marked already: it may be another mount at the same place, with the same
        // ids, by now.
        if let Err(error) = marks::mark(&shared.group, &mount) {
            shared.mounts().remove(&id);
            outcome.unmarked = Some(error.to_string());
        }
    }
    let note = |read_only| {
        if let Some(marked) = shared.mounts().get_mut(&id) {
            marked.read_only = read_only;
        }
    };
    // A mount that is in the wanted state already is left alone: to set it changes the mount table,
    // which makes the agent give the next order.
    let set_read_only = |read_only| match table.mount(id) {
        Some(entry) if entry.is_read_only() == read_only => Ok(()),
        _ => marks::set_read_only(&mount, read_only),
    };
    match wanted.read_only {
        Some(true) => match set_read_only(true) {
            Ok(()) => note(true),
            Err(error) => {
                note(false);
                outcome.unsealed = Some(error.to_string());
            }
        },
        Some(false) => {
            note(false);
            outcome.unsealed = set_read_only(false).err().map(|error| error.to_string());
        }
        None => note(false),
    }
    outcome
}
