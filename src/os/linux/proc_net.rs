//! The kernel's list of listeners where netlink is refused: `/proc/net/tcp` and `tcp6`.
//!
//! It has every connection of the machine, names no interface, and does not say whether an IPv6
//! listener leaves IPv4 alone.

use core::net::{IpAddr, SocketAddr};
use std::fs::read_to_string;
use std::io::ErrorKind;
use std::string::String;
use std::vec::Vec;

use super::sock_diag::Socket;

/// All listeners on the local `port` in the calling thread's network namespace, of both families.
/// `None`: the list is not available.
pub(super) fn listeners(port: u16) -> Option<Vec<Socket>> {
    let v4 = read_to_string("/proc/thread-self/net/tcp").ok()?;
    let v6 = match read_to_string("/proc/thread-self/net/tcp6") {
        // This kernel has no IPv6.
        Err(error) if error.kind() == ErrorKind::NotFound => String::new(),
        read => read.ok()?,
    };
    let rows = v4.lines().chain(v6.lines());
    let listeners = rows.filter_map(listener);
    Some(listeners.filter(|one| one.local.port() == port).collect())
}

/// Reads a row: its number, the local address, the remote one, the state, five more columns, then
/// the inode.
fn listener(row: &str) -> Option<Socket> {
    const LISTENS: &str = "0A";
    let mut words = row.split_whitespace();
    let local = words.nth(1)?;
    if words.nth(1)? != LISTENS {
        return None;
    }
    let (ip, port) = local.split_once(':')?;
    // Each 32 bits of the address are a number of this machine.
    let word = |at: usize| {
        let digits = ip.get(8 * at..8 * at + 8)?;
        u32::from_str_radix(digits, 16).ok().map(u32::to_ne_bytes)
    };
    let ip = if ip.len() == 8 {
        IpAddr::from(word(0)?)
    } else {
        let mut bytes = [0; 16];
        for (at, four) in bytes.chunks_exact_mut(4).enumerate() {
            four.copy_from_slice(&word(at)?);
        }
        IpAddr::from(bytes)
    };
    let local = SocketAddr::new(ip, u16::from_str_radix(port, 16).ok()?);
    let inode: u64 = words.nth(5)?.parse().ok()?;
    Some(Socket {
        local,
        remote: local,
        #[allow(clippy::cast_possible_truncation)] // as netlink's list has it
        inode: inode as u32,
        interface: 0,
        only_v6: false,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rows_of_both_tables_are_read() {
        let of = |ip: &str| {
            let rest = "00000000:0000 0A 00000000:00000000 00:00000000 00000000  0 0 4711 1 0";
            listener(&std::format!("   0: {ip}:0BB8 {rest}")).unwrap()
        };
        let v6 = "00000000000000000000000001000000";
        for (written, ip) in [("0100007F", "127.0.0.1"), (v6, "::1")] {
            if cfg!(target_endian = "little") {
                let local = SocketAddr::new(ip.parse().unwrap(), 3000);
                assert_eq!((of(written).local, of(written).inode), (local, 4711));
            }
        }
        assert_eq!(listener("  sl  local_address rem_address   st"), None);
    }
}
