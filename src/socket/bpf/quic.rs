//! The program for QUIC, which steers by the connection id.

#[allow(clippy::wildcard_imports)] // the instructions, and how they are written
use super::*;

/// A datagram that is shorter than this is no QUIC packet (RFC 9000, 10.3). All that the program
/// loads is within it.
const SHORTEST_PACKET: u32 = 21;

/// Builds a program for QUIC. A packet whose connection id the server has made goes by one byte of
/// the id, the one at `byte`; each of `rows` is such a byte and an index. The server's ids have
/// `id_len` bytes, 1 to 7. A client's first id has at least 8 (RFC 9000, 7.2), so the program needs
/// to know no version of QUIC.
///
/// All else goes to one of the members at `indexes`, which take the new connections: by a hash of
/// the id that the client has chosen, so that an Initial and its 0-RTT packets stay together; by
/// the byte, if no row has it; at random, if the datagram is too short for a packet.
///
/// `space` needs two instructions for each row and each index, and 17 more. Returns `None` if it
/// does not fit, if there are no indexes, or if `id_len` or `byte` is out of range.
pub fn by_connection_id<'a>(
    id_len: u8,
    byte: u8,
    rows: &[(u8, u32)],
    indexes: &[u32],
    space: &'a mut [Instruction],
) -> Option<&'a [Instruction]> {
    if !(1..=7).contains(&id_len) || byte >= id_len {
        return None;
    }
    let (id_len, byte) = (u32::from(id_len), u32::from(byte));
    let table = u32::try_from(2 * rows.len()).ok()?;
    let skip_two_if = |code, k| Instruction {
        if_true: 2,
        ..step(code, k)
    };
    let start = [
        step(LOAD_LENGTH, 0), // A = how many bytes there are
        skip_two_if(IF_AT_LEAST, SHORTEST_PACKET),
        step(LOAD, RANDOM),    // no packet: A = a random word
        step(JUMP, 9 + table), // to the hash
        step(LOAD_BYTE, 0),
        skip_two_if(IF_ANY_BIT, 0x80),
        step(LOAD_BYTE, 1 + byte), // a short header, and the id behind it
        step(JUMP, 5),             // to the table
        step(LOAD_BYTE, 5),        // a long header: A = the length of the id
        skip_two_if(IF_EQUAL, id_len),
        step(LOAD, 6),         // the client's: A = its first four bytes
        step(JUMP, 1 + table), // to the hash
        step(LOAD_BYTE, 6 + byte),
    ];
    let row = |(byte, index): &(u8, u32)| [when(IF_EQUAL, u32::from(*byte)), step(RETURN, *index)];
    // The upper half of the product is the better one.
    let hash = [step(MULTIPLY, FACTOR), step(SHIFT_RIGHT, 16)];
    let rows = rows.iter().flat_map(row);
    one_of(start.into_iter().chain(rows).chain(hash), indexes, space)
}
