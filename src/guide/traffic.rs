//! Chapters 6 to 9 of [the guide](super): steering, slow threads, full queues, and UDP.
//!
//! # 6. Steering
//!
//! A **steering program** can replace the hash for the whole group (`SO_ATTACH_REUSEPORT_CBPF`, for
//! UDP since Linux 4.5, for TCP since 4.6: socket(7)). It is a few instructions of classic BPF. The
//! kernel runs it once for each SYN, and it returns an index. In this chapter *program* means this
//! one, and what runs on the machine is a process.
//!
#![cfg_attr(all(feature = "std", linux_kernel), doc = "```")]
#![cfg_attr(not(all(feature = "std", linux_kernel)), doc = "```ignore")]
//! use reuseport::{Group, Listener, steering};
//!
//! let members = Group::bind(([127, 0, 0, 1], 0), 4)?.into_sockets();
//! members[0].attach_program(&steering::all_but(4, 1))?; // at random, without B: B can leave
//! members[0].detach_program()?; //                      the hash again
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! ```
//!
//! - Members have indexes in the order of their `listen`, not of their `bind`, until one leaves.
//!   `explain --claim the-program-returns-an-index`
//! - An index that no member has leaves the choice to the hash (in 4.9 already:
//!   `__inet_lookup_listener`; socket(7) names no version).
//!   `explain --claim an-index-out-of-range-is-the-hash`
//! - A load that fails ends the program with 0. That is an index too: the first member gets every
//!   connection. An ordinary SYN carries no payload, so a program that loads from the payload, as
//!   one for UDP may, ends with 0. `explain --claim a-failing-load-is-index-0`
//! - A SYN of TCP Fast Open carries the first bytes of the client, and the program sees them.
//!   `explain --claim a-fast-open-syn-has-a-payload`
//! - Attaching a program needs no privilege. `explain --claim steering-needs-no-privilege`
//! - The program belongs to the group. Each member may attach, replace or detach it, and a member
//!   that joins later has it too (measured).
//! - Offsets from `SKF_NET_OFF` count from the IP header, so a program can load the client's
//!   address and port. Do not steer by the receive hash (`SKF_AD_RXHASH`): it is 0 where the sender
//!   has none, as for unconnected UDP sockets on loopback, and then one member gets everything
//!   (measured). Hash the addresses and ports in the program instead, as `steering::any_of_by_flow`
//!   does.
//!
//! Steering by index is sound only while one process opens and closes all members: the sockets of
//! another process shift the indexes. So a joined `Group` cannot be steered, and a `Server` looks
//! at the kernel's list of listeners before each change (`Server::other_listeners`).
//!
//! **By CPU.** `Steering::Cpu` is a program that chooses the member of the CPU that handles the
//! SYN. With `SO_INCOMING_CPU` each member names its CPU, and no program is needed. Linux obeys it
//! since 6.2 (commit b261eda84ec1), and in the stable trees 5.15.y, 6.0.y and 6.1.y. So try it, and
//! do not ask for the version. `explain --claim incoming-cpu-is-obeyed`
//!
//! What it gains depends on where packets are received (`tests/crates/peers/record.md`). On
//! loopback that is the client's CPU. Over a network card it is the CPU that has the interrupt of
//! the card's queue, or the one to which RPS moves the packet
//! (Documentation/networking/scaling.rst). With one queue, or all interrupts on one CPU, one member
//! gets everything, and the hash is better. With fewer members than CPUs, the hash spreads the
//! connections of the other CPUs. Where a handler computes for long, the connections of its CPU
//! wait for it.
//!
//! **A packet filter** (`SO_ATTACH_FILTER`) is not a steering program: it belongs to one socket and
//! drops packets, here SYNs. The client sends its SYN again after 1 s. Since commit 5d39580f68e6
//! (June 2026, and stable trees) a TCP socket needs `CAP_NET_ADMIN` for it, in the user namespace
//! of its network namespace. `Server::retire` uses the filter as a second safeguard where it is
//! allowed, and does without it elsewhere. `explain --claim leaving-needs-no-privilege`
//!
//! # 7. One slow thread
//!
//! The hash does not know which thread is busy. If the handler of one of four acceptors blocks for
//! 100 ms, a quarter of all clients wait for it, while three threads are idle.
//! `explain --claim a-slow-thread-keeps-its-share-waiting`
//!
//! ```text
//!    A  [. . . . .]  busy         five connections are queued here,
//!    B  [         ]  idle         and B and C cannot accept them
//!    C  [         ]  idle
//! ```
//!
//! As many silent clients as there are threads stop such a server. There are three remedies:
//!
//! - Handlers that never block.
//! - One **shared listener** (`GroupOptions::shared`): an idle thread accepts the next connection.
//!   `explain --claim a-shared-listener-feeds-the-idle` All threads then use one queue and lock.
//! - **Hand-off**: a thread that is blocked in its handler hands its *listener* to a spare thread.
//!   `explain --claim hand-off-serves-what-waits`
//!
//! `Group::spawn` hands off by default:
//!
#![doc = include_str!("hand_off.svg")]
//!
//! ```text
//!    t = 0 ms     A's thread enters a handler, and marks that it has
//!    t = 1 ms     the monitor, one thread, looks at all marks
//!    t = 2 ms     the same handler still runs: a spare thread gets A's listener
//!
//!    A  [. . . . .] ---- A's thread, in its handler, without a listener
//!               \------- spare thread: accepts the five connections
//!
//!    later        A's thread returns from the handler, and becomes a spare thread
//! ```
//!
//! So a connection waits 1 to 2 ms behind a blocked handler. If the handlers of the queued ones
//! block too, more spare threads begin: twice as many at each look. `tests/handoff.rs` blocks the
//! thread of a member, and measures how long its connections wait.
//!
//! A handler that returns within 1 ms costs two marks in memory. On a busy server that is no system
//! call more than in the C program. After 20 ms without handlers the monitor sleeps, and the next
//! handler wakes it with one `futex` call (`tests/costs.rs`).
//!
//! **The limit** is `GroupOptions::spare_threads(n)`, 512 by default: four members and 512 spare
//! threads are stopped by 516 silent clients. `Stats::starved` counts it. So a handler that reads
//! needs a time limit (`Connection::set_read_timeout`). Handlers of one member may run at the same
//! time; with `spare_threads(0)`, one thread for each member, they do not.
//! A UDP member keeps its one thread, so that the datagrams of a flow are handled in order.
//!
//! Another remedy is to have each thread wait for several listeners, in an epoll set of its own.
//! With `EPOLLEXCLUSIVE` a connection wakes one thread: of those that sleep, the one whose set
//! registered the listener first. `explain --claim the-first-registered-epoll-wakes` It needs one
//! more system call for each connection and an entry for each pair of threads, and silent clients
//! still stop the server: so this crate does not use it.
//!
//! # 8. Backlog and overflow
//!
//! A listener has two queues, and `n` of `listen(fd, n)` bounds both:
//!
//! ```text
//!    SYN  --> [ SYN queue: requests ]  --> SYN-ACK to the client
//!                 | full: SYN cookies, and nothing is queued here
//!                 v
//!    ACK  --> [ accept queue: connections ]  --> accept
//!                 | full: the SYN is dropped, and so is the ACK
//! ```
//!
//! Each member has queues of its own. Linux lets n + 1 connections into the accept queue.
//! `explain --claim a-backlog-of-n-queues-one-more`
//!
//! The sysctl `net.core.somaxconn` cuts a longer backlog, and `listen` succeeds all the same. It is
//! 4096 by default, and was 128 before Linux 5.4 (listen(2)). A listener keeps the limit that was
//! valid at its `listen`: after a change of the sysctl it has to call `listen` again.
//! `explain --claim somaxconn-cuts-the-backlog`
//!
//! The kernel chooses the member by the hash, and then looks at its queue. If that queue is full,
//! the kernel drops the SYN without an answer, also if the other queues are empty. The client sends
//! it again after 1 s. `explain --claim overflow-costs-a-second`
//!
//! In older texts the client then waits twice as long each time. A client on Linux 6.5 or later
//! sends the first retries 1 s apart (`net.ipv4.tcp_syn_linear_timeouts` of the client, 4 by
//! default), and doubles the time after them. `explain --claim dropped-syns-come-every-second`
//!
//! A queue may also fill up between SYN and ACK. Then the kernel drops the ACK: `connect` has
//! succeeded, and the server has no socket for the client. The client sends, gets no answer, and
//! sends again; if there is room by then, that ends the handshake. With
//! `net.ipv4.tcp_abort_on_overflow=1` the client is reset instead (tcp(7)).
//! `explain --claim a-full-queue-drops-the-ack-too`
//!
//! A short queue has no advantage. Latencies of almost exactly 1 s or 2 s are the sign of one;
//! `nstat -az TcpExtListenOverflows` counts the drops, and `Listener::queue` returns the length.
//!
//! **Errors of `accept`.** A queued connection stays queued, also after an error of its own:
//!
//! - A client that has reset its connection meanwhile is accepted like any other. The first `recv`
//!   fails with `ECONNRESET`. `explain --claim a-reset-client-is-still-accepted`
//! - If no descriptor is left (`EMFILE`), the connection stays in the queue. A loop that goes on at
//!   once spins; a loop that ends leaves a listener that no thread serves.
//!   `explain --claim without-descriptors-it-stays-queued`
//! - The kernel reserves the descriptor *before* it looks at the queue: a blocking `accept` fails
//!   also if the queue is empty, and a blocking loop spins as well.
//!   `explain --claim without-descriptors-accept-never-waits`
//!
//! The remedy is a pause. [`Error::accept_action`](crate::Error::accept_action) sorts the errors of
//! `accept` into five kinds, by what a loop should do about each.
//!
//! # 9. UDP
//!
//! There is no connection, so the kernel chooses a member for every datagram. The hash is of the
//! same four values: they name a **flow**.
//!
//! - A UDP socket is a member from `bind` on; there is no `listen`. Its share is queued until it
//!   reads. `explain --claim a-udp-socket-joins-at-bind`
//! - A flow stays with its member while the group stays as it is.
//!   `explain --claim a-udp-flow-stays`
//! - With every change of the group flows move, also among members that were there before and stay:
//!   each index now stands for another range of the hash. For TCP that is harmless, for UDP with a
//!   state per flow (QUIC, DTLS, games) it is not.
//!   `explain --claim adding-a-udp-member-moves-flows`
//! - How many flows move follows from the ranges. If a member joins, or the last one leaves, it is
//!   half of them. If the first one leaves, and the last takes over its index, it is 83 % with
//!   three members, 75 % with four, 62 % with eight, and 56 % with sixteen.
//! - Unlike a SYN, a datagram has a payload when the choice is made. A program may choose by it,
//!   for example by the connection id of QUIC. `explain --claim a-udp-program-sees-the-payload`
//! - A datagram that is sent by multicast or broadcast reaches every member: neither hash nor
//!   program chooses. `GroupOptions::single_copy` has one member handle it.
//!   `explain --claim a-broadcast-reaches-every-udp-member`
//! - When a socket closes, its queued datagrams are dropped, and neither side gets an error.
//!   `explain --claim closing-a-udp-socket-drops-in-silence`
//! - A member that calls `connect` gets the datagrams of its peer, and no others.
//!   `explain --claim a-connected-udp-socket-hears-its-peer`
//! - Since 6.13 it also leaves the group, and the indexes shift. A server that connects one more
//!   socket for each client then steers by indexes that change with every client.
//!   `explain --claim a-connected-udp-socket-leaves-the-group`
//!
//! A datagram that arrives during `close` is lost, even if the program has just emptied the queue.
//! So a member leaves in steps: on a wildcard address, the group is steered around it, by a hash of
//! the flow in the program; it connects to the loopback, and so leaves the group; it reads until
//! its queue is empty; it closes. `tests/datagrams.rs` replaces members under load, and none is
//! lost. Before Linux 6.13 it is still a member after `connect`, steered around.
//!
//! `bind` puts a socket into the group of the one with its address that was bound last. If that has
//! left by `connect` and is still open, the two make a group of their own, beside the others'
//! (`tests/udp_copies.rs`). So a member that leaves an exclusive group gives up `SO_REUSEPORT` and
//! sets `SO_REUSEADDR`, which a new member has during `bind`: then the kernel passes it over.
//!
//! A single socket connects *to itself*: its port is closed to all others from then on, and the
//! queued datagrams can still be read. `explain --claim connected-to-itself-it-keeps-what-waits`
//!
//! ## QUIC
//!
//! A QUIC connection outlives its four-tuple: its client may move to another network (RFC 9000, 9).
//! By the hash the client then reaches a member that does not know the connection, and so do most
//! clients after a restart. So each packet has a **connection id**, which its receiver has made. A
//! server can put a byte into it that names the member, and `Steering::Quic` finds the member by
//! that **routing byte**. It needs no privilege and no eBPF.
//!
#![doc = include_str!("quic.svg")]
//!
//! ```text
//!    long header   | 1....... | version | length |  id  ...    before the server's first answer,
//!                                                              the id is the client's
//!    short header  | 0....... |  id  ...                       the rest of the connection
//!
//!    the server's id, by its length --> the member with the routing byte, old or new
//!    any other                      --> hash of the id --> a member that takes new connections
//! ```
//!
//! - The program finds the id in both headers. `explain --claim a-quic-id-finds-its-member`
//! - A byte at one offset (`Steering::Byte`) is no connection id: where a short header has its id,
//!   a long one has the version, which is the same for all clients.
//!   `explain --claim one-offset-is-no-quic-id`
//! - A client's first id has at least 8 bytes (RFC 9000, 7.2), and the server's have 1 to 7. So the
//!   length distinguishes them, and the program needs to know no version of QUIC (RFC 8999).
//! - Numbers of members begin at 0 in each process. Routing bytes do not: the old process passes
//!   them to the new one, and no two of their members have the same (`tests/quic.rs`).
//!
//! In a restart `Server::hand_over` gives the new connections to the new process. The old one waits
//! until its own have ended, and then calls `HandOver::leave`. `Server::retire` breaks the
//! connections of its member. While a member leaves, packets of the member that takes its index go
//! by the hash for some microseconds; QUIC sends them again.
//!
//! Over loopback a datagram takes 2.2 µs by the hash. The program adds 0.05 µs with 4 members, 0.08
//! with 64 and 0.15 with 255, as `Steering::Byte` does (`tests/costs.rs`, 2026-11-26).
//!
//! The recipe `tests/crates/recipes/src/bin/quic.rs` uses quinn. Of 200 connections of clients that
//! move three times each, none breaks, and by the hash 194 do. Then 20 restarts under load break
//! none of 1 546 connections, which move 21 644 times (2026-11-26, Linux 6.18). A protocol without
//! ids keeps its flows by a connected socket for each: `tests/crates/recipes/src/bin/flows.rs`.
