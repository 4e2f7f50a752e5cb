//! `reuseport explain`: every claim of the guide, tried on the kernel that runs this.

use std::time::Instant;

use crate::Failure;
use crate::args::Args;
use crate::claims::{CLAIMS, Claim, Seen, Setup, Snag};
use crate::output::print;

pub(crate) const HELP: &str = "\
Tries what the guide says of SO_REUSEPORT on this kernel; exits 1 if a claim does not hold

Usage: reuseport explain [OPTIONS]

  --claim NAME       this claim alone
  --counter          the counter-cases instead, in which no claim may hold
  --isolated         in a network namespace of its own, with the kernel's default set-up (Linux)
  --list             only name the claims

The guide is the module `guide` of the library's documentation. The sockets are on the loopback, on
free ports. Before it tries the claims, `explain` looks at what this machine's set-up lets it try.
It says of a claim that needs more (root, IPv6, another sysctl or kernel) that it cannot be tried
here, and why. With --isolated, the sysctls of the network are those that the kernel starts with.
";

/// Moves this process into a network namespace of its own.
fn isolate() -> Result<(), Failure> {
    #[cfg(linux_kernel)]
    let moved = crate::claims::isolated::isolate();
    #[cfg(not(linux_kernel))]
    let moved = Err("network namespaces exist on Linux only".to_owned());
    let failed = |why| Failure::Failed(format!("--isolated: no network namespace: {why}"));
    moved.map_err(failed)
}

/// What came of them all: as many of each.
#[derive(Default)]
struct Sum {
    hold: usize,
    fail: usize,
    unmeasured: usize,
    not_here: usize,
}

pub(crate) fn run(mut args: Args) -> Result<(), Failure> {
    let one = args.value("--claim", "the name of a claim (see --list)", |value| {
        CLAIMS.iter().find(|claim| name(claim) == value)
    })?;
    let (counter, list) = (args.flag("--counter"), args.flag("--list"));
    let isolated = args.flag("--isolated");
    args.finish()?;
    let mut claims = CLAIMS
        .iter()
        .filter(|claim| one.is_none_or(|one| one.name == claim.name));
    if list {
        claims.for_each(|claim| print(&format!("{}\n", name(claim))));
        return Ok(());
    }
    if isolated {
        isolate()?;
    }
    let (mut sum, begun, mut chapter) = (Sum::default(), Instant::now(), "");
    let setup = Setup::look(claims.clone(), counter);
    claims.by_ref().for_each(|claim| {
        if chapter != claim.chapter {
            chapter = claim.chapter;
            print(&format!("{chapter}\n\n"));
        }
        sum.try_one(claim, counter, &setup);
    });
    print(&format!(
        "{} hold, {} do not, {} cannot be tried here; in {:.1?}\n",
        sum.hold,
        sum.fail,
        sum.not_here,
        begun.elapsed()
    ));
    let (wrong, what) = if counter {
        (sum.hold, "hold where they must not")
    } else {
        (sum.fail, "do not hold on this kernel")
    };
    match (wrong, sum.unmeasured) {
        (0, 0) => Ok(()),
        (0, lost) => Err(Failure::Failed(format!("{lost} could not be measured"))),
        _ => Err(Failure::Failed(format!("{wrong} {what}"))),
    }
}

impl Sum {
    fn try_one(&mut self, claim: &Claim, counter: bool, setup: &Setup) {
        let begun = Instant::now();
        let after = |what| format!("{what} ({:.0?})", begun.elapsed());
        let (verdict, what) = match setup.try_claim(claim, counter) {
            Ok(Seen { holds: true, what }) => {
                self.hold += 1;
                ("holds", after(what))
            }
            Ok(Seen { holds: false, what }) => {
                self.fail += 1;
                ("does not hold", after(what))
            }
            Err(Snag::Broken(what)) => {
                self.unmeasured += 1;
                ("could not be measured", after(what))
            }
            Err(Snag::NotHere(what)) => {
                self.not_here += 1;
                ("cannot be tried here", what)
            }
        };
        let (name, says) = (name(claim), claim.says);
        let unless = if counter {
            format!("\n    Counter-case: {}.", claim.counter)
        } else {
            String::new()
        };
        print(&format!(
            "{name}: {verdict}\n    {says}{unless}\n    {what}\n\n"
        ));
    }
}

/// As the guide spells it.
fn name(claim: &Claim) -> String {
    claim.name.replace('_', "-")
}
