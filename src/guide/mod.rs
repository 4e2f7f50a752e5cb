//! How `SO_REUSEPORT` works, from the first call to the last connection. Documentation only.
//!
//! Texts on this subject contradict one another: some are old, some speak of another kernel. So
//! most sentences here end in a name, such as `explain --claim the-hash-spreads-evenly`. That is a
//! test. `reuseport explain --claim NAME` tries the sentence on *your* kernel, and tells what it
//! measured; with `--counter` it tries a case in which the sentence must turn out false, for a
//! measurement that cannot fail proves nothing. `reuseport explain` tries them all in a few
//! seconds. No privilege is needed but for one claim, which says so.
//!
//! What is proved by a longer test names its file. Numbers of versions are from manual pages and
//! from the kernel's sources. Two chapters, [other kernels](#10-other-kernels) and [one machine and
//! beyond](#11-one-machine-and-beyond), rest on documents alone.
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
//! 10. [Other kernels](#10-other-kernels)
//! 11. [One machine and beyond](#11-one-machine-and-beyond)
//! 12. [Pitfalls](pitfalls), a page of its own
//!
//! # 1. What the option is
//!
//! A port belongs to one socket: whoever binds it second gets `EADDRINUSE`. `SO_REUSEPORT` lifts
//! that for sockets that all ask for it. On Linux (since 3.9), the sockets of one protocol, address
//! and port then form a **group**, and the kernel gives each new connection to one **member**.
//!
//! A connection begins with a **handshake** of three packets: the client's SYN, the server's SYN
//! and ACK in one, the client's ACK. The kernel does this alone; then the connection waits in its
//! listener's queue, which the **backlog** bounds, until the program calls `accept`. One that is
//! **reset** is broken off: the client's next `recv` fails with `ECONNRESET`.
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
//!    whoever is idle takes the next      accept  accept  accept
//! ```
//!
//! On the left, one lock, one queue, and whoever is idle comes next. On the right, nothing is
//! shared, and each connection is dealt out *before* anybody knows who will be idle. Both sides of
//! this trade recur in every chapter: what is not shared needs no lock, and what is not shared
//! cannot be helped out with.
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
//! Each member makes these calls for itself, each thread on a socket of its own. `Listener::bind`
//! is the same four calls, and `tests/mirror.rs` holds a C program and a Rust program side by side.
//!
//! - `setsockopt` is a statement about this one socket, and nothing happens yet.
//! - `bind` takes the port, or shares it: [who may join](#4-who-may-join) is decided here.
//! - `listen` makes it a member. Bound alone it gets no connection.
//!   `explain --claim membership-begins-at-listen`
//! - `accept` takes what waits in the queue of this member, and of no other.
//!
//! Two things follow that few expect. To call `listen` again on a socket that listens is allowed:
//! it changes the backlog, and the member keeps its place.
//! `explain --claim listen-again-keeps-the-place`
//!
//! And a program that does not look at what `bind` returned may never notice that it failed:
//! `listen` on a socket without a port succeeds, on a port that the kernel picks.
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
//! It is a lottery all the same, not a rota. With *c* connections on *n* members a member's share
//! is off by about `sqrt((n - 1) / c)`: by 45 % for ten connections on three members, by 1.4 % for
//! ten thousand. Few and long-lived connections are spread badly, and stay so.
//!
//! The same four-tuple comes to the same member, as long as the group stays as it is.
//! `explain --claim same-four-tuple-same-listener`
//!
//! That is no session affinity: a client's next connection has another source port, which is
//! another four-tuple.
//!
//! **Before the hash comes the address.** The kernel first looks for listeners on the very address,
//! and only then for those on the wildcard. They are different groups, although they share a port:
//!
//! ```text
//!    SYN to 127.0.0.1:3000
//!        |
//!        +--> group of 127.0.0.1:3000   if there is one, it gets all
//!        +--> group of   0.0.0.0:3000   otherwise
//!        +--> group of      [::]:3000   otherwise, if it takes IPv4 too
//! ```
//!
//! - A listener on 127.0.0.1 takes all its connections from one on 0.0.0.0.
//!   `explain --claim a-specific-address-beats-the-wildcard`
//! - A listener on 0.0.0.0 takes all IPv4 from one on `[::]` that speaks both.
//!   `explain --claim ipv4-wildcard-beats-dual-stack`
//!
//! **The choice is made once, at the SYN.** What follows belongs to that listener:
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
//! So a group may grow at any moment: handshakes under way finish where they began.
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
//! - All must belong to one user: the effective one at the time of `socket`. This keeps others from
//!   stealing a port's traffic. `explain --claim another-user-is-refused` (takes root to try)
//! - Within one user nothing is asked. A second copy of a server, started by mistake, joins, takes
//!   half of the connections, and no error is reported anywhere.
//!   `explain --claim a-second-program-joins-in-silence`
//!
//! The last is the most common accident with this option. There is a way round it, which `Group`
//! goes: the first socket binds *and listens* without the option, so that anybody who is there
//! refuses it and anybody who comes is refused. Then it sets the option, and its siblings come in.
//! So may, from then on, whoever joins on purpose. `explain --claim the-claim-keeps-others-out`
//!
//! **Port 0** asks the kernel for a free port. For TCP it never gives one in use, not even to a
//! socket that would be allowed to share it; for UDP it may.
//! `explain --claim port-0-never-collides`
//!
//! # 5. When one leaves
//!
//! A listener that closes, or is shut down, takes with it what is its own: the connections in its
//! queue, which the clients believe to be established, and the handshakes under way. They are
//! reset, although other members could serve them. `explain --claim close-resets-the-queue` (For
//! the handshakes see the counter-case of `explain --claim adding-loses-no-handshake`.)
//!
//! The sysctl `net.ipv4.tcp_migrate_req` (5.14 and later, off by default, set by root) moves them
//! to a sibling instead, with few exceptions.
//!
//! The members stand in an array, and the last one fills the hole.
//! `explain --claim the-last-moves-into-the-hole`
//!
//! ```text
//!    index        0    1    2    3                        0    1    2
//!    member       A    B    C    D      B closes          A    D    C
//!                                       E joins           A    D    C    E
//! ```
//!
//! **To lose nothing, leave in this order** (what `Server::retire` does; `tests/retire.rs`
//! replaces members under load, `tests/delay.rs` does over 20 and 80 ms of round-trip time):
//!
//! ```text
//!    1  steer new SYNs to the others          a program, chapter 6
//!    2  go on accepting                       handshakes begun before need a round trip more
//!    3  wait until they are done              the kernel lists them
//!    4  empty the queue
//!    5  close
//!    6  steer as before                       the last has moved into the hole
//! ```
//!
//! Without step 1 new connections arrive between the last `accept` and the `close`. Without steps 2
//! and 3 it works on loopback, where a handshake takes no time, and fails on a real network.
//!
//! **To wake a thread that is blocked in `accept`**, close is no help: the call sleeps on, the port
//! stays taken, and the next connection is accepted by a thread that should be gone.
//! `explain --claim close-leaves-accept-asleep`
//!
//! `shutdown` with `SHUT_RD` wakes it. It resets the queue just as a close does, so it is for
//! listeners that are drained. `explain --claim shutdown-wakes-accept`
//!
//! # 6. Steering
//!
//! A program of the group can choose in the hash's place (`SO_ATTACH_REUSEPORT_CBPF`, for TCP since
//! 4.6). It is a few instructions of classic BPF, run once for each SYN, and returns an index.
//!
#![cfg_attr(all(feature = "std", linux_kernel), doc = "```")]
#![cfg_attr(not(all(feature = "std", linux_kernel)), doc = "```ignore")]
//! use reuseport::{Group, Listener, steering};
//!
//! let members = Group::bind(([127, 0, 0, 1], 0), 4)?.into_sockets();
//! members[0].attach_program(&steering::all_but(4, 1))?; // any member but B, at random: B can leave
//! members[0].detach_program()?; //                      the hash again
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! ```
//!
//! - Indexes count the calls of `listen`, not of `bind`.
//!   `explain --claim the-program-returns-an-index`
//! - An index that no member has leaves the choice to the hash (in 5.3 already; not yet in 4.9).
//!   `explain --claim an-index-out-of-range-is-the-hash`
//! - A load that fails ends the program with 0. That is an index, too: the first member gets
//!   everything. A SYN carries no payload, so a program that looks at the payload, as one for UDP
//!   may, does just that. `explain --claim a-failing-load-is-index-0`
//! - Programs take no privilege. `explain --claim steering-needs-no-privilege`
//!
//! Index steering is sound only while one owner opens and closes all members. If a stranger joins
//! or leaves, the indexes shift and nobody is told; a joined `Group` refuses it for that reason.
//!
//! **By CPU.** The processor that handles a SYN can choose the member that runs there:
//! `Steering::Cpu` is such a program. `SO_INCOMING_CPU` says the same without one: each member
//! names its CPU. Linux obeys since 6.2. `explain --claim incoming-cpu-is-obeyed`
//!
//! **A packet filter** (`SO_ATTACH_FILTER`) is another thing: it belongs to one socket and drops
//! what it does not like, here SYNs. The client sends its SYN again after a second. Some kernels
//! want `CAP_NET_ADMIN` for it. A retirement here uses the filter where it is allowed, as a second
//! safeguard, and does without it where it is not. `explain --claim leaving-needs-no-privilege`
//!
//! # 7. One slow thread
//!
//! The hash does not know who is busy. Let one of four acceptors take 100 ms for something, and a
//! quarter of all clients wait, beside three idle threads.
//! `explain --claim a-slow-thread-keeps-its-share-waiting`
//!
//! ```text
//!    A  [. . . . .]  busy         five connections wait here,
//!    B  [         ]  idle         and nobody else may take them
//!    C  [         ]  idle
//! ```
//!
//! Averages hide this, the slowest percent shows it. There are three ways out: handlers that never
//! block; one shared listener (`GroupOptions::shared`), where whoever is idle takes the next
//! (`explain --claim a-shared-listener-feeds-the-idle`); or **stealing**: each acceptor waits for
//! its own listener and, while it is idle, also for those of its siblings.
//! `explain --claim stealing-serves-what-waits`
//!
//! Stealing rests on epoll. Each acceptor has an epoll of its own, with every listener in it,
//! marked `EPOLLEXCLUSIVE`. A listener wakes one sleeper: the first that was registered and is
//! asleep. So each listener is registered with its owner first, and with siblings afterwards: the
//! owner is asked first, an idle sibling is next, and nobody is woken for nothing.
//! `explain --claim the-first-registered-epoll-wakes`
//!
//! The price is one system call more for each connection. `tests/handoff.rs` holds an owner up, and
//! sees every connection served by its siblings.
//!
//! # 8. Backlog and overflow
//!
//! Each member has its own queue. `listen(fd, n)` bounds it at n, and Linux lets one more in.
//! `explain --claim a-backlog-of-n-queues-one-more`
//!
//! The hash chooses the member before it looks at the queue. If that is full, the SYN is dropped
//! without a word, be the other queues as empty as they may. The client sends it again after a
//! second. `explain --claim overflow-costs-a-second`
//!
//! Older texts say that it then waits twice as long each time. Since Linux 6.5 the first retries
//! are a second apart (`net.ipv4.tcp_syn_linear_timeouts`, 4 by default), and the doubling begins
//! after them. `explain --claim dropped-syns-come-every-second`
//!
//! Nothing is gained by a short queue. Latencies of almost exactly 1 s or 2 s are its signature;
//! `nstat -az TcpExtListenOverflows` counts the drops, and `Listener::queue` tells how many wait.
//!
//! **What accept says.** The queue holds connections, whatever has become of them since:
//!
//! - A client that has reset its connection meanwhile is accepted like any other. The first `recv`
//!   says `ECONNRESET`. `explain --claim a-reset-client-is-still-accepted`
//! - Where no descriptor is left (`EMFILE`), the connection stays in the queue. A loop that goes on
//!   at once will spin; one that gives up leaves a listener that nobody serves.
//!   `explain --claim without-descriptors-it-stays-queued`
//! - The descriptor is reserved *before* the queue is looked at: a blocking `accept` fails even if
//!   nobody is there. So a blocking loop spins as well.
//!   `explain --claim without-descriptors-accept-never-waits`
//!
//! The remedy is a pause. [`Error::accept_action`](crate::Error::accept_action) sorts the errors of `accept` into
//! five kinds, by what a loop should do about each.
//!
//! # 9. UDP
//!
//! There is no connection, so the choice is made anew for every datagram. The hash is of the same
//! four values: they name a **flow**.
//!
//! - A UDP socket is a member from `bind` on; there is no `listen`. Until a late sibling reads, its
//!   share waits. `explain --claim a-udp-socket-joins-at-bind`
//! - A flow stays with its member while the group stays as it is.
//!   `explain --claim a-udp-flow-stays`
//! - With every change of the group flows move, also among members that were there before and stay:
//!   each index now stands for another range of the hash. For TCP that is harmless, for UDP with a
//!   state per flow (QUIC, DTLS, games) it is not.
//!   `explain --claim adding-a-udp-member-moves-flows`
//! - Unlike a SYN, a datagram has a payload when the choice is made: a program may choose by it, by
//!   a QUIC connection's number for one. `explain --claim a-udp-program-sees-the-payload`
//! - What waits in a socket that closes is dropped, and neither side is told.
//!   `explain --claim closing-a-udp-socket-drops-in-silence`
//! - A member that calls `connect` gets what its peer sends, and nothing else.
//!   `explain --claim a-connected-udp-socket-hears-its-peer`
//! - Since 6.13 it leaves the group with that, and the indexes shift: a server that has one
//!   listening socket and connects one more for each client steers by numbers that change with
//!   every client. `explain --claim a-connected-udp-socket-leaves-the-group`
//!
//! What reaches a socket while it is being closed is lost, and now and then something does, though
//! the program has just read the last. So a member leaves in two steps. It connects *to itself*: to
//! all others its port is closed from then on, and what waits can still be read. Then it closes.
//! `explain --claim connected-to-itself-it-keeps-what-waits`
//!
//! On the wildcard address, where `connect` would change the address it answers from, the group is
//! steered around it instead. `tests/datagrams.rs` replaces members of both kinds under load.
//!
//! # 10. Other kernels
//!
//! From their documents and sources. This crate is type-checked for the BSDs and macOS, not run
//! there; `explain` says there which claims it could not try.
//!
//! | kernel | several listeners on one port |
//! |---|---|
//! | Linux 3.9, Android | balances, as told here |
//! | FreeBSD 12 | balances with `SO_REUSEPORT_LB`, up to 256 members; joins at `bind` |
//! | FreeBSD, plain `SO_REUSEPORT` | allows the bind; one socket gets everything |
//! | `DragonFly` 3.6 | balances with `SO_REUSEPORT`; a listener that closes gives its queue away |
//! | Solaris 11.4 | balances, unless `SO_REUSEADDR` is set as well |
//! | AIX 7.2.5 | balances |
//! | macOS, iOS | allow the bind; one socket gets everything |
//! | NetBSD, OpenBSD | allow the bind; one socket gets everything |
//! | Windows | has no such option; `SO_REUSEADDR` there lets another program take the port |
//!
//! On macOS which socket gets everything depends on the address: sources of xnu say the newest for
//! a specific address, the oldest for the wildcard. So a group there seems to work, until one
//! thread does all. [`BALANCES`](crate::BALANCES) is `false` for such kernels, and `Group::bind`
//! refuses more than one member, unless they share one listener.
//!
//! # 11. One machine and beyond
//!
//! A group spreads connections among threads. Something else spreads them among machines, often by
//! the same idea. Each tier hashes for itself, and each has its own way to lose connections.
//!
//! ```text
//!    clients --> routers, ECMP --> balancers --> machines --> members of a group
//!                hash of flow      hash + table                hash of four-tuple
//! ```
//!
//! **ECMP.** A router with several next hops hashes each flow to one of them, and remembers
//! nothing. Take a machine away, and flows of *other* machines may move too, unless the router
//! hashes consistently. A flow that moves meets a machine that does not know it, and is reset.
//! Nothing that the machine does can help. So where routers alone stand in front, members may come
//! and go, and machines should seldom: withdraw the route, go on serving while flows still arrive,
//! then stop the group; who was moved is lost. That is why another tier often stands in between.
//!
//! **Balancers with a table.** IPVS and Katran remember which machine a connection went to. Weight
//! 0 ends the new ones and leaves the established ones where they are: `ipvsadm(8)` says so, and so
//! does Katran's USAGE.md, there unless `LRU_BYPASS` is set. Katran hashes consistently besides, so
//! that one balancer can take over for another. A group behind either goes out of service from the
//! outside to the inside:
//!
//! ```text
//!    1  balancer: weight 0                   no new connections, once it has heard
//!    2  machine: wait, and accept            SYNs under way still come
//!    3  group: stop                          handshakes, queue, handlers
//!    4  balancer: remove the machine         when its connections are over
//! ```
//!
//! The other way round, with the group first, every SYN until the next health check meets a closed
//! port. Restarts on one machine need none of this: `Server::hand_over` changes the process, and
//! the port never closes (`tests/handover.rs`).
//!
//! **Health checks** are connections like others: each is hashed to one member. If one of eight
//! members is stuck, one check of eight fails. Few checkers take that for an outage.
//!
//! **Whose four-tuple?** Behind a balancer that passes packets on (IPVS, Katran), the kernel sees
//! the client's own address. Behind a proxy it sees the proxy's: many TCP connections still differ
//! in their ports. But a proxy that keeps a few connections open for all its clients, or that sends
//! all UDP from one socket, leaves the hash little to choose from.

pub mod pitfalls;
