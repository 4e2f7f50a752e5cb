//! Classic-BPF programs as data: which member of a group gets a connection or a datagram.
//!
//! Without a program the kernel takes a hash of the four-tuple. A program that is attached to any
//! one member replaces the hash for the whole group: for each SYN or datagram it returns the
//! *index* of a member. The index is the order in which the members called `listen`, or `bind` for
//! UDP. When a member closes, the last one takes over its index. For an index that no member has
//! the kernel takes the hash.
//!
//! Attaching a program needs no privilege. A load that fails ends a program with 0, which is an
//! index. Offset 0 is the first byte *behind* the TCP or UDP header: a SYN has no payload (except
//! with TCP Fast Open), so a load from there fails. The programs here use only loads that cannot
//! fail: the CPU, a random number, the packet's headers, a byte that the program has checked to
//! exist.
//!
//! Background: `SO_ATTACH_REUSEPORT_CBPF` in `socket(7)`; `Documentation/networking/filter.rst`
//! in the kernel's source for the instructions.
//!
//! # Platforms
//! Linux and Android alone.
//!
//! # Examples
#![cfg_attr(all(feature = "std", linux_kernel), doc = "```")]
#![cfg_attr(not(all(feature = "std", linux_kernel)), doc = "```ignore")]
//! use reuseport::{Group, steering};
//!
//! let members = Group::bind(([127, 0, 0, 1], 0), 4)?.into_sockets();
//! members[0].attach_program(&steering::random(4))?; // for the whole group
//! members[0].detach_program()?; // the hash again
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! ```

mod quic;

pub use quic::by_connection_id;

/// One instruction: C's `struct sock_filter`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[repr(C)]
pub struct Instruction {
    /// The operation and its operands: `BPF_LD | BPF_W | BPF_ABS`, for example.
    pub code: u16,
    /// How many instructions are skipped if a comparison holds.
    pub if_true: u8,
    /// How many instructions are skipped if it does not.
    pub if_false: u8,
    /// The operand.
    pub k: u32,
}

// Codes (linux/bpf_common.h), with A the accumulator and k the operand.
const LOAD: u16 = 0x20; // A = the 32-bit word at k: BPF_LD | BPF_W | BPF_ABS
const LOAD_LENGTH: u16 = 0x80; // A = the packet's bytes: BPF_LD | BPF_W | BPF_LEN
const LOAD_BYTE: u16 = 0x30; // A = the byte at k: BPF_LD | BPF_B | BPF_ABS
const LOAD_BEHIND_X: u16 = 0x40; // A = the 32-bit word at X + k: BPF_LD | BPF_W | BPF_IND
const X_IS_HEADER: u16 = 0xb1; // X = the length of the IPv4 header at k: BPF_LDX | BPF_B | BPF_MSH
const X_IS_A: u16 = 0x07; // X = A: BPF_MISC | BPF_TAX
const ADD_X: u16 = 0x0c; // A += X: BPF_ALU | BPF_ADD | BPF_X
const XOR_X: u16 = 0xac; // A ^= X: BPF_ALU | BPF_XOR | BPF_X
const MULTIPLY: u16 = 0x24; // A *= k: BPF_ALU | BPF_MUL | BPF_K
const SHIFT_RIGHT: u16 = 0x74; // A >>= k: BPF_ALU | BPF_RSH | BPF_K
const AND: u16 = 0x54; // A &= k: BPF_ALU | BPF_AND | BPF_K
const ADD: u16 = 0x04; // A += k: BPF_ALU | BPF_ADD | BPF_K
const MOD: u16 = 0x94; // A %= k: BPF_ALU | BPF_MOD | BPF_K
const IF_EQUAL: u16 = 0x15; // A == k: BPF_JMP | BPF_JEQ | BPF_K
const IF_AT_LEAST: u16 = 0x35; // A >= k: BPF_JMP | BPF_JGE | BPF_K
const IF_MORE: u16 = 0x25; // A > k: BPF_JMP | BPF_JGT | BPF_K
const IF_ANY_BIT: u16 = 0x45; // A & k: BPF_JMP | BPF_JSET | BPF_K
const JUMP: u16 = 0x05; // skip k instructions: BPF_JMP | BPF_JA
const RETURN: u16 = 0x06; // end with k: BPF_RET | BPF_K
const RETURN_A: u16 = 0x16; // end with A: BPF_RET | BPF_A

// Words that the kernel makes up (linux/filter.h): SKF_AD_OFF, which is -0x1000, and an offset.
const CPU: u32 = 0xFFFF_F000 + 36; // SKF_AD_CPU: the CPU that handles the packet
const RANDOM: u32 = 0xFFFF_F000 + 56; // SKF_AD_RANDOM
const NETWORK: u32 = 0xFFF0_0000; // SKF_NET_OFF: the offset of the IP header

/// What the programs that hash multiply by: a prime near 2^32 divided by the golden ratio.
const FACTOR: u32 = 0x9E37_79B1;

/// No member has this index, so the hash decides.
const HASH: u32 = u32::MAX;

/// The most instructions that the kernel takes: `BPF_MAXINSNS`.
///
/// The kernel translates a program, and fails with `ENOMEM` if the result is larger than the sysctl
/// `net.core.optmem_max` (20 KiB before Linux 6.8). A table of 840 members fits into 20 KiB.
pub const MAX_INSTRUCTIONS: usize = 4096;

const fn step(code: u16, k: u32) -> Instruction {
    Instruction {
        code,
        if_true: 0,
        if_false: 0,
        k,
    }
}

/// Skips one instruction if A is more than `k`.
const fn unless_more(k: u32) -> Instruction {
    Instruction {
        code: IF_MORE,
        if_true: 1,
        if_false: 0,
        k,
    }
}

/// Skips one instruction if the comparison does not hold.
const fn when(code: u16, k: u32) -> Instruction {
    Instruction {
        code,
        if_true: 0,
        if_false: 1,
        k,
    }
}

/// Builds a program that chooses by the receiving CPU. Each of `rows` is a CPU and an index; for a
/// CPU without a row the kernel takes the hash.
///
/// The program is written into `space`, which needs two instructions for each row and two more.
/// Returns `None` if it does not fit there, or into [`MAX_INSTRUCTIONS`].
pub fn by_cpu<'a>(rows: &[(u32, u32)], space: &'a mut [Instruction]) -> Option<&'a [Instruction]> {
    let start = [step(LOAD, CPU)]; // A = the CPU
    table(start.into_iter(), rows.iter().copied(), space)
}

/// Builds a program that chooses one of the first `members` at random. `members` is at least 1.
pub const fn random(members: u32) -> [Instruction; 3] {
    let members = if members < 1 { 1 } else { members };
    [
        step(LOAD, RANDOM), // A = a random word
        step(MOD, members), // A %= members
        step(RETURN_A, 0),  // the member A
    ]
}

/// Builds a program that chooses one of the first `members` at random, without the one at `index`.
/// `members` is at least 2.
pub const fn all_but(members: u32, index: u32) -> [Instruction; 5] {
    let others = if members < 2 { 1 } else { members - 1 };
    [
        step(LOAD, RANDOM),       // A = a random word
        step(MOD, others),        // A %= others
        when(IF_AT_LEAST, index), // from the index on,
        step(ADD, 1),             // one further
        step(RETURN_A, 0),        // the member A
    ]
}

/// Builds a program that chooses one of the members at `indexes` at random: for a group in which
/// several members get nothing new.
///
/// `space` and the result are as for [`by_cpu`], with one instruction more. Returns `None` also if
/// there are no indexes.
pub fn any_of<'a>(indexes: &[u32], space: &'a mut [Instruction]) -> Option<&'a [Instruction]> {
    one_of([step(LOAD, RANDOM)].into_iter(), indexes, space)
}

/// Chooses one of `indexes` by the number that `start` leaves in A.
fn one_of<'a>(
    start: impl Iterator<Item = Instruction>,
    indexes: &[u32],
    space: &'a mut [Instruction],
) -> Option<&'a [Instruction]> {
    let count = u32::try_from(indexes.len());
    let count = count.ok().filter(|count| *count > 0)?;
    let start = start.chain([step(MOD, count)]); // A = a position in `indexes`
    let rows = (0..).zip(indexes.iter().copied());
    table(start, rows, space)
}

/// Builds a program that chooses one of the `count` members from index `first` on at random.
/// `count` is at least 1.
pub const fn any_in_range(first: u32, count: u32) -> [Instruction; 4] {
    [
        step(LOAD, RANDOM),                           // A = a random word
        step(MOD, if count < 1 { 1 } else { count }), // A %= count
        step(ADD, first),                             // A += first
        step(RETURN_A, 0),                            // the member A
    ]
}

/// Builds a program as [`any_of`], which chooses by a hash of the flow instead of at random: all
/// datagrams of a flow, which is named by the addresses and ports of both sides, go to the same
/// member.
///
/// The program computes the hash from the IP header. (The one that the kernel offers to programs is
/// 0 on the loopback device, and on network cards that compute none.) It is not secret: a client
/// that chooses its ports can choose its member.
///
/// `space` and the result are as for [`any_of`], with 57 instructions more.
pub fn any_of_by_flow<'a>(
    indexes: &[u32],
    space: &'a mut [Instruction],
) -> Option<&'a [Instruction]> {
    one_of(flow_hash(), indexes, space)
}

/// Leaves a hash of the flow in A: of all words of the addresses and ports.
fn flow_hash() -> impl Iterator<Item = Instruction> {
    let mix = |word| {
        [
            step(MULTIPLY, FACTOR),
            step(X_IS_A, 0),
            step(LOAD, NETWORK + word),
            step(ADD_X, 0), // A = A * FACTOR + the word
        ]
    };
    let start = [
        step(LOAD_BYTE, NETWORK),
        step(AND, 0xF0), // A = the version, in the upper half
        Instruction {
            if_false: 34, // to IPv4
            ..step(IF_EQUAL, 0x60)
        },
    ];
    let v6_ports = step(LOAD, NETWORK + 40);
    let v6 = (8..40).step_by(4).flat_map(mix);
    let v4_ports = [
        step(JUMP, 10),               // from IPv6, behind IPv4
        step(X_IS_HEADER, NETWORK),   // X = the length of the IPv4 header
        step(LOAD_BEHIND_X, NETWORK), // A = the ports, which follow it
    ];
    let v4 = [12, 16].into_iter().flat_map(mix);
    // MurmurHash3's last steps: clients' ports are often regular, and each bit must change all.
    let fold = |bits| {
        [
            step(X_IS_A, 0),
            step(SHIFT_RIGHT, bits),
            step(XOR_X, 0), // A ^= A >> bits
        ]
    };
    let multiply = |factor| [step(MULTIPLY, factor)];
    let end = fold(16).into_iter().chain(multiply(0x85EB_CA6B));
    let end = end.chain(fold(13)).chain(multiply(0xC2B2_AE35));
    let end = end.chain(fold(16));
    let v6 = start.into_iter().chain([v6_ports]).chain(v6);
    v6.chain(v4_ports).chain(v4).chain(end)
}

/// Builds a program for datagrams that chooses by the byte at `offset` of the payload. Each of
/// `rows` is a byte and an index. For a byte without a row, and for a datagram that is too short,
/// the kernel takes the hash.
///
/// `space` and the result are as for [`by_cpu`], with three instructions more.
pub fn by_payload_byte<'a>(
    offset: u16,
    rows: &[(u8, u32)],
    space: &'a mut [Instruction],
) -> Option<&'a [Instruction]> {
    by_payload_byte_or(offset, rows, &[step(RETURN, HASH)], space)
}

/// Builds a program as [`by_payload_byte`], with another program in place of the hash.
pub(crate) fn by_payload_byte_or<'a>(
    offset: u16,
    rows: &[(u8, u32)],
    otherwise: &[Instruction],
    space: &'a mut [Instruction],
) -> Option<&'a [Instruction]> {
    let offset = u32::from(offset);
    let behind_the_rows = u32::try_from(1 + 2 * rows.len()).ok()?;
    let start = [
        step(LOAD_LENGTH, 0),        // A = how many bytes there are
        unless_more(offset),         // if the one at `offset` is not among them,
        step(JUMP, behind_the_rows), // skip the table
        step(LOAD_BYTE, offset),     // A = the byte
    ];
    let row = |(byte, index): &(u8, u32)| [when(IF_EQUAL, u32::from(*byte)), step(RETURN, *index)];
    let rows = rows.iter().flat_map(row);
    write(
        start
            .into_iter()
            .chain(rows)
            .chain(otherwise.iter().copied()),
        space,
    )
}

/// A packet filter (`SO_ATTACH_FILTER`), not a steering program: a listener that has it drops SYNs
/// and completes the handshakes that are under way.
pub(crate) const DROP_SYNS: [Instruction; 5] = [
    step(LOAD_BYTE, 13),    // A = the flags of the TCP header
    step(AND, 0x12),        // of these, SYN and ACK
    when(IF_EQUAL, 0x02),   // SYN alone:
    step(RETURN, 0),        // keep none of the packet
    step(RETURN, u32::MAX), // anything else: keep all
];

/// A packet filter that drops everything.
pub(crate) const DROP_ALL: [Instruction; 1] = [step(RETURN, 0)];

/// Writes `start` and a table: the index beside the first key that equals A; else the hash.
fn table(
    start: impl Iterator<Item = Instruction>,
    pairs: impl Iterator<Item = (u32, u32)>,
    space: &mut [Instruction],
) -> Option<&[Instruction]> {
    let rows = pairs.flat_map(|(key, index)| [when(IF_EQUAL, key), step(RETURN, index)]);
    write(start.chain(rows).chain([step(RETURN, HASH)]), space)
}

fn write(
    program: impl Iterator<Item = Instruction>,
    space: &mut [Instruction],
) -> Option<&[Instruction]> {
    let mut length = 0;
    for instruction in program {
        *space.get_mut(length)? = instruction;
        length += 1;
    }
    space
        .get(..length)
        .filter(|program| program.len() <= MAX_INSTRUCTIONS)
}
