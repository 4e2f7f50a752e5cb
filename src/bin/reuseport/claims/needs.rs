//! What the claims need of the machine: a claim is judged only where it can be tried.
//!
//! The table in `mod.rs` names the needs of each claim. `explain` looks at all of them once, before
//! it tries the first claim.

#[cfg(linux_kernel)]
use super::look::look;
use super::{Claim, Seen, Snag, Tried};

/// A property of the machine or of its set-up.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[cfg_attr(not(linux_kernel), allow(dead_code))] // the claims that name them are Linux's
pub(crate) enum Need {
    /// Traffic over the loopback. Every claim needs it whose needs in the table do not include
    /// `NoTraffic`.
    Loopback,
    /// Not even that: no client sends anything.
    NoTraffic,
    /// IPv6 sockets.
    Ipv6,
    /// `SO_ATTACH_REUSEPORT_CBPF`.
    Steering,
    /// The path of this program, to start it once more: `/proc/self/exe`.
    Program,
    /// Threads.
    Threads,
    /// `/proc/self/task`, which shows whether a thread sleeps.
    Tasks,
    /// `sched_setaffinity(2)`.
    Affinity,
    /// The right to act as another user.
    OtherUser,
    /// The right of root to give up its privileges; others have none.
    NoPrivilege,
    /// A queue for more than one connection (`net.core.somaxconn`).
    Queue,
    /// Handshakes that the kernel remembers: no SYN cookies (`net.ipv4.tcp_syncookies`).
    Requests,
    /// SYN cookies where the kernel has no room for handshakes (`net.ipv4.tcp_syncookies`).
    Cookies,
    /// A queue that stays with its listener (`net.ipv4.tcp_migrate_req`).
    NoMigration,
    /// A SYN that is sent again after 1 s each time (`net.ipv4.tcp_syn_linear_timeouts`).
    LinearSyns,
    /// 32 ports in a row among which a socket may choose (`net.ipv4.ip_local_port_range`).
    PortRange,
    /// Port 0 does not reuse ports (`net.ipv4.ip_autobind_reuse`).
    NoAutobindReuse,
    /// A kernel of this version or later. Stable trees have backports: see [`State::Doubtful`].
    Linux(u32, u32),
}

/// The state of a need: met, missing, or in doubt.
#[cfg_attr(not(linux_kernel), allow(dead_code))] // there every need is
pub(crate) enum State {
    Met,
    /// The look gives no answer. The claim is tried; where the outcome is not the expected one, the
    /// reason here is given instead of a verdict.
    Doubtful(String),
    Missing(String),
}

/// The result of the look at the start.
pub(crate) struct Setup(Vec<(Need, State)>);

impl Setup {
    /// Looks at what these claims need, each need once.
    pub(crate) fn look<'a>(claims: impl Iterator<Item = &'a Claim>, counter: bool) -> Setup {
        let mut known: Vec<(Need, State)> = Vec::new();
        for need in claims.flat_map(|claim| claim.all_needs(counter)) {
            if known.iter().all(|(known, _)| *known != need) {
                known.push((need, look(need)));
            }
        }
        Setup(known)
    }

    fn state(&self, need: Need) -> &State {
        let known = self.0.iter().find(|(known, _)| *known == need);
        known.map_or(&State::Met, |(_, state)| state)
    }

    /// Tries the claim or its counter-case, if this machine lets it.
    pub(crate) fn try_claim(&self, claim: &Claim, counter: bool) -> Tried {
        let mut doubt = None;
        for need in claim.all_needs(counter) {
            match self.state(need) {
                State::Met => {}
                State::Doubtful(why) => doubt = doubt.or(Some(why)),
                State::Missing(why) => return Err(Snag::NotHere(why.clone())),
            }
        }
        match ((claim.try_it)(counter), doubt) {
            (Ok(Seen { holds, what }), Some(why)) if holds == counter => {
                Err(Snag::NotHere(format!("{why} ({what})")))
            }
            (tried, _) => tried,
        }
    }
}

impl Claim {
    /// The needs of the claim, or of its counter-case.
    fn all_needs(&self, counter: bool) -> impl Iterator<Item = Need> + use<> {
        let more: &'static [Need] = if counter { self.counter_needs } else { &[] };
        let needs = self.needs;
        let traffic = !needs.contains(&Need::NoTraffic);
        let first = traffic.then_some(Need::Loopback);
        first.into_iter().chain(needs.iter().chain(more).copied())
    }
}

/// On other systems no claim has a need of its own, and the loopback is taken for granted.
#[cfg(not(linux_kernel))]
fn look(_: Need) -> State {
    State::Met
}

#[cfg(all(test, linux_kernel))]
mod tests {
    use super::*;

    fn claim(needs: &'static [Need], try_it: fn(bool) -> Tried) -> Claim {
        let (name, chapter, says, counter) = ("a_claim", "", "", "");
        let counter_needs = &[Need::Queue];
        Claim {
            name,
            chapter,
            says,
            counter,
            needs,
            counter_needs,
            try_it,
        }
    }

    fn outcome(needs: &'static [Need], state: State, holds: bool, counter: bool) -> String {
        let try_it = if holds { always_holds } else { never_holds };
        let setup = Setup(vec![(Need::Queue, state)]);
        match setup.try_claim(&claim(needs, try_it), counter) {
            Ok(Seen { holds: true, .. }) => "holds".into(),
            Ok(Seen { holds: false, .. }) => "does not hold".into(),
            Err(Snag::NotHere(why)) => format!("cannot be tried here: {why}"),
            Err(Snag::Broken(why)) => format!("could not be measured: {why}"),
        }
    }

    fn always_holds(_: bool) -> Tried {
        super::super::seen(true, "as the claim says")
    }

    fn never_holds(_: bool) -> Tried {
        super::super::seen(false, "otherwise")
    }

    const QUEUE: &[Need] = &[Need::Queue];

    #[test]
    fn a_claim_is_not_tried_without_what_it_needs() {
        let missing = || State::Missing("somaxconn is 0".into());
        let untried = "cannot be tried here: somaxconn is 0";

        assert_eq!(outcome(QUEUE, missing(), true, false), untried);
        assert_eq!(outcome(QUEUE, missing(), false, false), untried);
        assert_eq!(outcome(&[], missing(), true, false), "holds");
        // The counter-case has a need of its own.
        assert_eq!(outcome(&[], missing(), false, true), untried);
    }

    #[test]
    fn a_doubt_takes_the_place_of_an_accusation_only() {
        let doubt = || State::Doubtful("unread".into());

        assert_eq!(outcome(QUEUE, doubt(), true, false), "holds");
        assert_eq!(outcome(QUEUE, doubt(), false, true), "does not hold");
        let accused = "cannot be tried here: unread (otherwise)";
        assert_eq!(outcome(QUEUE, doubt(), false, false), accused);
        let accused = "cannot be tried here: unread (as the claim says)";
        assert_eq!(outcome(QUEUE, doubt(), true, true), accused);
    }

    #[test]
    fn a_met_need_leaves_the_verdict_alone() {
        assert_eq!(outcome(QUEUE, State::Met, false, false), "does not hold");
        assert_eq!(outcome(QUEUE, State::Met, true, true), "holds");
    }
}
