//! The error type: small, exact, and printed with all it knows.

use core::mem::size_of;

#[cfg(feature = "std")]
use std::io;

#[cfg(feature = "std")]
use reuseport::Group;
use reuseport::{AcceptAction, Call, Error, Listener};

const ANY_PORT: ([u8; 4], u16) = ([127, 0, 0, 1], 0);

#[test]
fn error_is_eight_bytes_and_so_is_its_result() {
    assert_eq!(size_of::<Error>(), 8);
    assert_eq!(size_of::<Result<(), Error>>(), 8);
    assert_eq!(size_of::<Result<i32, Error>>(), 8);
}

#[test]
fn error_prints_call_symbol_sentence_and_number() {
    let error = Error::new(Call::Bind, libc::EADDRINUSE);
    let sentence = std::io::Error::from_raw_os_error(libc::EADDRINUSE).to_string();

    assert_eq!(error.to_string(), format!("bind: EADDRINUSE: {sentence}"));
    assert_eq!(format!("{error:#}"), format!("EADDRINUSE: {sentence}"));

    let unlisted = Error::new(Call::Listen, 99_999).to_string();
    assert!(
        unlisted.starts_with("listen: ") && unlisted.ends_with("(os error 99999)"),
        "{unlisted}"
    );
}

#[test]
fn symbol_of_each_errno_is_its_own() {
    let mut named = 0;
    for errno in 0..200 {
        if let Some(symbol) = Error::new(Call::Accept, errno).symbol() {
            named += 1;
            let other = (0..errno).any(|n| Error::new(Call::Accept, n).symbol() == Some(symbol));
            assert!(!other, "{symbol} stands for two numbers");
        }
    }

    assert!(named >= 35, "{named}");
    assert_eq!(
        Error::new(Call::Bind, libc::EACCES).symbol(),
        Some("EACCES")
    );
}

#[test]
#[cfg(feature = "std")]
fn io_error_keeps_the_number() {
    let error = std::io::Error::from(Error::new(Call::Bind, libc::EADDRINUSE));
    assert_eq!(error.raw_os_error(), Some(libc::EADDRINUSE));
    assert_eq!(error.kind(), std::io::ErrorKind::AddrInUse);
}

#[test]
fn an_option_that_fails_is_named_within_eight_bytes() {
    let refused = Listener::options().only_v6(true).bind(ANY_PORT);

    let refused = refused.unwrap_err();

    assert_eq!(refused.option(), Some("IPV6_V6ONLY"));
    assert_eq!(Error::new(Call::SetSockOpt, refused.errno()).option(), None);
    assert!(format!("{refused:#}").starts_with("IPV6_V6ONLY: ENOPROTOOPT: "));
}

#[test]
fn errors_are_debugged_as_they_are_displayed() {
    let error = Error::new(Call::Bind, libc::EADDRINUSE);

    assert_eq!(format!("{error:?}"), error.to_string());
}

#[test]
#[cfg(feature = "std")]
fn group_errors_in_io_error_keep_kind_and_errno_or_their_sentence() {
    let group = Group::bind(ANY_PORT, 1).unwrap();
    let taken = Group::bind(group.local_addr(), 1).unwrap_err();
    let none = Group::bind(ANY_PORT, 0).unwrap_err();
    let sentence = none.to_string();
    assert_eq!(format!("{taken:?}"), taken.to_string());

    let (taken, none) = (io::Error::from(taken), io::Error::from(none));

    assert_eq!(taken.kind(), io::ErrorKind::AddrInUse);
    assert_eq!(taken.raw_os_error(), Some(libc::EADDRINUSE));
    assert_eq!(none.kind(), io::ErrorKind::InvalidInput);
    assert_eq!(none.to_string(), sentence);
}

#[test]
fn accept_action_of_each_errno_of_the_manual_page() {
    use AcceptAction::{BackOff, Closed, Fatal, Retry, WouldBlock};
    #[rustfmt::skip]
    let table = [
        (libc::EAGAIN, WouldBlock), (libc::EWOULDBLOCK, WouldBlock),
        (libc::EINTR, Retry), (libc::ECONNABORTED, Retry), (libc::ECONNRESET, Retry),
        (libc::EPROTO, Retry), (libc::ENETDOWN, Retry),
        (libc::EPERM, BackOff), (libc::EACCES, BackOff),
        (libc::ENOPROTOOPT, Retry), (libc::EHOSTDOWN, Retry), (libc::EHOSTUNREACH, Retry),
        (libc::ENETUNREACH, Retry), (libc::ETIMEDOUT, Retry),
        (libc::EMFILE, BackOff), (libc::ENFILE, BackOff), (libc::ENOBUFS, BackOff),
        (libc::ENOMEM, BackOff), (libc::EOPNOTSUPP, BackOff), (99_999, BackOff),
        (libc::EINVAL, Closed),
        (libc::EBADF, Fatal), (libc::ENOTSOCK, Fatal), (libc::EFAULT, Fatal),
    ];

    for (errno, advice) in table {
        let error = Error::new(Call::Accept, errno);
        assert_eq!(error.accept_action(), advice, "{error}");
    }

    // What ICMP makes of a UDP socket: a remote host must not make the receiver pause.
    for errno in [libc::EACCES, libc::EMSGSIZE, libc::EOPNOTSUPP] {
        let error = Error::new(Call::RecvMsg, errno);
        assert_eq!(error.accept_action(), Retry, "{error}");
    }
    #[cfg(target_os = "linux")]
    assert_eq!(
        Error::new(Call::Accept, libc::ENONET).accept_action(),
        Retry
    );
}

#[test]
fn error_last_reads_what_the_call_left() {
    // SAFETY: closes no descriptor: there is none with this number.
    assert_eq!(unsafe { libc::close(-1) }, -1);

    assert_eq!(
        Error::last(Call::Close),
        Error::new(Call::Close, libc::EBADF)
    );
}
