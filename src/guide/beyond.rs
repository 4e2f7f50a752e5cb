//! Chapters 10 to 12 of [the guide](super): other kernels, eBPF, and several machines.
//!
//! They rest on documents and sources, not on tests.
//!
//! # 10. Other kernels
//!
//! The crate is type-checked for the BSDs and macOS, not run there; `explain` lists there the
//! claims that it could not test.
//!
//! | kernel | several listeners on one port |
//! |---|---|
//! | Linux 3.9, Android | balances, as described here |
//! | FreeBSD 12 | balances with `SO_REUSEPORT_LB`, up to 256 members |
//! | FreeBSD, plain `SO_REUSEPORT` | allows the bind; one socket gets all connections |
//! | `DragonFly` 3.6 | balances with `SO_REUSEPORT` |
//! | Solaris 11.4 | balances, unless `SO_REUSEADDR` is set as well |
//! | AIX 7.2.5 | balances |
//! | macOS, iOS | allow the bind; one socket gets all connections |
//! | NetBSD, OpenBSD | allow the bind; one socket gets all connections |
//! | Windows | has no such option; `SO_REUSEADDR` there lets another program take the port |
//!
//! (Sources: FreeBSD review D11003; sephe's `reuseport_ext.txt` for `DragonFly`; libuv pull request
//! 4407 for AIX and issue 4732 for Solaris; Microsoft's *Using SO\_REUSEADDR and
//! SO\_EXCLUSIVEADDRUSE*.)
//!
//! On macOS the address decides which socket gets all connections: by the sources of xnu the newest
//! for a specific address, the oldest for the wildcard. [`BALANCES`](crate::BALANCES) is `false`
//! for such kernels, and `Group::bind` refuses more than one member, unless they share one
//! listener.
//!
//! # 11. eBPF
//!
//! The kernel runs three kinds of program where it looks for a socket:
//!
//! ```text
//!    SYN
//!     |
//!     v
//!    sk_lookup                       may name any socket, whatever its address and port
//!     |
//!     v
//!    exact address, then wildcard    finds a group
//!     |
//!     v
//!    a program of the group          classic BPF returns an index,
//!     |                              eBPF may name a socket of a map
//!     v
//!    member
//! ```
//!
//! | program | since Linux | privilege | what it adds |
//! |---|---|---|---|
//! | classic BPF, `SO_ATTACH_REUSEPORT_CBPF` | 4.5 UDP, 4.6 TCP | none | an index |
//! | eBPF, `SO_ATTACH_REUSEPORT_EBPF` | 4.5 UDP, 4.6 TCP | `CAP_BPF` | maps: a changing index |
//! | `BPF_PROG_TYPE_SK_REUSEPORT` | 4.19 | `CAP_BPF` | a socket out of a sockarray |
//! | the same, `SELECT_OR_MIGRATE` | 5.14 | `CAP_BPF` | a new member for what would be reset |
//! | `BPF_PROG_TYPE_SK_LOOKUP` | 5.9 | `CAP_BPF`, `CAP_NET_ADMIN` | one socket for many addresses |
//!
//! (Sources: socket(7), bpf-helpers(7), capabilities(7); commits 2dbb9b9e6df6 and d5e4ddaeb6ab;
//! Documentation/bpf/prog\_sk\_lookup.rst. Before Linux 5.8, `CAP_SYS_ADMIN` takes the place of
//! `CAP_BPF`. The second row needs none where `kernel.unprivileged_bpf_disabled` is 0.)
//!
//! A **sockarray** (`BPF_MAP_TYPE_REUSEPORT_SOCKARRAY`) holds sockets by a key that the program
//! chooses. So a departure shifts no index, and the sockets may belong to several processes. A
//! program of the type `SELECT_OR_MIGRATE` is also asked when a listener closes, for each
//! connection in its queue, and later for each of its handshakes, when the ACK arrives or the
//! SYN-ACK is due again: it can give them to another member.
//!
//! **sk\_lookup** belongs to a network namespace, and runs before the kernel looks for a listener.
//! It can give a range of ports or addresses to one socket. If that socket is a member of a group,
//! the kernel then chooses within the group, unless the program forbids it.
//!
//! This crate uses classic BPF alone, which every user may attach. The price is that an index is
//! all a program can return: so the process has to know the kernel's order, and to follow it. With
//! the privileges, udpgrm and nginx (`quic_bpf`) show what eBPF makes of it.
//!
//! # 12. One machine and beyond
//!
//! A group spreads connections among threads. Routers and balancers spread them among machines,
//! often by a hash too. Each tier has its own way to lose connections.
//!
//! ```text
//!    clients --> routers, ECMP --> balancers --> machines --> members of a group
//!                hash of flow      hash + table                hash of four-tuple
//! ```
//!
//! **ECMP.** A router with several next hops hashes each flow to one of them, and keeps no table.
//! When a machine is removed, flows of *other* machines may move too, unless the router hashes
//! consistently. A flow that moves reaches a machine that does not know it, and is reset. The
//! machine cannot prevent that. So with routers only, members may be replaced at any time, and
//! machines rarely: withdraw the route, serve while flows still arrive, then stop the group. Flows
//! that have moved are lost. For that reason another tier often stands in between.
//!
//! **Balancers with a table.** IPVS and Katran remember which machine has a connection. Weight 0
//! ends new connections and leaves established ones where they are: see `ipvsadm(8)`, and Katran's
//! USAGE.md (unless `LRU_BYPASS` is set). A *persistent* service of IPVS goes on sending the new
//! connections of known clients there, unless `net.ipv4.vs.expire_quiescent_template` is set
//! (ipvs-sysctl.rst). Katran also hashes consistently, so that one balancer can
//! take over from another. A group behind either is taken out of service from the outside:
//!
//! ```text
//!    1  balancer: weight 0                   no new connections, once it has the new weight
//!    2  machine: wait, and accept            SYNs under way still come
//!    3  group: stop                          handshakes, queue, handlers
//!    4  balancer: remove the machine         when its connections are over
//! ```
//!
//! If the group is stopped first, clients are refused until the next health check. A restart on one
//! machine needs none of this: `Server::hand_over` changes the process, and the port never closes.
//!
//! **Health checks** are connections like others: each is hashed to one member. If one of eight
//! members is stuck, one check of eight fails, and few checkers treat that as an outage.
//!
//! **The four-tuple behind a balancer.** Behind a balancer that forwards packets (IPVS, Katran),
//! the kernel sees the client's own address. Behind a proxy it sees the proxy's: many TCP
//! connections still differ in their ports. A proxy that keeps few connections for all its clients,
//! or sends all UDP from one socket, has too few four-tuples for an even spread.
