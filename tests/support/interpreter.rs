//! What the kernel's interpreter of classic BPF does, for the instructions that are used.
#![allow(dead_code, missing_docs, unreachable_pub)]

use core::net::{IpAddr, SocketAddr};

use reuseport::steering::Instruction;

/// What a program sees.
#[derive(Clone, Debug, Default)]
pub struct Packet {
    pub cpu: u32,
    pub random: u32,
    /// From the IP header on.
    pub headers: Vec<u8>,
    pub payload: Vec<u8>,
}

impl Packet {
    pub fn random(random: u32) -> Packet {
        Packet {
            random,
            ..Packet::default()
        }
    }

    /// A datagram, with the headers that it has on the wire; `options` lie behind those of IPv4.
    pub fn datagram(from: SocketAddr, to: SocketAddr, options: &[u8], payload: &[u8]) -> Packet {
        let mut headers = Vec::new();
        match (from.ip().to_canonical(), to.ip().to_canonical()) {
            (IpAddr::V4(from), IpAddr::V4(to)) => {
                headers.push(0x45 + u8::try_from(options.len() / 4).unwrap());
                headers.resize(12, 0x77);
                headers.extend(from.octets().iter().chain(&to.octets()).chain(options));
            }
            (IpAddr::V6(from), IpAddr::V6(to)) => {
                headers.push(0x60);
                headers.resize(8, 0x77);
                headers.extend(from.octets().iter().chain(&to.octets()));
            }
            families => panic!("{families:?}"),
        }
        headers.extend(
            [from.port(), to.port()]
                .iter()
                .flat_map(|port| port.to_be_bytes()),
        );
        headers.extend([0x77; 4]);
        Packet {
            headers,
            payload: payload.to_vec(),
            ..Packet::default()
        }
    }

    /// The `N` bytes at an offset, which is the kernel's. `None`: the load fails.
    fn bytes<const N: usize>(&self, offset: u32) -> Option<[u8; N]> {
        let (bytes, from) = match offset {
            0xFFF0_0000..0xFFFF_0000 => (&self.headers, offset - 0xFFF0_0000),
            _ => (&self.payload, offset),
        };
        let from = from as usize;
        bytes.get(from..from.checked_add(N)?)?.try_into().ok()
    }

    fn word(&self, offset: u32) -> Option<u32> {
        match offset {
            0xFFFF_F024 => Some(self.cpu),
            0xFFFF_F038 => Some(self.random),
            _ => self.bytes(offset).map(u32::from_be_bytes),
        }
    }
}

/// Returns what a program returns. `None`: a load has failed or an instruction is unknown; the
/// kernel would take that for index 0.
pub fn interpret(program: &[Instruction], packet: &Packet) -> Option<u32> {
    let (mut a, mut x, mut at) = (0_u32, 0_u32, 0);
    loop {
        let Instruction {
            code,
            if_true,
            if_false,
            k,
        } = *program.get(at)?;
        at += 1;
        let mut branch = |holds| at += usize::from(if holds { if_true } else { if_false });
        match code {
            0x05 => at += k as usize,
            0x15 => branch(a == k),
            0x25 => branch(a > k),
            0x35 => branch(a >= k),
            0x45 => branch(a & k != 0),
            0x1d => branch(a == x),
            0x2d => branch(a > x),
            0x3d => branch(a >= x),
            0x00 => a = k,
            0x04 => a = a.wrapping_add(k),
            0x0c => a = a.wrapping_add(x),
            0x24 => a = a.wrapping_mul(k),
            0x54 => a &= k,
            0x74 => a >>= k,
            0x94 => a = a.checked_rem(k)?,
            0xac => a ^= x,
            0x07 => x = a,
            0x20 => a = packet.word(k)?,
            0x28 => a = packet.bytes(k).map(u16::from_be_bytes)?.into(),
            0x30 => a = packet.bytes(k).map(u8::from_be_bytes)?.into(),
            0x40 => a = packet.word(x.wrapping_add(k))?,
            0x50 => {
                let byte = packet.bytes(x.wrapping_add(k)).map(u8::from_be_bytes);
                a = byte?.into();
            }
            0x80 => a = u32::try_from(packet.payload.len()).ok()?,
            0xb1 => x = 4 * u32::from(packet.bytes::<1>(k)?[0] & 0x0F),
            0x06 => return Some(k),
            0x16 => return Some(a),
            _ => return None,
        }
    }
}
