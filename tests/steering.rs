//! The steering programs: interpreted here, and run by the kernel.
#![cfg(all(feature = "std", target_os = "linux"))]

#[path = "support/interpreter.rs"]
mod interpreter;
mod support;

use std::collections::BTreeSet;
use std::fs;
use std::net::{SocketAddr, TcpStream};
use std::thread;

use interpreter::{Packet, interpret};
use reuseport::steering::{self, Instruction, MAX_INSTRUCTIONS};
use reuseport::{Call, Error, Group, GroupError, Listener, Steering};
use support::{cpus, drain, run_on};

const ANY_PORT: ([u8; 4], u16) = ([127, 0, 0, 1], 0);

/// What a program returns for any of 100 random numbers.
fn found(program: &[Instruction]) -> BTreeSet<u32> {
    let returned = (0..100).map(|random| interpret(program, &Packet::random(random)).unwrap());
    returned.collect()
}

fn on_cpu(cpu: u32) -> Packet {
    Packet {
        cpu,
        ..Packet::default()
    }
}

#[test]
fn programs_random_and_all_but_return_each_of_their_members() {
    for members in 1..20_u32 {
        assert_eq!(found(&steering::random(members)), (0..members).collect());
        for index in 0..members {
            let found = found(&steering::all_but(members, index));
            let mut others: BTreeSet<_> = (0..members).collect();
            if members > 1 {
                others.remove(&index);
                assert_eq!(found, others, "{members} without {index}");
            }
        }
    }
}

#[test]
fn program_by_cpu_returns_the_index_of_the_cpu_or_none() {
    let mut space = [Instruction::default(); 64];
    let rows = [(2, 0), (3, 1), (7, 5), (4000, 2)];

    let program = steering::by_cpu(&rows, &mut space).unwrap();
    for (cpu, index) in rows {
        assert_eq!(interpret(program, &on_cpu(cpu)), Some(index));
    }
    for stranger in [0, 1, 4, 8, 3999, u32::MAX] {
        assert_eq!(
            interpret(program, &on_cpu(stranger)),
            Some(u32::MAX),
            "not the hash"
        );
    }
}

#[test]
fn program_by_payload_byte_returns_the_index_of_the_byte_or_none() {
    let mut space = [Instruction::default(); 64];

    let program = steering::by_payload_byte(2, &[(7, 0), (0, 3), (255, 1)], &mut space).unwrap();
    for (bytes, index) in [
        (&[9, 9, 7][..], 0),
        (&[9, 9, 0, 7], 3),
        (&[9, 9, 255], 1),
        (&[7, 7, 8], u32::MAX),
        (&[7, 7], u32::MAX),
        (&[], u32::MAX),
    ] {
        let packet = Packet {
            payload: bytes.to_vec(),
            ..Packet::default()
        };
        assert_eq!(interpret(program, &packet), Some(index), "{bytes:?}");
    }
}

#[test]
fn programs_of_some_members_return_each_of_them() {
    let mut space = [Instruction::default(); 64];

    let in_range = found(&steering::any_in_range(7, 3));
    assert_eq!(in_range, BTreeSet::from([7, 8, 9]));
    let indexes = [5, 1, 9];
    let any = found(steering::any_of(&indexes, &mut space).unwrap());
    assert_eq!(any, BTreeSet::from(indexes));
}

#[test]
fn program_that_does_not_fit_is_none() {
    let _none = support::no_process_starts();
    assert!(steering::by_cpu(&[(0, 0), (1, 1)], &mut [Instruction::default(); 5]).is_none());
    assert!(steering::by_cpu(&[(0, 0), (1, 1)], &mut [Instruction::default(); 6]).is_some());
    assert!(steering::any_of(&[], &mut [Instruction::default(); 6]).is_none());

    let many: Vec<_> = (0..2048).zip(0..).collect();
    let mut space = vec![Instruction::default(); 2 * MAX_INSTRUCTIONS];
    assert!(steering::by_cpu(&many, &mut space).is_none());
    let longest = steering::by_cpu(&many[..2047], &mut space).unwrap();
    assert_eq!(longest.len(), MAX_INSTRUCTIONS);

    let group = Group::bind(ANY_PORT, 2).unwrap();
    let steered = group.sockets()[0].attach_program(longest);
    let room = fs::read_to_string("/proc/sys/net/core/optmem_max").unwrap();

    match room.trim().parse::<usize>().unwrap() {
        ..65_536 => assert_eq!(steered.unwrap_err().errno(), libc::ENOMEM),
        _ => steered.expect("the kernel takes as many"),
    }
}

/// The room that Linux before 6.8 has. On those it is not each namespace's own, and is not seen.
#[test]
#[ignore = "a role that another test plays in a process of its own"]
fn retires_with_little_room() {
    if !support::has_sysctls() {
        return;
    }
    let server = Group::bind(ANY_PORT, 1000).unwrap();
    let server = server.spawn(|_, _| {}).unwrap();

    server.retire(1).unwrap();
    server.retire_all(&[2, 3]).unwrap();

    assert_eq!(server.members().len(), 997);
}

#[test]
fn members_without_room_for_a_list_of_all_others_can_leave() {
    let room = [("core/optmem_max", "20480")];
    support::play(&mut support::role_with_sysctls(
        "retires_with_little_room",
        &room,
    ));
}

/// Nonblocking members, and their address.
fn members(options: &reuseport::GroupOptions, n: usize) -> (Group, SocketAddr) {
    let group = options.bind(ANY_PORT, n).unwrap();
    group
        .sockets()
        .iter()
        .for_each(|member| member.set_nonblocking(true).unwrap());
    let address = group.local_addr();
    (group, address)
}

/// Connects `times`, a few at a time, and counts who got them.
fn who(group: &[Listener], address: SocketAddr, times: usize) -> Vec<usize> {
    let mut counts = vec![0; group.len()];
    for _ in 0..times / 50 {
        let clients: Vec<_> = (0..50)
            .map(|_| TcpStream::connect(address).unwrap())
            .collect();
        for (sum, count) in counts.iter_mut().zip(drain(group, clients.len())) {
            *sum += count;
        }
    }
    counts
}

#[test]
fn steering_by_cpu_chooses_the_member_of_the_cpu() {
    let _none = support::no_process_starts();
    let cpus = cpus();
    let (group, address) = members(&Group::options().steering(Steering::Cpu), cpus.len().max(2));

    for (index, cpu) in cpus.into_iter().enumerate() {
        thread::scope(|scope| {
            scope.spawn(|| {
                run_on(cpu);
                let counts = who(group.sockets(), address, 1000);
                assert_eq!(counts[index], 1000, "on CPU {cpu}: {counts:?}");
            });
        });
    }
}

#[test]
fn steering_by_cpu_after_a_member_left_chooses_the_member() {
    let _none = support::no_process_starts();
    let cpus = cpus();
    if cpus.len() < 2 {
        return support::skip("one CPU");
    }
    let group = Group::options().steering(Steering::Cpu);
    let group = group.bind(ANY_PORT, 3).unwrap();
    let name = |acceptor: usize, connection: reuseport::Connection| {
        _ = connection.send(acceptor.to_string().as_bytes());
    };
    let server = group.spawn(name).unwrap();

    assert_eq!(server.retire(0).unwrap().id, 0);

    let visits = || {
        run_on(cpus[1]);
        (0..60).for_each(|_| assert_eq!(support::visit(server.local_addr()), "1"));
    };
    thread::scope(|scope| scope.spawn(visits).join()).unwrap();
}

#[test]
fn steering_by_cpu_on_a_cpu_without_a_member_is_by_the_hash() {
    let _none = support::no_process_starts();
    let cpus = cpus();
    let Some(last) = cpus.get(1..).and_then(<[usize]>::last) else {
        return support::skip("one CPU");
    };

    thread::scope(|scope| {
        scope.spawn(|| {
            // As in a cpuset that leaves out the first: the last CPU is member 0's.
            run_on(*last);
            let (group, address) = members(&Group::options().steering(Steering::Cpu), 3);

            assert_eq!(who(group.sockets(), address, 200), [200, 0, 0]);

            run_on(cpus[0]);
            let counts = who(group.sockets(), address, 200);
            // By the hash one of three has none of 200 with a chance of 3 * (2/3)^200 < 1e-34.
            assert!(counts.iter().all(|count| *count > 0), "{counts:?}");
        });
    });
}

#[test]
fn excepted_member_gets_nothing() {
    let _none = support::no_process_starts();
    for index in 0..3 {
        let (group, address) = members(&Group::options().steering(Steering::Except(index)), 3);
        let counts = who(group.sockets(), address, 1000);

        assert_eq!(counts[index], 0, "{counts:?}");
        // Of the two others one has none of 1000 with a chance of 2 * (1/2)^1000.
        assert_eq!(
            counts.iter().filter(|count| **count > 0).count(),
            2,
            "{counts:?}"
        );
    }
}

#[test]
fn steering_can_be_changed_and_takes_effect_at_once() {
    let _none = support::no_process_starts();
    let (mut group, address) = members(&Group::options(), 3);

    group.set_steering(Steering::Except(2)).unwrap();
    assert_eq!(who(group.sockets(), address, 200)[2], 0);

    group.set_steering(Steering::Random).unwrap();
    // One of three has none of 200 with a chance of 3 * (2/3)^200 < 1e-34; so below.
    assert!(
        who(group.sockets(), address, 200)
            .iter()
            .all(|count| *count > 0)
    );

    group.set_steering(Steering::Hash).unwrap();
    group
        .set_steering(Steering::Hash)
        .expect("to detach what is detached");
    assert!(
        who(group.sockets(), address, 200)
            .iter()
            .all(|count| *count > 0)
    );

    assert_eq!(
        group.set_steering(Steering::Except(3)).unwrap_err(),
        GroupError::NoSuchMember { member: 3 }
    );
}

/// A program that always returns `index`.
fn always(index: u32) -> [Instruction; 1] {
    [Instruction {
        code: 0x06,
        k: index,
        ..Instruction::default()
    }]
}

#[test]
fn index_order_is_listening_order_and_the_last_fills_the_hole() {
    let _none = support::no_process_starts();
    let (group, address) = members(&Group::options(), 4);
    let mut listeners = group.into_sockets();

    for index in 0..4 {
        listeners[0].attach_program(&always(index)).unwrap();
        assert_eq!(who(&listeners, address, 50)[index as usize], 50);
    }

    drop(listeners.swap_remove(1)); // as the kernel does: the last takes its place
    for index in 0..3 {
        listeners[0].attach_program(&always(index)).unwrap();
        assert_eq!(
            who(&listeners, address, 50)[index as usize],
            50,
            "index {index}"
        );
    }

    listeners[0].attach_program(&always(3)).unwrap();
    let counts = who(&listeners, address, 200);
    assert!(
        counts.iter().all(|count| *count > 0),
        "no member, so the hash: {counts:?}"
    );
}

#[test]
fn program_that_the_kernel_refuses_is_an_error() {
    let _none = support::no_process_starts();
    let alone = Listener::options()
        .reuse_port(false)
        .bind(ANY_PORT)
        .unwrap();
    let errno = |result: Result<(), Error>| result.unwrap_err().errno();
    let attached = alone.attach_program(&steering::random(2)).unwrap_err();
    assert_eq!(attached.call(), Call::SetSockOpt);
    assert_eq!(attached.option(), Some("SO_ATTACH_REUSEPORT_CBPF"));
    assert_eq!(attached.errno(), libc::EINVAL);
    let listener = Listener::bind(ANY_PORT).unwrap();
    let too_long = vec![Instruction::default(); 70_000];
    assert_eq!(errno(listener.attach_program(&[])), libc::EINVAL);
    assert_eq!(errno(listener.attach_program(&too_long)), libc::EINVAL);
    assert_eq!(errno(listener.detach_program()), libc::ENOENT);
}

#[test]
fn incoming_cpu_prefers_its_member() {
    let _none = support::no_process_starts();
    if support::kernel() < (6, 2) {
        return support::skip("a kernel for which it is no more than a hint");
    }
    let cpus = cpus();
    let cpu = |index| i32::try_from(cpus[index % cpus.len()]).unwrap();

    let options = Listener::options().nonblocking(true);
    let first = options.incoming_cpu(cpu(0)).bind(ANY_PORT).unwrap();
    let address = first.local_addr().unwrap();
    let listeners = [first, options.incoming_cpu(cpu(1)).bind(address).unwrap()];
    if cpus.len() < 2 {
        return support::skip("one CPU");
    }

    for (index, cpu) in cpus.into_iter().take(2).enumerate() {
        thread::scope(|scope| {
            scope.spawn(|| {
                run_on(cpu);
                assert_eq!(who(&listeners, address, 200)[index], 200);
            });
        });
    }
}

#[test]
fn pinned_acceptors_run_on_their_cpus() {
    let _none = support::no_process_starts();
    let (cpus, (send, receive)) = (cpus(), std::sync::mpsc::channel());
    let group = Group::options().pin(true).bind(ANY_PORT, 3).unwrap();
    let address = group.local_addr();

    let server = group
        .spawn_with(move |acceptor| {
            let send = send.clone();
            move |_, _: &reuseport::StopToken| send.send((acceptor, support::cpus())).unwrap()
        })
        .unwrap();

    assert_eq!(support::cpus(), cpus, "the caller runs where it did");
    (0..100).for_each(|_| _ = support::visit(address));
    drop(server);

    for (acceptor, on) in receive {
        assert_eq!(on, [cpus[acceptor % cpus.len()]]);
    }
}
