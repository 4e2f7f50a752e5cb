//! What `bind` says, on every kernel.

use reuseport::{Error, Listener, sys};

use super::sockets::{REFUSED, any_port, bind, listen, open, told};
use super::{Tried, seen};

pub(super) fn a_failed_bind_may_go_unnoticed(counter: bool) -> Tried {
    let holder = Listener::options().reuse_port(false).bind(any_port())?;
    let wanted = holder.local_addr()?;
    if counter {
        drop(holder);
    }
    let careless: Listener = open(sys::SOCK_STREAM, wanted.ip())?;
    let bound = bind(&careless, wanted);
    let listens = listen(&careless, 64);
    let (wanted, has) = (wanted.port(), careless.local_addr()?.port());
    let (failed, listens) = (bound == Err(REFUSED), listens.is_ok());
    let what = format!(
        "{}; it wanted port {wanted} and listens on {has}",
        told(&bound)
    );
    seen(failed && listens && has != wanted && has != 0, what)
}

pub(super) fn every_socket_needs_the_option(counter: bool) -> Tried {
    let refused = |first, second| {
        let first = Listener::options().reuse_port(first).bind(any_port())?;
        let second = Listener::options().reuse_port(second);
        Ok::<_, Error>(second.bind(first.local_addr()?).err())
    };
    let (first, second) = (refused(counter, true)?, refused(true, counter)?);
    let told = |refused: Option<Error>| refused.map_or("joins".into(), |error| error.to_string());
    let what = format!("first without: {}; second: {}", told(first), told(second));
    seen([first, second] == [Some(REFUSED); 2], what)
}
