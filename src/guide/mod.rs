//! How `SO_REUSEPORT` works, from the first call to the last connection. Documentation only.
//!
//! Texts on this subject contradict one another: some are old, some describe another kernel. So
//! most statements here end in the name of a test, such as
//! `explain --claim the-hash-spreads-evenly`. The command `reuseport explain --claim NAME` tests
//! the statement on *your* kernel and prints what it measured. With `--counter` it tests a case in
//! which the statement must be false: a measurement that cannot fail proves nothing.
//! `reuseport explain` tests all of them in a few seconds. Three claims need root, and say so.
//!
//! With `--isolated` it tests in a network namespace of its own (Linux), where the sysctls of the
//! network have the kernel's defaults: a claim that holds only there depends on the settings.
//!
//! A statement that a longer test proves names the file of that test. A statement without a test
//! names its source: a manual page, a commit of the kernel, or *measured*, which means once, on
//! Linux 6.18. The page [`beyond`] rests on documents only.
//!
//! 1. [What the option is](#1-what-the-option-is)
//! 2. [One call after another](#2-one-call-after-another)
//! 3. [Which listener gets the SYN](#3-which-listener-gets-the-syn)
//! 4. [Joining a group](#4-joining-a-group)
//! 5. [Leaving a group](#5-leaving-a-group)
//! 6. [Steering](traffic#6-steering)
//! 7. [One slow thread](traffic#7-one-slow-thread)
//! 8. [Backlog and overflow](traffic#8-backlog-and-overflow)
//! 9. [UDP](traffic#9-udp)
//! 10. [Other kernels](beyond#10-other-kernels)
//! 11. [eBPF](beyond#11-ebpf)
//! 12. [One machine and beyond](beyond#12-one-machine-and-beyond)
//! 13. [Pitfalls](pitfalls), on a page of its own
//!
//! # 1. What the option is
//!
//! A port belongs to one socket: a second `bind` fails with `EADDRINUSE`. `SO_REUSEPORT` lifts that
//! for sockets that all set it. On Linux (since 3.9: socket(7)), the sockets of one protocol,
//! address and port then form a **group**, and the kernel gives each new connection to one
//! **member**.
//!
//! A connection begins with a **handshake** of three packets: the client's SYN, the server's
//! SYN-ACK, the client's ACK. The kernel does this without the process. Then the connection is in
//! its listener's queue, which the **backlog** bounds, until the process calls `accept`. A
//! connection that is **reset** is aborted: the client's next `recv` fails with `ECONNRESET`.
//!
//! In this crate a `Listener` is one socket, a `Group` several on one port, and a `Server` a group
//! with its threads. These words are used for them:
//!
//! ```text
//!    member      one socket of a group; in a server, with its threads
//!    index       the place of a member in the kernel's array; when one leaves, the last takes its
//!    number      this crate's name for a member of a server: it stays while the member lives
//!    acceptor    the thread that accepts for a TCP member, and in the API that member's number
//!    receiver    the same for a UDP member
//!    exclusive   bound so that a second copy of the server is refused     chapter 4
//!    claim       a statement of this guide that `explain` tests
//!    steering    a BPF program chooses the member, in place of the hash   chapter 6
//!    hand-off    a blocked thread's listener goes to a spare thread       chapter 7
//! ```
//!
#![doc = include_str!("queues.svg")]
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
//! - `setsockopt` changes this one socket; `bind` looks at it.
//!   `explain --claim every-socket-needs-the-option`
//! - `bind` takes the port, or shares it: [which sockets may join](#4-joining-a-group) is decided
//!   here. `explain --claim a-second-program-joins-in-silence`
//! - `listen` makes the socket a member. A socket that is only bound gets no connection.
//!   `explain --claim membership-begins-at-listen`
//! - `accept` takes a connection from the queue of this member only.
//!   `explain --claim a-slow-thread-keeps-its-share-waiting`
//!
//! A second `listen` on a socket that listens changes the backlog, and the member keeps its index.
//! `explain --claim listen-again-keeps-the-place`
//!
//! A group has at most 32 768 members: `listen` of the next one fails with `ENOMEM` (measured).
//!
//! A program that ignores the result of `bind` may not notice that it failed: `listen` on a socket
//! without a port succeeds, on a port that the kernel picks.
//! `explain --claim a-failed-bind-may-go-unnoticed`
//!
//! # 3. Which listener gets the SYN
//!
//! Four values name a connection: two addresses and two ports. The kernel hashes this four-tuple
//! and scales the hash to the size of the group. A secret goes into the hash. The kernel draws it
//! when it first needs it, and mixes it with a value of the network namespace (`inet_ehashfn` in
//! `net/ipv4/inet_hashtables.c`): so a client cannot compute its member.
//!
#![doc = include_str!("hash.svg")]
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
//! a port. It is so since Linux 5.0 (commits d9fbc7f6431f and 0ee58dad5b06):
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
//! **The device separates groups too.** A socket that is bound to a network device
//! (`SO_BINDTODEVICE`) is not in the group of those that are not. Both groups match a SYN from that
//! device, and the more exact one does not win. On IPv4 the group of the newest listener gets all
//! connections, so one that is added can change which group that is. On IPv6 it is the group of the
//! oldest listener (measured).
//! `explain --claim a-bound-device-is-another-group`
//!
//! **The choice is made once, at the SYN** (since Linux 4.4: commit 079096f103fa). The kernel keeps
//! a *request* for the handshake, and the later packets belong to its listener:
//!
//! ```text
//!    client                      kernel                            listener B
//!      | -- SYN ------------------> | hash says B: a request of B's
//!      | <-------------- SYN-ACK -- |
//!      | -- ACK ------------------> | the request is found by its
//!      |                            | four-tuple, not by the hash  -> queue of B
//!      |                            |                                 accept on B
//! ```
//!
//! So a group may grow at any time: handshakes under way finish at the listener where they began.
//! `explain --claim adding-loses-no-handshake`
//!
//! SYN cookies are the exception. If the requests of a listener reach its backlog, the kernel keeps
//! no more of them, and packs into the sequence number of its SYN-ACK what it has to know
//! (`net.ipv4.tcp_syncookies`: 1, the default, at overflow; 2 always; 0 never). The client's ACK
//! brings that back, and the kernel chooses the member at the ACK: by the same hash or BPF program,
//! but by the group as it is then. `explain --claim a-cookie-chooses-at-the-ack`
//!
//! # 4. Joining a group
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
//! - All must belong to one user, so that another user cannot take a port's traffic.
//!   `explain --claim another-user-is-refused` (needs root)
//! - The user of a socket is its owner. At first that is the effective user at the time of
//!   `socket`; `fchown(2)` on the descriptor changes it. So root can open members for a user that
//!   has to add more of them later. `explain --claim fchown-changes-who-may-join` (needs root)
//! - Any process of that user may join. A second copy of a server, started by mistake, gets half of
//!   the connections, and no error is reported. `reuseport inspect` shows it afterwards.
//!   `explain --claim a-second-program-joins-in-silence`
//! - With `SO_REUSEADDR` on both and neither of them listening, `bind` succeeds without
//!   `SO_REUSEPORT` too. `listen` of the second then fails with `EADDRINUSE`. So check the result
//!   of both calls. `explain --claim with-reuseaddr-listen-refuses`
//! - A program may bind the port with the option and *connect* from it, for example to open a way
//!   through a NAT. Such a socket does not listen, so it is no member, and takes no connection.
//!   `explain --claim membership-begins-at-listen`
//! - Each network namespace has ports of its own: containers with their own network never meet
//!   in a group. `explain --claim a-namespace-has-ports-of-its-own` (needs root)
//!
//! A second copy is the most common accident with this option. `Group` avoids it: its first socket
//! binds *and listens* without the option. The kernel refuses that if another socket listens there.
//! Then the first socket sets the option, and the other members bind. From then on a second `Group`
//! is refused, but a process of the same user that sets the option from the start can join.
//! `explain --claim the-claim-keeps-others-out` `GroupOptions::join(true)` leaves that out, for
//! processes that share a port on purpose. The first socket sets `SO_REUSEADDR`. So connections in
//! `TIME_WAIT` refuse it only if their server had set `SO_REUSEPORT` alone, or neither option (see
//! below). In the first case `Group` binds with the option, compares the kernel's list of listeners
//! before and after `listen`, and gives way to another listener.
//!
//! **What else holds a port.** Not only listeners refuse a `bind`:
//!
//! - A server that closes connections first leaves them in `TIME_WAIT` for 60 s, with its options.
//!   They refuse a server that sets only the other one of `SO_REUSEADDR` and `SO_REUSEPORT`.
//!   `explain --claim leftovers-want-the-same-option`
//! - If that server had set neither option, they refuse every `bind` for that minute.
//!   `explain --claim leftovers-without-options-refuse-all`
//! - An outgoing connection that has the port as its *local* port, on a socket without the two
//!   options, refuses every `bind` to its address or to the wildcard, with both options too. Keep a
//!   server's port out of `net.ipv4.ip_local_port_range`, or reserve it in
//!   `net.ipv4.ip_local_reserved_ports` (see ip-sysctl.rst in the kernel's documentation).
//!   `explain --claim an-outgoing-connection-takes-its-port`
//!
//! **Port 0** asks the kernel for a free port. For TCP the kernel never returns a port in use, not
//! even to a socket that could share it; for UDP it may. For TCP that holds since commit
//! 0643ee4fd1b7 (2016), and not with `net.ipv4.ip_autobind_reuse=1`.
//! `explain --claim port-0-never-collides`
//!
//! # 5. Leaving a group
//!
//! When a listener closes, or is shut down, the kernel resets the connections in its queue, which
//! the clients regard as established. It also forgets the handshakes under way: a client whose ACK
//! was on its way is reset when that arrives, and one that has not received the SYN-ACK sends its
//! SYN again, which reaches another member. Other members could serve the first two, and do not get
//! them. `explain --claim close-resets-the-queue` (For the handshakes see the counter-case of
//! `explain --claim adding-loses-no-handshake`.)
//!
//! The sysctl `net.ipv4.tcp_migrate_req` moves most of them to another member instead. It is there
//! since Linux 5.14, off by default, and root sets it for a network namespace (ip-sysctl.rst). The
//! hash chooses that member, also where a classic BPF program steers the group. Before commit
//! 3864c6ba1e04 (April 2026, and stable trees) a thread that slept in `accept` or `poll` was not
//! woken for what had moved to it.
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
#![doc = include_str!("leaving.svg")]
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
//! and 3 it works on loopback, where a handshake takes no time, and fails on a real network
//! (`tests/delay.rs`).
//!
//! If a SYN-ACK or the client's ACK is lost, the handshake takes 1 s longer, because the kernel
//! sends the SYN-ACK again after 1 s. A grace period of 1 s may then be too short. The default of
//! 3 s is enough for one lost packet (measured: 0 of 40 were lost). With `TCP_DEFER_ACCEPT` a
//! connected client stays in the handshake until it sends data, or the option's time has passed.
//! Set the option to 0 before the member leaves; `retire` does.
//!
//! If the queue cannot be emptied within the grace period, because no descriptor or no thread is
//! left, `retire` fails with `GroupError::StillQueued`. The member stays, steered around, and a
//! later `retire` goes on.
//!
//! **When all members leave** (`Server::stop`), there is no other member to steer to. A packet
//! filter on each listener drops the SYNs that still come. The handshakes under way and the queues
//! are served, and then all listeners are shut down, the last one first. A client whose SYN was
//! dropped sends it again after 1 s, and finds the next server, or `ECONNREFUSED`. On recent
//! kernels the filter takes `CAP_NET_ADMIN` ([chapter 6](traffic#6-steering)). Without it, the
//! listeners are bound to an interface that does not exist (`SO_BINDTOIFINDEX`, without a privilege
//! since Linux 5.7): new clients are refused, and handshakes under way, which keep the interface
//! they began with, go on (`tests/delay.rs`).
//!
//! **In a joined group** the indexes are not known, because other processes open and close members.
//! So there is no steering, and only the packet filter turns clients away from a member that
//! leaves, or that interface: the member has no route to answer a SYN, and the client sends it
//! again. `hand_over` fails with `GroupError::JoinedGroup`. `add`, `retire` and `stop` work as
//! above. A group that another process has joined although it was bound exclusively is treated in
//! the same way (`Server::other_listeners`).
//!
//! **Which calls end a listener:**
//!
//! - `close` does not wake a thread that is blocked in `accept`: the call goes on, the port stays
//!   taken, and that thread accepts the next connection.
//!   `explain --claim close-leaves-accept-asleep`
//! - `close` leaves the socket in the group while a duplicate of the descriptor is open, for
//!   example in a child process. Its share of the connections is queued there, and not accepted.
//!   So every socket of this crate is `CLOEXEC`. `explain --claim a-duplicate-keeps-the-member`
//! - `shutdown` with `SHUT_RD` wakes a blocked `accept`, and ends the listener for all duplicates.
//!   It resets the queue as `close` does, so the queue has to be empty before.
//!   `explain --claim shutdown-wakes-accept`
//! - `connect` with the family `AF_UNSPEC` succeeds on a listener, and ends it like `shutdown`.
//!   `explain --claim connect-to-nothing-ends-a-listener`
//!
//! **A restart** is the same with two processes. `Server::hand_over` starts the new one, which
//! calls `Group::from_env`; `HandOver::leave` ends the old members (`tests/handover.rs`). UDP
//! groups are handed over alike, and several groups at once (`tests/handover_udp.rs`).
//!
#![doc = include_str!("restart.svg")]
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
//! ready in time, the old one goes on serving. If the new one is killed after step 5, the
//! connections that it has accepted end with it. Those in its queues stay: the old process has kept
//! the new listeners open, notices the death in `leave`, and serves them (`tests/handover.rs`).
//! During the steps 1 to 6 changes in the old process fail with `GroupError::HandingOver`.
//!
//! The listeners are passed by `LISTEN_FDS` and `LISTEN_FDNAMES`, as `sd_listen_fds(3)` describes,
//! together with a socket between the two processes. The variable `REUSEPORT_SOCKET` has the inode
//! number of that socket, and the new process compares it: so it knows that the listeners are the
//! old process's own, and not a service manager's. `LISTEN_PID` is not set.

pub mod beyond;
pub mod pitfalls;
pub mod traffic;
