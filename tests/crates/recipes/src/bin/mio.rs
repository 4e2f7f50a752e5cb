//! mio, a poller for each listener: an event loop without a runtime. It gives a client up that
//! says nothing only once its member has left; before, that would take a queue of deadlines, of
//! which the first bounds the poll. `src/control.rs` replaces members, restarts and stops.

use std::io::{self, ErrorKind, Read, Write};
use std::time::{Duration, Instant};
use std::{collections::HashMap, net};

use mio::net::{TcpListener, TcpStream};
use mio::{Events, Interest, Poll, Token};
use recipes::PATIENCE;
use reuseport::{AcceptAction, Call};

const LISTENER: Token = Token(0);
const PAUSE: Duration = Duration::from_millis(50);

fn main() -> io::Result<()> {
    recipes::control::run(serve)
}

fn serve(member: usize, listener: net::TcpListener) -> io::Result<()> {
    let mut listener = TcpListener::from_std(listener);
    let (mut poll, mut events) = (Poll::new()?, Events::with_capacity(256));
    poll.registry()
        .register(&mut listener, LISTENER, Interest::READABLE)?;
    let (mut clients, mut next) = (HashMap::new(), 1);
    let mut again = None;
    // When the last clients are given up.
    let mut end = None::<Instant>;
    while end.is_none_or(|end| !clients.is_empty() && Instant::now() < end) {
        let left = end.map(|end| end.saturating_duration_since(Instant::now()));
        match poll.poll(&mut events, again.or(left)) {
            Err(error) if error.kind() != ErrorKind::Interrupted => return Err(error),
            _ => {}
        }
        let mut accepting = again.take().is_some() && end.is_none();
        for event in &events {
            if event.token() == LISTENER {
                accepting = end.is_none();
            } else if let Some(mut client) = clients.remove(&event.token()) {
                // Answered, or gone: closed either way, unless there was nothing to read after all.
                if answer(member, &mut client).is_err_and(|e| e.kind() == ErrorKind::WouldBlock) {
                    clients.insert(event.token(), client);
                }
            }
        }
        // mio tells once of what waits, so all of it is accepted now, or asked for again.
        while accepting {
            match listener.accept() {
                Ok((mut client, _)) => {
                    let token = Token(next);
                    next += 1;
                    poll.registry()
                        .register(&mut client, token, Interest::READABLE)?;
                    clients.insert(token, client);
                }
                Err(error) => match accept_action(&error) {
                    AcceptAction::Retry => {}
                    AcceptAction::WouldBlock => accepting = false,
                    // The clients that are served give their descriptors back meanwhile.
                    AcceptAction::BackOff => (accepting, again) = (false, Some(PAUSE)),
                    // The member has left, and its queue is empty.
                    AcceptAction::Closed => {
                        (accepting, end) = (false, Some(Instant::now() + PATIENCE));
                    }
                    AcceptAction::Fatal => return Err(error),
                },
            }
        }
    }
    Ok(())
}

fn accept_action(error: &io::Error) -> AcceptAction {
    reuseport::Error::new(Call::Accept, error.raw_os_error().unwrap_or_default()).accept_action()
}

fn answer(member: usize, client: &mut TcpStream) -> io::Result<()> {
    // Read first: a socket that is closed with bytes unread resets, and the answer may be lost.
    _ = client.read(&mut [0; 4096])?;
    // A fresh socket has room for this much, so the write neither waits nor stops half way.
    client.write_all(recipes::answer(member).as_bytes())
}
