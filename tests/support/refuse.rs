//! System calls that a security policy refuses, as service managers and container runtimes do by
//! seccomp: for the calling thread, and the threads that it starts.
#![allow(dead_code, missing_docs, unreachable_pub)]

use std::mem::offset_of;
use std::thread;

use libc::{c_long, seccomp_data, sock_filter, sock_fprog};

/// Runs `what` in a thread where the system call `number` fails with `errno`: any, or the one with
/// this first argument.
pub fn refusing<T: Send>(
    number: c_long,
    first: Option<i32>,
    errno: i32,
    what: impl FnOnce() -> T + Send,
) -> T {
    let there = || {
        install(number, first, errno);
        what()
    };
    let done = thread::scope(|scope| scope.spawn(there).join());
    done.unwrap_or_else(|panic| std::panic::resume_unwind(panic))
}

fn install(number: c_long, first: Option<i32>, errno: i32) {
    let instruction = |code: u32, jf: u8, k: u32| sock_filter {
        code: code.try_into().expect("16 bits"),
        jt: 0,
        jf,
        k,
    };
    let load = |at: usize| {
        let at = at.try_into().expect("a small offset");
        instruction(libc::BPF_LD | libc::BPF_W | libc::BPF_ABS, 0, at)
    };
    let equals = |value: u32, otherwise| {
        instruction(
            libc::BPF_JMP | libc::BPF_JEQ | libc::BPF_K,
            otherwise,
            value,
        )
    };
    let answer = |what| instruction(libc::BPF_RET | libc::BPF_K, 0, what);
    let number = number.try_into().expect("a system call");
    let mut program = vec![load(offset_of!(seccomp_data, nr))];
    program.push(equals(number, if first.is_some() { 3 } else { 1 }));
    if let Some(first) = first {
        // The lower half, on a little-endian machine.
        program.push(load(offset_of!(seccomp_data, args)));
        program.push(equals(first.try_into().expect("not negative"), 1));
    }
    let errno = u32::try_from(errno).expect("an errno");
    program.push(answer(libc::SECCOMP_RET_ERRNO | errno));
    program.push(answer(libc::SECCOMP_RET_ALLOW));
    let len = program.len().try_into().expect("a few");
    let filter = program.as_mut_ptr();
    let program = sock_fprog { len, filter };
    // SAFETY: takes integers; concerns this thread.
    let bound = unsafe { libc::prctl(libc::PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) };
    assert_eq!(bound, 0);
    let (mode, at) = (libc::SECCOMP_MODE_FILTER, &raw const program);
    // SAFETY: `at` points to a program, whose instructions are readable.
    let set = unsafe { libc::prctl(libc::PR_SET_SECCOMP, mode, at) };
    assert_eq!(set, 0, "{}", std::io::Error::last_os_error());
}
