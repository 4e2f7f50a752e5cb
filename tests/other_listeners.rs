//! Another process joins a group that was bound exclusively, as `SO_REUSEPORT` lets it: indexes are
//! not this server's alone then, and it stops relying on them.
#![cfg(all(feature = "std", target_os = "linux"))]

#[path = "support/load.rs"]
mod load;
mod support;
#[path = "support/wire.rs"]
mod wire;

use std::time::Duration;

use load::{Load, answer, churn};
use reuseport::{Group, GroupError, OtherListeners, Server, Steering};
use wire::{SERVER, Wire};

fn serve(address: impl Into<std::net::SocketAddr>, members: usize, join: bool) -> Server {
    let options = Group::options().join(join).grace(support::BOUND);
    let group = options.bind(address, members).unwrap();
    group.spawn(|_, connection| answer(&connection)).unwrap()
}

#[test]
fn joined_by_another_group_it_is_not_steered_until_that_leaves() {
    let server = serve(([127, 0, 0, 1], 0), 3, false);
    assert_eq!(server.other_listeners(), OtherListeners::Unknown);
    server.set_steering(Steering::Random).unwrap();
    assert_eq!(server.other_listeners(), OtherListeners::None);

    let other = serve(server.local_addr(), 1, true);

    let refused = server.set_steering(Steering::Cpu).unwrap_err();
    assert_eq!(refused, GroupError::JoinedGroup);
    assert_eq!(server.other_listeners(), OtherListeners::Some);
    server.set_steering(Steering::Hash).unwrap();

    other.stop(Duration::ZERO);

    server.set_steering(Steering::Random).unwrap();
    assert_eq!(server.other_listeners(), OtherListeners::None);
}

#[test]
fn joined_by_another_group_datagrams_are_not_steered_until_that_leaves() {
    let options = Group::udp_options().grace(support::BOUND);
    let group = options.bind(([127, 0, 0, 1], 0), 3).unwrap();
    let server = group.spawn(|_, _| {}).unwrap();
    server.set_steering(Steering::Byte(0)).unwrap();
    assert_eq!(server.other_listeners(), OtherListeners::None);

    let joined = options.join(true).bind(server.local_addr(), 1).unwrap();

    let refused = server.set_steering(Steering::Random).unwrap_err();
    assert_eq!(refused, GroupError::JoinedGroup);
    server.retire(0).unwrap();
    assert_eq!(server.other_listeners(), OtherListeners::Some);

    drop(joined);

    server.set_steering(Steering::Random).unwrap();
    assert_eq!(server.other_listeners(), OtherListeners::None);
}

#[test]
fn members_replaced_beside_another_group_lose_no_connection() {
    let round_trip = Duration::from_millis(40);
    let wire = match Wire::new(round_trip) {
        Ok(wire) => wire,
        Err(error) => return support::skip(&format!("no namespaces with TUN devices: {error}")),
    };
    let (report, retired, others) = wire.server.inside(|| {
        let server = serve((SERVER, 0), 3, false);
        let other = serve(server.local_addr(), 1, true);
        let client = wire.client.clone();
        let load = Load::start_in(server.local_addr(), 64, move || client.enter());
        support::wait_until("the load is on", || load.made() > 128);

        let took = churn(&server, 0, |retired| retired < 30);

        let (others, report) = (server.other_listeners(), load.stop());
        drop(other);
        (report, took.len(), others)
    });
    report.say("beside another group", retired);
    assert_eq!(others, OtherListeners::Some);
    assert_eq!((wire.lost(), report.lost()), (0, 0), "{report:?}");
}
