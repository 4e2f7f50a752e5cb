//! The core alone, as it is without the feature `std`: only the client and the test itself use the
//! standard library.

use std::io::{Read, Write};
use std::net::TcpStream;
use std::time::{Duration, Instant};

use reuseport::{BALANCES, Call, Error, Listener};

const ANY_PORT: ([u8; 4], u16) = ([127, 0, 0, 1], 0);

/// Returns what `look` finds. What a client has sent may be under way for a moment.
fn in_time<T>(mut look: impl FnMut() -> Option<T>) -> T {
    let begun = Instant::now();
    loop {
        if let Some(found) = look() {
            return found;
        }
        assert!(begun.elapsed() < Duration::from_secs(60), "it never came");
        std::thread::yield_now();
    }
}

#[test]
fn two_listeners_share_a_port_and_answer() {
    let first = Listener::options()
        .nonblocking(true)
        .bind(ANY_PORT)
        .unwrap();
    let address = first.local_addr().unwrap();
    let second = Listener::options().nonblocking(true).bind(address).unwrap();

    let mut served = [0; 2];
    for _ in 0..100 {
        let mut client = TcpStream::connect(address).unwrap();
        client.write_all(b"ping").unwrap();
        let accept = || {
            let mut both = [&first, &second].into_iter().enumerate();
            both.find_map(|(who, listener)| Some((who, listener.accept().ok()?)))
        };
        let (who, connection) = in_time(accept);
        served[who] += 1;
        let mut buffer = [0; 4];
        assert_eq!(connection.recv(&mut buffer), Ok(4));
        assert_eq!(connection.send(&buffer), Ok(4));
        drop(connection);
        let mut answer = String::new();
        client.read_to_string(&mut answer).unwrap();
        assert_eq!(answer, "ping");
    }

    // One of two has none of 100 with a chance of 2 * (1/2)^100 < 1e-29.
    assert!(
        !BALANCES || served.iter().all(|count| *count > 0),
        "{served:?}"
    );
}

#[test]
#[cfg(target_os = "linux")]
fn exclusive_port_by_hand_refuses_others() {
    let alone = Listener::options().reuse_port(false).reuse_address(true);
    let first = alone.bind(ANY_PORT).unwrap();
    let address = first.local_addr().unwrap();
    let in_use = Err(Error::new(Call::Bind, libc::EADDRINUSE));

    assert_eq!(Listener::bind(address).map(drop), in_use, "it is claimed");

    first.set_reuse_port().unwrap();
    let _second = Listener::options()
        .reuse_address(true)
        .bind(address)
        .unwrap();

    assert_eq!(alone.bind(address).map(drop), in_use, "no second claim");

    let _clients: Vec<_> = (0..3)
        .map(|_| TcpStream::connect(address).unwrap())
        .collect();
    first
        .attach_program(&reuseport::steering::random(1))
        .unwrap();

    let _client = TcpStream::connect(address).unwrap();
    in_time(|| (first.queue().unwrap().len > 0).then_some(()));
}
