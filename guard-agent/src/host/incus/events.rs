//! The daemon's event stream, over one WebSocket connection until that ends.
//!
//! Connecting again is the observer's: before each connection it must have seen the daemon run.

use futures_util::StreamExt as _;
use thiserror::Error;
use tokio::net::UnixStream;
use tokio::sync::mpsc;
use tokio::time::timeout;
use tokio_tungstenite::WebSocketStream;
use tokio_tungstenite::tungstenite::protocol::WebSocketConfig;
use tokio_tungstenite::tungstenite::{self, Message};

use super::api::{AskError, Socket};
use crate::model::incus::frames::{FrameContent, decode};

const REQUEST: &str = "ws://incus/1.0/events?type=operation,lifecycle&all-projects=true";
/// Of one event.
const MESSAGE_LIMIT: usize = 4 * 1024 * 1024;

/// An item of the stream.
#[derive(Debug)]
pub(super) enum Streamed {
    /// From here on nothing is missed.
    Connected,
    FrameContent(FrameContent),
    /// The connection has ended; the last one.
    Ended(StreamError),
}

/// Why the stream ended, or did not begin.
#[derive(Debug, Error)]
pub(super) enum StreamError {
    #[error(transparent)]
    Ask(#[from] AskError),
    #[error("the event stream broke")]
    Broken(#[source] tungstenite::Error),
    #[error("the daemon has closed the event stream")]
    Closed,
}

/// Follows the stream, and passes on relevant events, until it ends or nobody listens any more.
pub(super) async fn follow(socket: Socket, to: mpsc::Sender<Streamed>) {
    let error = match connect(&socket).await {
        Ok(stream) => {
            // A closed channel shows at the next report.
            let _ = to.send(Streamed::Connected).await;
            read(stream, &to).await
        }
        Err(error) => error,
    };
    let _ = to.send(Streamed::Ended(error)).await;
}

async fn connect(socket: &Socket) -> Result<WebSocketStream<UnixStream>, StreamError> {
    let timed_out = |_| AskError::TimedOut { path: "/1.0/events", after: socket.timeout };
    timeout(socket.timeout, connect_unbounded(socket)).await.map_err(timed_out)?
}

async fn connect_unbounded(socket: &Socket) -> Result<WebSocketStream<UnixStream>, StreamError> {
    let stream = socket.connect().await?;
    let limits = WebSocketConfig::default()
        .max_message_size(Some(MESSAGE_LIMIT))
        .max_frame_size(Some(MESSAGE_LIMIT));
    let connected =
        tokio_tungstenite::client_async_with_config(REQUEST, stream, Some(limits)).await;
    connected.map(|(stream, _)| stream).map_err(StreamError::Broken)
}

async fn read(mut stream: WebSocketStream<UnixStream>, to: &mpsc::Sender<Streamed>) -> StreamError {
    while let Some(message) = stream.next().await {
        let report = match message {
            Ok(Message::Text(text)) => decode(text.as_bytes()),
            Ok(Message::Close(_)) => return StreamError::Closed,
            // Pings are answered by the library.
            Ok(_) => None,
            Err(error) => return StreamError::Broken(error),
        };
        if let Some(report) = report
            && to.send(Streamed::FrameContent(report)).await.is_err()
        {
            break;
        }
    }
    StreamError::Closed
}
