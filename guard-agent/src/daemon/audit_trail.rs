//! The agent's way to the audit log: each record goes to the file and to all followers.

use std::sync::Arc;

use tokio::sync::broadcast;

use crate::host::audit_log::AuditFile;
use crate::host::clock::now;
use crate::model::audit::Body;
use crate::model::control::report::AuditReport;
use crate::model::errors::chain;
use crate::model::events::IncidentTracker;
use crate::model::time::Stamp;

/// The audit log, its followers, and the incidents that are summed up in it.
pub(super) struct AuditTrail {
    file: AuditFile,
    followers: broadcast::Sender<Arc<str>>,
    pub incidents: IncidentTracker,
}

impl AuditTrail {
    /// With the interval in which an incident that goes on is summed up.
    pub(super) fn new(
        file: AuditFile,
        followers: broadcast::Sender<Arc<str>>,
        incident_interval_ns: u64,
    ) -> Self {
        Self { file, followers, incidents: IncidentTracker::new(incident_interval_ns) }
    }

    /// Appends a record, now.
    pub(super) fn write(&mut self, body: Body) {
        self.write_at(now(), body);
    }

    /// Appends a record of an event at `stamp`.
    pub(super) fn write_at(&mut self, stamp: Stamp, body: Body) {
        let appended = self.file.append(stamp, body);
        // An error means that nobody follows.
        let _ = self.followers.send(appended.line);
    }

    /// Writes waiting records. A failure is told in the status, and tried again with each tick.
    pub(super) fn flush(&mut self) {
        if let Err(error) = self.file.flush() {
            tracing::error!(error = chain(&error), "audit log");
        }
    }

    /// The file, and the records that wait for it.
    pub(super) fn status(&self) -> AuditReport {
        self.file.status()
    }
}
