//! One connection to the control socket: lines in, answers out, events if they are asked for.

use std::io;
use std::path::Path;
use std::sync::Arc;

use tokio::io::{AsyncBufRead, AsyncBufReadExt, AsyncWriteExt, BufReader};
use tokio::net::UnixStream;
use tokio::net::unix::{OwnedReadHalf, OwnedWriteHalf, UCred};
use tokio::sync::broadcast::Receiver;
use tokio::sync::broadcast::error::RecvError;
use tokio::sync::oneshot;
use tokio::time::timeout;

use super::access::{Access, Peer, login_uid};
use super::shared::{Command, Shared};
use crate::host::audit_log::history::{HistoryLine, SEARCH_BOUND, read_tail};
use crate::host::process;
use crate::model::audit::Filter;
use crate::model::control::protocol::{
    HISTORY_LIMIT, LINE_LIMIT, Lagged, Reply, Request, Response,
};
use crate::model::control::refusal::Refusal;

/// Refuses a connection without serving it. The answer fits the empty socket buffer or is left out.
pub(super) fn turn_away(stream: &UnixStream, refusal: Refusal) {
    let _ = stream.try_write(Response::from(Err(refusal)).to_line().as_bytes());
}

pub(super) struct Connection {
    reader: BufReader<OwnedReadHalf>,
    writer: OwnedWriteHalf,
    peer: Peer,
    access: Access,
    shared: Arc<Shared>,
}

/// Whether the connection goes on.
type Goes = io::Result<bool>;

impl Connection {
    pub(super) async fn open(stream: UnixStream, credentials: &UCred, shared: Arc<Shared>) -> Self {
        let pid = credentials.pid().and_then(|pid| u32::try_from(pid).ok());
        let (uid, gid) = (credentials.uid(), credentials.gid());
        let mut peer = Peer { pid, uid, gid, login_uid: None, start_ticks: None };
        let of = shared.options.access;
        let known = tokio::task::spawn_blocking(move || {
            peer.login_uid = pid.and_then(login_uid);
            peer.start_ticks = pid.and_then(|pid| process::started(Path::new("/proc"), pid));
            (of(&peer), peer)
        });
        // A panic in there is no permission.
        let (access, peer) = known.await.unwrap_or((Access::Nothing, peer));
        let (reader, writer) = stream.into_split();
        Self { reader: BufReader::new(reader), writer, peer, access, shared }
    }

    /// Answers requests until the client, an error, idleness or the shutdown ends it.
    pub(super) async fn serve(mut self) {
        let mut closing = self.shared.closing.clone();
        loop {
            let line = tokio::select! {
                _ = closing.wait_for(|closing| *closing) => return,
                line = timeout(self.shared.options.idle, read_line(&mut self.reader, LINE_LIMIT)) => line,
            };
            let goes_on = match line {
                Ok(Ok(Line::Whole(line))) => self.answer(&line).await,
                Ok(Ok(Line::TooLong)) => self
                    .respond(Err(Refusal::LineTooLong { limit: LINE_LIMIT }))
                    .await
                    .map(|_| false),
                Ok(Ok(Line::End) | Err(_)) | Err(_) => return,
            };
            if !matches!(goes_on, Ok(true)) {
                return;
            }
        }
    }

    async fn answer(&mut self, line: &[u8]) -> Goes {
        let request = match Request::parse(line) {
            Ok(request) => request,
            Err(refusal) => return self.respond(Err(refusal)).await,
        };
        match (self.access.permits(&request, &self.peer), request) {
            (Err(refusal), _) => self.respond(Err(refusal)).await,
            (Ok(()), Request::Events { follow, history, filter }) => {
                self.events(follow, history, filter).await
            }
            (Ok(()), request) => {
                let answer = self.ask(request).await;
                self.respond(answer).await
            }
        }
    }

    /// Has the owner of the state answer.
    async fn ask(&self, request: Request) -> Result<Reply, Refusal> {
        let unavailable = |detail: &str| Refusal::Unavailable { detail: detail.to_owned() };
        let (reply, answer) = oneshot::channel();
        let command = Command { request, peer: self.peer, reply };
        let limit = self.shared.options.answer;
        self.shared
            .commands
            .send_timeout(command, limit)
            .await
            .map_err(|_| unavailable("it is busy or stopping"))?;
        match timeout(limit, answer).await {
            Ok(Ok(answer)) => answer,
            Ok(Err(_)) => Err(unavailable("it is stopping")),
            Err(_) => Err(unavailable("it is busy; the request may still be carried out")),
        }
    }

    async fn events(&mut self, follow: bool, history: usize, filter: Filter) -> Goes {
        // Subscribed first: a line between history and following comes twice and is left out once.
        let live = follow.then(|| self.shared.events.subscribe());
        let history = match self.history(history, filter.clone()).await {
            Ok(history) => history,
            Err(refusal) => return self.respond(Err(refusal)).await,
        };
        self.respond(Ok(Reply::Events { lines: history.len(), follow })).await?;
        for entry in &history {
            self.write(format!("{}\n", entry.line)).await?;
        }
        let shown = history.last().map_or(0, |entry| entry.record.sequence);
        drop(history);
        match live {
            Some(live) => self.follow(live, &filter, shown).await.map(|()| false),
            None => Ok(true),
        }
    }

    async fn history(&self, count: usize, filter: Filter) -> Result<Vec<HistoryLine>, Refusal> {
        let unreadable = |detail: String| Refusal::AuditUnreadable { detail };
        if count == 0 {
            return Ok(Vec::new());
        }
        let _turn =
            self.shared.searches.acquire().await.map_err(|error| unreadable(error.to_string()))?;
        let audit = self.shared.options.audit.clone();
        let count = count.min(HISTORY_LIMIT);
        let search =
            tokio::task::spawn_blocking(move || read_tail(&audit, count, &filter, SEARCH_BOUND));
        let found = search.await.map_err(|error| unreadable(error.to_string()))?;
        found.map_err(|error| unreadable(error.to_string()))
    }

    /// Until the client closes or the agent stops.
    async fn follow(
        &mut self,
        mut live: Receiver<Arc<str>>,
        filter: &Filter,
        shown: u64,
    ) -> io::Result<()> {
        let mut closing = self.shared.closing.clone();
        loop {
            let received = tokio::select! {
                _ = closing.wait_for(|closing| *closing) => return Ok(()),
                closed = until_closed(&mut self.reader) => return closed,
                received = live.recv() => received,
            };
            match received {
                Ok(line) => {
                    let record = filter.select(line.as_bytes());
                    if record.is_some_and(|record| record.sequence > shown) {
                        self.write(format!("{line}\n")).await?;
                    }
                }
                Err(RecvError::Lagged(lagged)) => {
                    self.write(Lagged { lagged }.to_line()).await?;
                }
                Err(RecvError::Closed) => return Ok(()),
            }
        }
    }

    async fn respond(&mut self, answer: Result<Reply, Refusal>) -> Goes {
        self.write(Response::from(answer).to_line()).await.map(|()| true)
    }

    async fn write(&mut self, line: String) -> io::Result<()> {
        timeout(self.shared.options.write, self.writer.write_all(line.as_bytes())).await?
    }
}

/// Input from a client that follows is read and ignored.
async fn until_closed(reader: &mut BufReader<OwnedReadHalf>) -> io::Result<()> {
    loop {
        let length = reader.fill_buf().await?.len();
        if length == 0 {
            return Ok(());
        }
        reader.consume(length);
    }
}

#[derive(Debug, PartialEq)]
enum Line {
    Whole(Vec<u8>),
    TooLong,
    /// The client has closed, perhaps inside a line.
    End,
}

/// One line without its line feed, of at most `limit` bytes.
async fn read_line(reader: &mut (impl AsyncBufRead + Unpin), limit: usize) -> io::Result<Line> {
    let mut line = Vec::new();
    loop {
        let available = reader.fill_buf().await?;
        if available.is_empty() {
            return Ok(Line::End);
        }
        let feed = available.iter().position(|byte| *byte == b'\n');
        let length = feed.unwrap_or(available.len());
        if line.len() + length > limit {
            return Ok(Line::TooLong);
        }
        line.extend_from_slice(&available[..length]);
        reader.consume(length + usize::from(feed.is_some()));
        if feed.is_some() {
            return Ok(Line::Whole(line));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn lines_end_at_the_line_feed_and_at_the_limit() {
        let mut reader = BufReader::with_capacity(2, &b"abcd\n\nabcde\n"[..]);
        for expected in [Line::Whole(b"abcd".to_vec()), Line::Whole(Vec::new()), Line::TooLong] {
            assert_eq!(read_line(&mut reader, 4).await.unwrap(), expected);
        }
        assert_eq!(read_line(&mut &b"half"[..], 9).await.unwrap(), Line::End);
    }
}
