//! How `SO_REUSEPORT` works, from the first call to the last connection. Documentation only.
//!
//! Texts on this subject contradict one another: some are old, some describe another kernel. So
//! most statements here end in the name of a test, such as
//! `explain --claim the-hash-spreads-evenly`. The command `reuseport explain --claim NAME` tests
//! the statement on *your* kernel and prints what it measured. With `--counter` it tests a case in
//! which the statement must be false: a measurement that cannot fail proves nothing.
//! `reuseport explain` tests all of them in a few seconds. One claim needs root, and says so.
//!
//! With `--isolated` it tests in a network namespace of its own (Linux), where the sysctls of the
//! network have the kernel's defaults: a claim that holds only there depends on the settings.
//!
//! A statement that a longer test proves names the file of that test. Version numbers are from
//! manual pages and the kernel's sources. The page [`beyond`] rests on documents only.
//!
//! 1. [What the option is](#1-what-the-option-is)
//! 2. [One call after another](#2-one-call-after-another)
//! 3. [Which listener gets the SYN](#3-which-listener-gets-the-syn)
//! 4. [Who may join](#4-who-may-join)
//! 5. [When one leaves](#5-when-one-leaves)
//! 6. [Steering](#6-steering)
//! 7. [One slow thread](#7-one-slow-thread)
//! 8. [Backlog and overflow](#8-backlog-and-overflow)
//! 9. [UDP](#9-udp)
//! 10. [Other kernels](beyond#10-other-kernels)
//! 11. [One machine and beyond](beyond#11-one-machine-and-beyond)
//! 12. [Pitfalls](pitfalls), on a page of its own
//!
//! # 1. What the option is
//!
//! A port belongs to one socket: a second `bind` fails with `EADDRINUSE`. `SO_REUSEPORT` lifts that
//! for sockets that all set it. On Linux (since 3.9), the sockets of one protocol, address and port
//! then form a **group**, and the kernel gives each new connection to one **member**.
//!
//! A connection begins with a **handshake** of three packets: the client's SYN, the server's SYN
//! and ACK in one, the client's ACK. The kernel does this without the program. Then the connection
//! is in its listener's queue, which the **backlog** bounds, until the program calls `accept`. A
//! connection that is **reset** is aborted: the client's next `recv` fails with `ECONNRESET`.
//!
//! Three more words are this crate's. A group **claims** its port when it binds it exclusively
//! ([chapter 4](#4-who-may-join)). **Steering** replaces the kernel's hash by a program
//! ([chapter 6](#6-steering)). **Hand-off** gives the listener of a blocked thread to a spare
//! thread ([chapter 7](#7-one-slow-thread)).
//!
//! ```text
//!    one listener, n threads              a group of n listeners
//!
//!        clients                              clients
//!        \  |  /                              \  |  /
//!         v v v                                v v v
//!       [ queue ]                           the kernel's hash
//!        /  |  \                             /     |     \
//!    accept accept accept               [queue] [queue] [queue]
//!                                          |       |       |
//!    an idle thread takes the next       accept  accept  accept
//! ```
//!
//! On the left, all threads share one lock and one queue, and an idle thread takes the next
//! connection. On the right, the threads share nothing and need no lock, but the kernel chooses the
//! thread *before* it is known which one will be idle.
//!
//! # 2. One call after another
//!
//! ```c
//! int server = socket(AF_INET, SOCK_STREAM, 0);
//! int on = 1;
//! setsockopt(server, SOL_SOCKET, SO_REUSEPORT, &on, sizeof on);      /* before bind */
//! bind(server, (struct sockaddr *)&addr, sizeof addr);               /* the port */
//! listen(server, 4096);                                              /* the group */
//! int client = accept(server, NULL, NULL);                           /* a connection */
//! ```
//!
//! Each thread makes these calls for a socket of its own. `Listener::bind` makes the same four
//! calls, and `tests/mirror.rs` compares a C program and a Rust program line by line.
//!
//! - `setsockopt` changes this one socket, and has no effect yet.
//! - `bind` takes the port, or shares it: [who may join](#4-who-may-join) is decided here.
//! - `listen` makes the socket a member. A socket that is only bound gets no connection.
//!   `explain --claim membership-begins-at-listen`
//! - `accept` takes a connection from the queue of this member only.
//!
//! A second `listen` on a socket that listens changes the backlog, and the member keeps its index.
//! `explain --claim listen-again-keeps-the-place`
//!
//! A program that ignores the result of `bind` may not notice that it failed: `listen` on a socket
//! without a port succeeds, on a port that the kernel picks.
//! `explain --claim a-failed-bind-may-go-unnoticed`
//!
//! # 3. Which listener gets the SYN
//!
//! Four values name a connection: two addresses and two ports. The kernel hashes this four-tuple
//! with a secret that it draws at boot, and scales the hash to the size of the group.
//!
//! ```text
//!    SYN   from 203.0.113.7:51034   to 192.0.2.1:443
//!                        |
//!          hash = h(secret, four-tuple)              a number of 32 bits
//!          index = hash * n / 2^32                   here n = 4
//!                        |
//!    0            2^30           2^31          3*2^30          2^32
//!    |-- index 0 --|-- index 1 --|-- index 2 --|-- index 3 --|
//!           A             B             C             D         in the order of listen
//! ```
//!
//! Over many connections each member gets the same share. `explain --claim the-hash-spreads-evenly`
//!
//! The choice is random, not round-robin. With *c* connections on *n* members a member's share is
//! off by about `sqrt((n - 1) / c)`: by 45 % for ten connections on three members, by 1.4 % for ten
//! thousand. So few and long-lived connections are spread unevenly, for as long as they last.
//!
//! The same four-tuple comes to the same member, as long as the group stays as it is.
//! `explain --claim same-four-tuple-same-listener`
//!
//! That is no session affinity: a client's next connection has another source port, which is
//! another four-tuple.
//!
//! **The address comes before the hash.** The kernel first looks for listeners on the exact
//! address, and only then for those on the wildcard. They are different groups, although they share
//! a port:
//!
//! ```text
//!    SYN to 127.0.0.1:3000
//!        |
//!        +--> group of 127.0.0.1:3000   if there is one
//!        +--> group of   0.0.0.0:3000   otherwise
//!        +--> group of      [::]:3000   otherwise, if it accepts IPv4 too
//! ```
//!
//! - A listener on 127.0.0.1 takes all its connections from one on 0.0.0.0.
//!   `explain --claim a-specific-address-beats-the-wildcard`
//! - A listener on 0.0.0.0 takes all IPv4 from one on `[::]` that speaks both.
//!   `explain --claim ipv4-wildcard-beats-dual-stack`
//!
//! **The choice is made once, at the SYN.** The later packets belong to that listener:
//!
//! ```text
//!    client                      kernel                            listener B
//!      | -- SYN ------------------> | hash says B: a request of B's
//!      | <------------- SYN, ACK -- |
//!      | -- ACK ------------------> | the request is found by its
//!      |                            | four-tuple, not by the hash  -> queue of B
//!      |                            |                                 accept on B
//! ```
//!
//! So a group may grow at any time: handshakes under way finish at the listener where they began.
//! `explain --claim adding-loses-no-handshake`
//!
//! # 4. Who may join
//!
//! ```text
//!    first socket     second socket           bind of the second
//!    with             with, same user         succeeds: a group
//!    with             without                 EADDRINUSE
//!    without          with                    EADDRINUSE
//!    with             with, another user      EADDRINUSE
//! ```
//!
//! - Every socket needs the option, the first one too.
//!   `explain --claim every-socket-needs-the-option`
//! - All must belong to one user: the effective user at the time of `socket`. So another user
//!   cannot take a port's traffic. `explain --claim another-user-is-refused` (needs root)
//! - Any program of that user may join. A second copy of a server, started by mistake, gets half of
//!   the connections, and no error is reported.
//!   `explain --claim a-second-program-joins-in-silence`
//!
//! The last is the most common accident with this option. `Group` avoids it: its first socket binds
//! *and listens* without the option. The kernel refuses that if another socket listens there, and
//! refuses other sockets afterwards. Then the first socket sets the option, and the other members
//! bind. From then on a program can join, if it sets the option too.
//! `explain --claim the-claim-keeps-others-out`
//!
//! **Port 0** asks the kernel for a free port. For TCP the kernel never returns a port in use, not
//! even to a socket that could share it; for UDP it may.
//! `explain --claim port-0-never-collides`
//!
//! # 5. When one leaves
//!
//! When a listener closes, or is shut down, the kernel resets the connections in its queue, which
//! the clients regard as established, and the handshakes under way. Other members could serve them,
//! and do not get them. `explain --claim close-resets-the-queue` (For the handshakes see the
//! counter-case of `explain --claim adding-loses-no-handshake`.)
//!
//! The sysctl `net.ipv4.tcp_migrate_req` (5.14 and later, off by default, set by root) moves most
//! of them to another member instead.
//!
//! The kernel keeps the members in an array. When one leaves, the last one takes over its index.
//! `explain --claim the-last-moves-into-the-hole`
//!
//! ```text
//!    index        0    1    2    3                        0    1    2
//!    member       A    B    C    D      B closes          A    D    C
//!                                       E joins           A    D    C    E
//! ```
//!
//! **A member that leaves in this order loses no connection** (`Server::retire` does it;
//! `tests/retire.rs` replaces members under load, `tests/delay.rs` over round-trip times of 20 and
//! 80 ms):
//!
//! ```text
//!    1  steer new SYNs to the others          a program, chapter 6
//!    2  go on accepting                       handshakes begun before need one more round trip
//!    3  wait until they are done              the kernel lists them
//!    4  empty the queue
//!    5  shut down, close
//!    6  steer as before                       the last member has taken over the index
//! ```
//!
//! Without step 1 new connections arrive between the last `accept` and the `close`. Without steps 2
//! and 3 it works on loopback, where a handshake takes no time, and fails on a real network.
//!
//! If the queue cannot be emptied within the grace period (default 1 s), because no descriptor or
//! no thread is left, `retire` fails with `GroupError::StillQueued`. The member stays, steered
//! around, and a later `retire` goes on.
//!
//! **`close` does not wake a thread that is blocked in `accept`**: the call goes on, the port stays
//! taken, and that thread accepts the next connection.
//! `explain --claim close-leaves-accept-asleep`
//!
//! `shutdown` with `SHUT_RD` wakes it. It resets the queue as `close` does, so the queue has to be
//! empty before. `explain --claim shutdown-wakes-accept`
//!
//! **A restart** is the same with two processes. `Server::hand_over` starts the new one, which
//! calls `Group::from_env`; `HandOver::leave` ends the old members (`tests/handover.rs`).
//!
//! ```text
//!    old process                                      new process
//!    1  opens as many new members, steered around
//!    2  starts the new process with their listeners   3  takes them: Group::from_env
//!    5  steers to the new members                     4  serves, and writes one byte: "ready"
//!    6  its own members leave, the last one first
//!    7  writes one byte: "I have left"                8  may add, retire and steer
//! ```
//!
//! The port never closes, and no listener is served by both processes. Until the byte of step 7 the
//! kernel's array has members of both, and the new process does not know all indexes: its `add`,
//! `retire`, `set_steering` and `hand_over` fail with `GroupError::PredecessorLeaving`. An end of
//! file without the byte means that the other process has died. If the new one dies, or is not
//! ready in time, the old one goes on serving. During the steps 1 to 6 changes in the old process
//! fail with `GroupError::HandingOver`.
//!
//! The listeners are passed by `LISTEN_FDS` and `LISTEN_FDNAMES`, as `sd_listen_fds(3)` describes,
//! together with a socket between the two processes. The variable `REUSEPORT_SOCKET` has the inode
//! number of that socket, and the new process compares it: so it knows that the listeners are the
//! old process's own, and not a service manager's. `LISTEN_PID` is not set.
//!
//! # 6. Steering
//!
//! A program can replace the hash for the whole group (`SO_ATTACH_REUSEPORT_CBPF`, for TCP since
//! 4.6). It is a few instructions of classic BPF. The kernel runs it once for each SYN, and it
//! returns an index.
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
//! - Indexes count the calls of `listen`, not of `bind`.
//!   `explain --claim the-program-returns-an-index`
//! - An index that no member has leaves the choice to the hash (in 5.3 already; not yet in 4.9).
//!   `explain --claim an-index-out-of-range-is-the-hash`
//! - A load that fails ends the program with 0. That is an index too: the first member gets every
//!   connection. A SYN carries no payload, so a program that loads from the payload, as one for UDP
//!   may, ends with 0. `explain --claim a-failing-load-is-index-0`
//! - Attaching a program needs no privilege. `explain --claim steering-needs-no-privilege`
//!
//! Steering by index is sound only while one process opens and closes all members: the sockets of
//! another process shift the indexes. So a joined `Group` cannot be steered, and a `Server` looks
//! at the kernel's list of listeners before each change (`Server::other_listeners`).
//!
//! **By CPU.** `Steering::Cpu` is a program that chooses the member of the CPU that handles the
//! SYN. With `SO_INCOMING_CPU` each member names its CPU, and no program is needed. Linux obeys it
//! since 6.2. `explain --claim incoming-cpu-is-obeyed`
//!
//! **A packet filter** (`SO_ATTACH_FILTER`) is not a steering program: it belongs to one socket and
//! drops packets, here SYNs. The client sends its SYN again after 1 s. Some kernels want
//! `CAP_NET_ADMIN` for it. `Server::retire` uses the filter as a second safeguard where it is
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
//! As many silent clients as there are threads stop the server. There are three remedies:
//!
//! - Handlers that never block.
//! - One **shared listener** (`GroupOptions::shared`): an idle thread accepts the next connection.
//!   `explain --claim a-shared-listener-feeds-the-idle` All threads then use one queue and lock.
//! - **Hand-off**: a thread that is blocked in its handler hands its *listener* to a spare thread.
//!   `explain --claim hand-off-serves-what-waits`
//!
//! `Group::spawn` hands off by default:
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
//! A quick handler costs two marks in memory, and no system call more than in the C program. The
//! monitor sleeps while no thread that holds a listener is in a handler.
//!
//! **The limit** is `GroupOptions::spare_threads(n)`, 512 by default: as many silent clients as
//! there are threads still stop the server. `Stats::starved` counts it. So a handler that reads
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
//! Each member has its own queue. `listen(fd, n)` bounds it at n, and Linux lets one more in.
//! `explain --claim a-backlog-of-n-queues-one-more`
//!
//! The kernel chooses the member by the hash, and then looks at its queue. If that queue is full,
//! the kernel drops the SYN without an answer, also if the other queues are empty. The client sends
//! it again after 1 s. `explain --claim overflow-costs-a-second`
//!
//! In older texts the client then waits twice as long each time. Since Linux 6.5 the first retries
//! are 1 s apart (`net.ipv4.tcp_syn_linear_timeouts`, 4 by default), and the doubling begins after
//! them. `explain --claim dropped-syns-come-every-second`
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
//! - Unlike a SYN, a datagram has a payload when the choice is made. A program may choose by it,
//!   for example by the connection id of QUIC. `explain --claim a-udp-program-sees-the-payload`
//! - When a socket closes, its queued datagrams are dropped, and neither side gets an error.
//!   `explain --claim closing-a-udp-socket-drops-in-silence`
//! - A member that calls `connect` gets the datagrams of its peer, and no others.
//!   `explain --claim a-connected-udp-socket-hears-its-peer`
//! - Since 6.13 it also leaves the group, and the indexes shift. A server that connects one more
//!   socket for each client then steers by indexes that change with every client.
//!   `explain --claim a-connected-udp-socket-leaves-the-group`
//!
//! A datagram that arrives during `close` is lost, even if the program has just emptied the queue.
//! So a member leaves in two steps. It connects *to itself*: its port is closed to all others from
//! then on, and the queued datagrams can still be read. Then it closes.
//! `explain --claim connected-to-itself-it-keeps-what-waits`
//!
//! On the wildcard address `connect` would change the address of the replies. There the group is
//! steered around the member instead. `tests/datagrams.rs` replaces members of both kinds under
//! load.

pub mod beyond;
pub mod pitfalls;
