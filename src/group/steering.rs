//! [`Steering`]: the policy by which the kernel chooses a member, and the program that does it.

use std::collections::BTreeSet;
use std::vec::Vec;

use super::GroupError;
use crate::socket::bpf::{self, Instruction};

/// How the kernel chooses the member that gets a connection or a datagram.
///
/// # Platforms
/// Linux and Android; elsewhere all but `Hash` is refused.
///
/// # Examples
/// ```
/// # #[cfg(target_os = "linux")] {
/// use reuseport::{Group, Steering};
///
/// // Each connection is accepted on the CPU that received it.
/// let options = Group::options().steering(Steering::Cpu).pin(true);
/// let group = options.bind(([127, 0, 0, 1], 0), 2)?;
/// # }
/// # Ok::<(), std::io::Error>(())
/// ```
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub enum Steering {
    /// By a hash of the four-tuple: what the kernel does without a program.
    #[default]
    Hash,
    /// By the CPU that received the packet: member 0 has the first CPU that the process may run on,
    /// and so on; one that is added has the first CPU without a member. For a CPU without a member
    /// the kernel takes the hash.
    Cpu,
    /// At random.
    Random,
    /// At random, without the member at this index.
    Except(usize),
    /// For datagrams: the member whose number, modulo 256, is the byte of the payload at this
    /// offset, which begins at 0. A protocol
    /// that carries a connection id has the server write its number there; the flow then comes back
    /// to it from any address. For a datagram that is too short, or whose byte is no member's, the
    /// kernel takes the hash; and for all datagrams during the microseconds in which a member
    /// leaves.
    ///
    /// Not for QUIC, whose headers have the id at two offsets: every handshake would go to the
    /// member that the QUIC version's bytes name. Nor over a restart: both processes number their
    /// members from 0.
    Byte(u16),
    /// For QUIC: the member that has made the packet's connection id, in this process or in the one
    /// that hands over to it or takes over from it, also after the client has changed its address.
    /// All other packets go to the members that take new connections, by a hash of the client's id.
    /// See [the guide](crate::guide::traffic#quic).
    ///
    /// An id that the server makes has `id_len` bytes, 1 to 7. Its byte at offset `byte` is the
    /// member's [routing byte](crate::MemberStats::routing_byte), the others are random. The
    /// members of both processes together are at most 256.
    Quic {
        /// The length of the server's ids, in bytes: 1 to 7.
        id_len: u8,
        /// The offset of the routing byte in the id: less than `id_len`.
        byte: u8,
    },
}

/// What a program has to know of a member.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Slot {
    /// The member's number.
    pub(crate) id: usize,
    /// The index of its CPU among those that the program may run on.
    pub(crate) cpu_index: usize,
    /// What [`Steering::Quic`] finds it by.
    pub(crate) routing_byte: u8,
    /// Whether it gets new connections.
    pub(crate) eligible: bool,
}

impl Slot {
    /// A member whose number and CPU are its index.
    pub(crate) fn new(index: usize, routing_byte: u8) -> Slot {
        Slot {
            id: index,
            cpu_index: index,
            routing_byte,
            eligible: true,
        }
    }
}

/// Returns the routing byte of one more member: the next that none of the others has. If they have
/// all 256, it is one of theirs.
pub(crate) fn unused_byte(bytes: &[u8]) -> u8 {
    let last = bytes.last().copied().unwrap_or(u8::MAX);
    let mut next = (1..=u8::MAX).map(|more| last.wrapping_add(more));
    next.find(|byte| !bytes.contains(byte)).unwrap_or(last)
}

/// The most members that a program lists while others are not eligible. Their program then fits
/// into the memory that every kernel allows (`net.core.optmem_max`, 20 KiB before Linux 6.8).
const MAX_LISTED: usize = 400;

impl Steering {
    /// Checks that the index in `Except` exists.
    pub(crate) fn check(self, members: usize) -> Result<(), GroupError> {
        match self {
            Steering::Except(index) if index >= members || members < 2 => {
                Err(GroupError::NoSuchMember { member: index })
            }
            _ => Ok(()),
        }
    }

    /// Checks the parameters of `Quic`.
    pub(super) fn check_id(self) -> Result<(), GroupError> {
        match self {
            Steering::Quic { id_len, byte } if !(1..=7).contains(&id_len) || byte >= id_len => {
                Err(GroupError::InvalidConnectionId { id_len, byte })
            }
            _ => Ok(()),
        }
    }

    /// Checks that `Quic` can distinguish the members.
    pub(crate) fn check_bytes(self, slots: &[Slot]) -> Result<(), GroupError> {
        let bytes = || slots.iter().map(|slot| slot.routing_byte);
        match self {
            Steering::Quic { .. } if bytes().collect::<BTreeSet<_>>().len() < slots.len() => {
                Err(GroupError::TooManyMembers)
            }
            _ => Ok(()),
        }
    }

    /// Returns the program that chooses among the eligible members of `slots`, which are all
    /// members, in index order. `None` is the hash, without a program.
    ///
    /// `by_flow`: all datagrams of a flow are to stay with one member.
    pub(crate) fn program(
        self,
        slots: &[Slot],
        cpus: &[u32],
        by_flow: bool,
    ) -> Option<Vec<Instruction>> {
        if let Steering::Quic { id_len, byte } = self {
            by_connection_id(id_len, byte, slots)
        } else if slots.iter().all(|slot| slot.eligible) {
            self.among_all(slots, cpus)
        } else {
            self.among_eligible(slots, by_flow)
        }
    }

    fn among_all(self, slots: &[Slot], cpus: &[u32]) -> Option<Vec<Instruction>> {
        let count = number(slots.len());
        // A program with a row for each member has two instructions for each, and a few more.
        let rows = &slots[..slots.len().min((bpf::MAX_INSTRUCTIONS - 5) / 2)];
        let mut space = std::vec![Instruction::default(); 2 * rows.len() + 5];
        let rows = (0..).zip(rows);
        let program = match self {
            Steering::Hash | Steering::Quic { .. } => return None,
            Steering::Except(index) if index < slots.len() => {
                bpf::all_but(count, number(index)).to_vec()
            }
            // Also if the excepted member has left since.
            Steering::Random | Steering::Except(_) => bpf::random(count).to_vec(),
            Steering::Cpu => {
                let row = |(index, slot): (u32, &Slot)| Some((*cpus.get(slot.cpu_index)?, index));
                let rows: Vec<_> = rows.filter_map(row).collect();
                bpf::by_cpu(&rows, &mut space).unwrap_or_default().to_vec()
            }
            Steering::Byte(offset) => {
                let rows: Vec<_> = rows.map(|(index, slot)| (slot.byte(), index)).collect();
                let program = bpf::by_payload_byte(offset, &rows, &mut space);
                program.unwrap_or_default().to_vec()
            }
        };
        Some(program)
    }

    fn among_eligible(self, slots: &[Slot], by_flow: bool) -> Option<Vec<Instruction>> {
        let eligible = |index: &usize| slots[*index].eligible;
        let wanted = |index: &usize| self != Steering::Except(*index);
        let mut listed: Vec<_> = (0..slots.len()).filter(eligible).filter(wanted).collect();
        if listed.is_empty() {
            listed = (0..slots.len()).filter(eligible).collect();
        }
        listed.truncate(MAX_LISTED);
        let indexes: Vec<u32> = listed.iter().copied().map(number).collect();
        let mut space = std::vec![Instruction::default(); 2 * listed.len() + 60];
        let any = if by_flow {
            bpf::any_of_by_flow(&indexes, &mut space)?
        } else {
            bpf::any_of(&indexes, &mut space)?
        };
        let Steering::Byte(offset) = self else {
            return Some(any.to_vec());
        };
        let row = |index: usize| (slots[index].byte(), number(index));
        let rows: Vec<_> = listed.into_iter().map(row).collect();
        let mut space = std::vec![Instruction::default(); 4 * rows.len() + 64];
        let program = bpf::by_payload_byte_or(offset, &rows, any, &mut space);
        Some(program.unwrap_or(any).to_vec())
    }
}

/// The rows are of all members: those that leave keep their connections.
fn by_connection_id(id_len: u8, byte: u8, slots: &[Slot]) -> Option<Vec<Instruction>> {
    let rows = (0..).zip(slots).map(|(at, slot)| (slot.routing_byte, at));
    let eligible = (0..).zip(slots).filter(|(_, slot)| slot.eligible);
    let (rows, eligible): (Vec<_>, Vec<_>) = (rows.collect(), eligible.map(|(at, _)| at).collect());
    let mut space = std::vec![Instruction::default(); 2 * (rows.len() + eligible.len()) + 17];
    let program = bpf::by_connection_id(id_len, byte, &rows, &eligible, &mut space);
    program.map(<[Instruction]>::to_vec)
}

impl Slot {
    #[allow(clippy::cast_possible_truncation)] // a byte is all that a datagram carries
    fn byte(&self) -> u8 {
        self.id as u8
    }
}

/// An index as a program has it. A group has at most 32 768 members.
fn number(index: usize) -> u32 {
    u32::try_from(index).unwrap_or(u32::MAX)
}
