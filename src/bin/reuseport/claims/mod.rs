//! The claims of the guide, each with the function that tests it.
//!
//! Every function measures in the same way in two cases: the one that the claim describes, and a
//! *counter-case*, in which the claim must be false. A measurement that cannot distinguish the two
//! proves nothing.

use std::error::Error;

use needs::Need;
pub(crate) use needs::Setup;

mod binding;
#[cfg(linux_kernel)]
mod choosing;
#[cfg(linux_kernel)]
pub(crate) mod isolated;
#[cfg(linux_kernel)]
mod joining;
#[cfg(linux_kernel)]
mod leaving;
#[cfg(linux_kernel)]
mod look;
mod needs;
#[cfg(linux_kernel)]
mod queue;
mod sockets;
#[cfg(linux_kernel)]
mod steering;
#[cfg(linux_kernel)]
mod tools;
#[cfg(linux_kernel)]
mod udp;
#[cfg(linux_kernel)]
mod waiting;

pub(crate) struct Claim {
    pub(crate) name: &'static str,
    pub(crate) chapter: &'static str,
    pub(crate) says: &'static str,
    /// The case in which it is false.
    pub(crate) counter: &'static str,
    /// What the claim and its counter-case need, and what the counter-case needs besides.
    needs: &'static [Need],
    counter_needs: &'static [Need],
    /// Tests it, or the counter-case.
    try_it: fn(counter: bool) -> Tried,
}

/// A measurement, and whether it agrees with the claim.
pub(crate) struct Seen {
    pub(crate) holds: bool,
    pub(crate) what: String,
}

/// The reason for having no measurement.
pub(crate) enum Snag {
    /// This machine cannot test it.
    NotHere(String),
    /// A call failed that the claim is not about.
    Broken(String),
}

pub(crate) type Tried = Result<Seen, Snag>;

impl<E: Error> From<E> for Snag {
    fn from(error: E) -> Snag {
        Snag::Broken(error.to_string())
    }
}

#[allow(clippy::unnecessary_wraps)] // the last line of every function that tests a claim
fn seen(holds: bool, what: impl Into<String>) -> Tried {
    let what = what.into();
    Ok(Seen { holds, what })
}

/// The table, in the order of the guide's chapters: the kernels on which the claim is tested, the
/// function, [its needs], the claim, and the counter-case behind [its further needs].
macro_rules! claims {
    ($($chapter:literal {
        $($os:ident $module:ident::$function:ident
            $([$($need:ident $(($($version:literal),*))?),*])?
            $says:literal unless $([$($more:ident),*])? $counter:literal)*
    })*) => {
        pub(crate) const CLAIMS: &[Claim] = &[$($(Claim {
            name: stringify!($function),
            chapter: $chapter,
            says: $says,
            counter: $counter,
            needs: &[$($(Need::$need $(($($version),*))?),*)?],
            counter_needs: &[$($(Need::$more),*)?],
            try_it: on!($os $module::$function),
        },)*)*];
    };
}

macro_rules! on {
    (every $module:ident::$function:ident) => {
        $module::$function
    };
    (linux $module:ident::$function:ident) => {{
        #[cfg(linux_kernel)]
        let try_it = $module::$function;
        #[cfg(not(linux_kernel))]
        let try_it = |_| Err(Snag::NotHere("it is tried on Linux alone".into()));
        try_it
    }};
}

claims! {
"One call after another" {
    linux joining::membership_begins_at_listen
        "A TCP socket is in the group from listen on; one that is only bound gets no connection."
        unless "it listens as well"
    linux queue::listen_again_keeps_the_place [Steering, Queue]
        "listen on a socket that listens changes its backlog and nothing else."
        unless "it was shut down in between"
    every binding::a_failed_bind_may_go_unnoticed [NoTraffic]
        "After a bind that failed, listen succeeds, on a port that the kernel picks."
        unless "bind does not fail"
}
"Which listener gets the SYN" {
    linux choosing::the_hash_spreads_evenly
        "By the hash each member gets the same share, within what chance allows."
        unless "one member has two sockets"
    linux choosing::same_four_tuple_same_listener
        "The same four-tuple goes to the same listener while the group stays as it is."
        unless [Steering] "a program chooses at random"
    linux choosing::a_specific_address_beats_the_wildcard
        "A listener on the address itself takes all of its connections from the wildcard."
        unless "both are on the wildcard"
    linux choosing::ipv4_wildcard_beats_dual_stack [Ipv6]
        "0.0.0.0 takes all IPv4 connections from a [::] that takes both families."
        unless "both are [::]"
    linux choosing::a_bound_device_is_another_group
        "A socket bound to a device is in another group; on IPv4 the newest listener's gets all."
        unless "none is bound to a device"
    linux choosing::a_cookie_chooses_at_the_ack [Steering, Queue, Cookies]
        "With SYN cookies the kernel chooses again at the ACK: it has remembered no handshake."
        unless [Requests] "there is room for the handshakes"
}
"Joining a group" {
    every binding::every_socket_needs_the_option [NoTraffic]
        "One socket without the option, the first or the second: bind fails with EADDRINUSE."
        unless "both have set it"
    linux joining::with_reuseaddr_listen_refuses [NoTraffic]
        "With SO_REUSEADDR alone a second bind succeeds until one listens; then listen refuses."
        unless "they have no option"
    linux joining::a_second_program_joins_in_silence [Threads, Program]
        "Another program of the same user joins and gets its share, and no error is reported."
        unless "the first has bound without the option"
    linux joining::another_user_is_refused [NoTraffic, Threads, OtherUser]
        "A socket that another user opens may not join: EADDRINUSE."
        unless "it is the same user"
    linux joining::fchown_changes_who_may_join [NoTraffic, Threads, OtherUser]
        "The user of a socket is its owner, and fchown changes it: then that user may join."
        unless "fchown is not called"
    linux joining::a_namespace_has_ports_of_its_own [NoTraffic, Threads]
        "A port that is taken in one network namespace is free in another."
        unless "it is the same namespace"
    linux joining::leftovers_want_the_same_option
        "Connections in TIME_WAIT, left by SO_REUSEPORT, refuse a bind with SO_REUSEADDR alone."
        unless "the server that left them had set both"
    linux joining::leftovers_without_options_refuse_all
        "Connections in TIME_WAIT of a server without an option refuse a bind with both."
        unless "the server had SO_REUSEPORT"
    linux joining::an_outgoing_connection_takes_its_port
        "An outgoing connection refuses its local port to every bind, also with both options."
        unless "it is closed"
    linux joining::the_claim_keeps_others_out
        "Bound and listening without the option, a socket refuses others until it is set."
        unless "it is set from the start"
    linux joining::port_0_never_collides [NoTraffic, PortRange, NoAutobindReuse]
        "For TCP, port 0 is never a port that is in use, although all sockets have the option."
        unless "they are UDP sockets"
}
"Leaving a group" {
    linux leaving::close_resets_the_queue [NoMigration]
        "Closing a listener resets its queued connections, although another member listens; so \
         does shutting it down."
        unless "they were accepted before"
    linux leaving::a_duplicate_keeps_the_member
        "A closed listener of which a duplicate is left stays in the group, and gets its share."
        unless "it is shut down"
    linux leaving::connect_to_nothing_ends_a_listener
        "connect with AF_UNSPEC succeeds on a listener, which then listens no more."
        unless "the address family is unknown"
    linux leaving::the_last_moves_into_the_hole [Steering]
        "When a member closes, the last one takes over its index."
        unless "another member closes"
    linux leaving::adding_loses_no_handshake [Requests]
        "Handshakes under way survive it when members are added, and stay with their listener."
        unless "their listener closes, too"
    linux leaving::shutdown_wakes_accept [Threads, Tasks]
        "shutdown(SHUT_RD) wakes a blocked accept, which fails with EINVAL."
        unless "close is called instead"
    linux leaving::close_leaves_accept_asleep [Threads, Tasks]
        "close does not wake a blocked accept: it still accepts the next connection."
        unless "shutdown is called instead"
}
"Steering" {
    linux steering::the_program_returns_an_index [Steering]
        "A program returns an index, and that is the order of the calls of listen."
        unless "no program is attached"
    linux steering::a_failing_load_is_index_0 [Steering]
        "A program whose load fails ends with 0; the payload of a SYN is such a load."
        unless "it loads nothing"
    linux steering::a_fast_open_syn_has_a_payload [Steering]
        "A SYN of TCP Fast Open carries the client's first bytes, and a program sees them."
        unless "the client connects first"
    linux steering::an_index_out_of_range_is_the_hash [Steering, Linux(4, 9)]
        "An index that no member has leaves the choice to the hash."
        unless "a member has it"
    linux steering::incoming_cpu_is_obeyed [Threads, Affinity, Linux(6, 1)]
        "SO_INCOMING_CPU gives a member all that its CPU receives, if no other names that CPU."
        unless "the other names it, too"
    linux steering::steering_needs_no_privilege [NoTraffic, Steering, Threads, NoPrivilege]
        "Attaching a steering program needs no privilege."
        unless "the option is SO_RCVBUFFORCE"
    linux steering::leaving_needs_no_privilege [NoTraffic, Steering, Threads, NoPrivilege]
        "A member can retire without a privilege, also where the kernel refuses the packet filter."
        unless "the sockets refuse every program (SO_LOCK_FILTER)"
}
"One slow thread" {
    linux waiting::a_slow_thread_keeps_its_share_waiting [Steering, Threads]
        "A connection waits behind its busy acceptor while another acceptor is idle."
        unless "there are spare threads"
    linux waiting::a_shared_listener_feeds_the_idle [Threads]
        "With one listener for all acceptors, an idle one accepts the queued connections."
        unless [Steering] "each has its own"
    linux waiting::hand_off_serves_what_waits [Steering, Threads]
        "With hand-off, a spare thread serves the connections behind a handler that blocks."
        unless "there are no spare threads"
    linux waiting::the_first_registered_epoll_wakes [Threads, Tasks]
        "With EPOLLEXCLUSIVE, the epoll set that registered first wakes, and no other."
        unless "EPOLLEXCLUSIVE is not set"
}
"Backlog and overflow" {
    linux queue::a_backlog_of_n_queues_one_more
        "listen(fd, n) lets n + 1 connections wait; the next one gets no answer."
        unless [Queue] "listen is called again with a longer one"
    linux queue::somaxconn_cuts_the_backlog [NoTraffic]
        "A backlog above net.core.somaxconn is cut to that, and listen succeeds."
        unless "it is not above"
    linux queue::overflow_costs_a_second
        "A SYN for a full queue is dropped, though another is empty; it comes again in 1 s."
        unless [Queue] "there is room"
    linux queue::a_full_queue_drops_the_ack_too [Requests]
        "A full queue drops the handshake's ACK: the client is connected, the server has nothing."
        unless "there is room"
    linux queue::dropped_syns_come_every_second [LinearSyns]
        "A SYN that is dropped again comes again after one more second, not two."
        unless "there is room by then"
    linux queue::a_reset_client_is_still_accepted
        "A client that resets before accept is still accepted; recv fails with ECONNRESET."
        unless "it closes without a reset"
    linux queue::without_descriptors_it_stays_queued
        "accept that fails with EMFILE leaves the connection in the queue."
        unless "there are descriptors"
    linux queue::without_descriptors_accept_never_waits [NoTraffic]
        "On an empty queue, a blocking accept without descriptors fails at once: EMFILE."
        unless "there are descriptors"
}
"UDP" {
    linux udp::a_udp_socket_joins_at_bind
        "A UDP socket is in the group from bind on."
        unless "it has the option, but is not bound"
    linux udp::a_udp_flow_stays
        "The datagrams of one flow go to one member while the group stays as it is."
        unless [Steering] "a program chooses at random"
    linux udp::adding_a_udp_member_moves_flows
        "A new member moves flows, also from one old member to another."
        unless "none is added"
    linux udp::a_udp_program_sees_the_payload [Steering]
        "A program sees a datagram from its first byte on, and may choose by it."
        unless "no program is attached"
    linux udp::a_broadcast_reaches_every_udp_member [Steering]
        "A datagram to a broadcast or multicast address reaches every member, steered or not."
        unless "it is sent to one address"
    linux udp::closing_a_udp_socket_drops_in_silence
        "A UDP socket that closes drops its queued datagrams, and the sender gets no error."
        unless "it was read before"
    linux udp::a_connected_udp_socket_hears_its_peer
        "A connected member gets all datagrams of its peer, and no others."
        unless "it is not connected"
    linux udp::a_connected_udp_socket_leaves_the_group [Steering, Linux(6, 13)]
        "A member that connects leaves the group: the last takes over its index."
        unless "it does not connect"
    linux udp::connected_to_itself_it_keeps_what_waits
        "A socket that connects to itself refuses all others, and can read its queue."
        unless "it does not connect"
    linux udp::a_quic_id_finds_its_member [Steering]
        "A program finds a QUIC connection id in both headers, from whatever port a packet comes."
        unless "no program is attached"
    linux udp::one_offset_is_no_quic_id [Steering]
        "By the byte that is the id's in a short header, one member gets all QUIC handshakes."
        unless "the program knows both headers"
}
}
